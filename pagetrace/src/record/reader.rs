//! Reads a recording, in bounded memory, up to its end or to its first damage. Never trusts a length it read.

use std::io::{self, Read};

use pagetrace_ebpf::wire::Field;

use super::{
    Record,
    format::{
        BLOCK_HEADER, BLOCK_MAGIC, ENDIAN, INCOMPLETE, MAGIC, MAJOR, MAX_HEADER, MAX_PAYLOAD, PRELUDE, block_crc,
        header_crc, kind,
    },
    header::FileHeader,
    user::User,
};

/// Why a file cannot be read as a recording at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Reading failed.
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    /// It has no bytes.
    #[error("it is empty: the recorder ended before it had attached, or has not attached yet")]
    Empty,
    /// It begins otherwise.
    #[error("it is no recording of pagetrace")]
    NotARecording,
    /// It was written by a machine with another byte order.
    #[error("it was recorded on a big-endian machine, and this pagetrace reads little-endian recordings")]
    OtherEndian,
    /// It was written by a newer program.
    #[error("it has format version {0}.{1}, and this pagetrace reads version {MAJOR}: use a newer pagetrace")]
    Newer(u16, u16),
    /// Its head ends too early.
    #[error("it ends after {0} bytes, within its header")]
    Truncated(u64),
    /// Its head is damaged.
    #[error("its header is damaged: {0}")]
    Header(String),
}

/// Where and why reading ended before the recording did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Bytes from the file's start that were read without doubt.
    pub offset: u64,
    /// What is wrong there.
    pub why: String,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// From the kernel.
    Kernel(Record),
    /// From userspace.
    User(User),
}

/// A recording that is being read.
pub struct Reader<R> {
    input: R,
    header: FileHeader,
    minor: u16,
    incomplete: bool,
    /// Payload of the current block; never longer than [`MAX_PAYLOAD`].
    block: Vec<u8>,
    at: usize,
    left: u32,
    /// Offset of the current block's payload.
    block_offset: u64,
    /// Offset of the next block.
    offset: u64,
    damage: Option<Damage>,
    /// Its end was read.
    ended: bool,
    /// Nothing further can be trusted.
    stopped: bool,
    records: u64,
    unknown: u64,
}

/// Reads up to `buffer.len()` bytes; fewer only at the end.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(filled)
}

impl<R: Read> Reader<R> {
    /// Reads the head of a recording.
    ///
    /// # Errors
    /// When it is none, or one that this program cannot read.
    pub fn open(mut input: R) -> Result<Self, OpenError> {
        let mut prelude = [0; PRELUDE];
        let got = fill(&mut input, &mut prelude)?;
        let known = MAGIC.len().min(got);
        if got == 0 {
            return Err(OpenError::Empty);
        }
        if prelude.get(..known) != MAGIC.get(..known) {
            return Err(OpenError::NotARecording);
        }
        let damaged = |why: &str| OpenError::Header(why.to_owned());
        if got < PRELUDE {
            return Err(OpenError::Truncated(u64::try_from(got).unwrap_or(0)));
        }
        let word = |at: usize| u32::read(&prelude, at).unwrap_or(0);
        match word(8) {
            ENDIAN => {}
            other if other.swap_bytes() == ENDIAN => return Err(OpenError::OtherEndian),
            _ => return Err(damaged("its byte order mark is neither of the two there are")),
        }
        let version = word(12).to_le_bytes();
        let [a, b, c, d] = version;
        let (major, minor) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        if major > MAJOR {
            return Err(OpenError::Newer(major, minor));
        }
        let length = word(16);
        if major != MAJOR || length > MAX_HEADER {
            return Err(damaged("its version or its length is impossible"));
        }
        let mut json = vec![0; length as usize];
        let got = fill(&mut input, &mut json)?;
        if got < json.len() {
            return Err(OpenError::Truncated(u64::try_from(PRELUDE + got).unwrap_or(0)));
        }
        if prelude.get(..20).is_none_or(|before| header_crc(before, &json) != word(20)) {
            return Err(damaged("its checksum does not match"));
        }
        let header = serde_json::from_slice(&json).map_err(|err| OpenError::Header(err.to_string()))?;
        let flags = word(24);
        let mut reader = Self {
            input,
            header,
            minor,
            incomplete: flags & INCOMPLETE != 0,
            block: Vec::with_capacity(MAX_PAYLOAD),
            at: 0,
            left: 0,
            block_offset: 0,
            offset: u64::from(length) + PRELUDE as u64,
            damage: None,
            ended: false,
            stopped: false,
            records: 0,
            unknown: 0,
        };
        if word(28) != !flags {
            reader.damage = Some(Damage { offset: 24, why: "the flags are damaged".to_owned() });
        }
        Ok(reader)
    }

