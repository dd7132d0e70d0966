//! Makes of a walk what a person asked for: sums, runs, entries, a picture; of all pages or of those that a condition holds for.

use std::io;

use super::{
    entry::Entry,
    expr::{Expr, Known},
    facts::Facts,
    kpage::{Frame, Frames},
    summary::{Counts, Density},
    walk::{Piece, Visit},
};

/// Frames asked about at once.
const FRAMES: usize = 4096;

/// Pages of which the same is said, or a single one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// Number of the first page.
    pub first: u64,
    /// How many there are.
    pub count: u64,
    /// The first's entry.
    pub entry: Entry,
    /// Whether their frames follow each other.
    pub contiguous: bool,
    /// What holds of each.
    pub facts: Facts,
    /// Which facts are known.
    pub told: Facts,
    /// What is known of the frames, where that was asked for.
    pub frame: Option<Frame>,
}

/// What is made of matching pages besides sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Nothing.
    None,
    /// A line for pages that have everything in common but where they are.
    Runs,
    /// A line for each page.
    Entries,
}

/// How often each flag of a frame was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlagCounts(pub [u64; 64]);

/// Takes lines.
pub type Tell<'a> = dyn FnMut(&Line) -> io::Result<()> + 'a;
/// Learns how far the walk is.
pub type Reached<'a> = dyn FnMut(u64) -> io::Result<()> + 'a;

/// The collector of one mapping.
pub struct Gather<'a> {
    /// Only pages of which it holds.
    pub filter: Option<&'a Expr>,
    /// Where to ask about frames, if they are asked about.
    pub frames: Option<&'a mut Frames>,
    /// What to make besides sums.
    pub detail: Detail,
    /// The sums.
    pub counts: Counts,
    /// The picture, if there is to be one.
    pub density: Option<Density>,
    /// Of the pages that are counted, it shows only those of which this holds.
    pub dense: Option<&'a Expr>,
    /// Sums of the frames' flags.
    pub flags: FlagCounts,
    /// Where lines go.
    pub tell: &'a mut Tell<'a>,
    /// Who wants to know how far it is.
    pub reached: &'a mut Reached<'a>,
    pending: Option<Line>,
    scratch: Vec<Frame>,
}

impl std::fmt::Debug for Gather<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gather").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl<'a> Gather<'a> {
    /// With nothing in it yet.
    pub fn new(filter: Option<&'a Expr>, detail: Detail, tell: &'a mut Tell<'a>, reached: &'a mut Reached<'a>) -> Self {
        Self {
            filter,
            frames: None,
            detail,
            counts: Counts::default(),
            density: None,
            dense: None,
            flags: FlagCounts([0; 64]),
            tell,
            reached,
            pending: None,
            scratch: Vec::new(),
        }
    }

    /// Hands on what is held back.
    ///
    /// # Errors
    /// As the taker of lines.
    pub fn finish(&mut self) -> io::Result<()> {
        self.pending.take().map_or(Ok(()), |line| (self.tell)(&line))
    }

    /// Pages that are known to match, and of which nothing else is.
    ///
    /// # Errors
    /// Never; it goes where errors do.
    pub fn matched(&mut self, first: u64, count: u64) -> io::Result<()> {
        self.counts.matched += count;
        if let Some(density) = &mut self.density {
            density.add(first, count);
        }
        (self.reached)(first.saturating_add(count))
    }

    /// Pages of which the same is known.
    fn group(&mut self, first: u64, entries: &[Entry], known: Known, frame: Option<Frame>) -> io::Result<()> {
        let count = entries.len() as u64;
        match self.filter.map_or(Some(true), |filter| filter.holds(&known)) {
            Some(true) => {}
            Some(false) => return Ok(()),
            None => {
                self.counts.undecided += count;
                return Ok(());
            }
        }
        let Known { facts, told, .. } = known;
        self.counts.add(count, facts, told);
        let dense = self.dense.is_none_or(|of| of.holds(&known) == Some(true));
        if let Some(density) = self.density.as_mut().filter(|_| dense) {
            density.add(first, count);
        }
        let line = |first, count, entry, contiguous| Line { first, count, entry, contiguous, facts, told, frame };
        match self.detail {
            Detail::None => Ok(()),
            Detail::Entries => {
                (first..).zip(entries).try_for_each(|(page, entry)| (self.tell)(&line(page, 1, *entry, true)))
            }
            Detail::Runs => {
                let Some(entry) = entries.first().copied() else { return Ok(()) };
                self.run(line(first, count, entry, contiguous(entries)))
            }
        }
    }

    /// Joins a run to the one before it, or hands that on.
    fn run(&mut self, line: Line) -> io::Result<()> {
        if let Some(last) = &mut self.pending
            && last.first + last.count == line.first
            && (last.facts, last.told, last.frame) == (line.facts, line.told, line.frame)
            && last.entry.unknown() == line.entry.unknown()
        {
            let follows = last.entry.pfn().map(|pfn| pfn + last.count) == line.entry.pfn();
            last.contiguous &= line.contiguous && follows;
            last.count += line.count;
            return Ok(());
        }
        self.finish()?;
        self.pending = Some(line);
        Ok(())
    }
}

