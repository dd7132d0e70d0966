//! Picks one way for each event.

use super::{
    Attach, Event, EventPlan, KernelView, PassedOver, Plan, Probe, ProgramType, access, order,
    ways::{HANDLER_LOCK, MODULE_FREE, WALKERS, has, vma_by_handler, walker, ways},
};

/// What the caller wants.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Use this attach type wherever the event can be had by it.
    pub force: Option<Attach>,
    /// Faults, walks and waits are wanted as well, not only violations.
    pub trace: bool,
    /// User accesses under a lock are wanted whether they fault or not.
    pub strict: bool,
    /// The order in which sleeping locks are taken is wanted.
    pub order: bool,
    /// What an earlier try to attach was refused.
    pub refused: Vec<Refusal>,
}

/// The kernel refused a program although everything it shows said that it would take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The program's attach type.
    pub attach: Attach,
    /// Its target.
    pub target: String,
    /// What the kernel said.
    pub why: String,
    /// It is the attach type that is closed here, not only this target.
    pub whole_type: bool,
}

/// Why no plan is possible.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// An event without which there is no verdict cannot be seen.
    #[error("this kernel does not show {}: {reasons}", .event.name())]
    Blind {
        /// The event.
        event: Event,
        /// Every way and what is wrong with it.
        reasons: String,
    },
}

/// Best first, where programs run to their end. fentry sees every rwsem function, so also a lock taken around the
/// mmap_lock wrappers, and costs a fraction of a kprobe. Tracepoints sit in the wrappers.
const FENTRY_FIRST: [Attach; 4] = [Attach::Fentry, Attach::Kprobe, Attach::Tracepoint, Attach::RawTracepoint];
/// Best first, where programs can be preempted: a kprobe runs with preemption disabled, so none of its events is
/// skipped because another task was stopped inside the program. Also where trampolines are slow to attach.
const KPROBE_FIRST: [Attach; 4] = [Attach::Kprobe, Attach::Fentry, Attach::Tracepoint, Attach::RawTracepoint];

/// Whether the kernel was built with modules (kernel/module/main.c, `find_module`); one that was not has none to lose.
fn has_modules(kernel: &dyn KernelView) -> bool {
    has(kernel, "find_module") || kernel.tracepoint_args(MODULE_FREE).is_some()
}

/// Plans for `kernel`.
///
/// # Errors
/// [`PlanError::Blind`] when locks, kernel-mode faults or the end of tasks cannot be seen at all.
pub fn plan(kernel: &dyn KernelView, wish: &Wish) -> Result<Plan, PlanError> {
    let mut events = Vec::new();
    for event in [Event::MmapLock, Event::KernelFault, Event::FaultKind, Event::FaultVma, Event::TaskLife] {
        events.push(choose(kernel, wish, event));
    }
    if has_modules(kernel) {
        events.push(choose(kernel, wish, Event::ModuleUnload));
    }
    if wish.strict {
        events.push(choose(kernel, wish, Event::UserBoundary));
        events.push(access::choose(kernel, &|probe| check(kernel, wish, probe)));
    }
    if wish.order {
        let check = |probe: &Probe| check(kernel, wish, probe);
        events.push(order::choose(kernel, order_of(kernel), wish.force, &check));
    }
    if wish.trace {
        events.push(choose(kernel, wish, Event::PageFault));
        events.push(choose(kernel, wish, Event::PageWalk));
    }
    for plan in &mut events {
        explain(plan, kernel.preempts_programs());
    }
    for plan in &events {
        let essential = matches!(
            plan.event,
            Event::MmapLock | Event::KernelFault | Event::TaskLife | Event::UserAccess | Event::SleepingLock
        );
        let forced_away = plan.event == Event::MmapLock && wish.force.is_some() && plan.attach != wish.force;
        if essential && (plan.attach.is_none() || forced_away) {
            let reasons: Vec<String> = plan
                .passed_over
                .iter()
                .filter(|passed| !forced_away || Some(passed.attach) == wish.force)
                .map(|passed| format!("{}: {}", passed.attach.name(), passed.why))
                .collect();
            return Err(PlanError::Blind { event: plan.event, reasons: reasons.join("; ") });
        }
    }
    Ok(Plan { events })
}

