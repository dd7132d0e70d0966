//! Orders that look wrong and are not, as data, each with the kernel's own word for it.

/// What an edge has to be for its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Both locks are of one class, and no mmap locks.
    SameClass,
    /// The inner lock is an mmap lock, and one of these functions takes it.
    MmapBy(&'static [&'static str]),
    /// The inner lock is none, and one of these functions takes it.
    OtherBy(&'static [&'static str]),
}

/// An order that makes no edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// What it is.
    pub what: &'static str,
    /// How it is told.
    pub by: By,
    /// Why it cannot deadlock.
    pub why: &'static str,
    /// Where the kernel says so.
    pub source: &'static str,
}

/// All of them.
pub const KNOWN: [Known; 4] = [
    Known {
        what: "two locks of one class",
        by: By::SameClass,
        why: "parent and child inode, two inodes, all anon_vmas of an address space: an order among themselves that the \
              class does not show, which lockdep is told by subclasses and nest locks that a stock kernel is built without",
        source: "Documentation/filesystems/directory-locking.rst; include/linux/fs.h, enum inode_i_mutex_lock_class; \
                 mm/mmap.c, mm_take_all_locks",
    },
    Known {
        what: "the address space that fork makes",
        by: By::MmapBy(&["dup_mmap", "dup_mm", "copy_mm"]),
        why: "nobody else can reach the new address space yet",
        source: "kernel/fork.c, since 6.18 mm/mmap.c, dup_mmap: mmap_write_lock_nested(mm, SINGLE_DEPTH_NESTING)",
    },
    Known {
        what: "an inode of hugetlbfs under mmap_lock",
        by: By::OtherBy(&["hugetlbfs_file_mmap", "hugetlbfs_file_mmap_prepare"]),
        why: "hugetlbfs has no write(), and its read() copies without the inode's lock",
        source: "fs/hugetlbfs/inode.c, hugetlbfs_file_mmap: inode_lock(inode); hugetlbfs_read_iter",
    },
    Known {
        what: "an open file of kernfs that can be mapped",
        by: By::OtherBy(&["kernfs_fop_mmap"]),
        why: "the mutex of an open file that can be mapped is of another class than that of all others",
        source: "fs/kernfs/file.c, kernfs_fop_open: the two mutex_init(&of->mutex)",
    },
];

/// Functions that take a sleeping lock, and what the kernel's tracepoints put between them and their caller.
pub const LOCKING: &[&str] = &[
    "mutex_lock",
    "mutex_lock_interruptible",
    "mutex_lock_killable",
    "mutex_trylock",
    "mutex_lock_nested",
    "_mutex_lock_nest_lock",
    "mutex_lock_io_nested",
    "mutex_lock_interruptible_nested",
    "mutex_lock_killable_nested",
    "_mutex_trylock_nest_lock",
    "down_read",
    "down_read_interruptible",
    "down_read_killable",
    "down_read_trylock",
    "down_write",
    "down_write_killable",
    "down_write_trylock",
    "down_read_nested",
    "down_read_non_owner",
    "down_read_killable_nested",
    "down_write_nested",
    "_down_write_nest_lock",
    "down_write_killable_nested",
    "__mmap_lock_do_trace_start_locking",
    "__mmap_lock_do_trace_acquire_returned",
];

/// The row of an edge. `takes` says whether it is one of these functions that took the inner lock.
pub fn known(same_class: bool, inner_is_mmap: bool, takes: impl Fn(&[&str]) -> bool) -> Option<&'static Known> {
    KNOWN.iter().find(|row| match row.by {
        By::SameClass => same_class && !inner_is_mmap,
        By::MmapBy(functions) => inner_is_mmap && takes(functions),
        By::OtherBy(functions) => !inner_is_mmap && takes(functions),
    })
}
