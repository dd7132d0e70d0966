//! What can be said of a page, whichever file says it: one word of bits, and another of which of them are known. Pure.

use super::{entry::Entry, scan::category};

/// A set of facts about a page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Facts(u32);

impl Facts {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Resident.
    pub const PRESENT: Self = Self(1);
    /// The page table holds a swap entry, or what looks like one.
    pub const SWAPPED: Self = Self(1 << 1);
    /// Of a file, or shared memory.
    pub const FILE: Self = Self(1 << 2);
    /// Mapped by this address space only.
    pub const EXCLUSIVE: Self = Self(1 << 3);
    /// Written since the marks were cleared. Of a page that is not populated nothing is said, though the kernel sets the bit
    /// there too, for the whole of a new mapping.
    pub const SOFT_DIRTY: Self = Self(1 << 4);
    /// Write-protected by userfaultfd.
    pub const UFFD_WP: Self = Self(1 << 5);
    /// A guard region.
    pub const GUARD: Self = Self(1 << 6);
    /// Mapped by an entry for 2 MiB or more, or of hugetlb.
    pub const HUGE: Self = Self(1 << 7);
    /// The page of zeros that reading untouched memory gives.
    pub const ZERO: Self = Self(1 << 8);

    /// Each, with its name.
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::PRESENT, "present"),
        (Self::SWAPPED, "swapped"),
        (Self::FILE, "file"),
        (Self::EXCLUSIVE, "exclusive"),
        (Self::SOFT_DIRTY, "soft_dirty"),
        (Self::UFFD_WP, "uffd_wp"),
        (Self::GUARD, "guard"),
        (Self::HUGE, "huge"),
        (Self::ZERO, "zero"),
    ];
    /// What an entry of pagemap says.
    pub const OF_ENTRY: Self = Self(0b111_1111);
    /// What a region of `PAGEMAP_SCAN` can say.
    pub const OF_SCAN: Self =
        Self::OF_ENTRY.without(Self::EXCLUSIVE).without(Self::SOFT_DIRTY).with(Self::HUGE).with(Self::ZERO);

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those of `self` that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Those in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether any of `other` is in it.
    #[must_use]
    pub const fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether it is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// `self`, if it holds.
    #[must_use]
    pub const fn when(self, holds: bool) -> Self {
        if holds { self } else { Self::NONE }
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// From bits; what has no name is dropped.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & 0x1ff)
    }

    /// Its names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().filter(move |(fact, _)| self.any(*fact)).map(|(_, name)| name)
    }

    /// What an entry says: all of [`Facts::OF_ENTRY`] is known by it.
    #[must_use]
    pub fn of_entry(entry: Entry) -> Self {
        if !entry.populated() {
            return Self::NONE;
        }
        Self::PRESENT
            .when(entry.present())
            .with(Self::SWAPPED.when(entry.swapped()))
            .with(Self::FILE.when(entry.file_or_shared()))
            .with(Self::EXCLUSIVE.when(entry.exclusive()))
            .with(Self::SOFT_DIRTY.when(entry.soft_dirty()))
            .with(Self::UFFD_WP.when(entry.uffd_write_protected()))
            .with(Self::GUARD.when(entry.guard()))
    }

    /// What the categories of a scanned region say.
    #[must_use]
    pub fn of_categories(categories: u64) -> Self {
        let has = |bit: u64| categories & bit != 0;
        let populated = has(category::PRESENT | category::SWAPPED);
        if !populated {
            // An empty place of hugetlb memory is scanned as huge.
            return Self::NONE;
        }
        Self::PRESENT
            .when(has(category::PRESENT))
            .with(Self::SWAPPED.when(has(category::SWAPPED)))
            .with(Self::FILE.when(has(category::FILE)))
            .with(Self::UFFD_WP.when(!has(category::WRITTEN)))
            .with(Self::GUARD.when(has(category::GUARD)))
            .with(Self::HUGE.when(has(category::HUGE)))
            .with(Self::ZERO.when(has(category::PFNZERO)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_fact_has_a_name_and_a_bit_of_its_own() {
        let all = Facts::ALL.iter().fold(Facts::NONE, |all, (fact, name)| {
            assert!(!all.any(*fact), "{name}");
            assert_eq!(fact.names().collect::<Vec<_>>(), [*name]);
            all.with(*fact)
        });
        assert_eq!(all, Facts::from_bits(u32::MAX));
    }

    proptest! {
        #[test]
        fn nothing_is_said_of_a_page_that_is_not_there(raw: u64) {
            let facts = Facts::of_entry(Entry::from_raw(raw));
            prop_assert_eq!(facts.is_empty(), raw >> 62 == 0);
            prop_assert!(facts.without(Facts::OF_ENTRY).is_empty());
            let scanned = Facts::of_categories(raw);
            prop_assert!(scanned.without(Facts::OF_SCAN).is_empty());
            prop_assert_eq!(scanned.is_empty(), raw & (category::PRESENT | category::SWAPPED) == 0);
        }
    }
}
