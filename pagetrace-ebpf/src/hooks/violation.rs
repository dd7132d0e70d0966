//! Turns a fault under a lock into a record, after the lock words had their say.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_stack, bpf_probe_read_kernel},
};
use pagetrace_ebpf::wire::{
    STACK_FRAMES, counter,
    fault::{Violation, violation},
    kind,
    lock::{Held, MAX_HELD, held},
    setting,
    stream::seen as mark,
    unwind::WINDOW_ROOM,
};

use super::{
    lock::{more_unsure, remove},
    orphan::{given_away, was_given_away},
    page::page_tell,
    seen,
};
use crate::{
    kernel::{current, describe_mm, member, member_or_zero, read, setting},
    state::{Access, RECORDS, Slot, Task, anew, count, fill_header, flag, slot, task},
    stream, target,
};

/// `RWSEM_WRITER_LOCKED`, kernel/locking/rwsem.c.
pub(super) const WRITER_LOCKED: u64 = 1;
/// `RWSEM_FLAG_WAITERS`.
pub(super) const FLAG_WAITERS: u64 = 1 << 1;
/// Readers count from this bit, `RWSEM_READER_SHIFT`.
const READER_SHIFT: u32 = 8;
/// Flag bits in the low end of `rw_semaphore.owner`.
pub(super) const OWNER_FLAGS: u64 = 7;

/// The exception seen before this lock attempt.
#[inline(always)]
pub(crate) fn confirmed_by_lock(ctx: &impl EbpfContext, task: &mut Task, mm: u64, acquired: bool) {
    let access = Access {
        mm,
        address: task.pending_address,
        ip: task.pending_ip,
        error: task.pending_error,
        flags: violation::NEEDS_STACK | violation::ERROR_KNOWN,
        own_readers: u32::from(acquired),
    };
    emit(ctx, task, access);
}

/// How many hold a lock for reading, by its count.
#[inline(always)]
pub(super) fn readers(word: u64) -> u64 {
    (word & i64::MAX as u64) >> READER_SHIFT
}

#[inline(always)]
pub(super) fn sem_word(mm: u64, word: usize) -> Option<u64> {
    read(mm.wrapping_add(setting(setting::MM_LOCK)).wrapping_add(setting(word)))
}

/// Whether the lock words rule out that `slot` is still held by the current task.
#[inline(always)]
fn is_over(slot: &Slot, word: u64, owner: u64, access: &Access) -> bool {
    if slot.flags & held::WRITE != 0 {
        return word & WRITER_LOCKED == 0 || owner & !OWNER_FLAGS != current();
    }
    let own = if slot.mm == access.mm { u64::from(access.own_readers) } else { 0 };
    word & WRITER_LOCKED != 0 || readers(word) <= own
}

/// Removes holds that the lock words rule out: handed over and released elsewhere, or a release that was missed.
#[inline(always)]
fn prune(task: &mut Task) {
    let mm = task.access.mm;
    let streamed = u32::from(stream::on() && wanted(mm));
    // What found no slot is further in.
    if task.overflow != 0 {
        violation_prune_more(streamed);
    }
    for back in 0..MAX_HELD as u32 {
        violation_prune(MAX_HELD as u32 - 1 - back, streamed);
    }
    violation_keep_more();
}

/// When nothing else is left, what found no slot gets one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn violation_keep_more() -> u32 {
    let Some(task) = task() else { return 0 };
    if task.depth == 0 && task.overflow != 0 && task.overflow_unsure == 0 {
        *slot(task, 0) = more(task);
        task.overflow -= 1;
        task.depth = 1;
    }
    0
}

/// The last hold that found no slot, as if it had.
#[inline(always)]
fn more(task: &Task) -> Slot {
    Slot { mm: task.overflow_mm, since: task.overflow_since, flags: task.overflow_flags, stack: task.overflow_stack }
}

/// As [`violation_prune`], for what found no slot, as long as that is all one mm's.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn violation_prune_more(streamed: u32) -> u32 {
    let Some(task) = task() else { return 0 };
    let copy = more(task);
    if task.overflow_unsure != 0 || is_held(&copy, task.overflow_last, &task.access, streamed, mark::MORE) {
        return 0;
    }
    count(counter::STALE_HOLD);
    task.overflow = 0;
    0
}

