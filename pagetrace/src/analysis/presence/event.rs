//! What the model is told: faults, what changes a map, and what was found at a moment. Values only.

use std::ops::Range;

use serde::Serialize;

use crate::pages::Vma;

/// Names an address space for as long as it exists; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpaceId(pub u64);

/// Who took a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// User mode.
    User,
    /// The kernel, for the task: a system call that reads or writes its memory.
    Kernel,
    /// Nobody's exception: `get_user_pages`.
    Pinning,
}

/// What the handler made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The page is there.
    Done,
    /// It is not, and the access failed.
    Failed,
    /// The handler wants to be called again.
    Again,
    /// Only the exception was seen.
    Unknown,
}

/// A page fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// When it began, nanoseconds of `CLOCK_MONOTONIC`.
    pub at: u64,
    /// When it ended, where that is seen.
    pub end: Option<u64>,
    /// The thread.
    pub tid: u32,
    /// Process of the address space's owner; 0 where the kernel does not tell.
    pub owner: u32,
    /// Address of the `mm_struct`.
    pub mm: u64,
    /// Number of the page.
    pub page: u64,
    /// Who took it.
    pub mode: Mode,
    /// It was a write.
    pub write: bool,
    /// What came of it.
    pub outcome: Outcome,
}

/// What a system call, or a signal, does to the pages of an address space. Pages are given by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing is mapped there any more, or something new.
    Unmap(Range<u64>),
    /// Contents were given back.
    Discard(Range<u64>),
    /// Page tables were moved to a place that begins with this page.
    Move(Range<u64>, u64),
    /// The kernel was asked to make pages present.
    Populate(Range<u64>),
    /// Pages may have gone, or may go later.
    MayLose(Range<u64>),
    /// A signal says that the access to this page failed.
    Failed(u64),
    /// A file may have got shorter, or a hole.
    Shortened,
}

/// A change, with its system call's beginning and end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// When the call began, nanoseconds of `CLOCK_MONOTONIC`.
    pub at: u64,
    /// When it had ended.
    pub end: u64,
    /// The thread.
    pub tid: u32,
    /// What it did.
    pub change: Change,
}

/// Neighbouring pages that the page table holds something for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Number of the first page.
    pub first: u64,
    /// Pages.
    pub count: u64,
    /// They are present; otherwise in swap, or on their way.
    pub present: bool,
    /// Frame of the first, where it is told; those of the others follow.
    pub frame: Option<u64>,
}

/// Why the pages were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Occasion {
    /// A program has been put in place and has not begun.
    Exec,
    /// A child has been forked and has not begun.
    Fork,
    /// A program is about to be replaced.
    BeforeExec,
    /// The last thread is about to end.
    Exit,
    /// The clock.
    Periodic,
}

/// What an address space has, at a moment when nothing runs in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// When reading began, nanoseconds of `CLOCK_MONOTONIC`.
    pub begun: u64,
    /// Why.
    pub occasion: Occasion,
    /// Its mappings, by rising address.
    pub vmas: Vec<Vma>,
    /// What is in the page tables, by rising page.
    pub runs: Vec<Run>,
    /// The kernel has taken back pages of files, from whomever, since the last look.
    pub reclaimed: bool,
}

/// Tells which frames make one large page.
pub trait Folios {
    /// All frames of the large page that this frame is part of; `None` for a small page, or where it is not told.
    fn folio(&mut self, frame: u64) -> Option<Range<u64>>;
}

/// Nobody tells.
#[derive(Debug, Clone, Copy)]
pub struct NoFolios;

impl Folios for NoFolios {
    fn folio(&mut self, _frame: u64) -> Option<Range<u64>> {
        None
    }
}
