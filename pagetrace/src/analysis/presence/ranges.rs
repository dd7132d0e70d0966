//! Ranges of pages, each with a value. Pure; as large as the number of ranges, not of pages.

use std::{collections::BTreeMap, ops::Range};

/// A value for some pages; neighbours of equal value are one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeMap<V> {
    /// First page to the page behind the last, and the value.
    ranges: BTreeMap<u64, (u64, V)>,
}

impl<V> Default for RangeMap<V> {
    fn default() -> Self {
        Self { ranges: BTreeMap::new() }
    }
}

impl<V: Copy + PartialEq> RangeMap<V> {
    /// The value of a page.
    #[must_use]
    pub fn get(&self, page: u64) -> Option<V> {
        let (_, (end, value)) = self.ranges.range(..=page).next_back()?;
        (page < *end).then_some(*value)
    }

    /// Gives these pages this value, whatever they had.
    pub fn set(&mut self, mut pages: Range<u64>, value: V) {
        if pages.is_empty() {
            return;
        }
        self.cut(pages.clone());
        if let Some((&start, &(end, before))) = self.ranges.range(..pages.start).next_back()
            && end == pages.start
            && before == value
        {
            pages.start = start;
        }
        if let Some(&(end, after)) = self.ranges.get(&pages.end)
            && after == value
        {
            self.ranges.remove(&pages.end);
            pages.end = end;
        }
        self.ranges.insert(pages.start, (pages.end, value));
    }

    /// Takes the value from these pages, and says what they had.
    pub fn cut(&mut self, pages: Range<u64>) -> Vec<(Range<u64>, V)> {
        if pages.is_empty() {
            return Vec::new();
        }
        self.split(pages.start);
        self.split(pages.end);
        let starts: Vec<u64> = self.ranges.range(pages).map(|(start, _)| *start).collect();
        let taken = starts.into_iter().filter_map(|start| {
            let (end, value) = self.ranges.remove(&start)?;
            Some((start..end, value))
        });
        taken.collect()
    }

    /// Makes a range begin at this page, if one goes across it.
    fn split(&mut self, at: u64) {
        if let Some((_, (end, value))) = self.ranges.range_mut(..at).next_back()
            && *end > at
        {
            let (behind, value) = (*end, *value);
            *end = at;
            self.ranges.insert(at, (behind, value));
        }
    }

    /// What these pages have, by rising page; pages without a value are left out.
    pub fn within(&self, pages: Range<u64>) -> impl Iterator<Item = (Range<u64>, V)> {
        let first = self.ranges.range(..=pages.start).next_back().map_or(pages.start, |(start, _)| *start);
        let last = pages.end.max(first);
        self.ranges.range(first..last).filter_map(move |(start, (end, value))| {
            let part = pages.start.max(*start)..pages.end.min(*end);
            (!part.is_empty()).then_some((part, *value))
        })
    }

    /// All of it, by rising page.
    pub fn iter(&self) -> impl Iterator<Item = (Range<u64>, V)> {
        self.ranges.iter().map(|(start, (end, value))| (*start..*end, *value))
    }

    /// Takes the value from all pages.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The same as a value for each page by itself.
        #[test]
        fn ranges_are_pages(steps in prop::collection::vec((0_u64..40, 0_u64..12, prop::option::of(0_u8..3)), 0..40), look in (0_u64..45, 0_u64..20)) {
            let (mut ranges, mut pages) = (RangeMap::default(), BTreeMap::new());
            for (start, length, value) in steps {
                let range = start..start + length;
                match value {
                    Some(value) => {
                        ranges.set(range.clone(), value);
                        pages.extend(range.map(|page| (page, value)));
                    }
                    None => {
                        let cut: Vec<_> = ranges.cut(range.clone()).into_iter().flat_map(|(at, value)| at.map(move |page| (page, value))).collect();
                        let gone: Vec<_> = range.filter_map(|page| pages.remove_entry(&page)).collect();
                        prop_assert_eq!(cut, gone);
                    }
                }
            }
            let all: BTreeMap<_, _> = ranges.iter().flat_map(|(at, value)| at.map(move |page| (page, value))).collect();
            prop_assert_eq!(&all, &pages);
            let look = look.0..look.0 + look.1;
            let found: Vec<_> = ranges.within(look.clone()).flat_map(|(at, value)| at.map(move |page| (page, value))).collect();
            let expected: Vec<_> = pages.range(look).map(|(page, value)| (*page, *value)).collect();
            prop_assert_eq!(found, expected);
            for page in 0..60 {
                prop_assert_eq!(ranges.get(page), pages.get(&page).copied());
            }
            let touching = ranges.iter().zip(ranges.iter().skip(1)).any(|(one, next)| one.0.end == next.0.start && one.1 == next.1);
            prop_assert!(!touching, "neighbours of equal value are one");
        }
    }
}
