//! Odd entries of pagemap: every value has one reading, and looking at many at once says what looking at each does.

use pagetrace::{
    output::pagemap::text,
    pages::{Entry, Facts, runs, summary::Counts},
};

use super::{Target, mutate::Dice};

/// Decodes entries.
pub(super) struct Entries;

/// Values that differ in one bit from what a kernel writes, or in all.
fn raw(dice: &mut Dice) -> u64 {
    const USUAL: [u64; 6] =
        [0, 1 << 63 | 1 << 56 | 0x1_2345, 1 << 63 | 1 << 61 | 0x777, 1 << 62 | 5 << 5 | 2, 1 << 62 | 1 << 58, 1 << 55];
    let usual = USUAL[dice.roll(USUAL.len())];
    match dice.roll(4) {
        0 => usual ^ 1 << dice.roll(64),
        1 => (dice.roll(usize::MAX) as u64) << 1 | dice.roll(2) as u64,
        _ => usual,
    }
}

impl Target for Entries {
    fn case(&self, dice: &mut Dice) -> Result<(), String> {
        let mut entries = Vec::new();
        while entries.len() < 1 + dice.roll(700) {
            let entry = Entry::from_raw(raw(dice));
            entries.extend(std::iter::repeat_n(entry, 1 + dice.roll(90)));
        }
        let zero = Some(0x1_2345);
        let (mut at, mut counts) = (0, Counts::default());
        while let Some(rest) = entries.get(at..).filter(|rest| !rest.is_empty()) {
            let first = rest[0];
            let length = runs::run(rest);
            let slow = rest.iter().take_while(|entry| entry.state() == first.state()).count();
            if length != slow {
                return Err(format!("a run of {slow} is found to be {length}"));
            }
            let (part, zeros) = runs::run_of_zeros(rest, zero);
            if part == 0 || part > length || (zeros == Some(true) && first.pfn() != zero) {
                return Err(format!("{part} of {length} are zeros ({zeros:?}): {first:?}"));
            }
            if runs::empty(&rest[..length]) == first.populated() {
                return Err(format!("{first:?} is populated or not, and its run is not"));
            }
            counts.add(part as u64, Facts::of_entry(first), Facts::OF_ENTRY);
            at += part;
        }
        let present = entries.iter().filter(|entry| entry.present()).count() as u64;
        let guard = entries.iter().filter(|entry| entry.populated() && entry.guard()).count() as u64;
        if (counts.matched, counts.present, counts.guard) != (entries.len() as u64, present, guard) {
            return Err(format!("{counts:?} for {present} present and {guard} guards of {}", entries.len()));
        }
        let entry = entries[dice.roll(entries.len())];
        if text::entry(entry).is_empty() || entry.pfn().is_some() && entry.swap_slot().is_some() {
            return Err(format!("{entry:?} has two readings, or none"));
        }
        let _ = runs::may_be_huge(&entries);
        Ok(())
    }
}
