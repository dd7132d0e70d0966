//! What the page tables say of an accessed page, before its fault is handled.
//!
//! They are read as data, without the lock: nothing here waits for a lock that a deadlock may hold. A table that is freed
//! meanwhile reads as whatever its page holds then; the record says what was seen, and no verdict rests on it.

use pagetrace_ebpf::wire::{
    counter,
    fault::{Page, pte},
    kind, setting,
};

use crate::{
    kernel::{member, read, setting},
    state::{RECORDS, count, fill_header, task},
};

/// Levels of page tables there can be (Documentation/arch/x86/x86_64/5level-paging.rst).
const LEVELS: u32 = 5;
/// Bits of an address that one level decides by, and those below the lowest.
const LEVEL_BITS: u32 = 9;
const PAGE_BITS: u32 = 12;
/// Where the highest level lies with four levels (arch/x86/include/asm/pgtable_64_types.h, `PGDIR_SHIFT`).
const SHIFT_OF_FOUR: u32 = 39;
/// Bits of an entry that are an address (`PTE_PFN_MASK`).
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Entries above this level are never pages.
const MAX_LEAF: u32 = 3;

/// Tells the entry that the walk for the access at hand ends with. A global function: see `stream`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn page_tell() -> u32 {
    let Some(task) = task() else { return 0 };
    let address = task.access.address;
    let Some(direct_map) = read::<u64>(setting(setting::PAGE_OFFSET_BASE)) else { return 0 };
    let Some(mut table) = member::<u64>(task.access.mm, setting::MM_PGD) else { return 0 };
    let top = match setting(setting::PGDIR_SHIFT) {
        setting::NONE => SHIFT_OF_FOUR,
        variable => read(variable).unwrap_or(0),
    };
    // On a machine with memory encryption, a bit of the address tells that the table is encrypted.
    let encrypted = match setting(setting::SME_MASK) {
        setting::NONE => 0,
        variable => read(variable).unwrap_or(0),
    };
    for below in 0..LEVELS {
        let level = LEVELS - below;
        let shift = PAGE_BITS + LEVEL_BITS * (level - 1);
        if shift > top {
            continue;
        }
        let index = address >> shift & ((1 << LEVEL_BITS) - 1);
        let Some(entry) = read::<u64>(table.wrapping_add(index * 8)) else { return 0 };
        if level == 1 || entry & pte::PRESENT == 0 || level <= MAX_LEAF && entry & pte::HUGE != 0 {
            return tell(address, entry, level);
        }
        table = direct_map.wrapping_add(entry & ADDRESS & !encrypted);
    }
    0
}

#[inline(always)]
fn tell(address: u64, entry: u64, level: u32) -> u32 {
    let Some(mut out) = RECORDS.reserve::<Page>(0) else {
        count(counter::RING_FULL);
        return 0;
    };
    // SAFETY: every field is written below before the record is submitted.
    let record = unsafe { &mut *out.as_mut_ptr() };
    fill_header(&mut record.header, kind::PAGE);
    record.address = address;
    record.entry = entry;
    record.level = level;
    record.pad = 0;
    out.submit(0);
    0
}
