//! Releases of mmap locks for reading by somebody who did not hold them: whose holds they may have ended, and whose they have.
//!
//! A reader's lock does not say who holds it. So such a release casts doubt on every older hold, unless it left no reader: then
//! all of them are over, whoever reads later. A writer is named by the lock's own word, and nothing is kept of it here.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    macros::map,
    maps::{Array, HashMap},
};
use pagetrace_ebpf::wire::{counter, lock::held, setting};

use super::violation::{FLAG_WAITERS, readers, sem_word};
use crate::state::{count, now};

/// Releases of an mm's read lock by somebody who did not hold it; nanoseconds of `CLOCK_MONOTONIC`, 0 for never.
#[repr(C)]
struct Orphans {
    /// When there was the last.
    last: u64,
    /// When the last one left no reader.
    alone: u64,
    /// When the last one did, and nobody waited for the lock.
    quiet: u64,
}

#[map]
static ORPHAN_RELEASES: HashMap<u64, Orphans> = HashMap::with_max_entries(4096, 0);

/// When the last of all such releases was.
#[map]
static LAST_ORPHAN: Array<u64> = Array::with_max_entries(1, 0);

/// Remembers that somebody who does not hold the lock is about to release it for reading. A global function: see `stream`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn orphan_released(mm: u64) -> u32 {
    let now = now();
    if let Some(last) = LAST_ORPHAN.get_ptr_mut(0) {
        later(last, now);
    }
    // The map's own lock keeps the time before the word: who becomes a reader too late to be counted finds the time.
    let _ = ORPHAN_RELEASES.insert(&mm, &Orphans { last: 0, alone: 0, quiet: 0 }, BPF_NOEXIST.into());
    let Some(orphans) = ORPHAN_RELEASES.get_ptr_mut(&mm) else {
        count(counter::ORPHAN_MAP_FULL);
        return 0;
    };
    // SAFETY: the pointer is into the map, of which nothing is removed.
    let orphans = unsafe { &mut *orphans };
    later(&raw mut orphans.last, now);
    let Some(word) = sem_word(mm, setting::SEM_COUNT).filter(|word| readers(*word) == 1) else { return 0 };
    later(&raw mut orphans.alone, now);
    if word & FLAG_WAITERS == 0 {
        later(&raw mut orphans.quiet, now);
    }
    0
}

/// Two can release at once, and the later time is to stay.
#[inline(always)]
fn later(place: *mut u64, now: u64) {
    // SAFETY: the callers' pointers are into maps.
    unsafe {
        if *place < now {
            *place = now;
        }
    }
}

/// Whether a release by somebody else may have ended a hold of these [`held`] flags that began at `since`, and that the lock's
/// word does not rule out.
#[inline(always)]
pub(crate) fn given_away(mm: u64, flags: u32, since: u64) -> bool {
    // SAFETY: the value is copied out at once.
    flags & held::READ != 0 && unsafe { ORPHAN_RELEASES.get(&mm) }.is_some_and(|orphans| orphans.last > since)
}

/// Whether nobody released a lock so since that time, any at all.
#[inline(always)]
pub(crate) fn none_since(since: u64) -> bool {
    LAST_ORPHAN.get(0).is_some_and(|last| *last < since)
}

/// What lies between the call that acquires and the lock, when nobody waits: far more than it takes.
const CALL_NS: u64 = 50_000;

/// Whether a release by somebody else has ended a hold of these [`held`] flags that began at `since`: it left no reader.
///
/// A hold that is dated by the call may have begun later. One that had to wait was among the waiters, and one that had not is let
/// its time.
#[inline(always)]
pub(crate) fn was_given_away(mm: u64, flags: u32, since: u64) -> bool {
    if flags & held::READ == 0 || flags & held::TENTATIVE != 0 {
        return false;
    }
    // SAFETY: the value is copied out at once.
    unsafe { ORPHAN_RELEASES.get(&mm) }.is_some_and(|orphans| match flags & held::SINCE_CALL {
        0 => orphans.alone > since,
        // With an earlier call's date nothing tells.
        _ => flags & held::DATED_EARLY == 0 && orphans.quiet > since.wrapping_add(CALL_NS),
    })
}
