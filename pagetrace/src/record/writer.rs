//! Writes a recording: whole blocks only, in bounded memory, within a limit. What cannot be written is counted, and the
//! file stays readable up to the last block that could.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use libc::{ENXIO, O_NONBLOCK};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::{
    format::{
        BLOCK_HEADER, BLOCK_MAGIC, FLAGS_AT, INCOMPLETE, MAX_HEADER, MAX_PAYLOAD, MAX_RECORD, block_crc, flags, prelude,
    },
    header::FileHeader,
    user::User,
};

/// Where a recording goes.
pub trait Medium {
    /// Appends all bytes.
    ///
    /// # Errors
    /// As [`io::Write::write_all`]; some of the bytes may have been written.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Cuts off everything from `length` on.
    ///
    /// # Errors
    /// When that cannot be done.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
    /// Replaces bytes that are there.
    ///
    /// # Errors
    /// When that cannot be done.
    fn overwrite(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;
}

impl Medium for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)?;
        io::Seek::seek(self, io::SeekFrom::Start(length)).map(drop)
    }
    fn overwrite(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }
}

/// Why a file cannot be recorded to.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be opened or made.
    #[error("cannot record to {}: {source}; give another --output", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another recorder writes to it.
    #[error("cannot record to {}: another pagetrace is recording to it; give another --output, or wait for it", .0.display())]
    Busy(PathBuf),
    /// Not something that can be cut and rewritten in place.
    #[error("cannot record to {}: it is not a regular file, and a recording is marked whole at its end", .0.display())]
    NotAFile(PathBuf),
}

/// Opens a file to record to, empties it, and keeps others from recording to it.
///
/// # Errors
/// When it cannot be opened, or another recorder has it.
pub fn open(path: &Path) -> Result<File, OpenError> {
    let fail = |source: io::Error| OpenError::Open { path: path.to_owned(), source };
    // It is emptied only when it is locked: another's recording must survive the attempt.
    // Opening a pipe must not wait for its reader.
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).custom_flags(O_NONBLOCK);
    let file = options.open(path).map_err(|err| match err.raw_os_error() {
        Some(ENXIO) => OpenError::NotAFile(path.to_owned()),
        _ => fail(err),
    })?;
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(OpenError::NotAFile(path.to_owned()));
    }
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(OpenError::Busy(path.to_owned())),
        Err(errno) => return Err(fail(errno.into())),
    }
    file.set_len(0).map_err(fail)?;
    Ok(file)
}

/// Why nothing is written any more.
#[derive(Debug)]
pub enum Stop {
    /// The file has the size it may have.
    Limit(u64),
    /// It could not be written.
    Failed(io::Error),
}

/// What a recording came to.
#[derive(Debug)]
pub struct Written {
    /// Bytes of the file.
    pub bytes: u64,
    /// Records in it.
    pub records: u64,
    /// Records that could not be written.
    pub lost: u64,
    /// Why it is not whole.
    pub stop: Option<Stop>,
}

/// Bytes kept for the last block under a limit: counters and the end.
const RESERVE: u64 = (BLOCK_HEADER + MAX_PAYLOAD) as u64;
/// Smallest limit that makes sense.
pub const MIN_LIMIT: u64 = 1 << 20;

/// A recording in the making.
#[derive(Debug)]
pub struct Writer<M> {
    medium: M,
    /// The block in the making, its header's room included.
    block: Vec<u8>,
    /// Records in the block.
    in_block: u32,
    /// Bytes of the file, all in whole blocks.
    length: u64,
    limit: u64,
    written: u64,
    lost: u64,
    stop: Option<Stop>,
}

