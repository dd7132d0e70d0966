//! The file format of recordings: numbers and layouts. docs/recording.md describes it; a number once given is never
//! given again. Little-endian throughout; nothing here reads or writes a file.
//!
//! ```text
//! prelude   magic[8]  endian u32  major u16  minor u16  header length u32  header crc32 u32  flags u32  !flags u32
//! header    JSON of that length
//! block     magic u32  payload length u32  records u32  crc32 u32  payload
//! ...
//! record    length u32  kind u32  rest
//! ```

use crc32fast::Hasher;

/// First bytes of a recording. The line feed and the NUL catch transfers that are not binary.
pub const MAGIC: [u8; 8] = *b"PGTRACE\n";
/// As written by a little-endian machine.
pub const ENDIAN: u32 = 0x0a0b_0c0d;
/// Another major version cannot be read.
pub const MAJOR: u16 = 1;
/// A newer minor version adds kinds and header fields, which an older reader skips.
pub const MINOR: u16 = 0;
/// Bytes before the header.
pub const PRELUDE: usize = 32;
/// Where the flags and their complement stand, eight bytes.
pub const FLAGS_AT: u64 = 24;
/// Set while the recording is being made, cleared when it has been written to its end.
pub const INCOMPLETE: u32 = 1;

/// Longest header.
pub const MAX_HEADER: u32 = 1 << 20;
/// First bytes of a block, `PTBK`.
pub const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"PTBK");
/// Bytes before a block's payload.
pub const BLOCK_HEADER: usize = 16;
/// Longest payload.
pub const MAX_PAYLOAD: usize = 64 << 10;
/// Longest record, its length not counted.
pub const MAX_RECORD: usize = MAX_PAYLOAD - 4;

/// Kinds of records that userspace adds; those below come from the kernel as they are (`wire::kind`).
pub mod kind {
    /// First number of userspace's kinds.
    pub const FIRST: u32 = 1000;
    /// A stack of kernel addresses.
    pub const STACK: u32 = 1000;
    /// The name at an address.
    pub const SYMBOL: u32 = 1001;
    /// One counter, each CPU by itself.
    pub const COUNTER: u32 = 1002;
    /// Something that happened outside the kernel's records.
    pub const NOTE: u32 = 1003;
    /// How the run ended; nothing follows it.
    pub const END: u32 = 1004;
}

/// The first 24 bytes.
pub fn prelude(header: &[u8]) -> [u8; FLAGS_AT as usize] {
    let mut out = [0; FLAGS_AT as usize];
    let parts: [&[u8]; 5] = [
        &MAGIC,
        &ENDIAN.to_le_bytes(),
        &MAJOR.to_le_bytes(),
        &MINOR.to_le_bytes(),
        &u32::try_from(header.len()).unwrap_or(u32::MAX).to_le_bytes(),
    ];
    let mut filled: Vec<u8> = parts.concat();
    filled.extend(header_crc(&filled, header).to_le_bytes());
    for (to, from) in out.iter_mut().zip(filled) {
        *to = from;
    }
    out
}

/// The flags, and their complement behind them: what is changed in place has to prove itself.
pub fn flags(flags: u32) -> [u8; 8] {
    let mut out = [0; 8];
    for (to, from) in out.iter_mut().zip(flags.to_le_bytes().into_iter().chain((!flags).to_le_bytes())) {
        *to = from;
    }
    out
}

/// Checksum of the prelude up to the header's length, and of the header.
pub fn header_crc(before: &[u8], header: &[u8]) -> u32 {
    let mut crc = Hasher::new();
    crc.update(before);
    crc.update(header);
    crc.finalize()
}

/// Checksum of a block: its payload's length and count of records, and the payload.
pub fn block_crc(length: u32, records: u32, payload: &[u8]) -> u32 {
    let mut crc = Hasher::new();
    crc.update(&length.to_le_bytes());
    crc.update(&records.to_le_bytes());
    crc.update(payload);
    crc.finalize()
}
