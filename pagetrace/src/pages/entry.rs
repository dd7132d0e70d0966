//! One entry of `/proc/PID/pagemap`: a page's state in 64 bits. Pure; reads nothing.
//!
//! Source: Documentation/admin-guide/mm/pagemap.rst and `pte_to_pagemap_entry` in fs/proc/task_mmu.c, 5.10 to 7.3. Bits
//! that a kernel does not have yet are zero in its entries, so one decoder serves all.

/// Bits 0 to 54: the frame number of a present page, the swap slot of one that is swapped out.
const FRAME: u64 = (1 << 55) - 1;
/// Bits of [`FRAME`] that say which swap area (`MAX_SWAPFILES_SHIFT` in include/linux/swap.h).
const SWAP_TYPE_BITS: u32 = 5;
const SOFT_DIRTY: u64 = 1 << 55;
const EXCLUSIVE: u64 = 1 << 56;
const UFFD_WP: u64 = 1 << 57;
const GUARD: u64 = 1 << 58;
const FILE: u64 = 1 << 61;
const SWAPPED: u64 = 1 << 62;
const PRESENT: u64 = 1 << 63;
/// Everything that says something about the page but where it is.
const STATE: u64 = SOFT_DIRTY | EXCLUSIVE | UFFD_WP | GUARD | FILE | SWAPPED | PRESENT;

/// An entry as the kernel wrote it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Entry(u64);

/// Where the kernel has put a page that is not present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SwapSlot {
    /// Number of the swap area; the highest numbers are migration and other special entries, which are no swap.
    pub area: u8,
    /// Slot in the area, pages.
    pub offset: u64,
}

impl Entry {
    /// Takes a value of the file, in the machine's byte order.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The value of the file.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The bits of the page's state, without where it is: two pages of equal state differ in nothing else.
    #[must_use]
    pub const fn state(self) -> u64 {
        self.0 & STATE
    }

    /// Bits that are set and mean nothing on any kernel read so far.
    #[must_use]
    pub const fn unknown(self) -> u64 {
        self.0 & !(STATE | FRAME)
    }

    /// Whether the page table holds anything for the page. What it says otherwise, such as soft-dirty, is the mapping's.
    #[must_use]
    pub const fn populated(self) -> bool {
        self.has(PRESENT | SWAPPED)
    }

    const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    /// Bit 63: the page is resident; an access that its mapping allows does not fault for want of the page.
    #[must_use]
    pub const fn present(self) -> bool {
        self.has(PRESENT)
    }

    /// Bit 62: the page table holds a swap entry. That includes pages under migration, guard regions, and places where
    /// userfaultfd has left a mark. A swapped page of shared memory leaves no entry behind and is not told from one never
    /// touched.
    #[must_use]
    pub const fn swapped(self) -> bool {
        self.has(SWAPPED)
    }

    /// Bit 61, since 3.5: a page of a file, or of shared anonymous memory.
    #[must_use]
    pub const fn file_or_shared(self) -> bool {
        self.has(FILE)
    }

    /// Bit 58, since 6.15: a guard region made by `MADV_GUARD_INSTALL`; any access is a SIGSEGV.
    #[must_use]
    pub const fn guard(self) -> bool {
        self.has(GUARD)
    }

    /// Bit 57, since 5.13: write-protected by userfaultfd.
    #[must_use]
    pub const fn uffd_write_protected(self) -> bool {
        self.has(UFFD_WP)
    }

    /// Bit 56, since 4.2: mapped by this address space only.
    #[must_use]
    pub const fn exclusive(self) -> bool {
        self.has(EXCLUSIVE)
    }

    /// Bit 55, since 3.11, on kernels with `CONFIG_MEM_SOFT_DIRTY`: written since the marks were last cleared.
    #[must_use]
    pub const fn soft_dirty(self) -> bool {
        self.has(SOFT_DIRTY)
    }

    /// The page frame number of a present page. `None` as well where the kernel hides it: without `CAP_SYS_ADMIN` it
    /// is zero.
    #[must_use]
    pub const fn pfn(self) -> Option<u64> {
        let frame = self.0 & FRAME;
        if self.present() && !self.swapped() && frame != 0 { Some(frame) } else { None }
    }

    /// Where a swapped page is. The kernel hides it like the frame number; area 0, slot 0 is a swap area's header and
    /// never a page's.
    #[must_use]
    pub const fn swap_slot(self) -> Option<SwapSlot> {
        let frame = self.0 & FRAME;
        if !self.swapped() || frame == 0 {
            return None;
        }
        let area = (frame & ((1 << SWAP_TYPE_BITS) - 1)) as u8;
        Some(SwapSlot { area, offset: frame >> SWAP_TYPE_BITS })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_documented_bits_are_where_the_kernel_puts_them() {
        type Holds = fn(Entry) -> bool;
        let predicates: [(u32, Holds); 7] = [
            (55, Entry::soft_dirty),
            (56, Entry::exclusive),
            (57, Entry::uffd_write_protected),
            (58, Entry::guard),
            (61, Entry::file_or_shared),
            (62, Entry::swapped),
            (63, Entry::present),
        ];
        for (bit, holds) in predicates {
            for other in 0..64 {
                assert_eq!(holds(Entry::from_raw(1 << other)), bit == other, "bit {bit} in an entry of bit {other}");
            }
        }
    }

    #[test]
    fn a_frame_and_a_slot_share_their_bits() {
        let present = Entry::from_raw(1 << 63 | 1 << 56 | 0x1234);
        assert_eq!((present.pfn(), present.swap_slot()), (Some(0x1234), None));
        let swapped = Entry::from_raw(1 << 62 | 7 << 5 | 3);
        assert_eq!((swapped.pfn(), swapped.swap_slot()), (None, Some(SwapSlot { area: 3, offset: 7 })));
        assert_eq!(Entry::from_raw(1 << 63).pfn(), None, "hidden");
        assert_eq!(Entry::from_raw(1 << 62).swap_slot(), None, "hidden");
    }

    proptest! {
        #[test]
        fn every_value_has_one_reading(raw: u64) {
            let entry = Entry::from_raw(raw);
            prop_assert_eq!(entry.raw(), raw);
            prop_assert!(entry.pfn().is_none() || entry.swap_slot().is_none());
            if let Some(pfn) = entry.pfn() {
                prop_assert_eq!(pfn, raw & FRAME);
            }
            if let Some(SwapSlot { area, offset }) = entry.swap_slot() {
                prop_assert_eq!(offset << SWAP_TYPE_BITS | u64::from(area), raw & FRAME);
            }
            prop_assert_eq!(entry.state() | entry.unknown() | raw & FRAME, raw);
            prop_assert_eq!(entry.state() & entry.unknown(), 0);
            prop_assert_eq!(entry.populated(), entry.present() || entry.swapped());
        }
    }
}
