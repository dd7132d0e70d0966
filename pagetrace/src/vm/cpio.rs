//! The "newc" cpio format: what the kernel unpacks as an initramfs, and what the guest sends back.
//!
//! An archive is a row of records: 6 bytes of magic, 13 numbers of 8 hexadecimal digits, the name
//! with its NUL, the content; name and content are each padded to 4 bytes. The record named
//! `TRAILER!!!` ends it, so a cut archive is told from a complete one.

use std::{
    io::{self, Read, Write},
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};

const MAGIC: &[u8] = b"070701";
const HEADER: usize = 6 + 13 * 8;
const TRAILER: &[u8] = b"TRAILER!!!";

/// File type bits of a mode, as in `stat(2)`.
pub mod kind {
    /// A regular file.
    pub const FILE: u32 = 0o100_000;
    /// A directory.
    pub const DIRECTORY: u32 = 0o040_000;
    /// A symbolic link; the content is its target.
    pub const LINK: u32 = 0o120_000;
    /// A character device.
    pub const CHAR: u32 = 0o020_000;
    /// The bits that hold the type.
    pub const MASK: u32 = 0o170_000;
}

/// The head of a record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Head<'a> {
    /// Path without a leading slash.
    pub name: &'a [u8],
    /// Type and permission bits.
    pub mode: u32,
    /// Owner, user and group alike.
    pub owner: u32,
    /// Length of the content.
    pub size: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
}

/// Writes an archive.
#[derive(Debug)]
pub struct Writer<W> {
    inner: W,
    written: u64,
    inode: u32,
}

impl<W: Write> Writer<W> {
    /// An empty archive.
    pub const fn new(inner: W) -> Self {
        Self { inner, written: 0, inode: 1 }
    }

    /// Appends a record; `content` must yield exactly `head.size` bytes.
    ///
    /// # Errors
    /// When reading or writing fails, or the content is shorter than announced.
    pub fn append(&mut self, head: Head<'_>, content: &mut dyn Read) -> io::Result<()> {
        let Head { name, mode, owner, size, device } = head;
        let name_len = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        let links = if mode & kind::MASK == kind::DIRECTORY { 2 } else { 1 };
        let fields = [self.inode, mode, owner, owner, links, 0, size, 0, 0, device.0, device.1, name_len, 0];
        let mut record = MAGIC.to_vec();
        for field in fields {
            write!(record, "{field:08x}")?;
        }
        record.extend_from_slice(name);
        record.push(0);
        record.resize(record.len().next_multiple_of(4), 0);
        self.inner.write_all(&record)?;
        let copied = io::copy(&mut content.take(u64::from(size)), &mut self.inner)?;
        if copied != u64::from(size) {
            return Err(io::Error::other(format!(
                "{} shrank while it was copied: {copied} bytes of {size}",
                String::from_utf8_lossy(name)
            )));
        }
        let padding = copied.next_multiple_of(4) - copied;
        self.inner.write_all(&[0; 3][..usize::try_from(padding).unwrap_or(0)])?;
        self.written += record.len() as u64 + copied + padding;
        self.inode += 1;
        Ok(())
    }

    /// Writes the trailer and returns the underlying writer and the archive's length.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.append(Head { name: TRAILER, ..Head::default() }, &mut io::empty())?;
        self.inner.flush()?;
        Ok((self.inner, self.written))
    }
}

/// A file that came out of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path relative to the archive's root.
    pub path: PathBuf,
    /// Type and permission bits.
    pub mode: u32,
    /// Content.
    pub data: Vec<u8>,
}

/// Reads a whole archive.
///
/// # Errors
/// When a record is malformed or the trailer is missing.
pub fn read(mut bytes: &[u8]) -> Result<Vec<Entry>> {
    use std::os::unix::ffi::OsStringExt as _;

    let mut entries = Vec::new();
    loop {
        let header = bytes.get(..HEADER).context("the archive ends before its trailer")?;
        if &header[..6] != MAGIC {
            bail!("a record of the archive does not begin with its magic");
        }
        let field = |n: usize| -> Result<usize> {
            let digits = std::str::from_utf8(&header[6 + n * 8..14 + n * 8])?;
            Ok(usize::from_str_radix(digits, 16)?)
        };
        let (mode, size, name_len) = (field(1)?, field(6)?, field(11)?);
        let body = (HEADER + name_len).next_multiple_of(4);
        let name = bytes.get(HEADER..(HEADER + name_len).saturating_sub(1)).context("a name is cut off")?;
        if name == TRAILER {
            return Ok(entries);
        }
        let data = bytes.get(body..body + size).context("a file's content is cut off")?;
        entries.push(Entry {
            path: PathBuf::from(std::ffi::OsString::from_vec(name.to_vec())),
            mode: u32::try_from(mode)?,
            data: data.to_vec(),
        });
        bytes = bytes.get((body + size).next_multiple_of(4)..).context("the archive ends before its trailer")?;
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        writer
            .append(Head { name: b"dir", mode: kind::DIRECTORY | 0o755, ..Head::default() }, &mut io::empty())
            .unwrap();
        for (name, data) in [("dir/a", "x"), ("dir/bc", "1234"), ("dir/def", "12345")] {
            let head = Head {
                name: name.as_bytes(),
                mode: kind::FILE | 0o644,
                size: u32::try_from(data.len()).unwrap(),
                ..Head::default()
            };
            writer.append(head, &mut data.as_bytes()).unwrap();
        }
        let (bytes, len) = writer.finish().unwrap();
        assert_eq!(bytes.len() as u64, len);
        bytes
    }

    #[test]
    fn what_was_written_is_read_back() {
        let entries = read(&sample()).unwrap();
        let seen: Vec<_> = entries.iter().map(|e| (e.path.to_str().unwrap(), e.data.as_slice())).collect();
        assert_eq!(seen, [("dir", b"".as_slice()), ("dir/a", b"x"), ("dir/bc", b"1234"), ("dir/def", b"12345")]);
        assert_eq!(entries[1].mode, kind::FILE | 0o644);
    }

    #[test]
    fn every_cut_is_noticed() {
        let bytes = sample();
        for cut in 0..bytes.len() - TRAILER.len() {
            assert!(read(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn shrinking_content_is_an_error() {
        let head = Head { name: b"a", mode: kind::FILE, size: 4, ..Head::default() };
        assert!(Writer::new(Vec::new()).append(head, &mut b"123".as_slice()).is_err());
    }

    #[test]
    fn cpio_lists_it() {
        let child = Command::new("cpio").args(["-t", "--quiet"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Ok(mut child) = child else {
            return; // No cpio here: the reader above has checked the same bytes.
        };
        child.stdin.take().unwrap().write_all(&sample()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success());
        assert_eq!(String::from_utf8(out.stdout).unwrap(), "dir\ndir/a\ndir/bc\ndir/def\n");
    }
}
