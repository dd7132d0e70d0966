//! Locks that were taken before tracing began, or whose acquisition went unseen.
//!
//! A writer is named by the lock's own word, so its hold is certain and is taken over. A reader is not: when an address
//! space was locked as tracing began and has been ever since, a fault of a task as old may be taken under that lock, and
//! that is counted.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap},
};
use pagetrace_ebpf::wire::{
    counter,
    lock::{LOCKED_BEFORE_ROOM, MAX_HELD, held},
    setting,
};

use super::violation::{OWNER_FLAGS, WRITER_LOCKED, readers, sem_word};
use crate::{
    kernel::{current, current_mm, predates_tracing},
    state::{Slot, count, now, slot, task_or_new},
    target,
};

/// Address spaces that were locked when tracing began and have been since, as far as is known; 0 for none. The loader
/// fills it, a fault that finds the lock free takes it out.
#[map]
static LOCKED_BEFORE: Array<u64> = Array::with_max_entries(LOCKED_BEFORE_ROOM, 0);

/// Entries the loader made; more than there is room for when it ran out.
#[map]
static LOCKED_BEFORE_LEN: Array<u64> = Array::with_max_entries(1, 0);

/// Address spaces found locked, with the last pass that found them so.
#[map]
static LOCKED: HashMap<u64, u64> = HashMap::with_max_entries(1024, 0);

/// The pass that is being made, from 1.
#[map]
static LOCKED_PASS: Array<u64> = Array::with_max_entries(1, 0);

/// Who has a lock, by its own word.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    Nobody,
    CurrentWrites,
    AnotherWrites,
    Readers,
}

#[inline(always)]
fn holder(mm: u64) -> Holder {
    let Some(word) = sem_word(mm, setting::SEM_COUNT) else { return Holder::Nobody };
    if word & WRITER_LOCKED != 0 {
        let owner = sem_word(mm, setting::SEM_OWNER).unwrap_or(0) & !OWNER_FLAGS;
        return if owner == current() { Holder::CurrentWrites } else { Holder::AnotherWrites };
    }
    if readers(word) != 0 { Holder::Readers } else { Holder::Nobody }
}

/// One pass over an address space: keeps it while every pass finds it locked.
#[inline(always)]
pub(crate) fn on_pass(mm: u64) {
    if mm == 0 || holder(mm) == Holder::Nobody {
        return;
    }
    let pass = LOCKED_PASS.get(0).copied().unwrap_or(0);
    // SAFETY: the value is copied out at once.
    let before = unsafe { LOCKED.get(&mm) }.copied().unwrap_or(0);
    if before + 1 == pass {
        let _ = LOCKED.insert(&mm, &pass, 0);
    }
}

/// The current task holds the lock of `mm` for writing, by the lock's word.
#[inline(always)]
fn take_over(mm: u64) -> bool {
    let Some(task) = task_or_new() else { return false };
    if task.depth >= MAX_HELD as u32 {
        return false;
    }
    let depth = task.depth;
    *slot(task, depth) = Slot { mm, since: now(), flags: held::WRITE | held::BEFORE, stack: -1 };
    task.depth = depth + 1;
    true
}

/// What [`locked_before`] found; bits.
mod found {
    /// The current task holds the lock, and it was taken over.
    pub(super) const TAKEN: u32 = 1;
    /// Perhaps the current task reads.
    pub(super) const UNKNOWN: u32 = 1 << 1;
    /// Nobody holds the lock any more.
    pub(super) const FREE: u32 = 1 << 2;
}

/// Looks at a lock that was held as tracing began. A global function, as are those below: see `stream`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn locked_before(mm: u64, own: u64, concerns: u32) -> u32 {
    match holder(mm) {
        Holder::Nobody => found::FREE,
        Holder::CurrentWrites if mm != own && take_over(mm) => found::TAKEN,
        Holder::Readers if concerns != 0 || target::owns(mm) => found::UNKNOWN,
        _ => 0,
    }
}

/// The current task, of which no hold is known, faults in kernel mode. Tells whether a hold was taken over.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn held_before(own: u64) -> u32 {
    let mut all = 0;
    if own != 0 && holder(own) == Holder::CurrentWrites && take_over(own) {
        all = found::TAKEN;
    }
    let len = LOCKED_BEFORE_LEN.get(0).copied().unwrap_or(0);
    if len == 0 || !predates_tracing() {
        return all & found::TAKEN;
    }
    let concerns = u32::from(target::acts() || target::owns(own));
    if concerns != 0 && len > u64::from(LOCKED_BEFORE_ROOM) {
        all |= found::UNKNOWN;
    }
    for index in 0..LOCKED_BEFORE_ROOM {
        let Some(entry) = LOCKED_BEFORE.get_ptr_mut(index) else { break };
        // SAFETY: the pointer is into the map; whoever races to clear an entry writes the same.
        let mm = unsafe { *entry };
        if mm == 0 {
            continue;
        }
        let found = locked_before(mm, own, concerns);
        if found & found::FREE != 0 {
            // SAFETY: as above.
            unsafe { *entry = 0 };
        }
        all |= found;
    }
    if all & found::UNKNOWN != 0 {
        count(counter::FAULT_BEFORE_KNOWN);
    }
    all & found::TAKEN
}

/// As [`held_before`], for a fault in `current->mm`.
#[inline(always)]
pub(crate) fn adopts() -> bool {
    held_before(current_mm()) != 0
}