/// Whether it is possible that `slot`, the last of which began at `last`, is still held: neither the lock's words rule it out,
/// nor how somebody else released it. With `streamed` the stream gets both.
#[inline(always)]
fn is_held(slot: &Slot, last: u64, access: &Access, streamed: u32, more: u32) -> bool {
    let word = sem_word(slot.mm, setting::SEM_COUNT);
    let owner = sem_word(slot.mm, setting::SEM_OWNER).unwrap_or(0);
    let ended = was_given_away(slot.mm, slot.flags, last);
    if streamed != 0 {
        stream::words(slot, word, owner, more | if ended { mark::ENDED } else { 0 });
    }
    !ended && word.is_none_or(|word| !is_over(slot, word, owner, access))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn violation_prune(index: u32, streamed: u32) -> u32 {
    let Some(task) = task() else { return 0 };
    if index >= task.depth {
        return 0;
    }
    let copy = *slot(task, index);
    let access = task.access;
    if !is_held(&copy, copy.since, &access, streamed, 0) {
        count(counter::STALE_HOLD);
        remove(task, index);
    }
    0
}

/// Whether a fault in `mm` is the target's: by the task, by the address space, or by a lock held.
#[inline(always)]
pub(super) fn wanted(mm: u64) -> bool {
    if target::acts() || target::owns(mm) {
        return true;
    }
    let mut wanted = 0;
    for index in 0..=MAX_HELD as u32 {
        wanted |= violation_held(index);
    }
    wanted != 0
}

/// Whether this hold is the target's; behind the slots is the last that found none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn violation_held(index: u32) -> u32 {
    let Some(task) = task() else { return 0 };
    let held = match index {
        index if index < task.depth => *slot(task, index),
        index if index == MAX_HELD as u32 && task.overflow != 0 => more(task),
        _ => return 0,
    };
    u32::from(held.flags & held::STREAMED != 0 || target::owns(held.mm))
}

/// Emits the violation, unless no lock is left or it is not the target's.
///
/// What needs no context is in global functions: see `stream`. This is part of every hook that can see a violation, and
/// inlined it took the verifier longer than everything else together.
#[inline(always)]
pub(crate) fn emit(ctx: &impl EbpfContext, task: &mut Task, access: Access) {
    task.access = access;
    if violation_stands() == 0 {
        return;
    }
    let stack = seen::access_stack(ctx);
    if violation_again(stack) != 0 {
        return;
    }
    task.flags |= flag::TELLING;
    // SAFETY: the window is longer.
    let len = unsafe { bpf_get_stack(ctx.as_ptr(), task.window.as_mut_ptr().cast(), STACK_BYTES, 0) };
    violation_tell(stack, len as i32);
}

/// Bytes of a violation's stack.
const STACK_BYTES: u32 = (STACK_FRAMES * 8) as u32;
const _: () = assert!(STACK_FRAMES <= WINDOW_ROOM);

/// Whether a lock is left once the lock words had their say, and the access is the target's.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn violation_stands() -> u32 {
    let Some(task) = task() else { return 0 };
    prune(task);
    let mm = task.access.mm;
    // What the functions called have changed.
    let held = anew(&task.depth) != 0 || anew(&task.overflow) != 0;
    u32::from(held && wanted(mm))
}

/// Whether the violation was told before, with this stack, and only had to be counted.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn violation_again(stack: i32) -> u32 {
    let Some(task) = task() else { return 0 };
    seen::key(task, stack);
    // A recording tells each, so that it can be checked against its own stream.
    u32::from(!stream::on() && stack >= 0 && seen::again(task))
}

/// Tells the violation. `stack` is the id that it is remembered by, `stack_len` what [`Task::window`] has of it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn violation_tell(stack: i32, stack_len: i32) -> u32 {
    let Some(task) = task() else { return 0 };
    tell(task, stack, stack_len);
    task.flags &= !flag::TELLING;
    0
}

