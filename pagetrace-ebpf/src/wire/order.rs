//! The order in which sleeping locks are taken: one record for each distinct edge "wanted while held".
//!
//! A lock is told by its class, as lockdep tells locks, but from what a stock kernel shows: an address, a place in an
//! object of a slab cache, a field of an inode. Edges between two mmap locks are told by instance, all others by class.

use super::{Header, MmOwner, STACK_FRAMES, codec::wire};

/// Sleeping locks a task can hold at once before [`super::counter::ORDER_HELD_OVERFLOW`] counts.
pub const MAX_ORDER: usize = 16;

/// Bytes of a name in a [`LockClass`].
pub const NAME_LEN: usize = 32;

/// What a class is made of; [`LockClass::kind`].
pub mod class {
    /// `mm_struct.mmap_lock`. The owner is the mm, the site the time it was made, where that was seen.
    pub const MMAP: u32 = 1;
    /// The lock itself. The owner is its address, the site where it was initialised, where that was seen, or, in a slab
    /// cache that can hold several types, first taken.
    pub const ADDRESS: u32 = 2;
    /// A place in the objects of a slab cache that holds one type. The owner is the cache, the name the cache's.
    pub const SLAB: u32 = 3;
    /// As [`SLAB`] in a cache that can hold several types: the site tells where the lock was initialised.
    pub const SLAB_SITE: u32 = 4;
    /// A field of an inode. The owner is its `file_system_type`, whose name is the name; the offset counts from the
    /// start of the inode.
    pub const INODE: u32 = 5;
    /// Bit of [`super::LockClass::offset`] of an inode's lock: the inode is a directory.
    pub const DIRECTORY: u32 = 1 << 31;
    /// Bits of [`super::LockClass::offset`] that are the offset.
    pub const OFFSET: u32 = (1 << ERA_SHIFT) - 1;
    /// Above them, up to [`DIRECTORY`], what tells two classes apart whose addresses are the same because one came in the place of
    /// the other: how many modules that had an address were unloaded before, or something of the name of a slab cache.
    pub const ERA_SHIFT: u32 = 20;
    /// Bits of that.
    pub const ERA: u32 = (1 << (31 - ERA_SHIFT)) - 1;
}

/// Bits of [`OrderLock::flags`], above those of [`super::lock::held`].
pub mod how {
    /// A mutex; the mode is [`super::super::lock::held::WRITE`] then.
    pub const MUTEX: u32 = 1 << 16;
    /// The fault handler wants the lock.
    pub const BY_FAULT: u32 = 1 << 17;
    /// An access to user memory could want the lock.
    pub const BY_ACCESS: u32 = 1 << 18;
    /// An exception was seen and a lock attempt followed: the stack has to show the fault handler.
    pub const NEEDS_STACK: u32 = 1 << 19;
    /// The site of the class is where the lock was initialised.
    pub const SITE_IS_INIT: u32 = 1 << 20;
}

/// 64-bit words of a key in the map of edges that were told.
pub const KEY_WORDS: usize = 7;
/// 64-bit words of its values.
pub const VALUE_WORDS: usize = 2;
/// Word of a value: times the edge was seen after it was told.
pub const VALUE_COUNT: usize = 0;
/// Word of a value: last time it was seen, nanoseconds of `CLOCK_MONOTONIC`.
pub const VALUE_LAST: usize = 1;

/// Marks in a key how the lock was wanted: what is proven and what waits for its stack do not count for each other.
const KEY_HOW: u32 = how::NEEDS_STACK;
/// Mode bits in a key.
const KEY_MODE: u32 = super::lock::held::READ | super::lock::held::WRITE;

/// The parts of a class that tell it from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClassId {
    /// One of [`class`].
    pub kind: u32,
    /// See [`LockClass::offset`].
    pub offset: u32,
    /// See [`LockClass::owner`].
    pub owner: u64,
    /// See [`LockClass::site`].
    pub site: u64,
}

/// The key of an edge. An mmap lock counts as an instance only against another mmap lock.
#[inline(always)]
pub fn key(held: &ClassId, held_flags: u32, wanted: &ClassId, wanted_flags: u32) -> [u64; KEY_WORDS] {
    let instances = held.kind == class::MMAP && wanted.kind == class::MMAP;
    let id = |of: &ClassId| match of.kind == class::MMAP && !instances {
        true => [class::MMAP as u64, 0, 0],
        false => [(of.kind as u64) << 32 | of.offset as u64, of.owner, of.site],
    };
    let (from, to) = (id(held), id(wanted));
    let modes = (held_flags & KEY_MODE) as u64 | ((wanted_flags & (KEY_MODE | KEY_HOW)) as u64) << 32;
    [from[0], from[1], from[2], to[0], to[1], to[2], modes]
}

wire! {
    /// What kind of lock it is.
    pub struct LockClass {
        /// One of [`class`].
        pub kind: u32,
        /// Bytes from the start of the object, where there is one, and what else [`class`] has.
        pub offset: u32,
        /// See [`class`].
        pub owner: u64,
        /// See [`class`].
        pub site: u64,
        /// Name of the slab cache or of the file system type, NUL-terminated unless it is longer; empty where there is none.
        pub name: [u8; NAME_LEN],
    }
}

