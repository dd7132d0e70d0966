//! Shortcuts for unwinding: what the kernel side samples, and what the loader makes of it.
//!
//! Where a function keeps its return address on the stack depends on the function alone. So once the chain of a call
//! path is known with the places of its return addresses, meeting the same addresses at the same places again proves
//! the same chain, at a fraction of what unwinding costs.

use super::codec::wire;

/// Words of stack that a shortcut can span; a power of two.
pub const WINDOW: usize = 128;
/// Words there is room for, so that the kernel's verifier sees that a read of any masked length fits.
pub const WINDOW_ROOM: usize = WINDOW + 16;
/// Words of stack in a sample.
pub const SAMPLE_WORDS: usize = 128;
/// Frames in a sample.
pub const SAMPLE_FRAMES: usize = 32;
/// Return addresses a shortcut compares at most; a power of two.
pub const MAX_FRAMES: usize = 16;
/// Shortcuts there is room for; a power of two.
pub const SHORTCUTS: usize = 1024;

/// How a program's context leads to the stack; each kind has its own distance to the first return address.
pub mod kind {
    /// A BTF tracepoint.
    pub const BTF_TRACEPOINT: u32 = 0;
    /// A raw tracepoint.
    pub const RAW_TRACEPOINT: u32 = 1;
    /// fentry.
    pub const FENTRY: u32 = 2;
    /// fexit.
    pub const FEXIT: u32 = 3;
    /// A kprobe: the stack pointer is in its registers and points at the return address.
    pub const KPROBE: u32 = 4;
    /// Number of kinds.
    pub const LEN: u32 = 5;
    /// No shortcut for this kind of program.
    pub const NONE: u32 = u32::MAX;
}

wire! {
    /// A stack that had to be unwound, with the words it lies in.
    pub struct Sample {
        /// [`super::kind::UNWIND_SAMPLE`].
        pub kind: u32,
        /// One of [`kind`].
        pub program: u32,
        /// Id of the stack.
        pub stack_id: i32,
        /// Bytes used in [`Sample::frames`].
        pub frames_len: i32,
        /// Words in [`Sample::words`] that lie below the program's context.
        pub lead: u64,
        /// The stack, innermost first.
        pub frames: [u64; SAMPLE_FRAMES],
        /// Words of the stack, upwards.
        pub words: [u64; SAMPLE_WORDS],
    }
}

impl Sample {
    /// Words of the stack from the program's context upwards.
    pub fn above(&self) -> &[u64] {
        usize::try_from(self.lead).ok().and_then(|lead| self.words.get(lead..)).unwrap_or_default()
    }
}

/// Exclusive-or with an address: the 0 of an entry that is not wholly written yet then stands for no word that a stack has.
pub const SEAL: u64 = 0x5ea1_ed5e_a1ed_5ea1;

/// A learnt chain. All zero: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Shortcut {
    /// Id of its stack and one.
    pub stack_code: u32,
    /// Return addresses of the chain.
    pub frames: u32,
    /// Words from the first one to the last, both included; at most [`WINDOW`].
    pub span: u32,
    /// Explicit padding.
    pub pad: u32,
    /// Their places, in words from the first one's. What is not used repeats the first.
    pub at: [u32; MAX_FRAMES],
    /// The addresses, each with [`SEAL`]. What is not used repeats the first, so that all can be compared.
    pub sealed_ip: [u64; MAX_FRAMES],
}

/// Words of a [`Shortcut`].
pub const SHORTCUT_WORDS: usize = size_of::<Shortcut>() / 8;

impl Shortcut {
    /// The addresses.
    pub fn ip(&self) -> [u64; MAX_FRAMES] {
        self.sealed_ip.map(|ip| ip ^ SEAL)
    }

    /// As it lies in memory.
    pub fn words(&self) -> [u64; SHORTCUT_WORDS] {
        let halves = [self.stack_code, self.frames, self.span, self.pad].into_iter().chain(self.at);
        let (mut out, mut filled) = ([0; SHORTCUT_WORDS], 0);
        for (index, half) in halves.enumerate() {
            if let Some(word) = out.get_mut(index / 2) {
                *word |= u64::from(half) << (32 * (index % 2));
            }
            filled = index / 2 + 1;
        }
        for (word, ip) in out.iter_mut().skip(filled).zip(self.sealed_ip) {
            *word = ip;
        }
        out
    }
}

/// Places there are for chains whose innermost return address is the same; a power of two.
pub const WAYS: u32 = 4;

/// The first of the [`WAYS`] places for a chain whose innermost return address is `ip`; the others differ in the lowest
/// bits.
#[inline(always)]
pub const fn place(ip: u64) -> u32 {
    (ip.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as u32 & (SHORTCUTS as u32 - 1)
}
