//! Runs of pages of equal state, from entries. Pure. Made so that a long run costs next to nothing a page.

use super::entry::Entry;

/// Entries looked at together; a number that the compiler makes vector instructions of.
const STEP: usize = 32;

/// Length of the run that the entries begin with: pages whose state is that of the first. What each is mapped to may differ.
#[must_use]
pub fn run(entries: &[Entry]) -> usize {
    let Some(state) = entries.first().map(|entry| entry.state()) else { return 0 };
    let (steps, _) = entries.as_chunks::<STEP>();
    let equal = |step: &&[Entry; STEP]| step.iter().fold(0, |differs, entry| differs | (entry.state() ^ state)) == 0;
    let whole = steps.iter().take_while(equal).count() * STEP;
    let rest = entries.get(whole..).unwrap_or_default();
    whole + rest.iter().take_while(|entry| entry.state() == state).count()
}

/// The same, and where that can make a difference, all or none of them mapped to the page of zeros `zero`; which of both, if it can
/// be told: `None` with frames hidden.
#[must_use]
pub fn run_of_zeros(entries: &[Entry], zero: Option<u64>) -> (usize, Option<bool>) {
    let length = run(entries);
    // The page of zeros belongs to no file and to nobody alone.
    let Some(first) = entries.first().filter(|first| first.present() && !first.file_or_shared() && !first.exclusive())
    else {
        return (length, Some(false));
    };
    let (Some(zero), Some(pfn)) = (zero, first.pfn()) else { return (length, None) };
    let is = |pfn: u64| pfn == zero;
    let same = entries.iter().take(length).take_while(|entry| entry.pfn().is_some_and(is) == is(pfn)).count();
    (same, Some(is(pfn)))
}

/// Whether the page table holds nothing for any of them.
#[must_use]
pub fn empty(entries: &[Entry]) -> bool {
    let (steps, rest) = entries.as_chunks::<STEP>();
    let any = |part: &[Entry]| part.iter().fold(0, |any, entry| any | entry.raw()) >> 62 != 0;
    !steps.iter().any(|step| any(step)) && !any(rest)
}

/// Whether the entries are those of a block that a single entry of the level above may map: all present, of one state, in frames
/// that follow each other from a multiple of their number on. Where frames are hidden, all that have one state may be.
#[must_use]
pub fn may_be_huge(block: &[Entry]) -> bool {
    let (Some(first), Some(last)) = (block.first(), block.last()) else { return false };
    let length = block.len() as u64;
    if !first.present() || first.state() != last.state() {
        return false;
    }
    match (first.pfn(), last.pfn()) {
        (Some(from), Some(to)) if !from.is_multiple_of(length) || to.checked_sub(from) != Some(length - 1) => false,
        (Some(from), Some(_)) => {
            run(block) == block.len() && block.iter().zip(from..).all(|(entry, pfn)| entry.pfn() == Some(pfn))
        }
        (None, None) => run(block) == block.len(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(raw: &[u64]) -> Vec<Entry> {
        raw.iter().map(|raw| Entry::from_raw(*raw)).collect()
    }

    #[test]
    fn a_block_of_frames_in_a_row_may_be_huge() {
        let block =
            |from: u64| -> Vec<Entry> { (from..from + 512).map(|pfn| Entry::from_raw(1 << 63 | pfn)).collect() };
        assert!(may_be_huge(&block(1024)));
        assert!(!may_be_huge(&block(1025)), "not aligned");
        assert!(!may_be_huge(&[]) && !may_be_huge(&entries(&[0; 512])));
        assert!(may_be_huge(&entries(&[1 << 63; 512])), "hidden");
        let mut broken = block(1024);
        broken[77] = Entry::from_raw(1 << 63 | 5);
        assert!(!may_be_huge(&broken));
    }

    proptest! {
        #[test]
        fn runs_are_those_that_looking_at_each_gives(lengths in prop::collection::vec((1_usize..100, 0_u64..4), 0..8)) {
            let raw: Vec<u64> = lengths.iter().flat_map(|(n, state)| (0..*n as u64).map(move |pfn| state << 61 | pfn)).collect();
            let entries = entries(&raw);
            let slow = entries.iter().take_while(|entry| entry.state() == entries[0].state()).count();
            prop_assert_eq!(run(&entries), slow);
            prop_assert_eq!(empty(&entries), entries.iter().all(|entry| !entry.populated()));
        }
    }
}
