//! The stream of a recording: what every hook saw, before anything was made of it.
//!
//! These records are many, so they start with [`Brief`] and not with a whole [`super::Header`]: who a task is goes out
//! once, as a [`Task`]. None of them says what the kernel side concluded.

use super::{COMM_LEN, MmOwner, codec::wire};

wire! {
    /// Starts every record of the stream. Its fields stand where those of [`super::Header`] stand.
    pub struct Brief {
        /// One of [`super::kind`].
        pub kind: u32,
        /// CPU the event was seen on.
        pub cpu: u32,
        /// Nanoseconds of `CLOCK_MONOTONIC`.
        pub ts: u64,
        /// Address of the acting task's `task_struct`.
        pub task: u64,
    }
}

/// What a hook on a lock saw; [`Lock::op`].
pub mod op {
    /// A wait may begin; the outcome is told by another hook.
    pub const WAIT: u32 = 1;
    /// A function that acquires was entered.
    pub const ATTEMPT: u32 = 2;
    /// It returned, and the lock is held.
    pub const RETURNED_OK: u32 = 3;
    /// It returned without the lock.
    pub const RETURNED_FAIL: u32 = 4;
    /// The lock is held, or will be before the task runs on.
    pub const ACQUIRED: u32 = 5;
    /// The lock was not had.
    pub const FAILED: u32 = 6;
    /// The lock is about to be released.
    pub const RELEASE: u32 = 7;
    /// A writer becomes a reader.
    pub const DOWNGRADE: u32 = 8;
    /// The attempt's return was missed, and the lock is held as of the attempt.
    pub const SETTLED: u32 = 9;
    /// The attempt's return was missed, and whether the lock is held is unknown.
    pub const UNSETTLED: u32 = 10;
}

/// Bits of the `flags` of stream records, above those of [`super::lock::held`].
pub mod seen {
    /// The address space is the acting task's own, `current->mm`.
    pub const OWN_MM: u32 = 1 << 16;
    /// The task or the address space belongs to the target.
    pub const WANTED: u32 = 1 << 17;
    /// The lock words could be read.
    pub const READABLE: u32 = 1 << 18;
    /// The words are of the locks that found no room among those told apart.
    pub const MORE: u32 = 1 << 19;
    /// Words of a hold that somebody else's release has ended: it left no reader.
    pub const ENDED: u32 = 1 << 20;
}

wire! {
    /// A hook on an mmap lock fired.
    pub struct Lock {
        /// Common part.
        pub brief: Brief,
        /// Whose lock.
        pub mm: u64,
        /// One of [`op`].
        pub op: u32,
        /// Mode bits of [`super::lock::held`] and bits of [`seen`].
        pub flags: u32,
        /// Id of the acquiring stack, or a negative number.
        pub stack_id: i32,
        /// Explicit padding.
        pub pad: u32,
    }
}

wire! {
    /// A kernel-mode page-fault exception on a user address.
    pub struct Exception {
        /// Common part.
        pub brief: Brief,
        /// The faulting address.
        pub address: u64,
        /// Instruction that faulted.
        pub ip: u64,
        /// x86 error code.
        pub error: u64,
        /// 1: page faults were disabled, so the handler will not lock anything.
        pub nofault: u32,
        /// Bits of [`seen`].
        pub flags: u32,
    }
}

wire! {
    /// The fault handler was seen going for mmap_lock (`lock_mm_and_find_vma`).
    pub struct Handler {
        /// Common part.
        pub brief: Brief,
        /// The faulting address space.
        pub mm: u64,
        /// The faulting address.
        pub address: u64,
        /// Instruction that faulted.
        pub ip: u64,
        /// 1: the exception came from user mode.
        pub user: u32,
        /// Bits of [`seen`].
        pub flags: u32,
    }
}

/// Why a [`Task`] is told; [`Task::op`].
pub mod life {
    /// The stream begins to speak of this task.
    pub const SEEN: u32 = 1;
    /// It was forked by [`super::Task::parent`].
    pub const FORK: u32 = 2;
    /// It runs another program.
    pub const EXEC: u32 = 3;
    /// The kernel frees it: its address can come back as another task.
    pub const FREE: u32 = 4;
}

wire! {
    /// Who a task is. [`Brief::task`] is the task told of, which for a fork or an end is not the one that acts.
    pub struct Task {
        /// Common part.
        pub brief: Brief,
        /// `task_struct.start_time`, nanoseconds of `CLOCK_MONOTONIC`; 0 where it cannot be had.
        pub start: u64,
        /// The forking task; 0 otherwise.
        pub parent: u64,
        /// One of [`life`].
        pub op: u32,
        /// Thread id.
        pub tid: u32,
        /// Process id.
        pub tgid: u32,
        /// `task_struct.flags` (`PF_*`).
        pub task_flags: u32,
        /// Name of the thread.
        pub comm: [u8; COMM_LEN],
    }
}

wire! {
    /// Whose address space an mm is.
    pub struct Mm {
        /// Common part.
        pub brief: Brief,
        /// The owner.
        pub owner: MmOwner,
    }
}

wire! {
    /// The words of a lock that the kernel side takes for held, at the moment of a fault that may be a violation and
    /// before it judges by them.
    pub struct Words {
        /// Common part.
        pub brief: Brief,
        /// Whose lock.
        pub mm: u64,
        /// `rw_semaphore.count`.
        pub count: u64,
        /// `rw_semaphore.owner`.
        pub sem_owner: u64,
        /// Bits of [`super::lock::held`] and [`seen`].
        pub flags: u32,
        /// Explicit padding.
        pub pad: u32,
    }
}
