//! What a finding is made of. Addresses stay addresses here; names are added when it is shown.

use serde::{Deserialize, Serialize};

use super::page::PageInfo;

/// Kind of finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A kernel-mode access to a user address faulted while the task held an mmap lock.
    FaultUnderLock,
    /// A user access that could fault and sleep was made while the task held an mmap lock; it did not fault.
    UaccessUnderLock,
    /// A task went back to user mode, or ended, with an mmap lock held.
    LockLeak,
    /// Locks were taken in orders that make a cycle through mmap_lock.
    LockOrder,
    /// Tasks wait for each other, now.
    Deadlock,
}

/// How bad it is, mildest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Nothing faulted this time: the day a page is not there, it is one of the others.
    Latent,
    /// Only other address spaces' locks are held: two tasks doing it to each other deadlock.
    CrossMm,
    /// Locks were taken in both orders: the tasks deadlock when they meet.
    Inversion,
    /// The faulting mm's lock is held for reading: deadlocks as soon as a writer queues.
    RecursiveRead,
    /// The lock was left behind: nobody gets it for writing any more.
    Leak,
    /// The faulting mm's lock is held for writing: deadlocks at once. Or a deadlock stands.
    Deadlock,
}

impl Class {
    /// As reports spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FaultUnderLock => "fault-under-lock",
            Self::UaccessUnderLock => "uaccess-under-lock",
            Self::LockLeak => "lock-leak",
            Self::LockOrder => "lock-order",
            Self::Deadlock => "deadlock",
        }
    }
}

impl Severity {
    /// As reports spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Latent => "latent",
            Self::CrossMm => "cross-mm",
            Self::Inversion => "inversion",
            Self::RecursiveRead => "recursive-read",
            Self::Leak => "leak",
            Self::Deadlock => "deadlock",
        }
    }
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TaskId {
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Thread name, escaped.
    pub comm: String,
    /// Whether it is a kernel thread.
    pub kernel_thread: bool,
}

/// An address space.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MmId {
    /// Address of its `mm_struct`.
    pub address: u64,
    /// Process that owns it and that process's name, where the kernel tells.
    pub owner: Option<(u32, String)>,
}

/// Read or write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockMode {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
}

impl LockMode {
    /// As reports spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// Whose lock is held, seen from the faulting address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Relation {
    /// The faulting mm's own lock.
    Own,
    /// Another mm's lock.
    Foreign,
}

/// A lock held when the access faulted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLock {
    /// Whose lock.
    pub mm: MmId,
    /// Own or foreign.
    pub relation: Relation,
    /// How it is held.
    pub mode: LockMode,
    /// Taken by a trylock.
    pub trylock: bool,
    /// Write-held before, downgraded since.
    pub downgraded: bool,
    /// Nobody saw it being taken, before tracing began for one: the lock's own word names the task as its writer.
    pub taken_unseen: bool,
    /// Nanoseconds held when the access faulted, as far as is known.
    pub held_ns: u64,
    /// Held for at most that: the acquisition is only known to the timer tick.
    pub at_most: bool,
    /// Whether a writer waited for it at that moment; `None` when it is write-held.
    pub writer_queued: Option<bool>,
    /// Where it was taken, innermost first; empty when the stack could not be kept.
    pub stack: Vec<u64>,
}

/// The VMA of the faulting address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmaInfo {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// As in /proc/PID/maps.
    pub perms: String,
    /// Offset into the file, bytes.
    pub offset: u64,
    /// Last component of the mapped file's path; `None` when anonymous.
    pub file: Option<String>,
}

/// The access that faulted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Faulting address.
    pub address: u64,
    /// Instruction that faulted.
    pub ip: u64,
    /// Write or read, where the exception told.
    pub write: Option<bool>,
    /// Faulting address space.
    pub mm: MmId,
    /// VMA of the address, where it could be had without the lock.
    pub vma: Option<VmaInfo>,
    /// The page before the fault was handled, where that could be read.
    pub page: Option<PageInfo>,
    /// Kernel stack, innermost first.
    pub stack: Vec<u64>,
}

/// One distinct violation: a pair of stacks, by function. Task, locks and access are those of the worst sighting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Kind.
    pub class: Class,
    /// How bad, at worst.
    pub severity: Severity,
    /// Who.
    pub task: TaskId,
    /// Locks held, outermost first.
    pub locks: Vec<HeldLock>,
    /// The access.
    pub access: Access,
    /// Times it was seen.
    pub count: u64,
    /// Tasks it was seen of.
    pub tasks: u64,
    /// First and last time, nanoseconds of `CLOCK_MONOTONIC`.
    pub seen: (u64, u64),
    /// Thread ids of the tasks that were found stuck after it.
    pub stuck: Vec<u32>,
}
