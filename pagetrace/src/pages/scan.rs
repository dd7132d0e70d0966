//! `PAGEMAP_SCAN`, where the kernel has it: runs of pages by what holds of them. The kernel walks past what is not there by
//! the gigabyte, and gives a region a run instead of eight bytes a page.
//!
//! Source: Documentation/admin-guide/mm/pagemap.rst and `do_pagemap_scan` in fs/proc/task_mmu.c.
#![expect(unsafe_code, reason = "an ioctl")]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, RawFd},
};

/// Categories, `PAGE_IS_*` in include/uapi/linux/fs.h.
pub mod category {
    /// Not write-protected by userfaultfd.
    pub const WRITTEN: u64 = 1 << 1;
    /// Of a file, or shared memory.
    pub const FILE: u64 = 1 << 2;
    /// Resident.
    pub const PRESENT: u64 = 1 << 3;
    /// A swap entry, or what looks like one.
    pub const SWAPPED: u64 = 1 << 4;
    /// The page of zeros.
    pub const PFNZERO: u64 = 1 << 5;
    /// Mapped by one entry for 2 MiB or more.
    pub const HUGE: u64 = 1 << 6;
    /// A guard region; kernels with an earlier form of the call refuse it.
    pub const GUARD: u64 = 1 << 8;
}

/// Regions a call gives at most: as many as the kernel gathers before it lets go of the lock.
pub const REGIONS: usize = 512;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Default)]
struct Argument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `PAGEMAP_SCAN`: `_IOWR('f', 16, struct pm_scan_arg)`.
const SCAN: u64 = 3 << 30 | (size_of::<Argument>() as u64) << 16 | (b'f' as u64) << 8 | 16;

/// A run of pages, `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Those of the categories asked for that hold.
    pub categories: u64,
}

/// Which pages, and what to say of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Query {
    /// All of these must hold, each as [`Query::inverted`] wants it.
    pub all: u64,
    /// Which of the others must not hold.
    pub inverted: u64,
    /// One of these must.
    pub any: u64,
    /// Which to say.
    pub returned: u64,
}

/// What a call came to.
#[derive(Debug)]
pub struct Scanned<'a> {
    /// Matching runs by rising address, neighbours joined.
    pub regions: &'a [Region],
    /// How far the kernel went.
    pub until: u64,
}

/// Room for answers.
#[derive(Debug)]
pub struct Scanner {
    regions: Vec<Region>,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { regions: vec![Region::default(); REGIONS] }
    }
}

impl Scanner {
    /// Asks about `start..end`; goes no further than `pages` matching pages, 0 for no limit.
    ///
    /// # Errors
    /// What the kernel answers: `ENOTTY` where it has no such call, `EINVAL` for a category that it does not have.
    pub fn scan(&mut self, pagemap: &File, start: u64, end: u64, query: Query, pages: u64) -> io::Result<Scanned<'_>> {
        let mut argument = Argument {
            size: size_of::<Argument>() as u64,
            start,
            end,
            vec: self.regions.as_mut_ptr().expose_provenance() as u64,
            vec_len: self.regions.len() as u64,
            max_pages: pages,
            category_inverted: query.inverted,
            category_mask: query.all,
            category_anyof_mask: query.any,
            return_mask: query.returned,
            ..Argument::default()
        };
        let found = call(pagemap.as_raw_fd(), &mut argument)?;
        // A kernel that says it went nowhere, or past the end, must not be believed: the caller goes on from there.
        let until = if argument.walk_end > start { argument.walk_end.min(end) } else { end };
        Ok(Scanned { regions: self.regions.get(..found).unwrap_or_default(), until })
    }

    /// An address in `start..=end` before which the page table holds nothing: that of the first page it holds, if there is one.
    ///
    /// # Errors
    /// As [`Scanner::scan`].
    pub fn skip(&mut self, pagemap: &File, start: u64, end: u64) -> io::Result<u64> {
        let any = category::PRESENT | category::SWAPPED;
        let Scanned { regions, until } =
            self.scan(pagemap, start, end, Query { any, returned: any, ..Query::default() }, 1)?;
        Ok(regions.first().map_or(until, |region| region.start.clamp(start, end)))
    }
}

fn call(fd: RawFd, argument: &mut Argument) -> io::Result<usize> {
    loop {
        // SAFETY: the argument is live and of the size that it and the request name. It points to as many regions as it says,
        // which the caller has borrowed for writing; any bytes are regions.
        let found = unsafe { libc::ioctl(fd, SCAN as _, std::ptr::from_mut(argument)) };
        match usize::try_from(found) {
            Ok(found) => return Ok(found),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_number_of_the_kernels_header() {
        assert_eq!(SCAN, 0xc060_6610);
        assert_eq!((size_of::<Argument>(), size_of::<Region>()), (96, 24));
    }

    #[test]
    fn this_process_is_scanned_or_the_kernel_says_that_it_cannot() {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let here = Box::new([1_u8; 4096]);
        let start = std::ptr::from_ref(&*here).addr() as u64 & !4095;
        match Scanner::default().skip(&pagemap, start, start + 8192) {
            Ok(found) => assert_eq!(found, start, "the page has just been written"),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOTTY)),
        }
    }
}
