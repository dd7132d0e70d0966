//! The class of a lock, from its address alone: what lockdep's lock class is, as far as a stock kernel shows it.
//!
//! Finer than lockdep's where in doubt: a class that is too fine loses an edge, one that is too coarse accuses.

use aya_ebpf::{EbpfContext, helpers::generated::bpf_get_stack};
use pagetrace_ebpf::wire::{
    order::{class, how},
    setting,
};

use super::{
    super::module::era,
    state::{ORDER_BORN, ORDER_SITES, Slot},
};
use crate::kernel::{member, mm_of_lock, read, read_words, setting, slab_object};

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// No lock that is followed.
    Ignored,
    /// The class is complete.
    Whole,
    /// It lacks the site: where the lock is taken now, if that is the first time.
    NeedsSite,
}

/// `S_IFMT` and `S_IFDIR` (include/uapi/linux/stat.h).
const FORMAT: u16 = 0o170_000;
const DIRECTORY: u16 = 0o040_000;

/// Set in a site where the lock was initialised, as in every kernel address; cleared in one where it was first taken.
const INITIALISED: u64 = 1 << 63;

const SEVEN_BYTES: u64 = (1 << 56) - 1;
/// "kmalloc", as a little-endian number.
const KMALLOC: u64 = u64::from_le_bytes(*b"kmalloc\0");

/// Writes the class of `lock` into `out`.
#[inline(always)]
pub(crate) fn classify(lock: u64, mutex: bool, out: &mut Slot) -> Found {
    out.lock = lock;
    out.offset = 0;
    out.site = 0;
    if !mutex {
        if let Some(mm) = mm_of_lock(lock) {
            if mm == setting(setting::INIT_MM) {
                return Found::Ignored;
            }
            by_mm(mm, out);
            return Found::Whole;
        }
        if by_inode(lock, out) {
            return Found::Whole;
        }
    }
    by_memory(lock, out)
}

/// An address space's lock.
#[inline(always)]
pub(crate) fn by_mm(mm: u64, out: &mut Slot) {
    out.kind = class::MMAP;
    out.offset = 0;
    out.owner = mm;
    // SAFETY: the value is copied out at once.
    out.site = unsafe { ORDER_BORN.get(&mm) }.copied().unwrap_or(0);
}

/// A lock of an inode is of a class with those of its file system type, directories by themselves (fs/inode.c,
/// `inode_init_always` and `lockdep_annotate_inode_mutex_key`). An inode is told by its own mapping, which points back to
/// it (include/linux/fs.h, `address_space.host`).
#[inline(always)]
fn by_inode(lock: u64, out: &mut Slot) -> bool {
    let (data, host) = (setting(setting::INODE_DATA), setting(setting::MAPPING_HOST));
    if data == setting::NONE || host == setting::NONE {
        return false;
    }
    let fields = [
        setting(setting::INODE_RWSEM),
        data.wrapping_add(setting(setting::MAPPING_MMAP_RWSEM)),
        data.wrapping_add(setting(setting::MAPPING_INVALIDATE)),
    ];
    let known = [
        setting(setting::INODE_RWSEM) != setting::NONE,
        setting(setting::MAPPING_MMAP_RWSEM) != setting::NONE,
        setting(setting::MAPPING_INVALIDATE) != setting::NONE,
    ];
    for index in 0..3 {
        let inode = lock.wrapping_sub(fields[index]);
        if !known[index] || read::<u64>(inode.wrapping_add(data).wrapping_add(host)) != Some(inode) {
            continue;
        }
        let Some(sb) = member::<u64>(inode, setting::INODE_SB) else { return false };
        let Some(kind) = member::<u64>(sb, setting::SB_TYPE) else { return false };
        let mode = member::<u16>(inode, setting::INODE_MODE).unwrap_or(0);
        out.kind = class::INODE;
        out.owner = kind;
        out.offset = fields[index] as u32 | told_by(era(kind));
        if mode & FORMAT == DIRECTORY {
            out.offset |= class::DIRECTORY;
        }
        return true;
    }
    false
}

