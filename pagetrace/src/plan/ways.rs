//! The ways to see each event, as data: which programs, on which functions or tracepoints.

use super::{Attach, Event, KernelView, Probe, ProgramType};

/// The fault handler's way to the lock; since 6.1 (mm/memory.c, later mm/mmap_lock.c), called by fault handlers only.
pub(super) const HANDLER_LOCK: &str = "lock_mm_and_find_vma";

/// How an acquiring function can end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Acquired,
    MayBeInterrupted,
    MayFail,
}

/// `include/linux/rwsem.h`; the nested and non-owner forms are macros for these on kernels without lockdep.
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

fn probe(kind: ProgramType, stem: &str, target: &str) -> Probe {
    Probe { program: format!("{}{stem}", kind.prefix()), kind, target: target.to_owned() }
}

fn same(kind: ProgramType, target: &str) -> Probe {
    probe(kind, target, target)
}

/// The entry and return programs of a function, under its own stem.
fn pair(attach: Attach, stem: &str, target: &str) -> Vec<Probe> {
    match attach {
        Attach::Kprobe => vec![probe(ProgramType::Kprobe, stem, target), probe(ProgramType::Kretprobe, stem, target)],
        Attach::Fentry => vec![probe(ProgramType::Fentry, stem, target), probe(ProgramType::Fexit, stem, target)],
        Attach::Tracepoint | Attach::RawTracepoint => Vec::new(),
    }
}

fn tracepoint(attach: Attach) -> Option<ProgramType> {
    match attach {
        Attach::Tracepoint => Some(ProgramType::BtfTracepoint),
        Attach::RawTracepoint => Some(ProgramType::RawTracepoint),
        Attach::Kprobe | Attach::Fentry => None,
    }
}

/// The mmap_lock tracepoints. For a time they carried a cgroup path before `write` (include/trace/events/mmap_lock.h):
/// one argument more, another program.
fn lock_by_tracepoint(kernel: &dyn KernelView, kind: ProgramType, trace: bool) -> Vec<Probe> {
    let with_path = |name: &str, plain: usize| match kernel.tracepoint_args(name) {
        Some(args) if args > plain => probe(kind, &format!("{name}_path"), name),
        _ => same(kind, name),
    };
    let mut out = vec![with_path("mmap_lock_released", 2), with_path("mmap_lock_acquire_returned", 3)];
    if trace {
        out.push(same(kind, "mmap_lock_start_locking"));
    }
    out
}

/// Programs that show `event` by `attach`; `None` when there is no such way. `trace` asks for waits as well.
pub(super) fn ways(kernel: &dyn KernelView, event: Event, attach: Attach, trace: bool) -> Option<Vec<Probe>> {
    let tp = |names: &[&str]| tracepoint(attach).map(|kind| names.iter().map(|name| same(kind, name)).collect());
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
            Attach::Fentry => Some(lock_by_fentry(trace)),
            Attach::Kprobe => Some(lock_by_kprobe(trace)),
            Attach::Tracepoint | Attach::RawTracepoint => {
                tracepoint(attach).map(|kind| lock_by_tracepoint(kernel, kind, trace))
            }
        },
        Event::KernelFault => tp(&["page_fault_kernel"]).or_else(|| function(true, false, HANDLER_LOCK)),
        Event::FaultKind => tp(&["page_fault_kernel"]),
        Event::FaultVma => function(false, true, HANDLER_LOCK),
        Event::PageFault => match tracepoint(attach) {
            Some(kind) => Some(vec![
                probe(kind, "trace_fault_user", "page_fault_user"),
                probe(kind, "trace_fault_kernel", "page_fault_kernel"),
            ]),
            None => function(true, true, "handle_mm_fault"),
        },
        Event::PageWalk => {
            let probes: Vec<Probe> =
                WALKERS.iter().flat_map(|(stem, names)| pair(attach, stem, names.first().unwrap_or(stem))).collect();
            (!probes.is_empty()).then_some(probes)
        }
        Event::TaskLife => tp(&["sched_process_fork", "sched_process_exec", "sched_process_free"]),
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

fn lock_by_fentry(trace: bool) -> Vec<Probe> {
    let mut out = Vec::new();
    for (name, ends) in ACQUIRE {
        if trace && ends != Ends::MayFail {
            out.push(same(ProgramType::Fentry, name));
        }
        out.push(same(ProgramType::Fexit, name));
    }
    out.extend(RELEASE.map(|name| same(ProgramType::Fentry, name)));
    out
}

fn lock_by_kprobe(trace: bool) -> Vec<Probe> {
    let mut out = Vec::new();
    for (name, ends) in ACQUIRE {
        // The return first: a program that is attached must never wait for a return that nobody reports.
        if trace || ends != Ends::Acquired {
            out.push(same(ProgramType::Kretprobe, name));
        }
        out.push(same(ProgramType::Kprobe, name));
    }
    out.extend(RELEASE.map(|name| same(ProgramType::Kprobe, name)));
    out
}
