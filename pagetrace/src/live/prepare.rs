//! From facts about the kernel to the settings and the view that planning needs.

use std::collections::BTreeSet;

use pagetrace_ebpf::wire::setting;

use super::{order, settings::Settings, strict};
use crate::{
    kernel::{
        KernelFacts,
        btf::Btf,
        cast::Cast,
        kallsyms::Kallsyms,
        module::Regions,
        offsets::Offsets,
        slab::{Head, Slab},
        tracefs::Presence,
    },
    plan::{KernelView, Plan},
};

/// The kernel as planning sees it.
pub struct View<'a> {
    facts: &'a KernelFacts,
    btf: &'a Btf,
}

impl<'a> View<'a> {
    /// `None` without BTF: nothing can be planned then.
    pub fn of(facts: &'a KernelFacts) -> Option<Self> {
        facts.btf.as_ref().ok().map(|btf| Self { facts, btf })
    }
}

impl KernelView for View<'_> {
    fn has_symbol(&self, name: &str) -> bool {
        self.facts.kallsyms.as_ref().is_ok_and(|symbols| symbols.contains(name))
    }

    fn has_btf_function(&self, name: &str) -> bool {
        // Without a symbol there is nothing to attach to, whatever BTF describes.
        self.btf.has_func(name) && (self.facts.kallsyms.is_err() || self.has_symbol(name))
    }

    fn tracepoint_args(&self, name: &str) -> Option<usize> {
        self.btf.tracepoint_args(name)
    }

    fn forbids_kprobe(&self, name: &str) -> bool {
        self.facts.features.kprobe_blacklist.contains(name)
    }

    fn cpu_has(&self, flag: &str) -> bool {
        self.facts.features.cpu_flags.contains(flag)
    }

    fn has_kprobes(&self) -> bool {
        self.facts.features.kprobes != Presence::Absent
    }

    fn preempts_programs(&self) -> bool {
        self.facts.features.preemptible
    }

    fn has_own_trampoline_ops(&self) -> bool {
        self.btf.member_offset("bpf_trampoline", "fops").is_some()
    }
}

/// What a run asks of the BPF object, besides what the kernel determines.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// Emit faults, walks, waits and holds.
    pub trace: bool,
    /// Judge user accesses under a lock whether they fault or not.
    pub strict: bool,
    /// Follow the order in which sleeping locks are taken.
    pub order: bool,
    /// Do not keep the stack of each acquisition.
    pub no_lock_stacks: bool,
    /// Compare every shortcut for unwinding with unwinding.
    pub verify_shortcuts: bool,
    /// Shortest wait or hold emitted, nanoseconds.
    pub min_lock_ns: u64,
    /// Shortest fault emitted, nanoseconds.
    pub min_fault_ns: u64,
    /// One of [`setting::target`].
    pub target_mode: u64,
    /// Wanted comm, filled up with NUL.
    pub comm: Option<[u8; 16]>,
    /// Wanted cgroup: id and level.
    pub cgroup: Option<(u64, u32)>,
    /// Emit the stream of a recording, and wake the reader when so many bytes are unread.
    pub stream: Option<u64>,
}

