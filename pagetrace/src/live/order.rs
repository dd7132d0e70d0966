//! What the lock order needs to know of a kernel. What a kernel does not show stays unset: classes are
//! finer then, down to the single lock.

use pagetrace_ebpf::wire::setting;

use super::{prepare::Run, settings::Settings};
use crate::kernel::{
    KernelFacts,
    btf::Btf,
    kallsyms::Kallsyms,
    locks::LockFields,
    slab::{IsSlab, Slab},
};

/// What a function returns to while a return probe sits on it, by the names it has had
/// (arch/x86/kernel/kprobes/core.c, arch/x86/kernel/rethook.c).
const RETPROBE_RETURNS: [&str; 3] = ["arch_rethook_trampoline", "__kretprobe_trampoline", "kretprobe_trampoline"];

/// Sets what the order reads.
pub(super) fn set(out: &mut Settings, btf: &Btf, kallsyms: Option<&Kallsyms>, slab: Option<&Slab>) {
    let offset = |of: &str, path: &str| btf.member_offset(of, path).map(u64::from);
    out.set(setting::ORDER, 1)
        .set_if(setting::MUTEX_OWNER, offset("mutex", "owner"))
        .set_if(setting::INODE_RWSEM, offset("inode", "i_rwsem"))
        .set_if(setting::INODE_DATA, offset("inode", "i_data"))
        .set_if(setting::INODE_SB, offset("inode", "i_sb"))
        .set_if(setting::INODE_MODE, offset("inode", "i_mode"))
        .set_if(setting::MAPPING_HOST, offset("address_space", "host"))
        .set_if(setting::MAPPING_INVALIDATE, offset("address_space", "invalidate_lock"))
        .set_if(setting::MAPPING_MMAP_RWSEM, offset("address_space", "i_mmap_rwsem"))
        .set_if(setting::SB_TYPE, offset("super_block", "s_type"))
        .set_if(setting::FS_TYPE_NAME, offset("file_system_type", "name"))
        .set_if(setting::CACHE_NAME, offset("kmem_cache", "name"))
        .set_if(setting::CACHE_REFCOUNT, offset("kmem_cache", "refcount"));
    let address = |name: &str| kallsyms.and_then(|symbols| symbols.address_of(name)).filter(|at| *at != 0);
    out.set_if(setting::TEXT_START, address("_stext"))
        .set_if(setting::TEXT_END, address("_etext"))
        .set_if(setting::RETPROBE_RETURN, RETPROBE_RETURNS.iter().find_map(|name| address(name)));
    if let Some(slab) = slab {
        set_slab(out, slab);
    }
}

fn set_slab(out: &mut Settings, slab: &Slab) {
    let (at, shift, mask, value) = match (slab.is_slab, slab.page_type) {
        (IsSlab::FlagBit(bit), _) if bit < 32 => (slab.page_flags, bit, 1, 1),
        (IsSlab::TypeByte(byte), Some(at)) => (at, 24, 0xff, byte),
        _ => return,
    };
    out.set(setting::SLAB_TEST_AT, u64::from(at))
        .set(setting::SLAB_TEST_SHIFT, u64::from(shift))
        .set(setting::SLAB_TEST_MASK, mask)
        .set(setting::SLAB_TEST_VALUE, u64::from(value));
}

/// Names of the fields that are locks, for a run that follows the order.
pub(super) fn fields(facts: &KernelFacts, run: &Run) -> LockFields {
    match &facts.btf {
        Ok(btf) if run.order => LockFields::of(btf),
        _ => LockFields::default(),
    }
}
