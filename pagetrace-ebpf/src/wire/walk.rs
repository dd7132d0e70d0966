//! Page walks.

use super::{Header, MmOwner, codec::wire};

/// Which walker; [`Walk::function`].
pub mod function {
    /// `pagemap_read`: a read of /proc/PID/pagemap.
    pub const PAGEMAP_READ: u32 = 0;
    /// `do_pagemap_scan`: the PAGEMAP_SCAN ioctl.
    pub const PAGEMAP_SCAN: u32 = 1;
    /// `walk_page_range`.
    pub const RANGE: u32 = 2;
    /// `walk_page_range_vma`.
    pub const RANGE_VMA: u32 = 3;
    /// `walk_page_vma`.
    pub const VMA: u32 = 4;
    /// `walk_page_mapping`.
    pub const MAPPING: u32 = 5;
    /// `walk_page_range_mm`, or `walk_page_range_mm_unsafe` as later kernels call it.
    pub const RANGE_MM: u32 = 6;
    /// `walk_page_range_novma`, or `walk_page_range_debug` as later kernels call it.
    pub const RANGE_NOVMA: u32 = 7;
    /// Names, by number.
    pub const NAMES: [&str; 8] = [
        "pagemap_read",
        "do_pagemap_scan",
        "walk_page_range",
        "walk_page_range_vma",
        "walk_page_vma",
        "walk_page_mapping",
        "walk_page_range_mm",
        "walk_page_range_novma",
    ];
}

wire! {
    /// One page walk, ended.
    pub struct Walk {
        /// Common part; its time is the end of the walk.
        pub header: Header,
        /// The walked address space; all zero where the walker's arguments do not tell it.
        pub mm: MmOwner,
        /// First address walked; for [`function::MAPPING`] the first page index.
        pub start: u64,
        /// First address behind the range; for [`function::MAPPING`] the page index behind it.
        pub end: u64,
        /// Address of the `mm_walk_ops`; 0 where there is none.
        pub ops: u64,
        /// Nanoseconds from entry to exit.
        pub duration: u64,
        /// Return value.
        pub result: i64,
        /// One of [`function`].
        pub function: u32,
        /// mmap locks held when the walk began.
        pub held: u32,
    }
}
