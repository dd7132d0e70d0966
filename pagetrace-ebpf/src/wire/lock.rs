//! Locks: the state of one hold, waits and holds that ended.

use super::{Header, MmOwner, codec::wire};

/// mmap locks a task can hold at once before [`super::counter::HELD_OVERFLOW`] counts.
pub const MAX_HELD: usize = 8;

/// Address spaces that were locked when tracing began and that are remembered as such.
pub const LOCKED_BEFORE_ROOM: u32 = 16;

/// How a lock is held and what is known of it; bits of [`Held::flags`].
pub mod held {
    /// Held for reading.
    pub const READ: u32 = 1;
    /// Held for writing.
    pub const WRITE: u32 = 1 << 1;
    /// Entered a lock function whose return has not been seen yet.
    pub const TENTATIVE: u32 = 1 << 2;
    /// Taken by a trylock.
    pub const TRY: u32 = 1 << 3;
    /// Was write-held and downgraded.
    pub const DOWNGRADED: u32 = 1 << 4;
    /// Somebody who did not hold it has released this mm's lock since: it may be this hold that was given away.
    pub const GIVEN_AWAY: u32 = 1 << 5;
    /// The return of the acquiring function was missed: whether it succeeded is unknown.
    pub const UNSURE: u32 = 1 << 6;
    /// Its acquisition went into the stream of a recording, so its release has to. Never set in a record of a violation.
    pub const STREAMED: u32 = 1 << 7;
    /// Nobody saw it being acquired: the lock's own word names the task as its writer.
    pub const BEFORE: u32 = 1 << 8;
    /// The wait for it can be ended by any signal, not only by a fatal one.
    pub const ANY_SIGNAL: u32 = 1 << 9;
    /// The time is an earlier acquisition's of the same lock by the same task, in the same timer tick.
    pub const DATED_EARLY: u32 = 1 << 10;
    /// The time is that of the call: what it waited for the lock is in it.
    pub const SINCE_CALL: u32 = 1 << 11;
}

wire! {
    /// One lock held at the moment of a violation.
    pub struct Held {
        /// Whose lock.
        pub owner: MmOwner,
        /// When it was acquired, nanoseconds of `CLOCK_MONOTONIC`.
        pub since: u64,
        /// `rw_semaphore.count` at the moment of the violation.
        pub count: u64,
        /// `rw_semaphore.owner` at the moment of the violation.
        pub sem_owner: u64,
        /// Bits of [`held`].
        pub flags: u32,
        /// Id of the acquiring stack in the stack map, or a negative errno.
        pub stack_id: i32,
    }
}

wire! {
    /// A wait for an mmap lock that ended.
    pub struct Wait {
        /// Common part; its time is the end of the wait.
        pub header: Header,
        /// Whose lock.
        pub owner: MmOwner,
        /// Nanoseconds waited.
        pub duration: u64,
        /// Bits of [`held`].
        pub flags: u32,
        /// Whether the lock was acquired.
        pub acquired: u32,
        /// Id of the waiting stack, or a negative errno.
        pub stack_id: i32,
        /// Explicit padding.
        pub pad: u32,
    }
}

wire! {
    /// A hold of an mmap lock that ended.
    pub struct Hold {
        /// Common part; its time is the end of the hold.
        pub header: Header,
        /// Whose lock.
        pub owner: MmOwner,
        /// Nanoseconds held.
        pub duration: u64,
        /// Bits of [`held`].
        pub flags: u32,
        /// Id of the acquiring stack, or a negative errno.
        pub stack_id: i32,
    }
}
