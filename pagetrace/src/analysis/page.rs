//! What an entry of the page tables says of a page, on x86-64: the evidence for why an access faulted, or did not.

use pagetrace_ebpf::wire::fault::pte;
use serde::{Deserialize, Serialize};

/// What became of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PageState {
    /// The tables have nothing for it.
    NotMapped,
    /// Its contents are on swap.
    Swapped,
    /// Under migration, poisoned, in device memory, or marked (a guard, or registered with userfaultfd).
    Special,
    /// It is there, and nobody may access it: `PROT_NONE`, or a hint of NUMA balancing.
    NoAccess,
    /// It is there for reading.
    ReadOnly,
    /// It is there for reading and writing.
    Writable,
}

/// What is known of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageInfo {
    /// Its state.
    pub state: PageState,
    /// Level of the page table that told: 1 for pages of 4 KiB, 2 for 2 MiB, 3 for 1 GiB; above that whole tables are missing.
    pub level: u32,
}

/// Swap types above these are not of swap devices: `MAX_SWAPFILES` with all that can take from it built in
/// (include/linux/swap.h).
const SWAP_TYPES: u64 = 23;
/// Where a swap entry has its type (arch/x86/include/asm/pgtable_64.h).
const SWAP_TYPE_SHIFT: u32 = 59;

impl PageInfo {
    /// Reads an entry.
    #[must_use]
    pub fn of(entry: u64, level: u32) -> Self {
        let state = match entry {
            0 => PageState::NotMapped,
            _ if entry & pte::PRESENT != 0 && entry & pte::WRITABLE != 0 => PageState::Writable,
            _ if entry & pte::PRESENT != 0 => PageState::ReadOnly,
            _ if entry & pte::NO_ACCESS != 0 => PageState::NoAccess,
            _ if level == 1 && entry >> SWAP_TYPE_SHIFT < SWAP_TYPES => PageState::Swapped,
            _ => PageState::Special,
        };
        Self { state, level }
    }

    /// As a report says it. `write` is the access, where known; `file` whether the VMA maps one, where known.
    #[must_use]
    pub fn text(&self, write: Option<bool>, file: Option<bool>) -> String {
        let size = match self.level {
            2 => ", a huge page of 2 MiB",
            3 => ", a huge page of 1 GiB",
            _ => "",
        };
        match (self.state, write, file) {
            (PageState::NotMapped, _, Some(true)) => {
                "not mapped: never touched, or dropped since; the page cache may have it".to_owned()
            }
            (PageState::NotMapped, ..) => "not mapped: never touched, or discarded since".to_owned(),
            (PageState::Swapped, ..) => "swapped out".to_owned(),
            (PageState::Special, ..) => {
                "neither there nor swapped out: under migration, poisoned, in device memory, or marked".to_owned()
            }
            (PageState::NoAccess, ..) => format!("there{size}, with access taken away: PROT_NONE or NUMA balancing"),
            (PageState::ReadOnly, Some(true), _) => {
                format!("there{size}, write-protected: shared since fork, not yet dirty, or userfaultfd")
            }
            (PageState::ReadOnly, ..) => format!("there{size}, for reading"),
            (PageState::Writable, ..) => format!("there{size}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state(entry: u64, level: u32) -> PageState {
        PageInfo::of(entry, level).state
    }

    #[test]
    fn an_entry_tells_the_state() {
        assert_eq!(state(0, 1), PageState::NotMapped);
        assert_eq!(state(0, 4), PageState::NotMapped, "a whole table is missing");
        assert_eq!(state(0x8000_0001_2345_6867, 1), PageState::Writable);
        assert_eq!(state(0x8000_0001_2345_6865, 1), PageState::ReadOnly);
        assert_eq!(state(0x8000_0001_2345_6964, 1), PageState::NoAccess);
        assert_eq!(state(0x8000_0001_2340_00e7, 2), PageState::Writable);
        // Type 0 and 22, then those above; the offset is stored inverted.
        assert_eq!(state(0x07ff_ffff_ffff_fc00, 1), PageState::Swapped);
        assert_eq!(state(22 << SWAP_TYPE_SHIFT | 0x07ff_ffff_ffff_fc00, 1), PageState::Swapped);
        assert_eq!(state(23 << SWAP_TYPE_SHIFT | 0x07ff_ffff_ffff_fc00, 1), PageState::Special);
        assert_eq!(state(0x07ff_ffff_ffff_fc00, 2), PageState::Special, "a huge page is not swapped out in one piece");
    }

    #[test]
    fn the_sentence_fits_the_access() {
        let text = |entry, write, file| PageInfo::of(entry, 1).text(write, file);
        assert_eq!(text(0, None, Some(false)), "not mapped: never touched, or discarded since");
        assert!(text(0, None, Some(true)).ends_with("the page cache may have it"));
        assert!(text(0x65, Some(true), None).contains("write-protected"));
        assert_eq!(text(0x65, Some(false), None), "there, for reading");
        assert_eq!(PageInfo::of(0xe7, 2).text(Some(true), None), "there, a huge page of 2 MiB");
    }

    proptest! {
        #[test]
        fn every_entry_has_one_state(entry: u64, level in 0_u32..7) {
            let page = PageInfo::of(entry, level);
            prop_assert_eq!(page.state == PageState::NotMapped, entry == 0);
            let there = matches!(page.state, PageState::ReadOnly | PageState::Writable);
            prop_assert_eq!(there, entry & pte::PRESENT != 0);
            prop_assert!(!page.text(None, None).is_empty());
        }
    }
}
