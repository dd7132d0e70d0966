//! The ways to see each event, as data: which programs, on which functions or tracepoints.

use super::{Attach, Event, KernelView, Probe, ProgramType, Stage};

/// The fault handler's way to the lock; since 6.1 (mm/memory.c, later mm/mmap_lock.c), called by fault handlers only.
pub(super) const HANDLER_LOCK: &str = "lock_mm_and_find_vma";

/// How an acquiring function can end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Acquired,
    MayBeInterrupted,
    MayFail,
}

/// `include/linux/rwsem.h`: on every kernel.
const ACQUIRE: [(&str, Ends); 7] = [
    ("down_read", Ends::Acquired),
    ("down_write", Ends::Acquired),
    ("down_read_interruptible", Ends::MayBeInterrupted),
    ("down_read_killable", Ends::MayBeInterrupted),
    ("down_write_killable", Ends::MayBeInterrupted),
    ("down_read_trylock", Ends::MayFail),
    ("down_write_trylock", Ends::MayFail),
];
const RELEASE: [&str; 3] = ["up_read", "up_write", "downgrade_write"];

/// Functions of kernels built with lockdep (`CONFIG_DEBUG_LOCK_ALLOC`), macros for the plain ones elsewhere, and the
/// plain one that each does the work of. None calls another (kernel/locking/rwsem.c), so nothing is seen twice.
const LOCKDEP_ACQUIRE: [(&str, &str, Ends); 6] = [
    ("down_read_nested", "down_read", Ends::Acquired),
    ("down_read_non_owner", "down_read", Ends::Acquired),
    ("down_write_nested", "down_write", Ends::Acquired),
    ("_down_write_nest_lock", "down_write", Ends::Acquired),
    ("down_read_killable_nested", "down_read_killable", Ends::MayBeInterrupted),
    ("down_write_killable_nested", "down_write_killable", Ends::MayBeInterrupted),
];
const LOCKDEP_RELEASE: [(&str, &str); 1] = [("up_read_non_owner", "up_read")];

/// Walkers: the program's stem and the names kernels have given the function.
pub(super) const WALKERS: [(&str, &[&str]); 8] = [
    ("pagemap_read", &["pagemap_read"]),
    ("do_pagemap_scan", &["do_pagemap_scan"]),
    ("walk_page_range", &["walk_page_range"]),
    ("walk_page_range_mm", &["walk_page_range_mm", "walk_page_range_mm_unsafe"]),
    ("walk_page_range_vma", &["walk_page_range_vma"]),
    ("walk_page_range_novma", &["walk_page_range_novma", "walk_page_range_debug"]),
    ("walk_page_vma", &["walk_page_vma"]),
    ("walk_page_mapping", &["walk_page_mapping"]),
];

pub(super) fn probe(kind: ProgramType, stem: &str, target: &str, stage: Stage) -> Probe {
    Probe { program: format!("{}{stem}", kind.prefix()), kind, target: target.to_owned(), stage }
}

fn same(kind: ProgramType, target: &str, stage: Stage) -> Probe {
    probe(kind, target, target, stage)
}

/// Tracepoint that tells of a child (kernel/fork.c, `kernel_clone`).
const FORK: &str = "sched_process_fork";
/// Tracepoint that tells of a child a little before `sched_process_fork` does (kernel/fork.c, `copy_process`).
const NEW_TASK: &str = "task_newtask";
/// Function that every child passes through a little later (kernel/sched/core.c).
const WAKE_NEW_TASK: &str = "wake_up_new_task";

/// Tracepoint that tells of a module before it is freed (kernel/module/main.c, `free_module`).
pub(super) const MODULE_FREE: &str = "module_free";

/// Whether a program tells of children.
pub(super) fn tells_of_children(program: &str) -> bool {
    tells_of_children_usually(program) || [NEW_TASK, WAKE_NEW_TASK].iter().any(|name| program.ends_with(name))
}

/// Whether it is the one that does so everywhere.
pub(super) fn tells_of_children_usually(program: &str) -> bool {
    program.ends_with(FORK)
}

