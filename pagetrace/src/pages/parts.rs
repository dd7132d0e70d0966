//! A batch of entries cut up where something changes: which blocks are mapped by one entry of the level above, and runs of equal
//! state. Pure, but for the frames it asks about.

use std::{io, ops::Range};

use super::{
    entry::Entry,
    facts::Facts,
    kpage::{Frame, Frames, ZERO_PAGE},
    runs,
    walk::{Huge, Piece, Visit},
};

/// Pages of a block that one entry of the level above may map. A power of two.
pub(super) const BLOCK: u64 = 512;

/// Entries of a batch of which the same is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// Where in the batch.
    pub(super) at: Range<usize>,
    /// Whether they are mapped by one entry for many pages.
    pub(super) huge: Option<bool>,
    /// Whether that has to be asked.
    pub(super) ask: bool,
}

/// Cuts a batch that begins with page `first`.
pub(super) fn parts(first: u64, entries: &[Entry], huge: Huge, parts: &mut Vec<Part>) {
    parts.clear();
    let every = |huge| Part { at: 0..entries.len(), huge, ask: false };
    match huge {
        Huge::Unasked => return parts.push(every(None)),
        Huge::None => return parts.push(every(Some(false))),
        Huge::All => return parts.push(every(Some(true))),
        Huge::Ask | Huge::Alike | Huge::Zeros | Huge::Untold => {}
    }
    let mut at = 0;
    while at < entries.len() {
        let page = first.saturating_add(at as u64);
        let left = usize::try_from(BLOCK - page % BLOCK).unwrap_or(1);
        let end = at.saturating_add(left).min(entries.len());
        let block = entries.get(at..end).unwrap_or_default();
        let alike = block.len() as u64 == BLOCK && runs::may_be_huge(block);
        let (of, ask) = match huge {
            _ if !alike => (Some(false), false),
            Huge::Alike => (Some(true), false),
            Huge::Ask | Huge::Zeros => (None, true),
            _ => (None, false),
        };
        match parts.last_mut() {
            Some(last) if (last.huge, last.ask) == (of, ask) => last.at.end = end,
            _ => parts.push(Part { at: at..end, huge: of, ask }),
        }
        at = end;
    }
}

/// Asks how many pages of each part that has to be asked about are huge; where it is some of them, block by block.
pub(super) fn decide(
    first: u64,
    parts: &mut Vec<Part>,
    mut huge: impl FnMut(Range<u64>) -> io::Result<u64>,
) -> io::Result<()> {
    each_asked(parts, |at, parts| {
        let pages = |at: &Range<usize>| first + at.start as u64..first + at.end as u64;
        let found = huge(pages(&at))?;
        if found == 0 || found >= at.len() as u64 {
            parts.push(Part { at, huge: Some(found != 0), ask: false });
            return Ok(());
        }
        for at in blocks(at) {
            let all = huge(pages(&at))? >= at.len() as u64;
            parts.push(Part { at, huge: Some(all), ask: false });
        }
        Ok(())
    })
}

/// Replaces each part that has to be asked about by what `decided` makes of it.
fn each_asked(
    parts: &mut Vec<Part>,
    mut decided: impl FnMut(Range<usize>, &mut Vec<Part>) -> io::Result<()>,
) -> io::Result<()> {
    for part in std::mem::take(parts) {
        if part.ask {
            decided(part.at, parts)?;
        } else {
            parts.push(part);
        }
    }
    Ok(())
}

fn blocks(at: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = at.end;
    at.step_by(BLOCK as usize).map(move |start| start..(start + BLOCK as usize).min(end))
}

/// Decides block by block where only what is of zeros is huge: `zero` tells that of a frame, or that it cannot.
pub(super) fn zeros(
    entries: &[Entry],
    parts: &mut Vec<Part>,
    mut zero: impl FnMut(u64) -> Option<bool>,
) -> io::Result<()> {
    each_asked(parts, |at, parts| {
        parts.extend(blocks(at).map(|at| {
            // The page of zeros is nobody's alone.
            let huge = match entries.get(at.start) {
                Some(first) if first.exclusive() => Some(false),
                first => first.and_then(|first| first.pfn()).and_then(&mut zero),
            };
            Part { at, huge, ask: false }
        }));
        Ok(())
    })
}

