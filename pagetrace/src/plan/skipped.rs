//! What is hidden when the kernel skips a program, because one of this tracer's is running already on that CPU.
//!
//! Not every skipped call can hide a violation. Which can is decided here, from what the plan uses the program for; the
//! counting is the loader's.

use super::{
    Event, Plan,
    ways::{tells_of_children, tells_of_children_usually},
};

/// What a skipped call of a program means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hides {
    /// An event that a verdict rests on.
    Event,
    /// A child of the target, of which two programs tell.
    Child {
        /// Whether this is the usual one.
        first: bool,
    },
    /// The end of a task: it holds nothing any more, only its state stays until the tracing ends.
    TaskEnd,
    /// Whether a fault was a read or a write; the fault itself is seen elsewhere.
    FaultKind,
    /// A way out of the kernel, after a system call.
    Leaving,
    /// A way into the kernel, with a system call.
    Entering,
    /// The end of a module.
    Unload,
}

fn hides(plan: &Plan, program: &str) -> Hides {
    let users: Vec<Event> = plan
        .events
        .iter()
        .filter(|event| event.probes.iter().any(|probe| probe.program == program))
        .map(|event| event.event)
        .collect();
    match users.as_slice() {
        [Event::TaskLife] if program.ends_with("sched_process_free") => Hides::TaskEnd,
        [Event::TaskLife] if tells_of_children(program) && twice_told(plan) => {
            Hides::Child { first: tells_of_children_usually(program) }
        }
        [Event::FaultKind] => Hides::FaultKind,
        [Event::UserBoundary] if program.ends_with("sys_exit") => Hides::Leaving,
        [Event::UserBoundary] => Hides::Entering,
        [Event::ModuleUnload] => Hides::Unload,
        _ => Hides::Event,
    }
}

/// Whether two programs tell of a child.
fn twice_told(plan: &Plan) -> bool {
    let life = plan.events.iter().filter(|event| event.event == Event::TaskLife);
    life.flat_map(|event| &event.probes).filter(|probe| tells_of_children(&probe.program)).count() == 2
}

/// Skipped calls as counters of a report: `misses` has each program's.
///
/// A lock taken along to user mode passes the end of one system call and the beginning of the next: as long as only one
/// of the two programs was ever skipped, the other has seen it. So it is with children, where two programs tell of them.
pub fn counters<'a>(plan: &Plan, misses: impl Iterator<Item = (&'a str, u64)>) -> [(&'static str, u64); 6] {
    let (mut events, mut ends, mut kinds, mut leaving, mut entering, mut unloads) = (0, 0, 0, 0, 0, 0);
    let (mut first, mut second) = (0, 0);
    for (program, count) in misses {
        *match hides(plan, program) {
            Hides::Event => &mut events,
            Hides::Child { first: true } => &mut first,
            Hides::Child { first: false } => &mut second,
            Hides::TaskEnd => &mut ends,
            Hides::FaultKind => &mut kinds,
            Hides::Leaving => &mut leaving,
            Hides::Entering => &mut entering,
            Hides::Unload => &mut unloads,
        } += count;
    }
    // How many of two programs' calls can hide something: none, as long as one of them saw everything.
    let hidden = |one: u64, other: u64| if one != 0 && other != 0 { one + other } else { 0 };
    let (both, children) = (hidden(leaving, entering), hidden(first, second));
    [
        ("recursion_misses", events + both + children),
        ("fork_missed", first + second - children),
        ("task_end_missed", ends),
        ("fault_kind_missed", kinds),
        ("user_boundary_missed", leaving + entering - both),
        ("module_unload_missed", unloads),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{EventPlan, Probe, ProgramType, Stage};

    fn plan(events: &[(Event, &[&str])]) -> Plan {
        let probe = |program: &&str| Probe {
            program: (*program).to_owned(),
            kind: ProgramType::BtfTracepoint,
            target: String::new(),
            stage: Stage::Access,
        };
        let event = |(event, programs): &(Event, &[&str])| EventPlan {
            event: *event,
            attach: None,
            probes: programs.iter().map(probe).collect(),
            passed_over: Vec::new(),
            not_seen: Vec::new(),
        };
        Plan { events: events.iter().map(event).collect() }
    }

    fn told(events: &[(Event, &[&str])], misses: &[(&str, u64)]) -> Vec<(&'static str, u64)> {
        let counters = counters(&plan(events), misses.iter().copied());
        counters.into_iter().filter(|(_, count)| *count != 0).collect()
    }

    #[test]
    fn a_skipped_lock_fork_or_fault_can_hide_a_violation() {
        let events: [(Event, &[&str]); 3] = [
            (Event::MmapLock, &["fx_down_read"]),
            (Event::TaskLife, &["tb_sched_process_fork", "tb_sched_process_free"]),
            (Event::KernelFault, &["fe_lock_mm_and_find_vma"]),
        ];
        let misses = [("fx_down_read", 1), ("tb_sched_process_fork", 2), ("fe_lock_mm_and_find_vma", 4)];
        assert_eq!(told(&events, &misses), [("recursion_misses", 7)]);
        assert_eq!(told(&events, &[("tb_sched_process_free", 3)]), [("task_end_missed", 3)]);
        assert_eq!(told(&events, &[("unheard_of", 1)]), [("recursion_misses", 1)]);
    }

    #[test]
    fn a_child_that_two_programs_tell_of_is_seen_by_one() {
        let events: [(Event, &[&str]); 1] =
            [(Event::TaskLife, &["tb_sched_process_fork", "tb_sched_process_free", "tb_task_newtask"])];
        assert_eq!(told(&events, &[("tb_sched_process_fork", 4)]), [("fork_missed", 4)]);
        assert_eq!(told(&events, &[("tb_task_newtask", 4)]), [("fork_missed", 4)]);
        assert_eq!(told(&events, &[("tb_task_newtask", 4), ("tb_sched_process_fork", 1)]), [("recursion_misses", 5)]);
    }

    #[test]
    fn the_exception_hides_nothing_unless_the_verdict_rests_on_it() {
        let fault: &[&str] = &["tb_page_fault_kernel"];
        let misses = [("tb_page_fault_kernel", 2)];
        assert_eq!(told(&[(Event::FaultKind, fault)], &misses), [("fault_kind_missed", 2)]);
        let proves = [(Event::KernelFault, fault), (Event::FaultKind, fault)];
        assert_eq!(told(&proves, &misses), [("recursion_misses", 2)]);
    }

    #[test]
    fn what_goes_to_user_mode_with_a_lock_passes_two_programs() {
        let events: [(Event, &[&str]); 1] = [(Event::UserBoundary, &["tb_sys_enter", "tb_sys_exit"])];
        assert_eq!(told(&events, &[("tb_sys_enter", 5)]), [("user_boundary_missed", 5)]);
        assert_eq!(told(&events, &[("tb_sys_exit", 5)]), [("user_boundary_missed", 5)]);
        assert_eq!(told(&events, &[("tb_sys_enter", 5), ("tb_sys_exit", 1)]), [("recursion_misses", 6)]);
    }
}
