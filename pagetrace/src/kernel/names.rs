//! From a name to the places in a table where it may stand. Says "maybe": the caller compares the name itself.
//!
//! Built once for a hundred thousand names and asked about a few hundred, in a part of a start that a person waits for: a chain for
//! each bucket, which is made in one pass and without sorting.

use std::iter;

/// Ends a chain.
const NONE: u32 = u32::MAX;

/// Chains of places whose names hash alike.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The first place of each bucket; a power of two of them.
    first: Vec<u32>,
    /// By place, the next one of its bucket.
    next: Vec<u32>,
}

impl Names {
    /// Indexes the places from 0 to `len`; `hash` tells that of a place's name, or `None` for one that is not to be found.
    pub(super) fn build(len: usize, hash: impl Fn(usize) -> Option<u64>) -> Self {
        let mut names = Self { first: vec![NONE; len.max(1).next_power_of_two()], next: vec![NONE; len] };
        // From the last on: each chain is in ascending order.
        for place in (0..len).rev() {
            let Some(bucket) = hash(place).map(|hash| names.bucket(hash)) else { continue };
            if let (Ok(short), Some(next), Some(first)) =
                (u32::try_from(place), names.next.get_mut(place), names.first.get_mut(bucket))
            {
                *next = std::mem::replace(first, short);
            }
        }
        names
    }

    /// The places whose names may have this hash, ascending.
    pub(super) fn candidates(&self, hash: u64) -> impl Iterator<Item = u32> + '_ {
        let at = |place: u32| Some(place).filter(|place| *place != NONE);
        let first = self.first.get(self.bucket(hash)).copied().and_then(at);
        iter::successors(first, move |place| self.next.get(*place as usize).copied().and_then(at))
    }

    fn bucket(&self, hash: u64) -> usize {
        // The upper bits are those that all of the name went into.
        usize::try_from(hash >> 32).unwrap_or(0) & self.first.len().wrapping_sub(1)
    }
}

/// A hash of `name`, and of what it is the name of. Eight bytes at a time: most of the time goes into this.
pub(super) fn hash(class: u64, name: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    let (words, rest) = name.as_chunks::<8>();
    let hash = words.iter().fold(class, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let last = rest.iter().fold(rest.len() as u64, |word, byte| (word << 8) | u64::from(*byte));
    mix(hash, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_found_in_order_and_what_is_left_out_is_not() {
        let words = ["a", "mmap_lock", "down_read", "a", "", "down_read_killable", "a"];
        let of = |place: usize| Some(hash(1, words[place].as_bytes())).filter(|_| !words[place].is_empty());
        let names = Names::build(words.len(), of);
        let found = |word: &str| -> Vec<u32> {
            let all = names.candidates(hash(1, word.as_bytes()));
            all.filter(|place| words[*place as usize] == word).collect()
        };
        assert_eq!(found("a"), [0, 3, 6]);
        assert_eq!(found("down_read"), [2]);
        assert_eq!(found("down_read_killable"), [5]);
        assert_eq!(found(""), [0_u32; 0]);
        assert_eq!(Names::build(0, |_| None).candidates(7).count(), 0);
        assert_eq!(Names::default().candidates(7).count(), 0);
    }

    #[test]
    fn names_that_differ_in_one_place_or_in_length_hash_differently() {
        let long = "a_name_that_is_longer_than_two_words";
        let mut seen: std::collections::BTreeSet<u64> =
            (0..=long.len()).map(|end| hash(0, &long.as_bytes()[..end])).collect();
        for at in 0..long.len() {
            let mut other = long.as_bytes().to_vec();
            other[at] = b'#';
            seen.insert(hash(0, &other));
        }
        seen.insert(hash(1, long.as_bytes()));
        seen.insert(hash(0, b"\0"));
        assert_eq!(seen.len(), 2 * long.len() + 3);
    }

    #[test]
    fn chains_are_short() {
        let names: Vec<String> = (0..10_000).map(|number| format!("function_{number}")).collect();
        let index = Names::build(names.len(), |place| Some(hash(3, names[place].as_bytes())));
        let longest = names.iter().map(|name| index.candidates(hash(3, name.as_bytes())).count()).max();
        assert!(longest.is_some_and(|longest| longest < 12), "{longest:?}");
    }
}