#[inline(always)]
fn tell(task: &mut Task, stack: i32, stack_len: i32) {
    let Some(mut entry) = RECORDS.reserve::<Violation>(0) else {
        count(counter::RING_FULL);
        return count(counter::VIOLATION_LOST);
    };
    // SAFETY: every field is written below before the record is submitted.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    fill_header(&mut record.header, kind::VIOLATION);
    let access = task.access;
    describe_mm(access.mm, &mut record.mm);
    record.address = access.address;
    record.ip = access.ip;
    record.error = access.error;
    record.flags = access.flags;
    if task.overflow != 0 {
        record.flags |= violation::MORE_HELD;
        if more_unsure(task) {
            record.flags |= violation::MORE_UNSURE;
        }
    }
    record.held_len = task.depth;
    for index in 0..MAX_HELD as u32 {
        let Some(out) = record.held.get_mut(index as usize) else { break };
        let copy =
            if index < anew(&task.depth) { *slot(task, index) } else { Slot { mm: 0, since: 0, flags: 0, stack: -1 } };
        describe_hold(&copy, out);
        out.flags &= !held::STREAMED;
        if copy.mm != 0 && given_away(copy.mm, copy.flags, copy.since) {
            out.flags |= held::GIVEN_AWAY;
        }
    }
    record.stack_len = i64::from(stack_len);
    if stack_len <= 0 {
        count(counter::STACK_UNREADABLE);
    }
    // SAFETY: both are as long. What the helper that took the stack did not fill it zeroed.
    unsafe { bpf_probe_read_kernel(record.stack.as_mut_ptr().cast(), STACK_BYTES, task.window.as_ptr().cast()) };
    // Only now: a violation that found no room must be told the next time.
    if stack >= 0 {
        seen::told(task, record.header.ts);
    }
    entry.submit(0);
    if access.flags & violation::LEAKED == 0 {
        page_tell();
    }
    if access.flags & (violation::LATENT | violation::LEAKED) == 0 {
        task.pending_address = access.address;
        task.flags |= flag::WANTS_VMA;
    }
}

/// A hold, and what the words of its lock say now.
#[inline(always)]
pub(super) fn describe_hold(slot: &Slot, out: &mut Held) {
    describe_mm(slot.mm, &mut out.owner);
    out.since = slot.since;
    out.flags = slot.flags;
    out.stack_id = slot.stack;
    let lock = slot.mm.wrapping_add(setting(setting::MM_LOCK));
    out.count = member_or_zero(lock, setting::SEM_COUNT);
    out.sem_owner = member_or_zero(lock, setting::SEM_OWNER);
}

/// The VMA that the last violation fell into, when it is one of this task's.
#[inline(always)]
pub(crate) fn emit_vma(task: &mut Task, vma: u64) {
    use pagetrace_ebpf::wire::fault::{NAME_LEN, Vma};

    use crate::kernel::read_str;

    task.flags &= !flag::WANTS_VMA;
    if vma == 0 {
        return;
    }
    let Some(mut entry) = RECORDS.reserve::<Vma>(0) else { return count(counter::RING_FULL) };
    // SAFETY: every field is written below before the record is submitted.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    fill_header(&mut record.header, kind::VMA);
    record.address = task.pending_address;
    record.start = member(vma, setting::VMA_START).unwrap_or(0);
    record.end = member(vma, setting::VMA_END).unwrap_or(0);
    record.vm_flags = member(vma, setting::VMA_FLAGS).unwrap_or(0);
    record.pgoff = member(vma, setting::VMA_PGOFF).unwrap_or(0);
    record.inode = 0;
    record.name = [0; NAME_LEN];
    let file: u64 = member(vma, setting::VMA_FILE).unwrap_or(0);
    if file != 0 {
        let dentry: u64 = member(file, setting::FILE_DENTRY).unwrap_or(0);
        let inode: u64 = member(dentry, setting::DENTRY_INODE).unwrap_or(0);
        record.inode = member(inode, setting::INODE_INO).unwrap_or(0);
        let name: u64 = member(dentry, setting::DENTRY_NAME).unwrap_or(0);
        read_str(name, &mut record.name);
    }
    entry.submit(0);
}
