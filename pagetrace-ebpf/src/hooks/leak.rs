//! Locks that a task leaves behind: it ends with one, or goes back to user mode with one.
//!
//! The lock word has the last say, and a lock that somebody else may have released for the task is no leak. A task's
//! end is taken from the moment its memory is freed: files are closed, and locks with them, long after it began to exit.

use aya_ebpf::EbpfContext;
use pagetrace_ebpf::wire::{
    counter,
    fault::{Violation, violation},
    kind,
    lock::{MAX_HELD, held},
    setting,
};

use super::{
    lock::remove,
    orphan::given_away,
    settle::settle,
    violation::{OWNER_FLAGS, WRITER_LOCKED, describe_hold, emit, readers, sem_word},
};
use crate::{
    kernel::{current_mm, describe_mm, member, owner_task},
    state::{Access, RECORDS, Slot, Task, anew, count, fill_header, holds, slot, state_of, task},
    target,
};

/// A system call begins or ends: nothing may be held.
#[inline(always)]
pub(crate) fn on_user_boundary(ctx: &impl EbpfContext) {
    let Some(task) = task() else { return };
    if !holds(task) {
        return;
    }
    settle(task);
    let access = Access { mm: current_mm(), address: 0, ip: 0, error: 0, flags: violation::LEAKED, own_readers: 0 };
    emit(ctx, task, access);
}

/// Whether the freed task still holds what `slot` says, by the lock word.
#[inline(always)]
fn left_behind(slot: &Slot, holder: u64) -> bool {
    if slot.flags & (held::TENTATIVE | held::UNSURE) != 0 || given_away(slot.mm, slot.flags, slot.since) {
        return false;
    }
    // The memory of an address space that is gone can be another's by now: its owner is younger then.
    let Some((owner, _)) = owner_task(slot.mm) else { return false };
    if !member::<u64>(owner, setting::TASK_START).is_some_and(|start| start <= slot.since) {
        return false;
    }
    let Some(word) = sem_word(slot.mm, setting::SEM_COUNT) else { return false };
    // For a reader too: the word names the last one to come. Others who read meanwhile hide a leak, but a release that
    // was missed must not look like one because others read.
    if sem_word(slot.mm, setting::SEM_OWNER).unwrap_or(0) & !OWNER_FLAGS != holder {
        return false;
    }
    if slot.flags & held::WRITE != 0 {
        return word & WRITER_LOCKED != 0;
    }
    word & WRITER_LOCKED == 0 && readers(word) != 0
}

/// The memory of a task is about to be freed; its address must be a number to the verifier.
#[inline(always)]
pub(crate) fn on_end(ended: u64) {
    if let Some(task) = state_of(ended)
        && task.depth != 0
    {
        leak_at_end(ended);
    }
}

/// A global function, as are those below: see `stream`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn leak_at_end(ended: u64) -> u32 {
    let mut wanted = u32::from(target::has(ended));
    for back in 0..MAX_HELD as u32 {
        wanted |= leak_of(ended, MAX_HELD as u32 - 1 - back);
    }
    if let Some(task) = state_of(ended)
        && task.depth != 0
        && wanted != 0
    {
        tell(task, ended);
    }
    0
}

/// Whether this hold was left behind, and its lock is the target's. One that was not is taken out.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn leak_of(ended: u64, index: u32) -> u32 {
    let Some(task) = state_of(ended) else { return 0 };
    if index >= task.depth {
        return 0;
    }
    let copy = *slot(task, index);
    if left_behind(&copy, ended) {
        return u32::from(target::owns(copy.mm));
    }
    count(counter::STALE_HOLD);
    remove(task, index);
    0
}

#[inline(always)]
fn tell(task: &mut Task, ended: u64) {
    let Some(mut entry) = RECORDS.reserve::<Violation>(0) else {
        count(counter::RING_FULL);
        return count(counter::VIOLATION_LOST);
    };
    // SAFETY: every field is written below before the record is submitted.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    fill_header(&mut record.header, kind::VIOLATION);
    // Whoever is current only frees the memory.
    record.header.task = ended;
    record.header.tid = member(ended, setting::TASK_PID).unwrap_or(0);
    record.header.tgid = member(ended, setting::TASK_TGID).unwrap_or(0);
    record.header.comm = member(ended, setting::TASK_COMM).unwrap_or_default();
    record.header.task_flags = member(ended, setting::TASK_FLAGS).unwrap_or(0);
    describe_mm(0, &mut record.mm);
    record.address = 0;
    record.ip = 0;
    record.error = 0;
    record.flags = violation::LEAKED;
    record.held_len = task.depth;
    for index in 0..MAX_HELD as u32 {
        let Some(out) = record.held.get_mut(index as usize) else { break };
        let copy =
            if index < anew(&task.depth) { *slot(task, index) } else { Slot { mm: 0, since: 0, flags: 0, stack: -1 } };
        describe_hold(&copy, out);
    }
    record.stack_len = 0;
    record.stack = [0; pagetrace_ebpf::wire::STACK_FRAMES];
    entry.submit(0);
}