#[inline(always)]
fn by_memory(lock: u64, out: &mut Slot) -> Found {
    // SAFETY: the value is copied out at once.
    let site = unsafe { ORDER_SITES.get(&lock) }.copied().unwrap_or(0);
    let Some((cache, offset)) = slab_object(lock) else {
        out.kind = class::ADDRESS;
        out.owner = lock;
        out.site = site;
        out.offset = told_by(era(lock));
        return Found::Whole;
    };
    out.owner = cache;
    out.offset = offset as u32;
    if !is_shared(cache) {
        out.kind = class::SLAB;
        out.offset |= told_by(some_of_name(cache));
        return Found::Whole;
    }
    out.kind = class::SLAB_SITE;
    out.site = site;
    if site == 0 {
        return Found::NeedsSite;
    }
    if site & INITIALISED == 0 {
        by_itself(out);
    } else {
        out.offset |= told_by(era(site));
    }
    Found::Whole
}

/// As part of [`pagetrace_ebpf::wire::order::LockClass::offset`].
#[inline(always)]
fn told_by(era: u32) -> u32 {
    (era & class::ERA) << class::ERA_SHIFT
}

/// A number made of the name of a cache: with a module go its caches, and the next one's lie where they lay.
#[inline(always)]
fn some_of_name(cache: u64) -> u32 {
    let mut name = [0; 4];
    if let Some(at) = member::<u64>(cache, setting::CACHE_NAME) {
        read_words(at, &mut name);
    }
    let mut sum = 0_u64;
    for word in name {
        sum = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    (sum >> 33) as u32
}

/// A lock whose type nothing tells: another that is first taken in the same place can be of another type, since functions
/// that take locks serve many.
#[inline(always)]
fn by_itself(out: &mut Slot) {
    out.kind = class::ADDRESS;
    out.owner = out.lock;
    out.offset = 0;
}

/// Whether objects of several types come from this cache: by its name one of kmalloc's, or merged with others (mm/slab_common.c,
/// `__kmem_cache_alias`).
#[inline(always)]
fn is_shared(cache: u64) -> bool {
    let (Some(aliases), Some(name)) =
        (member::<u32>(cache, setting::CACHE_REFCOUNT), member::<u64>(cache, setting::CACHE_NAME))
    else {
        return true;
    };
    if aliases > 1 {
        return true;
    }
    // "kmalloc-64", "kmalloc-cg-64", "dma-kmalloc-64".
    let starts = |at: u64| read::<u64>(name.wrapping_add(at)).is_none_or(|word| word & SEVEN_BYTES == KMALLOC);
    starts(0) || starts(4)
}

/// The caller of the probed function: the frame behind the first in the kernel's own code; 0 when it cannot be told. Programs
/// and trampolines lie elsewhere.
#[inline(always)]
pub(crate) fn site(ctx: &impl EbpfContext) -> u64 {
    let (start, end) = (setting(setting::TEXT_START), setting(setting::TEXT_END));
    if start == setting::NONE || end == setting::NONE {
        return 0;
    }
    let mut frames = [0_u64; 8];
    // SAFETY: the buffer is our own and has this size.
    let got = unsafe { bpf_get_stack(ctx.as_ptr(), frames.as_mut_ptr().cast(), size_of::<[u64; 8]>() as u32, 0) };
    if got <= 0 {
        return 0;
    }
    let mut inside = false;
    for ip in frames {
        if inside {
            // Where a return probe sits on the function, some kernels show its trampoline instead of the caller.
            let trampoline = setting(setting::RETPROBE_RETURN);
            return if ip >= trampoline && ip < trampoline.wrapping_add(256) { 0 } else { ip };
        }
        inside = ip >= start && ip < end;
    }
    0
}

/// The class of a lock whose site had to be found: it says where to look for the lock.
#[inline(always)]
pub(crate) fn sited(site: u64, out: &mut Slot) {
    by_itself(out);
    if site == 0 {
        return;
    }
    out.site = site & !INITIALISED;
    let _ = ORDER_SITES.insert(&out.lock, &out.site, 0);
}

/// [`how::SITE_IS_INIT`], for a site where a lock was initialised.
#[inline(always)]
pub(crate) fn site_flags(site: u64) -> u32 {
    if site & INITIALISED != 0 { how::SITE_IS_INIT } else { 0 }
}

/// Remembers where a lock was initialised.
#[inline(always)]
pub(crate) fn initialised(lock: u64, site: u64) {
    if site == 0 {
        let _ = ORDER_SITES.remove(&lock);
    } else {
        let _ = ORDER_SITES.insert(&lock, &(site | INITIALISED), 0);
    }
}