/// The program that tells of children besides the one of `sched_process_fork`, where that one can be skipped: two are hardly ever
/// skipped for the same child, and a kprobe never is by a task that was preempted in it.
fn second_of_children(kernel: &dyn KernelView, kind: ProgramType) -> Option<Probe> {
    if !kernel.preempts_programs() {
        return None;
    }
    if kernel.has_kprobes() && kernel.has_symbol(WAKE_NEW_TASK) && !kernel.forbids_kprobe(WAKE_NEW_TASK) {
        return Some(same(ProgramType::Kprobe, WAKE_NEW_TASK, Stage::TaskLife));
    }
    kernel.tracepoint_args(NEW_TASK).map(|_| same(kind, NEW_TASK, Stage::TaskLife))
}

/// The entry and return programs of a function that takes no lock for its caller.
fn pair(attach: Attach, stem: &str, target: &str) -> Vec<Probe> {
    let (entry, exit) = match attach {
        Attach::Kprobe => (ProgramType::Kprobe, ProgramType::Kretprobe),
        Attach::Fentry => (ProgramType::Fentry, ProgramType::Fexit),
        Attach::Tracepoint | Attach::RawTracepoint | Attach::Breakpoint => return Vec::new(),
    };
    vec![probe(entry, stem, target, Stage::Access), probe(exit, stem, target, Stage::Return)]
}

fn tracepoint(attach: Attach) -> Option<ProgramType> {
    match attach {
        Attach::Tracepoint => Some(ProgramType::BtfTracepoint),
        Attach::RawTracepoint => Some(ProgramType::RawTracepoint),
        Attach::Kprobe | Attach::Fentry | Attach::Breakpoint => None,
    }
}

/// The mmap_lock tracepoints. For a time they carried a cgroup path before `write` (include/trace/events/mmap_lock.h):
/// one argument more, another program.
fn lock_by_tracepoint(kernel: &dyn KernelView, kind: ProgramType, trace: bool) -> Vec<Probe> {
    let with_path = |name: &str, plain: usize, stage| match kernel.tracepoint_args(name) {
        Some(args) if args > plain => probe(kind, &format!("{name}_path"), name, stage),
        _ => same(kind, name, stage),
    };
    let mut out = vec![
        with_path("mmap_lock_released", 2, Stage::Release),
        with_path("mmap_lock_acquire_returned", 3, Stage::Acquire),
    ];
    if trace {
        out.push(same(kind, "mmap_lock_start_locking", Stage::Acquire));
    }
    out
}

/// Programs that show `event` by `attach`; `None` when there is no such way. `trace` asks for waits as well.
pub(super) fn ways(kernel: &dyn KernelView, event: Event, attach: Attach, trace: bool) -> Option<Vec<Probe>> {
    let tp = |names: &[&str], stage| -> Option<Vec<Probe>> {
        tracepoint(attach).map(|kind| names.iter().map(|name| same(kind, name, stage)).collect())
    };
    let function = |entry: bool, exit: bool, name: &str| {
        let probes: Vec<Probe> = pair(attach, name, name)
            .into_iter()
            .filter(|probe| match probe.kind {
                ProgramType::Kprobe | ProgramType::Fentry => entry,
                _ => exit,
            })
            .collect();
        (!probes.is_empty()).then_some(probes)
    };
    match event {
        Event::MmapLock => match attach {
            Attach::Fentry => Some(lock_by_fentry(kernel, trace)),
            Attach::Kprobe => Some(lock_by_kprobe(kernel, trace)),
            Attach::Tracepoint | Attach::RawTracepoint | Attach::Breakpoint => {
                tracepoint(attach).map(|kind| lock_by_tracepoint(kernel, kind, trace))
            }
        },
        Event::KernelFault => tp(&["page_fault_kernel"], Stage::Access).or_else(|| function(true, false, HANDLER_LOCK)),
        Event::FaultKind => tp(&["page_fault_kernel"], Stage::Access),
        Event::FaultVma => function(false, true, HANDLER_LOCK),
        Event::PageFault => match tracepoint(attach) {
            Some(kind) => Some(vec![
                probe(kind, "trace_fault_user", "page_fault_user", Stage::Access),
                probe(kind, "trace_fault_kernel", "page_fault_kernel", Stage::Access),
            ]),
            None => function(true, true, "handle_mm_fault"),
        },
        Event::PageWalk => {
            let probes: Vec<Probe> =
                WALKERS.iter().flat_map(|(stem, names)| pair(attach, stem, names.first().unwrap_or(stem))).collect();
            (!probes.is_empty()).then_some(probes)
        }
        Event::UserBoundary => tp(&["sys_enter", "sys_exit"], Stage::Access),
        Event::ModuleUnload => tp(&[MODULE_FREE], Stage::TaskLife),
        // Each function is asked about by itself, in `access` and `order`.
        Event::UserAccess | Event::SleepingLock => None,
        Event::TaskLife => {
            let mut probes = tp(&[FORK, "sched_process_exec", "sched_process_free"], Stage::TaskLife)?;
            probes.extend(tracepoint(attach).and_then(|kind| second_of_children(kernel, kind)));
            Some(probes)
        }
    }
}