/// How to make pieces.
pub(super) struct Split<'a> {
    /// Only these pages.
    pub(super) wanted: &'a Range<u64>,
    /// The frame of the page of zeros.
    pub(super) zero: Option<u64>,
    /// What a scan has told, and what it can tell.
    pub(super) extra: Option<(Facts, Facts)>,
}

impl Split<'_> {
    /// Hands on pieces and holes.
    pub(super) fn pieces(
        &self,
        first: u64,
        entries: &[Entry],
        parts: &[Part],
        (frames, scratch): (&mut Option<Frames>, &mut Vec<Frame>),
        visit: &mut dyn Visit,
    ) -> io::Result<()> {
        // What is not wanted lies at the ends.
        let index = |page: u64| usize::try_from(page.saturating_sub(first)).unwrap_or(usize::MAX).min(entries.len());
        let (from, to) = (index(self.wanted.start), index(self.wanted.end));
        for part in parts {
            let mut at = part.at.start.max(from);
            let end = part.at.end.min(to);
            while let Some(rest) = entries.get(at..end).filter(|rest| !rest.is_empty()) {
                let page = first + at as u64;
                let (mut length, zero) = runs::run_of_zeros(rest, self.zero);
                let Some(entry) = rest.first().copied() else { break };
                if !entry.populated() {
                    visit.hole(page, length as u64)?;
                    at += length;
                    continue;
                }
                let mut told = Facts::OF_ENTRY;
                let mut facts = Facts::of_entry(entry);
                let huge = match self.extra {
                    Some((extra, tells)) if tells.any(Facts::HUGE) => Some(extra.any(Facts::HUGE)),
                    _ => part.huge,
                };
                if let Some(huge) = huge {
                    told = told.with(Facts::HUGE);
                    facts = facts.with(Facts::HUGE.when(huge));
                }
                // A huge page of zeros has frames of its own, and some kernels count it as of a file.
                let ambiguous =
                    entry.present() && !entry.exclusive() && (huge == Some(true) || !entry.file_or_shared());
                let zero = match (zero, huge) {
                    (_, Some(true) | None) if ambiguous => {
                        length = length.min(usize::try_from(BLOCK - page % BLOCK).unwrap_or(1));
                        entry.pfn().and_then(|pfn| zero_by_flags(frames.as_mut()?, pfn, scratch))
                    }
                    (None, Some(false)) => {
                        self.extra.filter(|(_, tells)| tells.any(Facts::ZERO)).map(|(extra, _)| extra.any(Facts::ZERO))
                    }
                    (zero, _) => zero,
                };
                if let Some(zero) = zero {
                    told = told.with(Facts::ZERO);
                    facts = facts.with(Facts::ZERO.when(zero));
                }
                let Some(entries) = rest.get(..length) else { break };
                visit.piece(Piece { first: page, entries, facts, told })?;
                at += length;
            }
        }
        Ok(())
    }
}