/// The settings for this kernel, plan and run.
pub fn settings(
    btf: &Btf,
    cast: Option<Cast>,
    kallsyms: Option<&Kallsyms>,
    offsets: &Offsets,
    plan: &Plan,
    run: &Run,
) -> Settings {
    let mut out = Settings::default();
    let Offsets { task, mm, rwsem, vma, file, regs, slab, .. } = offsets;
    for (slot, offset) in [
        (setting::TASK_MM, task.mm),
        (setting::TASK_FLAGS, task.flags),
        (setting::TASK_PID, task.pid),
        (setting::TASK_TGID, task.tgid),
        (setting::TASK_COMM, task.comm),
        (setting::TASK_SIGNAL, task.signal),
        (setting::TASK_NOFAULT, task.pagefault_disabled),
        (setting::MM_LOCK, mm.mmap_lock),
        (setting::SEM_COUNT, rwsem.count),
        (setting::VMA_START, vma.vm_start),
        (setting::VMA_END, vma.vm_end),
        (setting::VMA_FLAGS, vma.vm_flags),
        (setting::VMA_PGOFF, vma.vm_pgoff),
        (setting::VMA_FILE, vma.vm_file),
        (setting::VMA_MM, vma.vm_mm),
        (setting::FILE_DENTRY, file.dentry),
        (setting::DENTRY_NAME, file.d_name),
        (setting::DENTRY_INODE, file.d_inode),
        (setting::INODE_INO, file.i_ino),
        (setting::REGS_IP, regs.ip),
    ] {
        out.set(slot, u64::from(offset));
    }
    out.set_if(setting::TASK_START, task.start_time.map(u64::from))
        .set_if(setting::TASK_PENDING, task.pending.map(u64::from))
        .set_if(setting::MM_OWNER, mm.owner.map(u64::from))
        .set_if(setting::MM_PGD, mm.pgd.map(u64::from))
        .set_if(setting::SEM_OWNER, rwsem.owner.map(u64::from))
        .set_if(setting::REGS_CS, regs.cs.map(u64::from))
        .set_if(setting::FILE_PRIVATE, btf.member_offset("file", "private_data").map(u64::from))
        .set(setting::CONFIRM_BY_LOCK, u64::from(plan.confirms_by_lock()))
        .set(setting::VMA_BY_RETURN, u64::from(plan.vma_by_return()))
        .set_if(setting::CAST_TYPE, cast.map(|cast| u64::from(cast.structure)))
        .set(setting::LOCK_STACKS, u64::from(!run.no_lock_stacks))
        .set(setting::VERIFY_SHORTCUTS, u64::from(run.verify_shortcuts))
        .set(setting::TRACE, u64::from(run.trace))
        .set(setting::STREAM, u64::from(run.stream.is_some()))
        .set(setting::RING_WAKE, run.stream.unwrap_or(0))
        .set(setting::MIN_LOCK_NS, run.min_lock_ns)
        .set(setting::MIN_FAULT_NS, run.min_fault_ns)
        .set(setting::SELF_TGID, u64::from(std::process::id()))
        .set(setting::TARGET_MODE, run.target_mode);
    if let Some(Regions { text, data }) = Regions::from_btf(btf) {
        out.set(setting::MODULE_TEXT, text.base)
            .set(setting::MODULE_TEXT_SIZE, text.size)
            .set_if(setting::MODULE_DATA, data.map(|data| data.base))
            .set_if(setting::MODULE_DATA_SIZE, data.map(|data| data.size));
    }
    if run.strict {
        strict::set(&mut out, btf, kallsyms);
    }
    if run.order {
        order::set(&mut out, btf, kallsyms, slab.as_ref());
    }
    if let Some(symbols) = kallsyms {
        let variable = |name: &str| symbols.address_of(name).filter(|at| *at != 0);
        out.set_if(setting::INIT_MM, symbols.address_of("init_mm"))
            .set_if(setting::PAGE_OFFSET_BASE, variable("page_offset_base"))
            .set_if(setting::PGDIR_SHIFT, variable("pgdir_shift"))
            .set_if(setting::SME_MASK, variable("sme_me_mask"));
        if let Some(slab) = slab {
            set_slab(&mut out, slab, symbols);
        }
    }
    if let Some(comm) = run.comm {
        let (low, high) = comm.split_at(8);
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |word, byte| (word << 8) | u64::from(*byte));
        out.set(setting::TARGET_COMM_LO, word(low)).set(setting::TARGET_COMM_HI, word(high));
    }
    if let Some((id, level)) = run.cgroup {
        out.set(setting::TARGET_CGROUP, id).set(setting::TARGET_CGROUP_LEVEL, u64::from(level));
    }
    out
}

/// All or nothing: with one piece missing the object falls back to the address spaces it saw being made.
fn set_slab(out: &mut Settings, slab: &Slab, symbols: &Kallsyms) {
    let wanted =
        ["page_offset_base", "vmemmap_base", "mm_cachep"].map(|name| symbols.address_of(name).filter(|at| *at != 0));
    let [Some(page_offset), Some(vmemmap), Some(cache)] = wanted else { return };
    out.set(setting::PAGE_OFFSET_BASE, page_offset)
        .set(setting::VMEMMAP_BASE, vmemmap)
        .set(setting::MM_CACHE, cache)
        .set(setting::PAGE_SIZE_OF, u64::from(slab.page_size_of))
        .set(setting::PAGE_HEAD, u64::from(slab.head))
        .set(setting::PAGE_HEAD_IS_MASK, u64::from(slab.head_form == Head::PointerOrMask))
        .set(setting::SLAB_CACHE, u64::from(slab.slab_cache))
        .set(setting::CACHE_SIZE, u64::from(slab.cache_size));
}

/// Names of the page-fault entry code; the exception's stack shows at least one of them (arch/x86/mm/fault.c,
/// arch/x86/entry/entry_64.S).
pub const FAULT_ENTRIES: [&str; 4] =
    ["asm_exc_page_fault", "exc_page_fault", "do_user_addr_fault", "handle_page_fault"];

/// Whether a resolved name is one of [`FAULT_ENTRIES`], with or without a compiler's suffix.
pub fn is_fault_entry(name: &str) -> bool {
    is_one_of(name, &FAULT_ENTRIES)
}

/// Whether a resolved name is one of these, with or without a compiler's suffix.
pub fn is_one_of(name: &str, names: &[&str]) -> bool {
    let stem = name.split('.').next().unwrap_or(name);
    names.contains(&stem)
}

/// Keys of the target map for processes whose threads act and whose mm counts.
pub fn process_keys(pids: &BTreeSet<u32>) -> Vec<u64> {
    pids.iter().map(|pid| setting::target_key::PROCESS | u64::from(*pid)).collect()
}