/// Attach types, best first here.
fn order_of(kernel: &dyn KernelView) -> &'static [Attach] {
    let fentry_first = kernel.has_own_trampoline_ops() && !kernel.preempts_programs();
    if fentry_first { &FENTRY_FIRST } else { &KPROBE_FIRST }
}

fn choose(kernel: &dyn KernelView, wish: &Wish, event: Event) -> EventPlan {
    let mut plan = EventPlan { event, attach: None, probes: Vec::new(), passed_over: Vec::new(), not_seen: Vec::new() };
    let mut order: Vec<Attach> = order_of(kernel).into();
    let optional = matches!(event, Event::FaultVma | Event::PageFault | Event::PageWalk);
    if let Some(force) = wish.force {
        order.sort_by_key(|attach| *attach != force);
    }
    for attach in order {
        let foreign = wish.force.is_some_and(|force| force != attach);
        match usable(kernel, wish, event, attach) {
            Err(why) => plan.passed_over.push(PassedOver { attach, why }),
            Ok(_) if foreign && optional && !same_family(wish.force, attach) => {
                plan.passed_over.push(PassedOver { attach, why: "another attach type was asked for".to_owned() });
            }
            Ok(_) if plan.attach.is_some() => {
                let chosen = plan.attach.map_or("", Attach::name);
                plan.passed_over.push(PassedOver { attach, why: format!("{chosen} is better here") });
            }
            Ok(probes) => {
                plan.attach = Some(attach);
                plan.probes = probes;
            }
        }
    }
    plan
}

/// Both kinds of tracepoint serve who asked for one.
fn same_family(force: Option<Attach>, attach: Attach) -> bool {
    let is_tracepoint = |attach| matches!(attach, Attach::Tracepoint | Attach::RawTracepoint);
    force == Some(attach) || (force.is_some_and(is_tracepoint) && is_tracepoint(attach))
}

/// The programs for this way, or why it is closed.
fn usable(kernel: &dyn KernelView, wish: &Wish, event: Event, attach: Attach) -> Result<Vec<Probe>, String> {
    if event == Event::PageWalk {
        return walks(kernel, wish, attach);
    }
    let none = || "there is no such way to this event".to_owned();
    let probes = ways(kernel, event, attach, wish.trace).ok_or_else(none)?;
    match check_all(kernel, wish, &probes) {
        Ok(()) => Ok(probes),
        Err(why) if event == Event::FaultVma => {
            let probes = vma_by_handler(attach).ok_or_else(none)?;
            if kernel.has_symbol(HANDLER_LOCK) {
                return Err(why);
            }
            check_all(kernel, wish, &probes).map(|()| probes)
        }
        Err(why) => Err(why),
    }
}

fn check_all(kernel: &dyn KernelView, wish: &Wish, probes: &[Probe]) -> Result<(), String> {
    probes.iter().try_for_each(|probe| check(kernel, wish, probe))
}

fn check(kernel: &dyn KernelView, wish: &Wish, probe: &Probe) -> Result<(), String> {
    let Probe { kind, target, .. } = probe;
    let attach = kind.attach();
    if let Some(refusal) = wish
        .refused
        .iter()
        .find(|refusal| refusal.attach == attach && (refusal.whole_type || refusal.target == *target))
    {
        return Err(format!("the kernel refused {}: {}", refusal.target, refusal.why));
    }
    match kind {
        ProgramType::Kprobe | ProgramType::Kretprobe => {
            if !kernel.has_kprobes() {
                return Err("this kernel was built without kprobes".to_owned());
            }
            if !kernel.has_symbol(target) {
                return Err(format!("this kernel has no function {target}"));
            }
        }
        ProgramType::Fentry | ProgramType::Fexit => {
            if !kernel.has_btf_function(target) {
                return Err(format!("BTF describes no function {target}"));
            }
        }
        ProgramType::Breakpoint => {
            // arch/x86/kernel/hw_breakpoint.c, `arch_build_bp_info`: without kprobes everything is on their blacklist.
            if !kernel.has_kprobes() {
                return Err("a kernel built without kprobes takes no breakpoint in its own code".to_owned());
            }
            if !kernel.has_symbol(target) {
                return Err(format!("this kernel has no function {target}"));
            }
        }
        ProgramType::BtfTracepoint | ProgramType::RawTracepoint => {
            if kernel.tracepoint_args(target).is_none() {
                return Err(format!("this kernel has no tracepoint {target}"));
            }
        }
    }
    Ok(())
}

