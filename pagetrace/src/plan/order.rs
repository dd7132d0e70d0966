//! The functions that take and give back sleeping locks, for the lock order: by fentry or by kprobe, all of them or none.

use super::{
    Attach, Event, EventPlan, KernelView, PassedOver, Probe, ProgramType, Stage,
    ways::{self, HANDLER_LOCK, probe},
};

/// How an acquiring function can end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// With the lock.
    Acquired,
    /// With 0, or without the lock after a signal.
    MayFail,
    /// As that, of a reader, whom the lock does not name, and after whatever signal.
    Interruptible,
    /// With 1, or without the lock.
    Try,
}

/// Whether a kernel must have the function.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    /// Every kernel has it.
    Always,
    /// Kernels with lockdep have it; a macro for another one elsewhere (include/linux/mutex.h, include/linux/rwsem.h).
    Lockdep,
}

/// Function, the kind of kprobe program, how it ends, where it is. `mutex_lock_io` calls `mutex_lock` and stays out.
const ACQUIRE: [(&str, &str, Ends, Where); 23] = [
    ("mutex_lock", "mutex", Ends::Acquired, Where::Always),
    ("mutex_lock_interruptible", "mutex", Ends::MayFail, Where::Always),
    ("mutex_lock_killable", "mutex", Ends::MayFail, Where::Always),
    ("mutex_trylock", "mutex", Ends::Try, Where::Always),
    ("mutex_lock_nested", "mutex", Ends::Acquired, Where::Lockdep),
    ("_mutex_lock_nest_lock", "mutex", Ends::Acquired, Where::Lockdep),
    ("mutex_lock_io_nested", "mutex", Ends::Acquired, Where::Lockdep),
    ("mutex_lock_interruptible_nested", "mutex", Ends::MayFail, Where::Lockdep),
    ("mutex_lock_killable_nested", "mutex", Ends::MayFail, Where::Lockdep),
    ("_mutex_trylock_nest_lock", "mutex", Ends::Try, Where::Lockdep),
    ("down_read", "read", Ends::Acquired, Where::Always),
    ("down_read_interruptible", "read", Ends::Interruptible, Where::Always),
    ("down_read_killable", "read", Ends::MayFail, Where::Always),
    ("down_read_trylock", "read", Ends::Try, Where::Always),
    ("down_write", "write", Ends::Acquired, Where::Always),
    ("down_write_killable", "write", Ends::MayFail, Where::Always),
    ("down_write_trylock", "write", Ends::Try, Where::Always),
    ("down_read_nested", "read", Ends::Acquired, Where::Lockdep),
    ("down_read_non_owner", "read", Ends::Acquired, Where::Lockdep),
    ("down_read_killable_nested", "read", Ends::MayFail, Where::Lockdep),
    ("down_write_nested", "write", Ends::Acquired, Where::Lockdep),
    ("_down_write_nest_lock", "write", Ends::Acquired, Where::Lockdep),
    ("down_write_killable_nested", "write", Ends::MayFail, Where::Lockdep),
];

/// Function, its kprobe program, where it is.
const RELEASE: [(&str, &str, Where); 4] = [
    ("mutex_unlock", "order_release", Where::Always),
    ("up_read", "order_release_read", Where::Always),
    ("up_write", "order_release", Where::Always),
    ("up_read_non_owner", "order_release_read", Where::Lockdep),
];

/// Initialisation, by the names it has had: the first that a kernel has counts.
const INIT: [(&str, &[&str]); 2] =
    [("init_mutex", &["__mutex_init", "mutex_init_generic"]), ("init_rwsem", &["__init_rwsem"])];

fn has(kernel: &dyn KernelView, name: &str, place: Where) -> bool {
    place == Where::Always || ways::has(kernel, name)
}

/// The program on entry of an acquiring function, and the one on its return.
fn acquire(attach: Attach, (name, mode, ends, _): (&str, &str, Ends, Where)) -> Vec<Probe> {
    let fentry = attach == Attach::Fentry;
    let own = format!("order_{}", name.trim_start_matches('_'));
    let (entry, exit) = match ends {
        Ends::Acquired => (format!("order_{mode}"), None),
        Ends::MayFail => (format!("order_{mode}_may_fail"), Some("order_may_fail")),
        Ends::Interruptible => (format!("order_{mode}_interruptible"), Some("order_may_fail")),
        Ends::Try => (format!("order_{mode}_try"), Some("order_try")),
    };
    let (enter, leave) = kinds(fentry);
    let exit = exit.map(|stem| probe(leave, if fentry { &own } else { stem }, name, Stage::Return));
    let entry = probe(enter, if fentry { &own } else { &entry }, name, Stage::Acquire);
    exit.into_iter().chain([entry]).collect()
}

fn kinds(fentry: bool) -> (ProgramType, ProgramType) {
    if fentry { (ProgramType::Fentry, ProgramType::Fexit) } else { (ProgramType::Kprobe, ProgramType::Kretprobe) }
}

