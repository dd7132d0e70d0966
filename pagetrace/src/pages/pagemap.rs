//! Reads `/proc/PID/pagemap`: large positioned reads into one buffer that is used again, never more than a batch.
#![expect(unsafe_code, reason = "entries are read in place, without a copy")]

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path, slice};

use super::entry::Entry;

/// Most entries a read gives: what covers 2 MiB of 4 KiB pages. The kernel holds the `mmap_lock` for as much at a time
/// whatever is asked (`PAGEMAP_WALK_SIZE`).
pub const BATCH: usize = 512;

/// Bytes an entry.
const WIDTH: usize = size_of::<u64>();

/// An open pagemap. It stays with the address space that the process had when it was opened: open it anew after an
/// `execve`.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    buffer: Vec<Entry>,
}

impl Pagemap {
    /// Opens the file below a process's directory, `/proc/PID`.
    ///
    /// # Errors
    /// When the process is gone, the caller may not look into it, or the kernel has no `CONFIG_PROC_PAGE_MONITOR`.
    pub fn open(process: &Path) -> io::Result<Self> {
        Self::with_batch(process, BATCH)
    }

    /// As [`Pagemap::open`], with room for so many entries: fewer system calls, the same holds of the lock.
    ///
    /// # Errors
    /// As there.
    pub fn with_batch(process: &Path, batch: usize) -> io::Result<Self> {
        Ok(Self { file: File::open(process.join("pagemap"))?, buffer: vec![Entry::default(); batch] })
    }

    /// The file, for what else can be asked of it.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The entries of `count` pages, [`BATCH`] at most, from page number `first` (address divided by page size). Fewer
    /// where the address space ends, none when the process has ended.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn read(&mut self, first: u64, count: usize) -> io::Result<impl Iterator<Item = Entry>> {
        Ok(self.batch(first, count)?.iter().copied())
    }

    /// As [`Pagemap::read`], where they were read to.
    ///
    /// # Errors
    /// As there.
    pub fn batch(&mut self, first: u64, count: usize) -> io::Result<&[Entry]> {
        let Self { file, buffer } = self;
        let wanted = count.min(buffer.len());
        let position = first.checked_mul(WIDTH as u64).ok_or(io::ErrorKind::InvalidInput)?;
        let bytes = bytes(buffer.get_mut(..wanted).unwrap_or_default());
        let mut got = 0;
        while let Some(rest) = bytes.get_mut(got..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, position.saturating_add(got as u64)) {
                Ok(0) => break,
                Ok(read) => got += read,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        Ok(buffer.get(..got / WIDTH).unwrap_or_default())
    }
}

fn bytes(entries: &mut [Entry]) -> &mut [u8] {
    let length = size_of_val(entries);
    // SAFETY: the memory is the slice's own, as long as the borrow. An entry is a `u64` (`repr(transparent)`), so it has no
    // padding and every eight bytes written here are one.
    unsafe { slice::from_raw_parts_mut(entries.as_mut_ptr().cast(), length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(entries: &[u64]) -> (tempfile::TempDir, Pagemap) {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_ne_bytes()).collect();
        std::fs::write(dir.path().join("pagemap"), bytes).unwrap();
        let pagemap = Pagemap::open(dir.path()).unwrap();
        (dir, pagemap)
    }

    #[test]
    fn entries_are_found_by_page_number_and_end_with_the_file() {
        let (_dir, mut pagemap) = of(&[10, 11, 12, 13]);
        let mut read = |first, count| pagemap.read(first, count).unwrap().map(Entry::raw).collect::<Vec<_>>();
        assert_eq!(read(1, 2), [11, 12]);
        assert_eq!(read(3, 5), [13]);
        assert!(read(9, 1).is_empty());
    }

    #[test]
    fn a_read_is_bounded_and_an_absurd_place_is_an_error() {
        let (_dir, mut pagemap) = of(&vec![7; BATCH * 2]);
        assert_eq!(pagemap.read(0, usize::MAX / WIDTH).unwrap().count(), BATCH);
        assert!(pagemap.read(u64::MAX, 1).is_err());
    }
}
