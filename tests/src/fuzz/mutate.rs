//! Damage: flipped bits, odd numbers, cuts, repeats. Deterministic by seed.

/// Random numbers of one case (splitmix64).
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % (sides.max(1) as u64)).unwrap_or(0)
    }
}

/// Numbers that lengths and offsets go wrong with.
const ODD: [u32; 8] = [0, 1, 3, 0x7f, 0xffff, 0x7fff_ffff, 0x8000_0000, u32::MAX];

/// Damages bytes, one to four times. May leave them as they were.
pub(super) fn damage(bytes: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..=dice.roll(4) {
        let at = dice.roll(bytes.len());
        match dice.roll(6) {
            0 => bytes.truncate(at),
            1 => {
                let word = ODD[dice.roll(ODD.len())].to_le_bytes();
                bytes.iter_mut().skip(at & !3).zip(word).for_each(|(to, from)| *to = from);
            }
            2 => {
                let end = at + dice.roll(bytes.len().saturating_sub(at).min(64));
                let part: Vec<u8> = bytes.get(at..end).unwrap_or_default().to_vec();
                bytes.splice(at..at, part);
            }
            3 => {
                let end = at + dice.roll(bytes.len().saturating_sub(at).min(64));
                bytes.drain(at..end);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << dice.roll(8);
                }
            }
        }
    }
}
