//! Modules that are unloaded: userspace must not name what comes in their place after them, and a lock there is another one.

use aya_ebpf::{macros::map, maps::Array};
use pagetrace_ebpf::wire::{
    counter, kind,
    module::{MODULES, Range, Unloaded},
    setting,
};

use crate::{
    kernel::{member, number},
    state::{RECORDS, count, fill_header},
};

/// Ranges that are remembered: of 32 modules.
const RANGES: u32 = 64;

/// Where modules were.
#[map]
static UNLOADED: Array<Range> = Array::with_max_entries(RANGES, 0);

/// Ranges that were to be remembered.
#[map]
static UNLOADED_LEN: Array<u64> = Array::with_max_entries(1, 0);

/// Tracepoint `module_free`.
#[inline(always)]
pub(crate) fn on_unload(module: u64) {
    let module = number(module);
    let text = range(module, setting::MODULE_TEXT, setting::MODULE_TEXT_SIZE);
    let data = range(module, setting::MODULE_DATA, setting::MODULE_DATA_SIZE);
    if text.end != 0 {
        remember(&text);
    }
    if data.end != 0 {
        remember(&data);
    }
    let Some(mut entry) = RECORDS.reserve::<Unloaded>(0) else {
        count(counter::RING_FULL);
        return count(counter::UNLOAD_LOST);
    };
    // SAFETY: every field is written below before the record is submitted.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    fill_header(&mut record.header, kind::UNLOADED);
    record.text = text;
    record.data = data;
    entry.submit(0);
}

#[inline(always)]
fn range(module: u64, base: usize, size: usize) -> Range {
    match (member::<u64>(module, base), member::<u32>(module, size)) {
        (Some(start), Some(size)) if size != 0 => Range { start, end: start.wrapping_add(size.into()) },
        _ => Range { start: 0, end: 0 },
    }
}

/// Of two that are unloaded within the same few instructions, one can be forgotten.
#[inline(always)]
fn remember(range: &Range) {
    let Some(len) = UNLOADED_LEN.get_ptr_mut(0) else { return };
    // SAFETY: the pointer is into the map.
    let place = unsafe { *len };
    if let Some(slot) = UNLOADED.get_ptr_mut(place as u32) {
        // SAFETY: the pointer is into the map; a reader looks at what is counted, and that is filled.
        unsafe { *slot = *range };
    }
    // SAFETY: as above.
    unsafe { *len = place + 1 };
}

/// How many modules that had this address were unloaded, as far as that is known: of an address that lay in no module, and
/// while there was none, 0. Too many rather than too few.
#[inline(always)]
pub(crate) fn era(address: u64) -> u32 {
    if address < MODULES || UNLOADED_LEN.get(0).is_none_or(|len| *len == 0) { 0 } else { order_era(address) }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn order_era(address: u64) -> u32 {
    let Some(&len) = UNLOADED_LEN.get(0) else { return 0 };
    let mut era = 0;
    for place in 0..RANGES {
        if u64::from(place) >= len {
            break;
        }
        if let Some(range) = UNLOADED.get(place)
            && range.contains(address)
        {
            era += 1;
        }
    }
    era + (len as u32).saturating_sub(RANGES)
}