/// As many walkers as the kernel lets us see.
fn walks(kernel: &dyn KernelView, wish: &Wish, attach: Attach) -> Result<Vec<Probe>, String> {
    let mut out = Vec::new();
    let mut last = "there are no tracepoints in page walks".to_owned();
    // A single walker may be closed to fentry and open to a kprobe: 5.10 refuses an argument that points to a number.
    let others: &[Attach] = if wish.force.is_none() { &[Attach::Fentry, Attach::Kprobe] } else { &[] };
    for (stem, names) in WALKERS {
        let mut ways = std::iter::once(attach).chain(others.iter().copied()).flat_map(|attach| {
            names.iter().map(move |name| walker(attach, stem, name)).filter(|probes| !probes.is_empty())
        });
        let found = ways.find(|probes| match check_all(kernel, wish, probes) {
            Ok(()) => true,
            Err(why) => {
                last = why;
                false
            }
        });
        // Only the attach type that is asked about counts as one that shows walks.
        out.extend(found.unwrap_or_default());
    }
    if !out.iter().any(|probe| probe.kind.attach() == attach) {
        out.clear();
    }
    if out.is_empty() { Err(last) } else { Ok(out) }
}

/// Says what the choice leaves unseen.
fn explain(plan: &mut EventPlan, preempts_programs: bool) {
    let tracepoints = plan.attach.is_some_and(|attach| matches!(attach, Attach::Tracepoint | Attach::RawTracepoint));
    let not_seen = match plan.event {
        Event::MmapLock if tracepoints => {
            Some("mmap locks taken by calling the rwsem functions directly, around the mmap_lock wrappers")
        }
        Event::FaultKind if plan.attach.is_none() => Some("whether a faulting access was a read or a write"),
        Event::FaultVma if plan.attach.is_none() => Some("the VMA that a faulting address lies in"),
        Event::UserBoundary if plan.attach.is_none() => Some("locks that a task takes along to user mode"),
        Event::UserBoundary => Some(
            "locks that an exception or interrupt takes along to user mode and another gives back before the task's next \
             system call",
        ),
        Event::ModuleUnload if plan.attach.is_none() => {
            Some("that a module is unloaded: what comes in its place may be taken for it")
        }
        Event::PageFault if plan.attach.is_none() => Some("page faults"),
        Event::PageFault if tracepoints => {
            Some("the latency and the result of page faults, and faults taken by get_user_pages")
        }
        Event::PageWalk if plan.attach.is_none() => Some("page walks"),
        Event::PageWalk => {
            let seen = |stem: &str| plan.probes.iter().any(|probe| probe.program.ends_with(stem));
            let missing: Vec<&str> = WALKERS.iter().map(|(stem, _)| *stem).filter(|stem| !seen(stem)).collect();
            if !missing.is_empty() {
                plan.not_seen.push(format!("walkers this kernel does not have or show: {}", missing.join(", ")));
            }
            None
        }
        _ => None,
    };
    if let Some(sentence) = not_seen {
        plan.not_seen.push(sentence.to_owned());
    }
    let lock = plan.event == Event::MmapLock;
    let skipped = match plan.attach {
        Some(Attach::Kprobe) if lock => Some(
            "lock events on a CPU where a BPF map update or lookup by system call was preempted meanwhile: the kernel \
             skips kprobe programs there, and before 6.7 does not count it",
        ),
        Some(Attach::Fentry) if lock && preempts_programs => Some(
            "lock events of a task that comes to a probe in which another task was preempted on that CPU; they are \
             counted as recursion_misses",
        ),
        _ => None,
    };
    plan.not_seen.extend(skipped.map(str::to_owned));
}
