//! Sums over all looks, and the list of what has no explanation. Pure.

use std::{collections::BTreeMap, ops::Range};

use serde::Serialize;

use super::event::Occasion;

/// Why a page is there. Each is earned by an event or by a property of its mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A fault of user mode on this page.
    Fault,
    /// A fault of the kernel on this page, for a system call.
    KernelFault,
    /// A fault on this page without an exception: `get_user_pages`.
    GetUserPages,
    /// A read fault nearby in the same file mapping: the kernel maps what it has cached around it.
    FaultAround,
    /// Part of one large page with a page that is explained: mapped whole, or collapsed by khugepaged.
    LargePage,
    /// The program asked for it: `MAP_POPULATE`, `mlock`, `MADV_POPULATE_*`.
    Populate,
    /// Put in place by `execve`: arguments and stack.
    Exec,
    /// It was there in the parent when the child was forked.
    Inherited,
    /// Lent by the kernel or mapped by a driver.
    Special,
    /// None of these.
    Unexplained,
}

impl Class {
    /// As reports spell it, and what earns it.
    #[must_use]
    pub const fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Fault => ("fault", "a fault from user mode on this page"),
            Self::KernelFault => ("kernel-fault", "a fault of the kernel on this page, for a system call"),
            Self::GetUserPages => ("get-user-pages", "a fault on this page without an exception"),
            Self::FaultAround => ("fault-around", "a read fault nearby in the same mapping of a file"),
            Self::LargePage => ("large-page", "one large page with a page that is explained"),
            Self::Populate => ("populate", "MAP_POPULATE, mlock or MADV_POPULATE"),
            Self::Exec => ("exec", "arguments and stack, put in place by execve"),
            Self::Inherited => ("inherited", "present in the parent when the child was forked"),
            Self::Special => ("special", "lent by the kernel, or mapped by a driver"),
            Self::Unexplained => ("unexplained", "none of these"),
        }
    }
}

/// Why a page that was faulted in is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gone {
    /// Unmapped, or something else was mapped over it.
    Unmapped,
    /// Given back by `madvise`.
    Discarded,
    /// It may have gone: `MADV_FREE`, `MADV_PAGEOUT`, or a call that failed half-way.
    MayLose,
    /// The address space was replaced by `execve`.
    Exec,
    /// In swap, or on its way.
    Swapped,
    /// Nothing is mapped at the address, so the access failed; or `shmdt`.
    NotMapped,
    /// The mapping forbids the access, so it failed.
    Forbidden,
    /// A signal said that the access failed.
    AccessFailed,
    /// Another thread changed the map during the fault.
    Raced,
    /// A thread was stopped or killed during the fault, of which only the beginning was seen.
    Interrupted,
    /// A file got shorter.
    Shortened,
    /// The kernel took pages of files back meanwhile, and this was one of a file.
    Reclaimed,
    /// Of a driver's mapping, or lent by the kernel: page walks may leave it out.
    Untold,
    /// Its process ended where it could not be looked at.
    NotLooked,
    /// It runs on when the command has ended.
    LeftRunning,
}

impl Gone {
    /// As reports spell it, and what earns it.
    #[must_use]
    pub const fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Unmapped => ("unmapped", "munmap, mremap, brk, or mapped over"),
            Self::Discarded => ("discarded", "madvise gave the contents back"),
            Self::MayLose => ("may-lose", "MADV_FREE, MADV_PAGEOUT, or a call that failed half-way"),
            Self::Exec => ("exec", "the address space was replaced"),
            Self::Swapped => ("swapped", "the page table holds a swap entry"),
            Self::NotMapped => ("not-mapped", "nothing is mapped there: the access failed, or shmdt"),
            Self::Forbidden => ("forbidden", "the mapping forbids the access"),
            Self::AccessFailed => ("access-failed", "a signal said so"),
            Self::Raced => ("raced", "another thread changed the map meanwhile"),
            Self::Interrupted => ("interrupted", "the thread was stopped or killed during the fault"),
            Self::Shortened => ("shortened", "a file was cut or got a hole"),
            Self::Reclaimed => ("reclaimed", "of a file, and the kernel took such back meanwhile"),
            Self::Untold => ("untold", "of a driver's mapping, which page walks may leave out"),
            Self::NotLooked => ("not-looked", "its process ended before it could be looked at"),
            Self::LeftRunning => {
                ("left-running", "its process runs on behind the command, and was not looked at again")
            }
        }
    }
}

/// Pages without an explanation, or pages that are missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unexplained {
    /// The process.
    pub pid: u32,
    /// When it was found.
    pub occasion: Occasion,
    /// Address of the first page.
    pub address: u64,
    /// Pages.
    pub pages: u64,
    /// The mapping, as maps shows it.
    pub vma: String,
}

/// Most entries that are listed of each kind; what is beyond is counted.
pub const LISTED: usize = 1000;

/// The sums.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Faults that the model was told of.
    pub faults: u64,
    /// Faults in no address space that it knows.
    pub strangers: u64,
    /// Looks.
    pub looks: BTreeMap<Occasion, u64>,
    /// Pages present, over all looks, by explanation.
    pub present: BTreeMap<Class, u64>,
    /// Pages that were faulted in.
    pub faulted: u64,
    /// Of these, those that were there when looked for.
    pub there: u64,
    /// Of these, those that were not, and why.
    pub gone: BTreeMap<Gone, u64>,
    /// Of these, those that should have been there.
    pub missing: u64,
    /// Pages that an earlier look found and a later one did not, with nothing to explain it.
    pub vanished: u64,
    /// Present pages that are not explained.
    pub unexplained: Vec<Unexplained>,
    /// Pages that should be there, first seen or not.
    pub missed: Vec<Unexplained>,
    /// Entries that the lists have no room for.
    pub unlisted: u64,
}

impl Tally {
    /// Pages present, over all looks.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.present.values().sum()
    }

    /// Of these, the ones without an explanation.
    #[must_use]
    pub fn unexplained_pages(&self) -> u64 {
        self.present.get(&Class::Unexplained).copied().unwrap_or(0)
    }

    pub(super) fn is_present(&mut self, class: Class, pages: u64) {
        *self.present.entry(class).or_default() += pages;
    }

    pub(super) fn is_gone(&mut self, why: Gone, pages: u64) {
        if pages != 0 {
            *self.gone.entry(why).or_default() += pages;
        }
    }

    pub(super) fn list(&mut self, missed: bool, entry: impl FnOnce(Range<u64>) -> Unexplained, pages: Range<u64>) {
        let list = if missed { &mut self.missed } else { &mut self.unexplained };
        if list.len() < LISTED {
            list.push(entry(pages));
        } else {
            self.unlisted += 1;
        }
    }
}
