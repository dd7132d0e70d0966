//! The mappings of a process, from the bytes of `/proc/PID/maps`. Pure and total.
//!
//! An own parser, since that of the `procfs` crate does not fit here: it reads lines as UTF-8, so that one file with
//! another name hides all mappings, it gives up at the first line it does not know, and it slices names that begin
//! with `/SYSV` past their end.

use std::ops::Range;

/// One line: a VMA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `r`, `w`, `x` or `-` each, and `p` for private or `s` for shared.
    pub permissions: [u8; 4],
    /// Where in the file it begins, bytes.
    pub offset: u64,
    /// The file's device, major and minor.
    pub device: (u32, u32),
    /// The file's inode; 0 without a file.
    pub inode: u64,
    /// The file's path with ` (deleted)` behind it where it is, or a name in brackets, or nothing. Line feeds are
    /// escaped as `\012`.
    pub name: Vec<u8>,
}

/// What a mapping shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Memory of the process alone: heap, stack, private mappings without a file.
    Anonymous,
    /// A file, or shared memory, which the kernel keeps as one.
    File,
    /// A device, or pages that the kernel lends: not the process's memory.
    Special,
}

/// A list of mappings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vmas {
    /// By rising address, as the kernel lists them.
    pub list: Vec<Vma>,
    /// Lines that are no mapping.
    pub unreadable: usize,
}

impl Vmas {
    /// Reads a whole file.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let mut out = Self::default();
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match Vma::parse(line) {
                Some(vma) => out.list.push(vma),
                None => out.unreadable += 1,
            }
        }
        out
    }
}

impl Vma {
    /// Reads one line (`show_map_vma` in fs/proc/task_mmu.c).
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.splitn(6, |byte| *byte == b' ');
        let mut field = || std::str::from_utf8(fields.next()?).ok();
        let (start, end) = pair(field()?, '-')?;
        let permissions = <[u8; 4]>::try_from(field()?.as_bytes()).ok()?;
        let offset = u64::from_str_radix(field()?, 16).ok()?;
        let (major, minor) = pair(field()?, ':')?;
        let inode = field()?.parse().ok()?;
        let name = fields.next().unwrap_or_default().trim_ascii_start().to_vec();
        let device = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
        (start < end).then_some(Self { start, end, permissions, offset, device, inode, name })
    }

    /// Its page numbers.
    #[must_use]
    pub const fn pages(&self, page_size: u64) -> Range<u64> {
        match (self.start.checked_div(page_size), self.end.checked_div(page_size)) {
            (Some(start), Some(end)) => start..end,
            _ => 0..0,
        }
    }

    /// Where in its file the page of this number begins, bytes.
    #[must_use]
    pub const fn file_offset(&self, page: u64, page_size: u64) -> Option<u64> {
        let Some(address) = page.checked_mul(page_size) else { return None };
        match address.checked_sub(self.start) {
            Some(within) => self.offset.checked_add(within),
            None => None,
        }
    }

    /// What it shows.
    #[must_use]
    pub fn backing(&self) -> Backing {
        /// Shared memory that is called after a device; everything else below `/dev` is one.
        const SHARED: [&[u8]; 2] = [b"/dev/zero", b"/dev/shm/"];
        /// Pages that the kernel lends to every process.
        const LENT: [&[u8]; 5] = [b"[vdso]", b"[vvar]", b"[vvar_vclock]", b"[vsyscall]", b"[uprobes]"];
        let name = self.name.as_slice();
        let begins = |with: &[&[u8]]| with.iter().any(|with| name.starts_with(with));
        if begins(&LENT) || (name.starts_with(b"/dev/") && !begins(&SHARED)) {
            Backing::Special
        } else if self.inode != 0 && name.starts_with(b"/") {
            Backing::File
        } else if name.is_empty() || name.starts_with(b"[") {
            Backing::Anonymous
        } else {
            Backing::Special
        }
    }
}