pub(super) fn zero_by_flags(frames: &mut Frames, pfn: u64, scratch: &mut Vec<Frame>) -> Option<bool> {
    frames.read(pfn, 1, scratch).ok()?;
    // What has no flags is no memory.
    Some(scratch.first().is_some_and(|frame| frame.flags & ZERO_PAGE != 0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(from: u64) -> impl Iterator<Item = Entry> {
        (from..from + BLOCK).map(|pfn| Entry::from_raw(1 << 63 | 1 << 56 | pfn))
    }

    #[derive(Default)]
    struct Seen {
        pieces: Vec<(u64, usize, Facts)>,
        pages: Vec<u64>,
    }

    impl Visit for Seen {
        fn piece(&mut self, piece: Piece<'_>) -> io::Result<()> {
            self.pieces.push((piece.first, piece.entries.len(), piece.facts));
            self.pages.extend((piece.first..).take(piece.entries.len()));
            Ok(())
        }

        fn hole(&mut self, first: u64, count: u64) -> io::Result<()> {
            self.pages.extend(first..first + count);
            Ok(())
        }
    }

    #[test]
    fn blocks_that_look_huge_are_asked_about_once_where_they_agree() {
        // Half a block, two that look huge, one that does not.
        let entries: Vec<Entry> = block(3).skip(256).chain(block(1024)).chain(block(4096)).chain(block(7)).collect();
        let mut cut = Vec::new();
        parts(256, &entries, Huge::Ask, &mut cut);
        let at: Vec<_> = cut.iter().map(|part| (part.at.clone(), part.ask)).collect();
        assert_eq!(at, [(0..256, false), (256..1280, true), (1280..1792, false)]);
        let mut asked = Vec::new();
        decide(256, &mut cut, |pages| {
            asked.push(pages.clone());
            // The first of both is.
            Ok((512..1024).contains(&pages.start) as u64 * 512)
        })
        .unwrap();
        assert_eq!(asked, [512..1536, 512..1024, 1024..1536]);
        let huge: Vec<_> = cut.iter().map(|part| part.huge).collect();
        assert_eq!(huge, [Some(false), Some(true), Some(false), Some(false)]);
    }

    #[test]
    fn where_only_zeros_are_huge_each_block_is_told_by_its_frame() {
        let shared = |from| block(from).map(|entry| Entry::from_raw(entry.raw() & !(1 << 56)));
        let entries: Vec<Entry> = [512, 1024, 4096, 7].into_iter().flat_map(shared).chain(block(512)).collect();
        let mut cut = Vec::new();
        parts(0, &entries, Huge::Zeros, &mut cut);
        zeros(&entries, &mut cut, |pfn| match pfn {
            512 => Some(true),
            1024 => Some(false),
            _ => None,
        })
        .unwrap();
        let told: Vec<_> = cut.iter().map(|part| (part.at.start, part.huge, part.ask)).collect();
        // What does not look huge is not, and what is somebody's alone is not of zeros.
        let expected = [(0, Some(true)), (512, Some(false)), (1024, None), (1536, Some(false)), (2048, Some(false))];
        assert_eq!(told, expected.map(|(start, huge)| (start, huge, false)));
    }

    #[test]
    fn the_page_of_zeros_is_told_by_its_frame_or_not_at_all() {
        let entries = [9, 9, 4, 9].map(|pfn| Entry::from_raw(1 << 63 | pfn));
        let none = [Part { at: 0..4, huge: Some(false), ask: false }];
        let mut seen = Seen::default();
        let split = Split { wanted: &(0..100), zero: Some(9), extra: None };
        split.pieces(10, &entries, &none, (&mut None, &mut Vec::new()), &mut seen).unwrap();
        let zero: Vec<_> = seen.pieces.iter().map(|(at, n, facts)| (*at, *n, facts.any(Facts::ZERO))).collect();
        assert_eq!(zero, [(10, 2, true), (12, 1, false), (13, 1, true)]);
    }

    proptest! {
        /// Every wanted page is shown exactly once, in order.
        #[test]
        fn nothing_is_lost(first in 0_u64..2000, raw in prop::collection::vec(prop_oneof![Just(0), Just(1 << 63), Just(1 << 62), any::<u64>()], 0..1500), from in 0_u64..4000, length in 0_u64..2000) {
            let entries: Vec<Entry> = raw.into_iter().map(Entry::from_raw).collect();
            let wanted = from..from + length;
            for huge in [Huge::Unasked, Huge::Alike, Huge::Zeros, Huge::Untold, Huge::None, Huge::All] {
                let mut cut = Vec::new();
                parts(first, &entries, huge, &mut cut);
                let mut seen = Seen::default();
                let split = Split { wanted: &wanted, zero: Some(7), extra: None };
                split.pieces(first, &entries, &cut, (&mut None, &mut Vec::new()), &mut seen).unwrap();
                let all = first..first + entries.len() as u64;
                let expected: Vec<u64> = all.filter(|page| wanted.contains(page)).collect();
                prop_assert_eq!(&seen.pages, &expected);
            }
        }
    }
}
