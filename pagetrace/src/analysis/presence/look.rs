//! Compares what should be there with what is. Pure, but for who tells which frames make one large page.

use std::{collections::BTreeSet, ops::Range};

use super::{
    event::{Folios, Run, Snapshot},
    ranges::RangeMap,
    space::{Cell, Expect, Space, gaps},
    tally::{Class, Gone, Tally, Unexplained},
};
use crate::pages::{Backing, Vma};

/// One comparison.
pub(super) struct Look<'a> {
    pub(super) space: &'a Space,
    pub(super) snapshot: &'a Snapshot,
    /// Pages that are being faulted in while the snapshot is taken, by threads that are about to end.
    pub(super) meanwhile: RangeMap<Class>,
    /// Pages of faults that may still be going on.
    pub(super) unfinished: BTreeSet<u64>,
    /// Pages that the kernel maps at once around a read fault (`fault_around_bytes`).
    pub(super) around: u64,
    pub(super) page_size: u64,
}

impl Look<'_> {
    /// What the space should have from now on.
    pub(super) fn compare(&self, folios: &mut dyn Folios, tally: &mut Tally) -> RangeMap<Cell> {
        *tally.looks.entry(self.snapshot.occasion).or_default() += 1;
        let mut found = RangeMap::default();
        let mut left: Vec<(usize, u64, Option<u64>)> = Vec::new();
        for (index, vma) in self.snapshot.vmas.iter().enumerate() {
            let pages = vma.pages(self.page_size);
            for (run, part) in self.runs(&pages) {
                let known: Vec<_> = self.space.cells.within(part.clone()).collect();
                for (range, cell) in &known {
                    self.known(range.clone(), *cell, run.present, &mut found, tally);
                }
                if !run.present {
                    continue;
                }
                for page in gaps(&part, known.into_iter().map(|(range, _)| range)).into_iter().flatten() {
                    match self.explain(index, page) {
                        Some(class) => self.explained(page, class, &mut found, tally),
                        None => left.push((index, page, frame_of(run, page))),
                    }
                }
            }
        }
        // Only now is everything known that a large page's other parts can be explained by.
        let exact = found.clone();
        let mut without: Vec<(usize, u64)> = Vec::new();
        for (index, page, frame) in left {
            let special = self.snapshot.vmas.get(index).is_some_and(|vma| vma.backing() == Backing::Special);
            if self.is_part_of_large(page, frame, &exact, folios) {
                self.explained(page, Class::LargePage, &mut found, tally);
            } else if special {
                self.explained(page, Class::Special, &mut found, tally);
            } else {
                tally.is_present(Class::Unexplained, 1);
                found.set(page..page + 1, Cell::quiet(Class::Unexplained));
                without.push((index, page));
            }
        }
        for group in without.chunk_by(|one, next| one.0 == next.0 && one.1 + 1 == next.1) {
            let (Some((index, first)), Some((_, last))) = (group.first(), group.last()) else { continue };
            tally.list(false, |pages| self.entry(self.snapshot.vmas.get(*index), &pages), *first..last + 1);
        }
        self.missing(&found, tally);
        found
    }

    /// Runs that have pages in this range, with the part of each.
    fn runs(&self, pages: &Range<u64>) -> impl Iterator<Item = (&Run, Range<u64>)> {
        let runs = &self.snapshot.runs;
        let first = runs.partition_point(|run| run.first.saturating_add(run.count) <= pages.start);
        let (start, end) = (pages.start, pages.end);
        runs.iter().skip(first).take_while(move |run| run.first < end).filter_map(move |run| {
            let part = run.first.max(start)..run.first.saturating_add(run.count).min(end);
            (!part.is_empty()).then_some((run, part))
        })
    }

    fn known(&self, range: Range<u64>, cell: Cell, present: bool, found: &mut RangeMap<Cell>, tally: &mut Tally) {
        let pages = range.end - range.start;
        if !present {
            if cell.expect == Expect::Fresh {
                tally.is_gone(Gone::Swapped, pages);
            }
            return found.set(range, Cell { expect: Expect::No, ..cell });
        }
        if cell.expect == Expect::Fresh {
            tally.there += pages;
        }
        // What the child has, it has from its parent, but for what it was seen faulting in itself.
        let class = match (self.space.base, cell.expect) {
            (Some(Class::Inherited), Expect::No) => Class::Inherited,
            _ => cell.class,
        };
        tally.is_present(class, pages);
        let expect = if cell.expect == Expect::No { Expect::No } else { Expect::Seen };
        found.set(range, Cell { class, expect, ..cell });
    }

    fn explained(&self, page: u64, class: Class, found: &mut RangeMap<Cell>, tally: &mut Tally) {
        let class = if self.space.base == Some(Class::Inherited) { Class::Inherited } else { class };
        tally.is_present(class, 1);
        found.set(page..page + 1, Cell::quiet(class));
    }

    fn explain(&self, index: usize, page: u64) -> Option<Class> {
        let vma = self.snapshot.vmas.get(index)?;
        if let Some(class) = self.meanwhile.get(page) {
            return Some(class);
        }
        let by_exec = self.space.base == Some(Class::Exec);
        if by_exec && (self.space.built.get(page).is_some() || vma.name == b"[stack]") {
            return Some(Class::Exec);
        }
        let around = vma.backing() == Backing::File && self.space.around.get(page).is_some();
        (around && self.is_around(index, page)).then_some(Class::FaultAround)
    }

    /// Whether a read fault brought this page of a file along (`do_fault_around` in mm/memory.c): the kernel maps as many pages as
    /// fit from the aligned one on, or from the mapping's first if that is later.
    fn is_around(&self, index: usize, page: u64) -> bool {
        let around = self.around.max(1);
        // A mapping may have been split since the fault, by mprotect.
        let mut starts = Vec::new();
        let mut at = index;
        while let Some(vma) = self.snapshot.vmas.get(at) {
            starts.push(vma.pages(self.page_size).start);
            let before = at.checked_sub(1).and_then(|before| self.snapshot.vmas.get(before));
            if before.is_none_or(|before| !continues(before, vma)) || vma.pages(self.page_size).start + around < page {
                break;
            }
            at = at.saturating_sub(1);
        }
        let reach = page.saturating_sub(2 * around)..page.saturating_add(around);
        self.space.reads.within(reach).flat_map(|(range, ())| range).any(|read| {
            let aligned = read / around * around;
            let later = starts.iter().copied().filter(|start| (aligned..=read).contains(start));
            std::iter::once(aligned).chain(later).any(|from| (from..from + around).contains(&page))
        })
    }

    fn is_part_of_large(&self, page: u64, frame: Option<u64>, exact: &RangeMap<Cell>, folios: &mut dyn Folios) -> bool {
        let Some(frame) = frame else { return false };
        let Some(folio) = folios.folio(frame).filter(|folio| folio.contains(&frame)) else { return false };
        let pages = page.saturating_sub(frame - folio.start)..page.saturating_add(folio.end - frame);
        // The same frames at the same distance: the same large page, and not a neighbour that lies where its part would.
        let same = |other: u64| {
            let run = self.runs(&(other..other + 1)).next().map(|(run, _)| run).filter(|run| run.present);
            run.and_then(|run| frame_of(run, other))
                .is_some_and(|of| of.wrapping_sub(frame) == other.wrapping_sub(page))
        };
        let evidence = exact.within(pages).filter(|(_, cell)| cell.class != Class::Unexplained);
        evidence.flat_map(|(range, _)| range).any(same)
    }

    /// What should be there and is not.
    fn missing(&self, found: &RangeMap<Cell>, tally: &mut Tally) {
        for (range, cell) in self.space.cells.iter().filter(|(_, cell)| cell.expect != Expect::No) {
            for gap in gaps(&range, found.within(range.clone()).map(|(known, _)| known)) {
                let mut at = gap.start;
                while at < gap.end {
                    let (vma, end) = self.mapping(at, gap.end);
                    let pages = end - at;
                    match (self.why(vma, cell), cell.expect) {
                        (Some(why), Expect::Fresh) => tally.is_gone(why, pages),
                        (Some(_), _) => {}
                        (None, Expect::Fresh) => {
                            let open = self.unfinished.range(at..end);
                            let lost = gaps(&(at..end), open.map(|page| *page..page + 1));
                            let missing: u64 = lost.iter().map(|range| range.end - range.start).sum();
                            tally.is_gone(Gone::Interrupted, pages - missing);
                            tally.missing += missing;
                            lost.into_iter().for_each(|range| tally.list(true, |pages| self.entry(vma, &pages), range));
                        }
                        (None, _) => {
                            tally.vanished += pages;
                            tally.list(true, |pages| self.entry(vma, &pages), at..end);
                        }
                    }
                    at = end;
                }
            }
        }
    }

    /// The mapping of a page, if there is one, and how far that holds.
    fn mapping(&self, page: u64, end: u64) -> (Option<&Vma>, u64) {
        let vmas = &self.snapshot.vmas;
        let at = vmas.partition_point(|vma| vma.pages(self.page_size).end <= page);
        match vmas.get(at) {
            Some(vma) if vma.pages(self.page_size).start <= page => {
                (Some(vma), vma.pages(self.page_size).end.clamp(page + 1, end))
            }
            Some(vma) => (None, vma.pages(self.page_size).start.clamp(page + 1, end)),
            None => (None, end),
        }
    }

    fn why(&self, vma: Option<&Vma>, cell: Cell) -> Option<Gone> {
        let Some(vma) = vma else { return Some(Gone::NotMapped) };
        let [read, write, run, _] = vma.permissions;
        let allowed = if cell.write { write == b'w' } else { read == b'r' || run == b'x' };
        let file = vma.backing() == Backing::File;
        match () {
            () if !allowed => Some(Gone::Forbidden),
            () if file && self.space.shortened => Some(Gone::Shortened),
            () if file && self.snapshot.reclaimed => Some(Gone::Reclaimed),
            // Page walks leave out what a driver maps without `struct page`.
            () if vma.backing() == Backing::Special => Some(Gone::Untold),
            () => None,
        }
    }

    fn entry(&self, vma: Option<&Vma>, pages: &Range<u64>) -> Unexplained {
        Unexplained {
            pid: self.space.pid,
            occasion: self.snapshot.occasion,
            address: pages.start.saturating_mul(self.page_size),
            pages: pages.end - pages.start,
            vma: vma.map_or_else(|| "no mapping".to_owned(), shown),
        }
    }
}

fn frame_of(run: &Run, page: u64) -> Option<u64> {
    run.frame?.checked_add(page.checked_sub(run.first)?)
}

/// Whether `next` may have been one mapping with `vma`.
fn continues(vma: &Vma, next: &Vma) -> bool {
    vma.end == next.start
        && (vma.device, vma.inode) == (next.device, next.inode)
        && vma.offset.checked_add(vma.end - vma.start) == Some(next.offset)
}

fn shown(vma: &Vma) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).escape_debug().to_string();
    let name = if vma.name.is_empty() { "anonymous".to_owned() } else { text(&vma.name) };
    format!("{:x}-{:x} {} {name}", vma.start, vma.end, text(&vma.permissions))
}