impl<M: Medium> Writer<M> {
    /// Writes the head of the file, marked incomplete. `limit` bounds the file's bytes.
    ///
    /// # Errors
    /// When that cannot be written, or the header is too long.
    pub fn begin(mut medium: M, header: &FileHeader, limit: u64) -> io::Result<Self> {
        let json = serde_json::to_vec(header)?;
        if json.len() > MAX_HEADER as usize {
            return Err(io::Error::other(format!("the header has {} bytes, more than {MAX_HEADER}", json.len())));
        }
        let head = [prelude(&json).as_slice(), &flags(INCOMPLETE), &json].concat();
        medium.append(&head)?;
        let mut block = Vec::with_capacity(BLOCK_HEADER + MAX_PAYLOAD);
        block.resize(BLOCK_HEADER, 0);
        let length = u64::try_from(head.len()).unwrap_or(u64::MAX);
        Ok(Self { medium, block, in_block: 0, length, limit, written: 0, lost: 0, stop: None })
    }

    /// Adds a record. What cannot be written is counted, see [`Writer::stop`].
    pub fn record(&mut self, body: &[u8]) {
        if self.stop.is_some() || body.len() > MAX_RECORD || body.len() < 4 {
            self.lost += 1;
            return;
        }
        if self.block.len() - BLOCK_HEADER + 4 + body.len() > MAX_PAYLOAD {
            self.flush(self.limit.saturating_sub(RESERVE));
            if self.stop.is_some() {
                self.lost += 1;
                return;
            }
        }
        // Lossless: the length was checked above.
        self.block.extend(u32::try_from(body.len()).unwrap_or(0).to_le_bytes());
        self.block.extend(body);
        self.in_block += 1;
    }

    /// Adds a record of userspace.
    pub fn user(&mut self, user: &User) {
        match user.encode() {
            Some(bytes) => self.record(&bytes),
            None => self.lost += 1,
        }
    }

    /// Writes what there is, although the block is not full: a recorder that is killed loses what comes after.
    pub fn settle(&mut self) {
        self.flush(self.limit.saturating_sub(RESERVE));
    }

    /// Why nothing is written any more.
    pub fn stop(&self) -> Option<&Stop> {
        self.stop.as_ref()
    }

    /// Writes the block, if it does not make the file longer than `limit`.
    fn flush(&mut self, limit: u64) {
        if self.in_block == 0 {
            return;
        }
        let payload = self.block.len() - BLOCK_HEADER;
        let whole = u64::try_from(self.block.len()).unwrap_or(u64::MAX);
        if self.length.saturating_add(whole) > limit {
            self.stop = Some(Stop::Limit(self.limit));
        } else {
            self.seal(payload);
            match self.medium.append(&self.block) {
                Ok(()) => {
                    self.length += whole;
                    self.written += u64::from(self.in_block);
                    self.clear();
                    return;
                }
                Err(err) => {
                    // A reader stops at the first block that is not whole: better there is none.
                    let _ = self.medium.truncate(self.length);
                    self.stop = Some(Stop::Failed(err));
                }
            }
        }
        self.lost += u64::from(self.in_block);
        self.clear();
    }

    fn seal(&mut self, payload: usize) {
        let length = u32::try_from(payload).unwrap_or(0);
        let Some((head, body)) = self.block.split_at_mut_checked(BLOCK_HEADER) else { return };
        let crc = block_crc(length, self.in_block, body);
        let words = [BLOCK_MAGIC, length, self.in_block, crc];
        for (to, from) in head.iter_mut().zip(words.iter().flat_map(|word| word.to_le_bytes())) {
            *to = from;
        }
    }

    fn clear(&mut self) {
        self.block.truncate(BLOCK_HEADER);
        self.in_block = 0;
    }

    /// Writes the last records, the end among them, and marks the file whole if it is.
    pub fn finish(mut self, last: &[User]) -> Written {
        self.flush(self.limit.saturating_sub(RESERVE));
        // Even a recording that had to stop says how its run ended, where there is room for it.
        let stop = self.stop.take();
        last.iter().for_each(|user| self.user(user));
        self.flush(self.limit);
        let mut stop = stop.or(self.stop.take());
        if stop.is_none()
            && self.lost == 0
            && let Err(err) = self.medium.overwrite(FLAGS_AT, &flags(0))
        {
            stop = Some(Stop::Failed(err));
        }
        Written { bytes: self.length, records: self.written, lost: self.lost, stop }
    }
}

#[cfg(test)]
#[path = "writer/tests.rs"]
pub(crate) mod tests;