/// Two numbers in hexadecimal.
fn pair(text: &str, between: char) -> Option<(u64, u64)> {
    let (left, right) = text.split_once(between)?;
    Some((u64::from_str_radix(left, 16).ok()?, u64::from_str_radix(right, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vma(line: &str) -> Vma {
        Vma::parse(line.as_bytes()).unwrap()
    }

    #[test]
    fn every_field_is_read() {
        let file = vma("7f0000001000-7f0000003000 r-xp 0001f000 fe:01 393289                     /usr/lib/a b.so");
        assert_eq!((file.start, file.end, &file.permissions), (0x7f00_0000_1000, 0x7f00_0000_3000, b"r-xp"));
        assert_eq!((file.offset, file.device, file.inode), (0x1f000, (0xfe, 1), 393_289));
        assert_eq!(file.name, b"/usr/lib/a b.so");
        assert_eq!(file.pages(4096), 0x7_f000_0001..0x7_f000_0003);
        assert_eq!(file.file_offset(0x7_f000_0002, 4096), Some(0x20000));
        assert_eq!(file.file_offset(1, 4096), None);
        assert_eq!(file.pages(0), 0..0);
    }

    #[test]
    fn backings_are_told_apart() {
        for (rest, backing) in [
            ("00000000 00:00 0 ", Backing::Anonymous),
            ("00000000 00:00 0                          [heap]", Backing::Anonymous),
            ("00000000 00:00 0                          [anon:arena]", Backing::Anonymous),
            ("00000000 fe:01 7                          /bin/true (deleted)", Backing::File),
            ("00000000 00:01 9                          /dev/zero (deleted)", Backing::File),
            ("00000000 00:19 9                          /dev/shm/x", Backing::File),
            ("00000000 00:01 9                          /memfd:x (deleted)", Backing::File),
            ("00000000 00:01 9                          /SYSV (deleted)", Backing::File),
            ("00000000 00:05 9                          /dev/dri/card0", Backing::Special),
            ("00000000 00:0e 9                          anon_inode:[io_uring]", Backing::Special),
            ("00000000 00:00 0                          [vvar_vclock]", Backing::Special),
        ] {
            assert_eq!(vma(&format!("1000-2000 rw-p {rest}")).backing(), backing, "{rest}");
        }
    }

    #[test]
    fn what_is_no_mapping_is_counted() {
        let found = Vmas::parse(b"1000-2000 rw-p 00000000 00:00 0 \n2000-1000 rw-p 0 00:00 0 \nnonsense\n\xff\n");
        assert_eq!((found.list.len(), found.unreadable), (1, 3));
    }

    #[test]
    fn a_name_need_not_be_utf8() {
        let found = Vmas::parse(b"1000-2000 r--p 00000000 fe:01 5   /x\xffy\n");
        assert_eq!(found.list.first().map(|vma| vma.name.as_slice()), Some(b"/x\xffy".as_slice()));
    }

    #[test]
    fn this_process_is_read_whole() {
        let found = Vmas::parse(&std::fs::read("/proc/self/maps").unwrap());
        assert_eq!(found.unreadable, 0);
        let here = std::ptr::from_ref(&found).addr() as u64;
        assert!(found.list.iter().any(|vma| (vma.start..vma.end).contains(&here)), "the stack is mapped");
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_answer(bytes: Vec<u8>) {
            let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
            let found = Vmas::parse(&bytes);
            prop_assert_eq!(found.list.len() + found.unreadable, lines);
        }

        #[test]
        fn almost_a_line_has_an_answer(line in "[0-9a-f]{0,20}-?[0-9a-f]{0,20} [rwxps-]{0,5} [0-9a-f]{0,20} [0-9a-f:]{0,9} [0-9]{0,24} ?.{0,20}") {
            if let Some(vma) = Vma::parse(line.as_bytes()) {
                prop_assert!(vma.start < vma.end);
                let _ = vma.backing();
                prop_assert!(vma.file_offset(vma.pages(4096).start, 4096).is_none_or(|at| at >= vma.offset));
            }
        }

        #[test]
        fn what_the_kernel_prints_is_read_back(start in 0_u64..1 << 47, pages in 1_u64..1 << 20, offset: u64, major: u32, minor: u32, inode: u64, name in "(/[^\n]{0,30})?") {
            let (start, end) = (start & !4095, (start & !4095) + pages * 4096);
            let line = format!("{start:08x}-{end:08x} rw-s {offset:08x} {major:02x}:{minor:02x} {inode} {name}");
            let found = vma(&line);
            prop_assert_eq!((found.start, found.end, found.offset), (start, end, offset));
            prop_assert_eq!((found.device, found.inode), ((major, minor), inode));
            prop_assert_eq!(found.name, name.into_bytes());
        }
    }
}