impl LockClass {
    /// What tells it from others.
    pub fn id(&self) -> ClassId {
        ClassId { kind: self.kind, offset: self.offset, owner: self.owner, site: self.site }
    }
}

wire! {
    /// A lock that is held or wanted.
    pub struct OrderLock {
        /// Its class.
        pub class: LockClass,
        /// Its address.
        pub address: u64,
        /// Since when it is held, nanoseconds of `CLOCK_MONOTONIC`; 0 for a lock that is wanted.
        pub since: u64,
        /// Whose address space, for an mmap lock.
        pub mm: MmOwner,
        /// Mode bits of [`super::lock::held`] and bits of [`how`].
        pub flags: u32,
        /// Id of the acquiring stack, or a negative errno; -1 for a lock that is wanted.
        pub stack_id: i32,
    }
}

wire! {
    /// A lock was wanted while another was held, for the first time with these classes and modes.
    pub struct Edge {
        /// Common part.
        pub header: Header,
        /// The lock that was held.
        pub held: OrderLock,
        /// The lock that was wanted.
        pub wanted: OrderLock,
        /// The user address, for a fault or an access.
        pub address: u64,
        /// Bytes used in [`Edge::stack`], or a negative errno.
        pub stack_len: i64,
        /// Where the lock was wanted, innermost first.
        pub stack: [u64; STACK_FRAMES],
    }
}

wire! {
    /// How often an edge was seen after it was told. Userspace writes it from the map of edges.
    pub struct EdgeCount {
        /// [`super::kind::EDGE_COUNT`].
        pub kind: u32,
        /// Explicit padding.
        pub pad: u32,
        /// The edge, as [`key`] makes it.
        pub key: [u64; KEY_WORDS],
        /// Times it was seen after its record.
        pub count: u64,
        /// Last time, nanoseconds of `CLOCK_MONOTONIC`.
        pub last: u64,
    }
}

impl EdgeCount {
    /// The record's bytes.
    pub fn encode(&self) -> [u8; <Self as super::Wire>::SIZE] {
        let mut out = [0; <Self as super::Wire>::SIZE];
        let words = [u64::from(self.kind) | u64::from(self.pad) << 32].into_iter().chain(self.key);
        for (to, word) in out.chunks_exact_mut(8).zip(words.chain([self.count, self.last])) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        out
    }
}

wire! {
    /// A lock in a task's state: held, or, as the last one, perhaps still waited for.
    pub struct OrderSlot {
        /// Its address.
        pub lock: u64,
        /// See [`LockClass::owner`].
        pub owner: u64,
        /// See [`LockClass::site`].
        pub site: u64,
        /// Since when it was wanted, or is held, nanoseconds of `CLOCK_MONOTONIC`.
        pub since: u64,
        /// One of [`class`].
        pub kind: u32,
        /// See [`LockClass::offset`].
        pub offset: u32,
        /// Mode bits of [`super::lock::held`], bits of [`how`], [`OVER`].
        pub flags: u32,
        /// Id of the acquiring stack, or a negative errno.
        pub stack: i32,
    }
}

impl OrderSlot {
    /// Its class.
    #[inline(always)]
    pub fn class(&self) -> ClassId {
        ClassId { kind: self.kind, offset: self.offset, owner: self.owner, site: self.site }
    }

    /// Whether both are of one class.
    #[inline(always)]
    pub fn same_class(&self, other: &Self) -> bool {
        self.kind == other.kind && self.offset == other.offset && self.owner == other.owner && self.site == other.site
    }
}

/// Mark in [`OrderSlot::flags`]: the lock words said that the hold is over.
pub const OVER: u32 = 1 << 31;

wire! {
    /// All that the lock order knows of a task: the values of its map.
    pub struct OrderTask {
        /// Slots used.
        pub depth: u32,
        /// The kernel side's own.
        pub flags: u32,
        /// Slots from which there is an edge to the lock that is wanted that was not told, as bits.
        pub fresh: u32,
        /// Thread id.
        pub tid: u32,
        /// Process id.
        pub tgid: u32,
        /// A number of the event at hand.
        pub number: u32,
        /// The address of the fault, or of the exception that is pending.
        pub address: u64,
        /// Bytes used in [`OrderTask::stack`], or a negative errno.
        pub stack_len: i64,
        /// The lock that was wanted last.
        pub wanted: OrderSlot,
        /// The edge that is looked at, as [`key`] makes it: too large for the stack of a program with several callers below it.
        pub key: [u64; KEY_WORDS],
        /// Locks, outermost first.
        pub slots: [OrderSlot; MAX_ORDER],
        /// Where the last new edge was seen.
        pub stack: [u64; STACK_FRAMES],
    }
}

/// 64-bit words of an [`OrderTask`].
pub const TASK_WORDS: usize = size_of::<OrderTask>() / 8;
