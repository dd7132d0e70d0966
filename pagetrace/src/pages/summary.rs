//! Sums over pages. Pure.

use serde::Serialize;

use super::facts::Facts;

/// How many pages there are of what kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Pages of address space that were looked at.
    pub pages: u64,
    /// Of these, those that were asked for.
    pub matched: u64,
    /// Those of which it could not be told whether they were.
    pub undecided: u64,
    /// Resident.
    pub present: u64,
    /// In swap, or on the way; no guard regions.
    pub swapped: u64,
    /// Resident, mapped by this process only.
    pub exclusive: u64,
    /// Of files and of shared memory.
    pub file: u64,
    /// All other that are resident or in swap.
    pub anon: u64,
    /// Mapped 2 MiB or more at a time.
    pub huge: u64,
    /// The page of zeros.
    pub zero: u64,
    /// Written since the marks were cleared.
    pub soft_dirty: u64,
    /// Write-protected by userfaultfd.
    pub uffd_wp: u64,
    /// Guard regions.
    pub guard: u64,
    /// Of what matched, pages of which it is not known whether they are huge.
    pub huge_untold: u64,
    /// And whether they are the page of zeros.
    pub zero_untold: u64,
}

impl Counts {
    /// Adds so many pages that were asked for, of which these facts hold, and those are known.
    pub fn add(&mut self, pages: u64, facts: Facts, told: Facts) {
        let Self {
            pages: _,
            matched,
            undecided: _,
            present,
            swapped,
            exclusive,
            file,
            anon,
            huge,
            zero,
            soft_dirty,
            uffd_wp,
            guard,
            huge_untold,
            zero_untold,
        } = self;
        *matched += pages;
        let populated = facts.any(Facts::PRESENT.with(Facts::SWAPPED));
        let count = |to: &mut u64, holds: bool| *to += if holds { pages } else { 0 };
        let guarded = facts.any(Facts::GUARD);
        count(present, facts.any(Facts::PRESENT));
        count(swapped, facts.any(Facts::SWAPPED) && !guarded);
        count(exclusive, facts.any(Facts::EXCLUSIVE));
        count(file, facts.any(Facts::FILE));
        count(anon, populated && !guarded && !facts.any(Facts::FILE));
        count(huge, facts.any(Facts::HUGE));
        count(zero, facts.any(Facts::ZERO));
        count(soft_dirty, facts.any(Facts::SOFT_DIRTY));
        count(uffd_wp, facts.any(Facts::UFFD_WP));
        count(guard, guarded);
        count(huge_untold, !told.any(Facts::HUGE));
        count(zero_untold, !told.any(Facts::ZERO));
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        let mine = self.fields_mut();
        for (to, from) in mine.into_iter().zip(other.fields()) {
            *to = to.saturating_add(from);
        }
    }

    fn fields(&self) -> [u64; 15] {
        let mut copy = *self;
        copy.fields_mut().map(|field| *field)
    }

    fn fields_mut(&mut self) -> [&mut u64; 15] {
        let Self {
            pages,
            matched,
            undecided,
            present,
            swapped,
            exclusive,
            file,
            anon,
            huge,
            zero,
            soft_dirty,
            uffd_wp,
            guard,
            huge_untold,
            zero_untold,
        } = self;
        [
            pages,
            matched,
            undecided,
            present,
            swapped,
            exclusive,
            file,
            anon,
            huge,
            zero,
            soft_dirty,
            uffd_wp,
            guard,
            huge_untold,
            zero_untold,
        ]
    }
}

/// How densely the pages of a mapping match, by equal parts of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Density {
    first: u64,
    pages: u64,
    /// Matching pages a part.
    pub cells: Vec<u64>,
}

impl Density {
    /// For so many pages from `first` on; as many parts as there are pages, `width` at most.
    #[must_use]
    pub fn new(first: u64, pages: u64, width: usize) -> Self {
        let cells = usize::try_from(pages).unwrap_or(usize::MAX).min(width.max(1));
        Self { first, pages, cells: vec![0; cells] }
    }

