//! A set of page numbers, dense in places: which pages are out. Pure.

use std::{collections::HashMap, ops::Range};

const BITS: u64 = u64::BITS as u64;

/// Page numbers, 64 to a word.
#[derive(Debug, Default)]
pub(super) struct PageSet(HashMap<u64, u64>);

impl PageSet {
    /// Adds a page.
    pub(super) fn insert(&mut self, page: u64) {
        *self.0.entry(page / BITS).or_default() |= 1 << (page % BITS);
    }

    /// Takes a page out, and says whether it was in.
    pub(super) fn remove(&mut self, page: u64) -> bool {
        let Some(word) = self.0.get_mut(&(page / BITS)) else { return false };
        let bit = 1 << (page % BITS);
        let was = *word & bit != 0;
        *word &= !bit;
        if *word == 0 {
            self.0.remove(&(page / BITS));
        }
        was
    }

    /// Forgets what lies in none of these ranges, which are sorted and do not overlap. Words that a range only touches
    /// are kept.
    pub(super) fn retain(&mut self, ranges: &[Range<u64>]) {
        self.0.retain(|word, _| {
            let first = word.saturating_mul(BITS);
            let at = ranges.partition_point(|range| range.end <= first);
            ranges.get(at).is_some_and(|range| range.start < first.saturating_add(BITS))
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pages_of_gone_mappings_are_forgotten() {
        let mut set = PageSet::default();
        for page in [1, 200, 1000] {
            set.insert(page);
        }
        set.retain(&[190..201, 5000..6000]);
        assert!(set.remove(200) && !set.remove(1) && !set.remove(1000));
        assert!(set.0.is_empty(), "nothing is kept for what is out");
    }

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((any::<bool>(), 0_u64..300), 0..200)) {
            let (mut set, mut model) = (PageSet::default(), HashSet::new());
            for (add, page) in steps {
                if add {
                    set.insert(page);
                    model.insert(page);
                } else {
                    prop_assert_eq!(set.remove(page), model.remove(&page));
                }
            }
        }
    }
}
