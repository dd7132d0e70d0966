//! One address space: which pages should be there, and why. Pure.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
};

use super::{
    event::{Change, Changed, Fault, Mode, Outcome},
    ranges::RangeMap,
    tally::{Class, Gone, Tally},
};

/// No fault takes longer, nanoseconds.
const LONG: u64 = 1_000_000_000;

/// Whether a page has to be there at the next look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// It may be.
    No,
    /// It was faulted in since the last look.
    Fresh,
    /// It was there at the last look.
    Seen,
}

/// What is known of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) class: Class,
    pub(super) expect: Expect,
    /// The last fault was a write.
    pub(super) write: bool,
}

impl Cell {
    pub(super) const fn quiet(class: Class) -> Self {
        Self { class, expect: Expect::No, write: false }
    }
}

/// What happened and was not applied yet: it is applied by rising time, once all before it is sure to be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Fault(Fault),
    Changed(Changed),
}

impl Event {
    pub(super) fn at(&self) -> u64 {
        match self {
            Self::Fault(fault) => fault.at,
            Self::Changed(changed) => changed.at,
        }
    }
}

/// An address space.
#[derive(Debug, Clone, Default)]
pub(super) struct Space {
    pub(super) pid: u32,
    pub(super) cells: RangeMap<Cell>,
    /// Pages that a read fault since the last look may have brought along, if a file is mapped there.
    pub(super) around: RangeMap<()>,
    /// Pages of those read faults.
    pub(super) reads: RangeMap<()>,
    /// How it came to be, until it was looked at for the first time.
    pub(super) base: Option<Class>,
    /// Pages that were faulted in by the `execve` that made it.
    pub(super) built: RangeMap<()>,
    /// A file may have got shorter since the last look.
    pub(super) shortened: bool,
    pub(super) pending: Vec<Event>,
    /// Something happened since the last look.
    pub(super) touched: bool,
    /// The last fault of each thread. It may still be going on.
    pub(super) last: HashMap<u32, Fault>,
    /// Changes that may still be going on: pages and end.
    pub(super) open: Vec<(Range<u64>, u64)>,
}

impl Space {
    /// Applies what happened up to a moment.
    pub(super) fn settle(&mut self, until: u64, around: u64, tally: &mut Tally) {
        self.pending.sort_by_key(Event::at);
        let later = self.pending.partition_point(|event| event.at() <= until);
        let rest = self.pending.split_off(later);
        for event in std::mem::replace(&mut self.pending, rest) {
            match event {
                Event::Fault(fault) => self.fault(&fault, around, tally),
                Event::Changed(changed) => self.change(&changed, tally),
            }
        }
    }

    fn fault(&mut self, fault: &Fault, around: u64, tally: &mut Tally) {
        let Fault { page, .. } = *fault;
        if matches!(fault.outcome, Outcome::Failed | Outcome::Again) {
            return;
        }
        self.last.insert(fault.tid, *fault);
        let class = match fault.mode {
            Mode::User => Class::Fault,
            Mode::Kernel => Class::KernelFault,
            Mode::Pinning => Class::GetUserPages,
        };
        // During a change by another thread either may have come last.
        let sure = !self.open.iter().any(|(pages, end)| pages.contains(&page) && fault.at < *end);
        let before = self.cells.get(page).map_or(Expect::No, |cell| cell.expect);
        let expect = match before {
            Expect::No if sure => {
                tally.faulted += 1;
                Expect::Fresh
            }
            before => before,
        };
        self.cells.set(page..page.saturating_add(1), Cell { class, expect, write: fault.write });
        if !fault.write {
            self.reads.set(page..page.saturating_add(1), ());
            self.around.set(window(page, around), ());
        }
    }

    fn change(&mut self, changed: &Changed, tally: &mut Tally) {
        self.open.retain(|(_, end)| *end > changed.at);
        let mut touch = |pages: &Range<u64>| self.open.push((pages.clone(), changed.end));
        match &changed.change {
            Change::Unmap(pages) => {
                touch(pages);
                self.remove(pages, changed, Gone::Unmapped, tally);
            }
            Change::Discard(pages) => {
                touch(pages);
                self.remove(pages, changed, Gone::Discarded, tally);
            }
            Change::Move(from, to) => {
                let onto = *to..to.saturating_add(from.end.saturating_sub(from.start));
                touch(from);
                touch(&onto);
                self.shift(from, &onto, changed, tally);
            }
            Change::Populate(pages) => {
                let gaps = gaps(pages, self.cells.within(pages.clone()).map(|(known, _)| known));
                gaps.into_iter().for_each(|gap| self.cells.set(gap, Cell::quiet(Class::Populate)));
            }
            Change::MayLose(pages) => self.doubt(pages.clone(), Gone::MayLose, tally),
            Change::Failed(page) => self.doubt(*page..page.saturating_add(1), Gone::AccessFailed, tally),
            Change::Shortened => self.shortened = true,
        }
    }

