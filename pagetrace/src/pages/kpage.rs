//! What the kernel says of a page frame: `/proc/kpageflags` and `/proc/kpagecount`, for root.
//!
//! Source: Documentation/admin-guide/mm/pagemap.rst and include/uapi/linux/kernel-page-flags.h. Flags from 32 on are the
//! kernel's own affair and have changed their meaning.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

/// Flags with their bits.
pub const FLAGS: [(u32, &str); 38] = [
    (0, "locked"),
    (1, "error"),
    (2, "referenced"),
    (3, "uptodate"),
    (4, "dirty"),
    (5, "lru"),
    (6, "active"),
    (7, "slab"),
    (8, "writeback"),
    (9, "reclaim"),
    (10, "buddy"),
    (11, "mmap"),
    (12, "anon"),
    (13, "swapcache"),
    (14, "swapbacked"),
    (15, "compound_head"),
    (16, "compound_tail"),
    (17, "huge"),
    (18, "unevictable"),
    (19, "hwpoison"),
    (20, "nopage"),
    (21, "ksm"),
    (22, "thp"),
    (23, "offline"),
    (24, "zero_page"),
    (25, "idle"),
    (26, "pgtable"),
    (32, "reserved"),
    (33, "mlocked"),
    (34, "bit34"),
    (35, "private"),
    (36, "private_2"),
    (37, "owner_private"),
    (38, "arch"),
    (39, "uncached"),
    (40, "softdirty"),
    (41, "arch_2"),
    (42, "arch_3"),
];

/// Bit of [`FLAGS`] that marks a page of zeros, small or huge.
pub const ZERO_PAGE: u64 = 1 << 24;

/// The names of the flags that are set.
pub fn names(flags: u64) -> impl Iterator<Item = &'static str> {
    FLAGS.into_iter().filter(move |(bit, _)| flags >> bit & 1 == 1).map(|(_, name)| name)
}

/// What is known of a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Frame {
    /// Its flags.
    pub flags: u64,
    /// How often it is mapped. Since 6.18 some kernels only know the average of a large page's parts.
    pub count: u64,
}

/// Both files.
#[derive(Debug)]
pub struct Frames {
    flags: File,
    count: File,
    buffer: Vec<u8>,
}

impl Frames {
    /// Opens the files below `proc`.
    ///
    /// # Errors
    /// When the caller is not root, or the kernel has no `CONFIG_PROC_PAGE_MONITOR`.
    pub fn open(proc: &Path) -> io::Result<Self> {
        let open = |name| File::open(proc.join(name));
        Ok(Self { flags: open("kpageflags")?, count: open("kpagecount")?, buffer: Vec::new() })
    }

    /// What is known of `count` frames from `pfn` on. Those that are no memory, a device's for example, are left out at the end.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn read(&mut self, pfn: u64, count: usize, out: &mut Vec<Frame>) -> io::Result<()> {
        out.clear();
        let Self { flags, count: counts, buffer } = self;
        words(flags, pfn, count, buffer, |flags| out.push(Frame { flags, count: 0 }))?;
        let mut known = out.iter_mut();
        words(counts, pfn, count, buffer, |count| {
            if let Some(frame) = known.next() {
                frame.count = count;
            }
        })
    }
}

fn words(file: &File, first: u64, count: usize, buffer: &mut Vec<u8>, mut take: impl FnMut(u64)) -> io::Result<()> {
    const WIDTH: usize = size_of::<u64>();
    buffer.resize(count.saturating_mul(WIDTH), 0);
    let position = first.checked_mul(WIDTH as u64).ok_or(io::ErrorKind::InvalidInput)?;
    let mut got = 0;
    while let Some(rest) = buffer.get_mut(got..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, position.saturating_add(got as u64)) {
            Ok(0) => break,
            Ok(read) => got += read,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            // Behind the last frame some kernels say so.
            Err(err) if err.raw_os_error() == Some(libc::EINVAL) => break,
            Err(err) => return Err(err),
        }
    }
    let (words, _torn) = buffer.get(..got).unwrap_or_default().as_chunks::<WIDTH>();
    words.iter().for_each(|word| take(u64::from_ne_bytes(*word)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_with_their_bits() {
        assert_eq!(names(0).count(), 0);
        assert_eq!(names(1 << 5 | 1 << 22 | 1 << 33 | 1 << 50).collect::<Vec<_>>(), ["lru", "thp", "mlocked"]);
        let distinct: std::collections::BTreeSet<_> = FLAGS.iter().map(|(_, name)| name).collect();
        assert_eq!(distinct.len(), FLAGS.len());
    }

    #[test]
    fn frames_are_found_by_number_and_end_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name, words: &[u64]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            std::fs::write(dir.path().join(name), bytes).unwrap();
        };
        write("kpageflags", &[1, 2, 4]);
        write("kpagecount", &[7, 8]);
        let mut frames = Frames::open(dir.path()).unwrap();
        let mut out = Vec::new();
        frames.read(1, 9, &mut out).unwrap();
        assert_eq!(out, [Frame { flags: 2, count: 8 }, Frame { flags: 4, count: 0 }]);
        frames.read(5, 1, &mut out).unwrap();
        assert!(out.is_empty());
        assert!(frames.read(u64::MAX, 1, &mut out).is_err());
    }
}