/// Whether the frames are told and follow each other.
fn contiguous(entries: &[Entry]) -> bool {
    let Some(first) = entries.first().and_then(|entry| entry.pfn()) else { return false };
    (first..).zip(entries).all(|(pfn, entry)| entry.pfn() == Some(pfn))
}

impl Visit for Gather<'_> {
    fn piece(&mut self, piece: Piece<'_>) -> io::Result<()> {
        let Piece { first, entries, facts, told } = piece;
        let known = Known { facts, told, frame: None };
        if self.frames.is_none() {
            return self.group(first, entries, known, None);
        }
        let mut at = 0;
        while let Some(entry) = entries.get(at) {
            let rest = entries.get(at..).unwrap_or_default();
            let page = first + at as u64;
            let Some(pfn) = entry.pfn() else {
                let hidden = rest.iter().take_while(|entry| entry.pfn().is_none()).count();
                self.group(page, rest.get(..hidden).unwrap_or_default(), known, None)?;
                at += hidden.max(1);
                continue;
            };
            let row =
                (pfn..).zip(rest).take(FRAMES).take_while(|(pfn, entry)| entry.pfn() == Some(*pfn)).count().max(1);
            let mut found = std::mem::take(&mut self.scratch);
            if let Some(frames) = &mut self.frames {
                frames.read(pfn, row, &mut found)?;
            }
            for (index, entry) in rest.iter().take(row).enumerate() {
                let frame = found.get(index).copied();
                for (bit, count) in self.flags.0.iter_mut().enumerate() {
                    *count += frame.map_or(0, |frame| frame.flags >> bit & 1);
                }
                let known = Known { frame: frame.map(|frame| frame.flags), ..known };
                self.group(page + index as u64, std::slice::from_ref(entry), known, frame)?;
            }
            self.scratch = found;
            at += row;
        }
        Ok(())
    }

    fn hole(&mut self, first: u64, count: u64) -> io::Result<()> {
        // Without a condition only what is there is meant.
        let Some(filter) = self.filter else { return Ok(()) };
        let known = Known { facts: Facts::NONE, told: Facts::from_bits(u32::MAX), frame: Some(0) };
        if filter.holds(&known) != Some(true) {
            return Ok(());
        }
        self.counts.add(count, Facts::NONE, known.told);
        if let Some(density) = &mut self.density {
            density.add(first, count);
        }
        let line = |first, count| Line {
            first,
            count,
            entry: Entry::default(),
            contiguous: false,
            facts: Facts::NONE,
            told: known.told,
            frame: None,
        };
        match self.detail {
            Detail::None => Ok(()),
            // A line a page of a terabyte of nothing serves nobody.
            Detail::Runs | Detail::Entries => self.run(line(first, count)),
        }
    }

    fn reached(&mut self, page: u64) -> io::Result<()> {
        (self.reached)(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(raw: &[u64]) -> Vec<Entry> {
        raw.iter().map(|raw| Entry::from_raw(1 << 63 | *raw)).collect()
    }

    fn lines(
        detail: Detail,
        filter: Option<&Expr>,
        feed: impl FnOnce(&mut Gather<'_>),
    ) -> (Vec<(u64, u64, bool)>, Counts) {
        let mut lines = Vec::new();
        let mut tell = |line: &Line| {
            lines.push((line.first, line.count, line.contiguous));
            Ok(())
        };
        let mut reached = |_| Ok(());
        let mut gather = Gather::new(filter, detail, &mut tell, &mut reached);
        feed(&mut gather);
        gather.finish().unwrap();
        let counts = gather.counts;
        drop(gather);
        (lines, counts)
    }

    fn piece(first: u64, entries: &[Entry]) -> Piece<'_> {
        Piece { first, entries, facts: Facts::PRESENT, told: Facts::OF_ENTRY }
    }

    #[test]
    fn runs_are_joined_across_batches() {
        let (a, b) = (entries(&[7, 8]), entries(&[9, 50]));
        let feed = |gather: &mut Gather<'_>| {
            gather.piece(piece(10, &a)).unwrap();
            gather.piece(piece(12, &b)).unwrap();
            gather.piece(piece(20, &a)).unwrap();
        };
        assert_eq!(lines(Detail::Runs, None, feed).0, [(10, 4, false), (20, 2, true)]);
        let feed = |gather: &mut Gather<'_>| gather.piece(piece(10, &a)).unwrap();
        assert_eq!(lines(Detail::Entries, None, feed).0, [(10, 1, true), (11, 1, true)]);
    }

    #[test]
    fn holes_count_only_where_they_are_asked_for() {
        let absent = Expr::parse("!present").unwrap();
        let feed = |gather: &mut Gather<'_>| gather.hole(5, 7).unwrap();
        assert_eq!(
            lines(Detail::Runs, Some(&absent), feed),
            (vec![(5, 7, false)], Counts { matched: 7, ..Counts::default() })
        );
        assert_eq!(lines(Detail::Runs, None, feed), (vec![], Counts::default()));
    }

    #[test]
    fn what_cannot_be_decided_is_counted_and_not_shown() {
        let huge = Expr::parse("huge").unwrap();
        let some = entries(&[1, 2, 3]);
        let (shown, counts) = lines(Detail::Runs, Some(&huge), |gather| gather.piece(piece(1, &some)).unwrap());
        assert!(shown.is_empty());
        assert_eq!((counts.undecided, counts.matched), (3, 0));
    }
}
