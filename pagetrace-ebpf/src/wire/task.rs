//! What the kernel side knows of a task: the values of the array `TASKS`, which userspace reads to see what is held now.

use super::{codec::wire, lock::MAX_HELD, seen::KEY_WORDS, unwind::WINDOW_ROOM};

wire! {
    /// A held lock.
    pub struct Slot {
        /// Whose lock.
        pub mm: u64,
        /// When it was acquired, nanoseconds of `CLOCK_MONOTONIC`.
        pub since: u64,
        /// Bits of [`super::lock::held`].
        pub flags: u32,
        /// Id of the acquiring stack, or a negative errno.
        pub stack: i32,
    }
}

wire! {
    /// A page walk that has not ended.
    pub struct OpenWalk {
        /// When it began, nanoseconds of `CLOCK_MONOTONIC`.
        pub since: u64,
        /// The address space that is walked.
        pub mm: u64,
        /// First address.
        pub start: u64,
        /// First address after it.
        pub end: u64,
        /// The `mm_walk_ops`.
        pub ops: u64,
        /// One of [`super::walk::function`].
        pub function: u32,
        /// Walks within walks.
        pub depth: u32,
    }
}

wire! {
    /// A page fault that is being handled.
    pub struct OpenFault {
        /// When that began, nanoseconds of `CLOCK_MONOTONIC`.
        pub since: u64,
        /// The address.
        pub address: u64,
        /// The instruction.
        pub ip: u64,
        /// The address space.
        pub mm: u64,
        /// Where on the stack its handler was called, so that its end is not taken for another's.
        pub frame: u64,
        /// `FAULT_FLAG_*` bits.
        pub flags: u32,
        /// One of [`super::fault::mode`].
        pub mode: u32,
        /// mmap locks held when it came, besides the handler's own.
        pub held: u32,
        /// Explicit padding.
        pub pad: u32,
    }
}

wire! {
    /// The access of a violation that is being told.
    pub struct Access {
        /// The accessed address space.
        pub mm: u64,
        /// The address.
        pub address: u64,
        /// The instruction.
        pub ip: u64,
        /// x86 error code, when it is known.
        pub error: u64,
        /// Bits of [`super::fault::violation`].
        pub flags: u32,
        /// Readers in the accessed mm's lock word that are the fault handler's own.
        pub own_readers: u32,
    }
}

wire! {
    /// All that is known of a task. What every lock needs lies in the 64 bytes behind the first 8: the values of an array begin 8
    /// bytes before a cache line.
    pub struct Task {
        /// Whose lock found no slot last.
        pub overflow_mm: u64,
        /// Its `task_struct`; 0 where nobody's state is.
        pub task: u64,
        /// Slots used.
        pub depth: u32,
        /// Locks held that found no slot.
        pub overflow: u32,
        /// In the lower bits how many locks it took in a timer tick while it held none, in the others which tick.
        pub pace: u32,
        /// The kernel side's own.
        pub flags: u32,
        /// Where on the stack the attempt was entered whose return is waited for; 0 when none is.
        pub attempt_frame: u64,
        /// Whose lock the event at hand is about.
        pub mm: u64,
        /// Locks held, outermost first.
        pub slots: [Slot; MAX_HELD],
        /// When the first of those that found no slot was acquired, nanoseconds of `CLOCK_MONOTONIC`.
        pub overflow_since: u64,
        /// When the last of them was.
        pub overflow_last: u64,
        /// Bits of [`super::lock::held`] of the last that found no slot.
        pub overflow_flags: u32,
        /// Not 0: what found no slot is not all known to be held, or is not all the same address space's.
        pub overflow_unsure: u32,
        /// Id of the stack that acquired the last that found no slot, or a negative errno.
        pub overflow_stack: i32,
        /// Kernel-mode faults taken while it held nothing that is known.
        pub kernel_faults: u32,
        /// A number of the event at hand.
        pub number: u32,
        /// Page faults that are being handled: one handler can cause another.
        pub fault_depth: u32,
        /// Address of the exception whose lock attempt is waited for.
        pub pending_address: u64,
        /// Its instruction.
        pub pending_ip: u64,
        /// Its error code.
        pub pending_error: u64,
        /// Whose lock is waited for.
        pub wait_mm: u64,
        /// Since when, nanoseconds of `CLOCK_MONOTONIC`.
        pub wait_since: u64,
        /// Page faults that are being handled, outermost first.
        pub faults: [OpenFault; 2],
        /// Walks that have not ended, outermost first.
        pub walks: [OpenWalk; 2],
        /// The access that may violate the rule.
        pub access: Access,
        /// Key of the violation that is being told.
        pub seen_key: [u64; KEY_WORDS],
        /// Words of its stack, while they are compared; the addresses on it, while a violation is told.
        pub window: [u64; WINDOW_ROOM],
        /// Up to whole cache lines, of which each task then has its own.
        pub spare: [u64; 4],
    }
}

const _: () = assert!(size_of::<Task>().is_multiple_of(64));

impl Task {
    /// The locks held.
    pub fn held(&self) -> &[Slot] {
        self.slots.get(..self.depth as usize).unwrap_or_default()
    }
}

/// 64-bit words of a [`Task`].
pub const WORDS: usize = size_of::<Task>() / 8;