/// The way to the VMA where the handler's lock path does not exist: the handler itself is given it.
pub(super) fn vma_by_handler(attach: Attach) -> Option<Vec<Probe>> {
    let mut probes = pair(attach, "handle_mm_fault", "handle_mm_fault");
    probes.truncate(1);
    (!probes.is_empty()).then_some(probes)
}

/// One walker's programs.
pub(super) fn walker(attach: Attach, stem: &str, target: &str) -> Vec<Probe> {
    pair(attach, stem, target)
}

/// Whether this kernel has a function. One that only kallsyms shows counts too: a way that cannot be hooked there must be
/// passed over, not leave unseen what it shows.
pub(super) fn has(kernel: &dyn KernelView, name: &str) -> bool {
    kernel.has_symbol(name) || kernel.has_btf_function(name)
}

/// Every acquiring function of this kernel, and the plain one whose work it does.
fn acquiring(kernel: &dyn KernelView) -> impl Iterator<Item = (&'static str, &'static str, Ends)> {
    let plain = ACQUIRE.into_iter().map(|(name, ends)| (name, name, ends));
    plain.chain(LOCKDEP_ACQUIRE.into_iter().filter(|(name, ..)| has(kernel, name)))
}

/// As [`acquiring`], for releases and the downgrade.
fn releasing(kernel: &dyn KernelView) -> impl Iterator<Item = (&'static str, &'static str)> {
    let plain = RELEASE.into_iter().map(|name| (name, name));
    plain.chain(LOCKDEP_RELEASE.into_iter().filter(|(name, _)| has(kernel, name)))
}

/// An fentry program is bound to one function when it is loaded, so each function has its own.
fn lock_by_fentry(kernel: &dyn KernelView, trace: bool) -> Vec<Probe> {
    // Programs have no underscore before the function's name but their prefix's.
    let own = |kind, name: &str, stage| probe(kind, name.trim_start_matches('_'), name, stage);
    let mut out = Vec::new();
    for (name, _plain, ends) in acquiring(kernel) {
        if trace && ends != Ends::MayFail {
            out.push(own(ProgramType::Fentry, name, Stage::Acquire));
        }
        out.push(own(ProgramType::Fexit, name, Stage::Acquire));
    }
    out.extend(releasing(kernel).map(|(name, _plain)| own(ProgramType::Fentry, name, Stage::Release)));
    out
}

/// A kprobe program goes to as many functions as have the same arguments and results.
fn lock_by_kprobe(kernel: &dyn KernelView, trace: bool) -> Vec<Probe> {
    let mut out = Vec::new();
    for (name, plain, ends) in acquiring(kernel) {
        // The return first: a program that is attached must never wait for a return that nobody reports.
        if trace || ends != Ends::Acquired {
            out.push(probe(ProgramType::Kretprobe, plain, name, Stage::Return));
        }
        out.push(probe(ProgramType::Kprobe, plain, name, Stage::Acquire));
    }
    out.extend(releasing(kernel).map(|(name, plain)| probe(ProgramType::Kprobe, plain, name, Stage::Release)));
    out
}
