//! Damaged recordings, some with checksums made right again, so that what lies behind them is reached.

use pagetrace::{
    analysis::{CrossCheck, model::Rules},
    record::{
        format::{BLOCK_HEADER, BLOCK_MAGIC, MAX_PAYLOAD, PRELUDE, block_crc},
        reader::{Entry, Reader},
    },
};

use super::{
    Target,
    mutate::{Dice, damage},
};

/// A sound recording of a real run.
pub(super) const SOUND: &[u8] = include_bytes!("../../recordings/true.ptrace");

/// Reads recordings.
pub(super) struct Recording;

impl Target for Recording {
    fn case(&self, dice: &mut Dice) -> Result<(), String> {
        let mut bytes = SOUND.to_vec();
        if dice.roll(2) == 0 {
            damage(&mut bytes, dice);
            let changed = bytes != SOUND;
            if changed && read(&bytes) {
                return Err("a damaged recording was read as a whole one".to_owned());
            }
            return Ok(());
        }
        // The damage is inside of a block whose checksum is right: only the records can tell.
        let head = head_len(SOUND);
        bytes.truncate(head);
        let mut payload = first_payload(SOUND, head).to_vec();
        damage(&mut payload, dice);
        payload.truncate(MAX_PAYLOAD);
        let records = u32::try_from(1 + dice.roll(2000)).unwrap_or(1);
        let length = u32::try_from(payload.len()).unwrap_or(0);
        for word in [BLOCK_MAGIC, length, records, block_crc(length, records, &payload)] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(payload);
        read(&bytes);
        Ok(())
    }
}

fn word(bytes: &[u8], at: usize) -> usize {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes);
    usize::try_from(word).unwrap_or(0)
}

fn head_len(bytes: &[u8]) -> usize {
    PRELUDE + word(bytes, 16)
}

fn first_payload(bytes: &[u8], head: usize) -> &[u8] {
    let start = head + BLOCK_HEADER;
    bytes.get(start..start + word(bytes, head + 4)).unwrap_or_default()
}

/// Reads everything and derives from it; whether it counts as whole.
fn read(bytes: &[u8]) -> bool {
    let Ok(mut reader) = Reader::open(bytes) else { return false };
    let rules = Rules { confirm_by_lock: true, attached_at: reader.header().attached_at_ns };
    let mut check = CrossCheck::new(rules, 0);
    while let Some(entry) = reader.next_entry() {
        if let Entry::Kernel(record) = entry {
            check.take(&record);
        }
    }
    check.finish();
    !reader.incomplete() && reader.damage().is_none()
}