    /// The pages of a part, from the first of the mapping on.
    fn bounds(&self, cell: usize) -> (u64, u64) {
        let share = |cell: usize| {
            let part = u128::from(self.pages) * cell as u128 / self.cells.len().max(1) as u128;
            u64::try_from(part).unwrap_or(u64::MAX)
        };
        (share(cell), share(cell + 1))
    }

    /// Adds matching pages.
    pub fn add(&mut self, first: u64, count: u64) {
        let (Some(from), Some(last)) = (first.checked_sub(self.first), count.checked_sub(1)) else { return };
        let to = from.saturating_add(last).saturating_add(1).min(self.pages);
        if from >= to {
            return;
        }
        let cells = self.cells.len() as u128;
        let near = u128::from(from) * cells / u128::from(self.pages.max(1));
        let start = usize::try_from(near).unwrap_or(0).saturating_sub(1);
        for cell in start..self.cells.len() {
            let (begin, end) = self.bounds(cell);
            if begin >= to {
                break;
            }
            let shared = to.min(end).saturating_sub(from.max(begin));
            if let Some(sum) = self.cells.get_mut(cell) {
                *sum += shared;
            }
        }
    }

    /// A character a part: a blank for nothing, `@` for all of it.
    #[must_use]
    pub fn picture(&self) -> String {
        const SHADES: [char; 7] = ['.', ':', '-', '=', '+', '*', '#'];
        let shade = |(cell, count): (usize, &u64)| {
            let (begin, end) = self.bounds(cell);
            match end.saturating_sub(begin) {
                _ if *count == 0 => ' ',
                whole if *count >= whole => '@',
                whole => {
                    let at = u128::from(*count) * SHADES.len() as u128 / u128::from(whole.max(1));
                    usize::try_from(at).ok().and_then(|at| SHADES.get(at)).copied().unwrap_or('#')
                }
            }
        };
        self.cells.iter().enumerate().map(shade).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_guard_is_counted_as_such_alone() {
        let mut counts = Counts::default();
        counts.add(3, Facts::SWAPPED.with(Facts::GUARD), Facts::OF_SCAN);
        counts.add(2, Facts::SWAPPED, Facts::OF_SCAN);
        counts.add(5, Facts::PRESENT.with(Facts::EXCLUSIVE), Facts::OF_SCAN);
        counts.add(7, Facts::PRESENT.with(Facts::FILE), Facts::OF_SCAN);
        counts.add(11, Facts::NONE, Facts::OF_SCAN);
        assert_eq!((counts.matched, counts.guard, counts.swapped, counts.present), (28, 3, 2, 12));
        assert_eq!((counts.anon, counts.file, counts.exclusive), (7, 7, 5));
        let mut twice = counts;
        twice.merge(&counts);
        assert_eq!((twice.matched, twice.guard, twice.anon), (56, 6, 14));
    }

    #[test]
    fn a_picture_tells_nothing_little_much_and_all_apart() {
        let mut density = Density::new(100, 40, 4);
        density.add(110, 1);
        density.add(120, 9);
        density.add(130, 10);
        assert_eq!(density.picture(), " .#@");
        assert_eq!(Density::new(0, 2, 64).picture(), "  ");
        assert_eq!(Density::new(0, 0, 64).picture(), "");
    }

    proptest! {
        #[test]
        fn every_page_is_in_one_part(pages in 1_u64..1 << 40, width in 1_usize..100, at in 0_u64..1 << 40, count in 0_u64..1 << 40) {
            let first = 1 << 30;
            let mut density = Density::new(first, pages, width);
            let (at, count) = (at % pages, count % pages);
            let count = count.min(pages - at);
            density.add(first + at, count);
            prop_assert_eq!(density.cells.iter().sum::<u64>(), count);
            prop_assert_eq!(density.picture().chars().count(), density.cells.len());
        }
    }
}