    /// The pages are gone.
    fn remove(&mut self, pages: &Range<u64>, changed: &Changed, why: Gone, tally: &mut Tally) {
        for (range, cell) in self.cells.cut(pages.clone()) {
            if cell.expect == Expect::Fresh {
                tally.is_gone(why, range.end - range.start);
            }
        }
        self.around.cut(pages.clone());
        // A fault of another thread that had begun before may have ended after.
        let going_on = self.last.values().filter(|fault| {
            fault.tid != changed.tid && pages.contains(&fault.page) && fault.end.is_none_or(|end| end > changed.at)
        });
        let raced: Vec<u64> = going_on.map(|fault| fault.page).collect();
        raced.into_iter().for_each(|page| self.cells.set(page..page + 1, Cell::quiet(Class::Fault)));
    }

    /// Page tables move, onto what was there.
    fn shift(&mut self, from: &Range<u64>, onto: &Range<u64>, changed: &Changed, tally: &mut Tally) {
        let moved = self.cells.cut(from.clone());
        let near = self.around.cut(from.clone());
        let read: Vec<_> = self.reads.within(from.clone()).collect();
        self.remove(onto, changed, Gone::Unmapped, tally);
        let to = |range: &Range<u64>| {
            let at = onto.start.saturating_add(range.start.saturating_sub(from.start));
            at..at.saturating_add(range.end - range.start)
        };
        moved.into_iter().for_each(|(range, cell)| self.cells.set(to(&range), cell));
        near.into_iter().for_each(|(range, ())| self.around.set(to(&range), ()));
        read.into_iter().for_each(|(range, ())| self.reads.set(to(&range), ()));
    }

    /// The pages need not be there any more.
    fn doubt(&mut self, pages: Range<u64>, why: Gone, tally: &mut Tally) {
        for (range, cell) in self.cells.cut(pages) {
            if cell.expect == Expect::Fresh {
                tally.is_gone(why, range.end - range.start);
            }
            self.cells.set(range, Cell { expect: Expect::No, ..cell });
        }
    }

    /// Pages of faults that may still be going on at a moment: the last of each thread, if only the exception was seen, and that not
    /// long ago. Who was stopped or killed in one takes it anew, or never.
    pub(super) fn unfinished(&self, now: u64) -> BTreeSet<u64> {
        let recent = now.saturating_sub(LONG)..=now;
        let open = self.last.values().filter(|fault| fault.end.is_none() && recent.contains(&fault.at));
        open.map(|fault| fault.page).collect()
    }

    /// As a fork copies it; what another thread does meanwhile is taken in by [`Space::join`].
    pub(super) fn fork(&self, pid: u32) -> Self {
        let mut child = Self { pid, base: Some(Class::Inherited), ..Self::default() };
        child.join(self);
        child
    }

    /// Adds what another has and this one does not.
    pub(super) fn join(&mut self, other: &Self) {
        for (range, cell) in other.cells.iter() {
            let gaps = gaps(&range, self.cells.within(range.clone()).map(|(known, _)| known));
            gaps.into_iter().for_each(|gap| self.cells.set(gap, Cell { expect: Expect::No, ..cell }));
        }
        other.around.iter().for_each(|(range, ())| self.around.set(range, ()));
        other.reads.iter().for_each(|(range, ())| self.reads.set(range, ()));
    }

    /// The address space is gone: what was not looked at will not be.
    pub(super) fn end(&mut self, why: Gone, tally: &mut Tally) {
        let fresh = self.cells.iter().filter(|(_, cell)| cell.expect == Expect::Fresh);
        tally.is_gone(why, fresh.map(|(range, _)| range.end - range.start).sum());
        self.cells.clear();
    }
}

/// The pages that a fault on this one may bring along at most.
pub(super) fn window(page: u64, around: u64) -> Range<u64> {
    let reach = around.saturating_sub(1);
    page.saturating_sub(reach)..page.saturating_add(reach).saturating_add(1)
}

/// The parts of `pages` that are not in `known`, which has to rise.
pub(super) fn gaps(pages: &Range<u64>, known: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut out = Vec::new();
    let mut at = pages.start;
    for part in known {
        if part.start > at {
            out.push(at..part.start.min(pages.end));
        }
        at = at.max(part.end);
    }
    if at < pages.end {
        out.push(at..pages.end);
    }
    out
}
