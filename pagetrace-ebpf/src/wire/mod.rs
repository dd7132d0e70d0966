//! What crosses from the kernel to userspace: records, settings, counters.
//!
//! Integers and arrays of integers only, padding explicit, sizes asserted: any byte pattern is a valid value, so
//! decoding never needs `unsafe` and never panics. Numbers given to kinds, counters and settings are never reused.

pub mod body;
mod codec;
pub mod counter;
pub mod fault;
pub mod lock;
pub mod module;
pub mod order;
pub mod seen;
pub mod setting;
pub mod stream;
pub mod task;
pub mod unwind;
pub mod walk;

pub use codec::{Field, Wire};

use codec::wire;

/// In the object, the number of a helper that there is none of. The loader puts the kernel's function `bpf_rdonly_cast` in its
/// place, where there is that and [`setting::CAST_TYPE`] is set; elsewhere the call is never reached.
pub const CAST: u32 = 0x7061_6765;

/// What a record is; the first field of every [`Header`].
pub mod kind {
    /// [`super::fault::Violation`]: a user access faulted while the task held an mmap lock.
    pub const VIOLATION: u32 = 1;
    /// [`super::fault::Vma`]: the VMA that the fault of the violation before it fell into.
    pub const VMA: u32 = 2;
    /// [`super::fault::Fault`]: one page fault, ended.
    pub const FAULT: u32 = 3;
    /// [`super::walk::Walk`]: one page walk, ended.
    pub const WALK: u32 = 4;
    /// [`super::lock::Wait`]: a wait for an mmap lock, ended.
    pub const WAIT: u32 = 5;
    /// [`super::lock::Hold`]: a hold of an mmap lock, ended.
    pub const HOLD: u32 = 6;
    /// [`super::fault::Page`]: what the page tables said of the address of the violation before it.
    pub const PAGE: u32 = 7;
    /// [`super::stream::Lock`].
    pub const LOCK: u32 = 16;
    /// [`super::stream::Exception`].
    pub const EXCEPTION: u32 = 17;
    /// [`super::stream::Handler`].
    pub const HANDLER: u32 = 18;
    /// [`super::stream::Task`].
    pub const TASK: u32 = 19;
    /// [`super::stream::Mm`].
    pub const MM: u32 = 20;
    /// [`super::stream::Words`].
    pub const WORDS: u32 = 21;
    /// [`super::module::Unloaded`]: not of the stream alone, every run has it.
    pub const UNLOADED: u32 = 22;
    /// [`super::order::Edge`].
    pub const EDGE: u32 = 32;
    /// [`super::order::EdgeCount`].
    pub const EDGE_COUNT: u32 = 33;
    /// [`super::unwind::Sample`]: for the loader alone, no event.
    pub const UNWIND_SAMPLE: u32 = 64;
}

/// Bytes of a task's name, as in `TASK_COMM_LEN`.
pub const COMM_LEN: usize = 16;

/// Frames of a kernel stack that a record carries.
pub const STACK_FRAMES: usize = 64;

wire! {
    /// Starts every record.
    pub struct Header {
        /// One of [`kind`].
        pub kind: u32,
        /// CPU the event was seen on.
        pub cpu: u32,
        /// Nanoseconds of `CLOCK_MONOTONIC`.
        pub ts: u64,
        /// Address of the acting task's `task_struct`: unique while the task lives, unlike its id.
        pub task: u64,
        /// Thread id.
        pub tid: u32,
        /// Process id.
        pub tgid: u32,
        /// Name of the thread.
        pub comm: [u8; COMM_LEN],
        /// `task_struct.flags` (`PF_*`).
        pub task_flags: u32,
        /// Explicit padding.
        pub pad: u32,
    }
}

wire! {
    /// Whose address space an mm is.
    pub struct MmOwner {
        /// Address of the `mm_struct`.
        pub mm: u64,
        /// Process id of `mm->owner`; 0 when it has none.
        pub tgid: u32,
        /// Explicit padding.
        pub pad: u32,
        /// Name of `mm->owner`.
        pub comm: [u8; COMM_LEN],
    }
}
