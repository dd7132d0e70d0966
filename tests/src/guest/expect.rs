//! What pagetrace must say about each violating case, as data: one row a case, with the reason.

use crate::fixture::cases::{self, BPF_PAGES, OFFSET};

/// One finding that must be reported.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// The case.
    pub case: &'static str,
    /// The finding's severity.
    pub severity: &'static str,
    /// How each held lock is held.
    pub mode: &'static str,
    /// Whose each held lock is, seen from the faulting address space.
    pub relation: &'static str,
    /// How many locks are held.
    pub locks: usize,
    /// Whether the access was a write.
    pub write: bool,
    /// Whether the tracepoints, which sit in the usual wrappers, can see the lock.
    pub in_wrappers: bool,
    /// Why.
    pub reason: &'static str,
}

const fn own(case: &'static str, reason: &'static str) -> Expected {
    let (severity, mode, relation) = ("recursive-read", "read", "own");
    Expected { case, severity, mode, relation, locks: 1, write: false, in_wrappers: true, reason }
}

const fn foreign(case: &'static str, mode: &'static str, reason: &'static str) -> Expected {
    Expected { severity: "cross-mm", relation: "foreign", mode, ..own(case, reason) }
}

/// The cases of the kernel module that end by themselves.
pub const MODULE: &[Expected] = &[
    own("read-own", "the handler reads again what is read already: a queued writer makes it a deadlock"),
    foreign("read-other", "read", "what pagemap did: two tasks doing it to each other deadlock"),
    foreign("write-other", "write", "the foreign lock's mode does not matter to the order"),
    own("downgraded", "a write lock that was downgraded is a read lock, not gone"),
    own("trylocked", "a lock is held however it was taken"),
    own("gup-discard", "a pinned page can be unmapped all the same"),
    own("kthread", "a kernel thread that uses an address space faults on it like its owner"),
    Expected { in_wrappers: false, ..own("raw-rwsem", "the semaphore is the lock, wrapper or not") },
    foreign("killable-read", "read", "a killable acquisition that succeeded is an acquisition"),
    foreign("killable-write", "write", "a killable acquisition that succeeded is an acquisition"),
    Expected { locks: 2, ..foreign("nested-two", "read", "both locks are held, and both are named") },
    Expected { write: true, ..own("put-user", "writing user memory faults as reading does") },
    foreign("across-ioctl", "read", "a lock stays held across a return to user space"),
    foreign("across-write", "write", "a lock stays held across a return to user space"),
    foreign("crossed", "read", "the lock that was taken second is still held when the first is not"),
    own("twice", "a lock that was taken twice and released once is held"),
    foreign("many", "read", "of many holds one is left"),
    foreign("many-foreign", "read", "that another kind of lock was not had ends no hold"),
    foreign("many-last", "read", "what is left is the one that there was no room for"),
    foreign("killable-foreign", "read", "that another kind of lock was not had ends no hold"),
    foreign("waits-handed", "read", "whoever had the lock before, and released it, it is held now"),
    own("handed-retaken", "of two holds the first was given away, and only the second is held"),
    own("after-sleep", "a task that sleeps keeps its locks"),
    Expected { write: true, ..own("clear-user", "zeroing user memory is writing it") },
    own("strncpy", "a string is read from user memory as anything else"),
    own("unmapped", "that nothing is mapped there is found out under the lock"),
    own("gup-fault", "get_user_pages calls the fault handler of a mapping with the lock held"),
    own("fault-fault", "a fault calls the fault handler of a mapping with the lock held"),
    own("fault-user", "so does a fault from user mode, which is nobody's mistake either"),
];

/// The BPF fixtures.
pub const BPF: &[Expected] = &[
    foreign("iter-fault", "read", "the iterator holds the target's lock while the reader's memory is touched"),
    own("uprobe-fault", "bpf_find_vma holds the current process's lock while its callback runs"),
];

/// A case that hangs: what must be said of it.
#[derive(Debug, Clone, Copy)]
pub struct Hanging {
    /// The case.
    pub case: &'static str,
    /// The finding's severity.
    pub severity: &'static str,
    /// How the lock is held.
    pub mode: &'static str,
    /// Whether a writer is queued behind it; only a reader's lock tells.
    pub writer_queued: Option<bool>,
}

/// The cases that do not end by themselves.
pub const HANGING: &[Hanging] = &[
    Hanging { case: "write-own", severity: "deadlock", mode: "write", writer_queued: None },
    Hanging { case: "writer-queued", severity: "recursive-read", mode: "read", writer_queued: Some(true) },
];

impl Expected {
    /// Whether `address` is one that the case touches.
    #[must_use]
    pub fn touches(&self, address: u64) -> bool {
        let Some(page) = cases::page_of(self.case) else { return false };
        if cases::find(self.case).is_some() {
            return address == page + OFFSET;
        }
        (0..BPF_PAGES as u64).any(|n| address == page + n * 4096)
    }

    /// Whether attach type `attach` can see the lock.
    #[must_use]
    pub fn visible_by(&self, attach: &str) -> bool {
        self.in_wrappers || !matches!(attach, "tracepoint" | "raw-tracepoint")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::fixture::cases::{BPF_CASES, CASES, Kind};

    #[test]
    fn every_violating_case_has_exactly_one_row() {
        let rows: Vec<_> = MODULE.iter().chain(BPF).map(|row| row.case).collect();
        let module = CASES.iter().filter(|case| case.kind == Kind::Violating).map(|case| case.name);
        let bpf = BPF_CASES.iter().filter(|(_, kind)| *kind == Kind::Violating).map(|(name, _)| *name);
        let cases: HashSet<_> = module.chain(bpf).collect();
        assert_eq!(rows.len(), cases.len());
        assert_eq!(rows.into_iter().collect::<HashSet<_>>(), cases);
    }

    #[test]
    fn every_hanging_case_has_a_row() {
        let hanging = CASES.iter().filter(|case| case.kind == Kind::Hanging).map(|case| case.name);
        assert_eq!(HANGING.iter().map(|row| row.case).collect::<Vec<_>>(), hanging.collect::<Vec<_>>());
    }
}