    /// What the recording says of itself.
    pub fn header(&self) -> &FileHeader {
        &self.header
    }

    /// Minor version of the format.
    pub fn minor(&self) -> u16 {
        self.minor
    }

    /// Whether the recorder had not finished it.
    pub fn incomplete(&self) -> bool {
        self.incomplete
    }

    /// Damage met so far.
    pub fn damage(&self) -> Option<&Damage> {
        self.damage.as_ref()
    }

    /// Records read so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Records of a kind that this program does not know, so far.
    pub fn unknown(&self) -> u64 {
        self.unknown
    }

    /// Bytes read so far that were whole.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next record; `None` at the end, or where the file is damaged.
    pub fn next_entry(&mut self) -> Option<Entry> {
        let entry = {
            let body = self.next_body()?;
            match u32::read(body, 0) {
                Some(kind) if kind >= kind::FIRST => Entry::User(User::decode(body)),
                _ => Entry::Kernel(Record::decode(body)),
            }
        };
        match &entry {
            Entry::Kernel(Record::Unknown { .. }) | Entry::User(User::Unknown) => self.unknown += 1,
            Entry::User(User::End(_)) => self.ended = true,
            Entry::Kernel(_) | Entry::User(_) => {}
        }
        Some(entry)
    }

    /// The next record's bytes, its kind first.
    fn next_body(&mut self) -> Option<&[u8]> {
        if self.left == 0 {
            self.next_block()?;
        }
        let here = self.block_offset.saturating_add(u64::try_from(self.at).unwrap_or(0));
        if self.ended {
            return self.broken(here, "something follows its end");
        }
        let start = self.at.checked_add(4)?;
        let length = u32::read(&self.block, self.at).and_then(|length| usize::try_from(length).ok());
        let end = length.and_then(|length| start.checked_add(length)).filter(|end| *end <= self.block.len());
        let Some(end) = end else {
            return self.broken(here, "a record is longer than its block");
        };
        self.at = end;
        self.left -= 1;
        self.records += 1;
        if self.left == 0 && end != self.block.len() {
            return self.broken(here, "a block has more bytes than records");
        }
        self.block.get(start..end)
    }

    fn broken<T>(&mut self, offset: u64, why: &str) -> Option<T> {
        self.damage.get_or_insert_with(|| Damage { offset, why: why.to_owned() });
        // Nothing behind the damage is read: where a record begins is not known there.
        self.stopped = true;
        self.left = 0;
        None
    }

    /// Reads a block. `None` at the end of the file, and of what can be trusted.
    fn next_block(&mut self) -> Option<()> {
        if self.stopped {
            return None;
        }
        let offset = self.offset;
        let mut head = [0; BLOCK_HEADER];
        let got = match fill(&mut self.input, &mut head) {
            Ok(got) => got,
            Err(err) => return self.broken(offset, &format!("it cannot be read further: {err}")),
        };
        match (got, self.ended) {
            (0, true) => return None,
            (0, false) => return self.broken(offset, "it ends without saying how the run ended"),
            (BLOCK_HEADER, false) => {}
            (_, true) => return self.broken(offset, "something follows its end"),
            (_, false) => return self.broken(offset, "it ends within a block"),
        }
        let word = |at: usize| u32::read(&head, at).unwrap_or(0);
        let (magic, length, records, crc) = (word(0), word(4), word(8), word(12));
        if magic != BLOCK_MAGIC {
            return self.broken(offset, "there is no block where one should begin");
        }
        if length as usize > MAX_PAYLOAD || records == 0 || u64::from(records) * 8 > u64::from(length) {
            return self.broken(offset, "the size of a block is impossible");
        }
        self.block.resize(length as usize, 0);
        match fill(&mut self.input, &mut self.block) {
            Ok(got) if got == self.block.len() => {}
            Ok(_) => return self.broken(offset, "it ends within a block"),
            Err(err) => return self.broken(offset, &format!("it cannot be read further: {err}")),
        }
        if block_crc(length, records, &self.block) != crc {
            return self.broken(offset, "the checksum of a block does not match");
        }
        self.at = 0;
        self.left = records;
        self.block_offset = offset + BLOCK_HEADER as u64;
        self.offset = self.block_offset + u64::from(length);
        Some(())
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Entry;
    fn next(&mut self) -> Option<Entry> {
        self.next_entry()
    }
}

#[cfg(test)]
#[path = "reader/tests.rs"]
mod tests;
