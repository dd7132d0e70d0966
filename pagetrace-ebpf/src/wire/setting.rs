//! Settings the loader gives the BPF object: one slot of a read-only array each, known to the verifier as constants.
//!
//! Offsets are bytes from the running kernel's BTF. [`NONE`] means that this kernel has no such member.

/// Marks an offset or symbol that this kernel does not have.
pub const NONE: u64 = u64::MAX;

macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Clone, Copy)]
        #[repr(usize)]
        #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "settings are spelled as constants")]
        enum Index { $($name,)* }
        $($(#[$doc])* pub const $name: usize = Index::$name as usize;)*
        /// Names, by slot.
        pub const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

/// Slots there are.
pub const LEN: usize = 96;

settings! {
    /// `task_struct.mm`.
    TASK_MM,
    /// Address of `init_mm`: its lock guards no user memory.
    INIT_MM,
    /// 1: every hook also emits what it saw, for a recording.
    STREAM,
    /// Tasks whose state there is room for, and so places for it.
    TASK_PLACES,
    /// 1: remember the stack of every acquisition.
    LOCK_STACKS,
    /// 1: unwind although a shortcut knows the stack, and count where the two differ.
    VERIFY_SHORTCUTS,
    /// Id of a type that begins with a 64-bit number, where the kernel has what [`super::CAST`] stands for.
    CAST_TYPE,
    /// 1: emit every fault, walk, and waits and holds over [`MIN_LOCK_NS`].
    TRACE,
    /// 1: an exception followed by a lock attempt counts, since the handler's own lock path cannot be hooked.
    CONFIRM_BY_LOCK,
    /// `task_struct.flags`.
    TASK_FLAGS,
    /// `task_struct.pid`.
    TASK_PID,
    /// `task_struct.tgid`.
    TASK_TGID,
    /// `task_struct.comm`.
    TASK_COMM,
    /// `task_struct.signal`.
    TASK_SIGNAL,
    /// `task_struct.start_time`, nanoseconds of `CLOCK_MONOTONIC`.
    TASK_START,
    /// `task_struct.pagefault_disabled`.
    TASK_NOFAULT,
    /// `task_struct.pending.signal`: the first signals, as bits.
    TASK_PENDING,
    /// `mm_struct.mmap_lock`.
    MM_LOCK,
    /// `mm_struct.owner`.
    MM_OWNER,
    /// `rw_semaphore.count`.
    SEM_COUNT,
    /// `rw_semaphore.owner`.
    SEM_OWNER,
    /// `vm_area_struct.vm_start`.
    VMA_START,
    /// `vm_area_struct.vm_end`.
    VMA_END,
    /// `vm_area_struct.vm_flags`.
    VMA_FLAGS,
    /// `vm_area_struct.vm_pgoff`.
    VMA_PGOFF,
    /// `vm_area_struct.vm_file`.
    VMA_FILE,
    /// `vm_area_struct.vm_mm`.
    VMA_MM,
    /// `file.f_path.dentry`.
    FILE_DENTRY,
    /// `file.private_data`.
    FILE_PRIVATE,
    /// `dentry.d_name.name`.
    DENTRY_NAME,
    /// `dentry.d_inode`.
    DENTRY_INODE,
    /// `inode.i_ino`.
    INODE_INO,
    /// Address of the variable `page_offset_base`.
    PAGE_OFFSET_BASE,
    /// Address of the variable `vmemmap_base`, for the slab check.
    VMEMMAP_BASE,
    /// `sizeof(struct page)`.
    PAGE_SIZE_OF,
    /// `page.compound_head` or `page.compound_info`.
    PAGE_HEAD,
    /// 1 when the head word of a tail page can be a mask instead of a pointer.
    PAGE_HEAD_IS_MASK,
    /// Offset of the slab's cache pointer in `struct slab` or `struct page`.
    SLAB_CACHE,
    /// Address of the variable `mm_cachep`, the cache of `mm_struct`.
    MM_CACHE,
    /// `kmem_cache.size`.
    CACHE_SIZE,
    /// One of [`super::setting::target`].
    TARGET_MODE,
    /// First eight bytes of the wanted comm.
    TARGET_COMM_LO,
    /// Last eight bytes of the wanted comm.
    TARGET_COMM_HI,
    /// Id of the wanted cgroup.
    TARGET_CGROUP,
    /// Level of the wanted cgroup under the root of the hierarchy.
    TARGET_CGROUP_LEVEL,
    /// Shortest wait or hold that `trace` emits, nanoseconds.
    MIN_LOCK_NS,
    /// Shortest fault that `trace` emits, nanoseconds.
    MIN_FAULT_NS,
    /// The tracer's own process id: its own faults and locks are not emitted by `trace`.
    SELF_TGID,
    /// `pt_regs.ip`.
    REGS_IP,
    /// `pt_regs.cs`.
    REGS_CS,
    /// 1: the fault hook's return tells the VMA; 0: `handle_mm_fault` does.
    VMA_BY_RETURN,
    /// With [`STREAM`]: unread bytes in the ring buffer from which the reader is woken.
    RING_WAKE,
    /// Address of the array `__per_cpu_offset`.
    PER_CPU_OFFSET,
    /// Address of the preempt count in the per-CPU area, before a CPU's offset is added.
    PREEMPT_COUNT,
    /// `iov_iter.iter_type`, or `type` before 5.14.
    ITER_TYPE,
    /// Bytes of that member.
    ITER_TYPE_SIZE,
    /// `iov_iter.iov_offset`.
    ITER_OFFSET,
    /// `iov_iter.ubuf`.
    ITER_BUFFER,
    /// `iov_iter.__iov`, or `iov` before 6.4.
    ITER_VECTOR,
    /// `ITER_IOVEC`.
    ITER_IOVEC,
    /// `ITER_UBUF`.
    ITER_UBUF,
    /// 1: the order in which sleeping locks are taken is followed.
    ORDER,
    /// `mutex.owner`.
    MUTEX_OWNER,
    /// `inode.i_rwsem`.
    INODE_RWSEM,
    /// `inode.i_data`.
    INODE_DATA,
    /// `inode.i_sb`.
    INODE_SB,
    /// `inode.i_mode`.
    INODE_MODE,
    /// `address_space.host`.
    MAPPING_HOST,
    /// `address_space.invalidate_lock`, since 5.15.
    MAPPING_INVALIDATE,
    /// `address_space.i_mmap_rwsem`.
    MAPPING_MMAP_RWSEM,
    /// `super_block.s_type`.
    SB_TYPE,
    /// `file_system_type.name`.
    FS_TYPE_NAME,
    /// `kmem_cache.name`.
    CACHE_NAME,
    /// `kmem_cache.refcount`: above 1 the cache serves several types.
    CACHE_REFCOUNT,
    /// Where a page descriptor tells that it belongs to the slab allocator: a 32-bit word.
    SLAB_TEST_AT,
    /// Bits to shift that word by.
    SLAB_TEST_SHIFT,
    /// Bits that count then.
    SLAB_TEST_MASK,
    /// What they are for a slab.
    SLAB_TEST_VALUE,
    /// Start of the kernel's own code.
    TEXT_START,
    /// End of the kernel's own code.
    TEXT_END,
    /// Where a function with a return probe returns to.
    RETPROBE_RETURN,
    /// `mm_struct.pgd`.
    MM_PGD,
    /// Address of the variable `pgdir_shift`, on kernels that can have five levels of page tables.
    PGDIR_SHIFT,
    /// Address of the variable `sme_me_mask`, on kernels that can encrypt memory.
    SME_MASK,
    /// Where a `module` tells its code's address; before 6.4 that of all it has.
    MODULE_TEXT,
    /// Where it tells how much that is: a 32-bit word.
    MODULE_TEXT_SIZE,
    /// Where it tells its variables' address, since 6.4.
    MODULE_DATA,
    /// Where it tells how much that is: a 32-bit word.
    MODULE_DATA_SIZE,
}

/// Values of [`TARGET_MODE`].
pub mod target {
    /// The whole machine.
    pub const ALL: u64 = 0;
    /// The processes in the target map, and their children.
    pub const LISTED: u64 = 1;
    /// As [`LISTED`], and whoever has the wanted comm.
    pub const COMM: u64 = 2;
    /// As [`LISTED`], and whoever is in the wanted cgroup or below.
    pub const CGROUP: u64 = 3;
}

/// Keys of the target map: a kind in the upper half, an id in the lower.
pub mod target_key {
    /// All threads of this process act as the target, and its mm is the target's.
    pub const PROCESS: u64 = 0;
    /// This thread acts as the target.
    pub const THREAD: u64 = 1 << 32;
    /// The mm of this process is the target's, but its threads do not act as the target.
    pub const MM_ONLY: u64 = 2 << 32;
}
