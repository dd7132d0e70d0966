//! Faults: violations, the VMA they fell into, and plain faults.

use super::{
    Header, MmOwner, STACK_FRAMES,
    codec::wire,
    lock::{Held, MAX_HELD},
};

/// What is known of a violation; bits of [`Violation::flags`].
pub mod violation {
    /// The fault handler itself was seen entering its lock path: no further proof is needed.
    pub const PROVEN: u32 = 1;
    /// The exception was seen and a lock attempt followed: the stack has to show the fault handler.
    pub const NEEDS_STACK: u32 = 1 << 1;
    /// [`Violation::error`] holds the exception's error code.
    pub const ERROR_KNOWN: u32 = 1 << 2;
    /// More locks were held than are listed.
    pub const MORE_HELD: u32 = 1 << 3;
    /// The access was seen at the entry of the function that makes it; whether it faulted is not known.
    pub const LATENT: u32 = 1 << 4;
    /// No access at all: the task goes back to user mode with the locks, or, when there is no mm, has ended with them.
    pub const LEAKED: u32 = 1 << 5;
    /// Those that are not listed may be held no more: they prove nothing.
    pub const MORE_UNSURE: u32 = 1 << 6;
}

/// Bit of the x86 page-fault error code that tells a write (`X86_PF_WRITE`, arch/x86/include/asm/trap_pf.h).
pub const X86_PF_WRITE: u64 = 1 << 1;

/// Bytes of a file name kept in a [`Vma`].
pub const NAME_LEN: usize = 64;

wire! {
    /// A kernel-mode access to a user address faulted, or with [`violation::LATENT`] was made, while the task held at
    /// least one mmap lock.
    pub struct Violation {
        /// Common part.
        pub header: Header,
        /// The faulting address space.
        pub mm: MmOwner,
        /// The faulting address.
        pub address: u64,
        /// Instruction that faulted.
        pub ip: u64,
        /// x86 error code, when [`violation::ERROR_KNOWN`].
        pub error: u64,
        /// Bits of [`violation`].
        pub flags: u32,
        /// Entries used in [`Violation::held`].
        pub held_len: u32,
        /// Locks held, outermost first.
        pub held: [Held; MAX_HELD],
        /// Bytes used in [`Violation::stack`], or a negative errno.
        pub stack_len: i64,
        /// Kernel stack, innermost first.
        pub stack: [u64; STACK_FRAMES],
    }
}

wire! {
    /// The VMA that the last violation of this task fell into.
    pub struct Vma {
        /// Common part.
        pub header: Header,
        /// The faulting address.
        pub address: u64,
        /// First address.
        pub start: u64,
        /// First address behind it.
        pub end: u64,
        /// `vm_flags`.
        pub vm_flags: u64,
        /// Offset into the file, in pages.
        pub pgoff: u64,
        /// Inode number of the mapped file; 0 when anonymous.
        pub inode: u64,
        /// Last component of the mapped file's path, NUL-terminated unless it is longer.
        pub name: [u8; NAME_LEN],
    }
}

/// Bits of an entry of a page table (arch/x86/include/asm/pgtable_types.h).
pub mod pte {
    /// The processor follows it.
    pub const PRESENT: u64 = 1;
    /// Writes are allowed.
    pub const WRITABLE: u64 = 1 << 1;
    /// Above the lowest level: it is a page, and no table.
    pub const HUGE: u64 = 1 << 7;
    /// When it is not present: it is there, but nobody may access it (`_PAGE_PROTNONE`).
    pub const NO_ACCESS: u64 = 1 << 8;
}

wire! {
    /// The entry of the page tables that the walk for the last violation's address of this task ended with.
    pub struct Page {
        /// Common part.
        pub header: Header,
        /// The accessed address.
        pub address: u64,
        /// The entry.
        pub entry: u64,
        /// Its level: 1 for a page of 4 KiB, 2 for 2 MiB, 3 for 1 GiB.
        pub level: u32,
        /// Explicit padding.
        pub pad: u32,
    }
}

/// Who took a fault; [`Fault::mode`].
pub mod mode {
    /// A user-mode exception.
    pub const USER: u32 = 1;
    /// A kernel-mode exception.
    pub const KERNEL: u32 = 2;
    /// No exception: get_user_pages and its like.
    pub const REMOTE: u32 = 3;
}

wire! {
    /// One call of the fault handler, ended; or one exception where ends cannot be seen.
    pub struct Fault {
        /// Common part; its time is the end of the fault.
        pub header: Header,
        /// The faulting address space.
        pub mm: MmOwner,
        /// The faulting address.
        pub address: u64,
        /// Instruction that faulted; 0 without an exception.
        pub ip: u64,
        /// Nanoseconds from entry to exit; `u64::MAX` when the end cannot be seen.
        pub duration: u64,
        /// `FAULT_FLAG_*` (include/linux/mm_types.h).
        pub fault_flags: u32,
        /// `VM_FAULT_*` returned (include/linux/mm_types.h).
        pub result: u32,
        /// One of [`mode`].
        pub mode: u32,
        /// mmap locks held when the fault began.
        pub held: u32,
    }
}