/// All programs, if locks are had by `attach`.
fn by(kernel: &dyn KernelView, attach: Attach) -> Vec<Probe> {
    let fentry = attach == Attach::Fentry;
    let enter = kinds(fentry).0;
    let one = |stem: &str, name: &str, stage| {
        let own = format!("order_{}", name.trim_start_matches('_'));
        probe(enter, if fentry { &own } else { stem }, name, stage)
    };
    let acquire = ACQUIRE.into_iter().filter(|row| has(kernel, row.0, row.3)).flat_map(|row| acquire(attach, row));
    let release = RELEASE.into_iter().filter(|row| has(kernel, row.0, row.2));
    let mut out: Vec<Probe> = release.map(|(name, stem, _)| one(stem, name, Stage::Release)).collect();
    out.push(one("order_downgrade", "downgrade_write", Stage::Release));
    for (stem, names) in INIT {
        let known = names.iter().find(|name| has(kernel, name, Where::Lockdep));
        out.extend(known.map(|name| one(&format!("order_{stem}"), name, Stage::Release)));
    }
    out.extend(acquire);
    if kernel.has_symbol(HANDLER_LOCK) {
        out.push(one("order_fault", HANDLER_LOCK, Stage::Access));
    }
    out
}

/// Decides how sleeping locks are watched, best first in `order`. `check` says whether a probe may be attached.
pub(super) fn choose(
    kernel: &dyn KernelView,
    order: &[Attach],
    force: Option<Attach>,
    check: &dyn Fn(&Probe) -> Result<(), String>,
) -> EventPlan {
    let mut plan = EventPlan {
        event: Event::SleepingLock,
        attach: None,
        probes: Vec::new(),
        passed_over: Vec::new(),
        not_seen: Vec::new(),
    };
    let forced = force.filter(|attach| matches!(attach, Attach::Fentry | Attach::Kprobe));
    for &attach in order {
        let mut pass = |why: String| plan.passed_over.push(PassedOver { attach, why });
        if !matches!(attach, Attach::Fentry | Attach::Kprobe) {
            pass("mutexes have no tracepoints".to_owned());
        } else if forced.is_some_and(|forced| forced != attach) {
            pass("another attach type was asked for".to_owned());
        } else if let Some(chosen) = plan.attach {
            pass(format!("{} is better here", chosen.name()));
        } else {
            match with_faults(kernel, by(kernel, attach), check) {
                Ok(probes) => (plan.attach, plan.probes) = (Some(attach), probes),
                Err(why) => pass(why),
            }
        }
    }
    if plan.attach.is_some() {
        explain(&mut plan);
    }
    plan
}

/// The probes with a way to the faults, or why one of them is closed.
fn with_faults(
    kernel: &dyn KernelView,
    mut probes: Vec<Probe>,
    check: &dyn Fn(&Probe) -> Result<(), String>,
) -> Result<Vec<Probe>, String> {
    probes.iter().try_for_each(check)?;
    if !kernel.has_symbol(HANDLER_LOCK) {
        let ways = [ProgramType::BtfTracepoint, ProgramType::RawTracepoint];
        let ways = ways.map(|kind| probe(kind, "order_page_fault_kernel", "page_fault_kernel", Stage::Access));
        let open = ways.into_iter().map(|probe| check(&probe).map(|()| probe));
        probes.push(open.reduce(Result::or).unwrap_or_else(|| Err("there is no way to faults".to_owned()))?);
    }
    Ok(probes)
}

fn explain(plan: &mut EventPlan) {
    let seen = |names: &[&str]| plan.probes.iter().any(|probe| names.contains(&probe.target.as_str()));
    let blind: Vec<&str> =
        INIT.iter().filter(|(_, names)| !seen(names)).filter_map(|(_, names)| names.first().copied()).collect();
    plan.not_seen.push(NOT_TRACKED.to_owned());
    if !blind.is_empty() {
        plan.not_seen.push(format!("where locks are initialised: this kernel has no {}", blind.join(" and no ")));
    }
}

/// What the order does not cover.
const NOT_TRACKED: &str = "in the lock order: per-CPU rwsems, semaphores, rt_mutexes, ww_mutexes, page, folio and socket locks, completions \
     and other waits; locks taken before tracing began; what tasks outside the target take";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_a_lock_is_found_behind_each_of_them() {
        use crate::analysis::order::known::LOCKING;

        assert!(ACQUIRE.iter().all(|(name, ..)| LOCKING.contains(name)));
    }

    #[test]
    fn every_function_s_program_is_in_the_object() {
        let sources = concat!(
            include_str!("../../../pagetrace-ebpf/src/shims/order_fentry.rs"),
            include_str!("../../../pagetrace-ebpf/src/shims/order_kprobe.rs")
        );
        struct All;
        impl KernelView for All {
            fn has_symbol(&self, _name: &str) -> bool {
                true
            }
            fn has_btf_function(&self, _name: &str) -> bool {
                true
            }
            fn tracepoint_args(&self, _name: &str) -> Option<usize> {
                None
            }
            fn forbids_kprobe(&self, _name: &str) -> bool {
                false
            }
            fn cpu_has(&self, _flag: &str) -> bool {
                false
            }
            fn has_kprobes(&self) -> bool {
                true
            }
            fn preempts_programs(&self) -> bool {
                false
            }
            fn has_own_trampoline_ops(&self) -> bool {
                true
            }
        }
        for attach in [Attach::Fentry, Attach::Kprobe] {
            for probe in by(&All, attach) {
                let has = |end: &str| sources.contains(&format!("{}{end}", probe.program));
                assert!(has(",") || has("(") || has(")"), "{}", probe.program);
            }
        }
    }
}
