//! Kernels made up for the tests of plans: each has what the real one of its series has, as far as a plan asks.

use std::collections::HashMap;

use super::super::KernelView;

pub(super) const PLAIN: [&str; 10] = [
    "down_read",
    "down_write",
    "down_read_interruptible",
    "down_read_killable",
    "down_write_killable",
    "down_read_trylock",
    "down_write_trylock",
    "up_read",
    "up_write",
    "downgrade_write",
];
pub(super) const LOCKDEP: [&str; 7] = [
    "down_read_nested",
    "down_read_non_owner",
    "down_write_nested",
    "_down_write_nest_lock",
    "down_read_killable_nested",
    "down_write_killable_nested",
    "up_read_non_owner",
];

/// A kernel that shows what its fields say.
#[derive(Clone)]
pub(super) struct Fake {
    pub(super) symbols: Vec<&'static str>,
    pub(super) btf: Vec<&'static str>,
    pub(super) tracepoints: HashMap<&'static str, usize>,
    pub(super) forbidden: Vec<&'static str>,
    pub(super) cpu: &'static str,
    pub(super) kprobes: bool,
    pub(super) preempts: bool,
    pub(super) own_ops: bool,
}

impl KernelView for Fake {
    fn has_symbol(&self, name: &str) -> bool {
        self.symbols.contains(&name)
    }
    fn has_btf_function(&self, name: &str) -> bool {
        self.btf.contains(&name)
    }
    fn tracepoint_args(&self, name: &str) -> Option<usize> {
        self.tracepoints.get(name).copied()
    }
    fn forbids_kprobe(&self, name: &str) -> bool {
        self.forbidden.contains(&name)
    }
    fn cpu_has(&self, flag: &str) -> bool {
        self.cpu.split(' ').any(|known| known == flag)
    }
    fn has_kprobes(&self) -> bool {
        self.kprobes
    }
    fn preempts_programs(&self) -> bool {
        self.preempts
    }
    fn has_own_trampoline_ops(&self) -> bool {
        self.own_ops
    }
}

impl Fake {
    pub(super) fn add(mut self, functions: &[&'static str]) -> Self {
        self.symbols.extend(functions);
        self.btf.extend(functions);
        self
    }

    pub(super) fn without(mut self, functions: &[&str]) -> Self {
        self.symbols.retain(|name| !functions.contains(name));
        self.btf.retain(|name| !functions.contains(name));
        self
    }

    pub(super) fn without_tracepoints(mut self, prefix: &str) -> Self {
        self.tracepoints.retain(|name, _| !name.starts_with(prefix));
        self
    }
}

/// As 5.10 is: no handler lock path, no tracepoint in the wrappers, one ftrace_ops for all trampolines.
pub(super) fn v5_10() -> Fake {
    let fake = Fake {
        symbols: Vec::new(),
        btf: Vec::new(),
        tracepoints: HashMap::from([
            ("page_fault_user", 3),
            ("page_fault_kernel", 3),
            ("sched_process_fork", 2),
            ("sched_process_exec", 3),
            ("sched_process_free", 1),
            ("module_free", 1),
        ]),
        forbidden: Vec::new(),
        cpu: "fpu erms",
        kprobes: true,
        preempts: false,
        own_ops: false,
    };
    fake.add(&PLAIN).add(&[
        "handle_mm_fault",
        "pagemap_read",
        "walk_page_range",
        "walk_page_range_novma",
        "walk_page_vma",
        "walk_page_mapping",
    ])
}

/// As 6.1 is: the handler's own way to the lock; the tracepoints carry a cgroup path.
pub(super) fn v6_1() -> Fake {
    let mut fake = v5_10().add(&["lock_mm_and_find_vma", "walk_page_range_vma"]);
    fake.own_ops = true;
    fake.tracepoints.extend([
        ("mmap_lock_start_locking", 3),
        ("mmap_lock_acquire_returned", 4),
        ("mmap_lock_released", 3),
    ]);
    fake
}

/// As 6.12 is: PAGEMAP_SCAN.
pub(super) fn v6_12() -> Fake {
    v6_1().add(&["do_pagemap_scan"])
}

/// As 6.18 is: no path in the tracepoints, walkers that were renamed; preemption can be on.
pub(super) fn v6_18() -> Fake {
    let mut fake =
        v6_12().add(&["walk_page_range_mm_unsafe", "walk_page_range_debug"]).without(&["walk_page_range_novma"]);
    fake.tracepoints.extend([
        ("mmap_lock_start_locking", 2),
        ("mmap_lock_acquire_returned", 3),
        ("mmap_lock_released", 2),
    ]);
    fake
}

/// As 7.3 is: preemption is on by default.
pub(super) fn v7_3() -> Fake {
    Fake { preempts: true, ..v6_18() }
}
