//! Stacks of lock acquisitions, by id, at a price the hot path can pay.
//!
//! Unwinding costs more than everything else a lock event does. Equal stacks come again and again, so the unwinder's
//! answer is remembered under a fingerprint: every word of the live kernel stack, up to its top, that could be a return
//! address, with its position. Equal fingerprints mean equal return addresses in equal places, so a remembered answer is
//! the right one; leftovers of earlier calls only make a fingerprint miss, and then the stack is unwound.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_stackid, bpf_probe_read_kernel},
    macros::map,
    maps::{LruHashMap, StackTrace},
};
use pagetrace_ebpf::wire::{counter, setting};

use crate::{
    kernel::{as_number, setting},
    state::{Task, WINDOW, count},
};

/// Stacks, by id.
#[map]
static STACKS: StackTrace = StackTrace::with_max_entries(16384, 0);

/// Fingerprints of stacks whose id is known. Losing one costs time, nothing else.
#[map]
static FINGERPRINTS: LruHashMap<u64, u32> = LruHashMap::with_max_entries(8192, 0);

/// Bytes of a kernel stack (arch/x86/include/asm/page_64_types.h); stacks are aligned to it.
const THREAD_SIZE: u64 = 16384;
/// `EEXIST`.
const EEXIST: i32 = -17;

/// Stores the current kernel stack and returns its id, or a negative errno. `salt` keeps probes apart whose own
/// frames differ.
#[inline(always)]
pub(crate) fn stack_id(ctx: &impl EbpfContext, task: &mut Task, salt: u32) -> i32 {
    if setting(setting::LOCK_STACKS) == 0 {
        return -1;
    }
    let print = fingerprint(ctx, task, salt);
    if print != 0 {
        // SAFETY: the value is copied out at once.
        if let Some(&id) = unsafe { FINGERPRINTS.get(&print) } {
            return id as i32;
        }
    }
    let id = unwind(ctx);
    if id >= 0 && print != 0 {
        let _ = FINGERPRINTS.insert(&print, &(id as u32), 0);
    }
    id
}

/// Unwinds. Two stacks can meet in one bucket; without its first frame, which is a probe's own, the second one goes
/// to another.
#[inline(always)]
fn unwind(ctx: &impl EbpfContext) -> i32 {
    let mut id = EEXIST;
    for skip in 0..3 {
        // SAFETY: the context is the one the program was called with, the map a stack map.
        id = unsafe { bpf_get_stackid(ctx.as_ptr(), (&raw const STACKS).cast_mut().cast(), skip) } as i32;
        if id != EEXIST {
            break;
        }
    }
    if id < 0 {
        count(counter::STACK_UNREADABLE);
    }
    id
}

/// A fingerprint of the live stack; 0 when it is deeper than the window or cannot be read.
#[inline(always)]
fn fingerprint(ctx: &impl EbpfContext, task: &mut Task, salt: u32) -> u64 {
    // Every context lies on the stack itself, below the frames of the traced functions.
    let Some(at) = as_number(ctx.as_ptr() as u64) else { return 0 };
    let room = core::hint::black_box(THREAD_SIZE - (at & (THREAD_SIZE - 1)));
    if room > (WINDOW * 8) as u64 || room < 8 {
        return 0;
    }
    // SAFETY: the size was checked against the buffer; the helper checks the address.
    let read = unsafe { bpf_probe_read_kernel(task.window.as_mut_ptr().cast(), room as u32, at as *const _) };
    if read != 0 {
        return 0;
    }
    let words = (room / 8) as usize;
    let mut print = at & (THREAD_SIZE - 1) | u64::from(salt) << 32;
    for index in 0..WINDOW {
        if index >= words {
            break;
        }
        let word = task.window[index];
        // Kernel and module text lies in the last two GiB.
        if word >> 31 == 0x1_ffff_ffff {
            print = (print ^ word ^ (index as u64) << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            print ^= print >> 29;
        }
    }
    print
}
