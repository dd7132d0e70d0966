//! Keeps the stack of mmap locks a task holds.
//!
//! Rules, each from a pattern that kernels really have: a failed acquisition holds nothing; a read acquisition of
//! a write-held mm is a downgrade seen through its tracepoint; a release pops the innermost hold of that mm,
//! whoever's `current->mm` it is; a release by a task that holds nothing was handed to it, or is older than the
//! tracing.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use pagetrace_ebpf::wire::{
    counter, kind,
    lock::{Hold, MAX_HELD, Wait, held},
    setting,
    stream::op,
};

use super::{
    orphan::{given_away, none_since, orphan_released},
    settle::settle,
    violation,
};
use crate::{
    kernel::{all_attached, current_mm, describe_mm, number, predates_tracing, setting},
    stacks::{Probed, stack_id},
    state::{RECORDS, Slot, Task, anew, count, fill_header, flag, now, slot, task, task_or_new, through},
    stream, target,
};

/// Locks of this address space are not worth tracking.
#[inline(always)]
fn ignored(mm: u64) -> bool {
    mm == 0 || mm == setting(setting::INIT_MM)
}

/// A wait for the lock may begin.
#[inline(always)]
pub(crate) fn on_wait(mm: u64) {
    if !ignored(mm) && stream::on() && stream::wanted(mm) {
        stream::waits(mm);
    }
    begin_wait(mm);
}

/// As [`on_wait`], for an entry that [`on_attempt`] is told of as well.
#[inline(always)]
pub(crate) fn begin_wait(mm: u64) {
    if ignored(mm) {
        return;
    }
    let Some(task) = task_or_new() else { return };
    task.wait_mm = mm;
    task.wait_since = now();
    task.flags |= flag::WAITING;
}

/// The lock is held from now on, or a trylock or an interruptible acquisition did not get it.
#[inline(always)]
pub(crate) fn on_outcome(ctx: &impl Probed, mm: u64, flags: u32, acquired: bool) {
    if ignored(mm) {
        return;
    }
    // A task that failed and that this is the first event of has nothing to confirm, but the stream says who it is.
    let known = match acquired || (stream::on() && stream::wanted(mm)) {
        true => task_or_new(),
        false => task(),
    };
    let Some(task) = known else { return };
    // With the type of a pointer to an mm the verifier keeps more states apart than it can look at.
    let mm = through(&mut task.mm, mm);
    settle(task);
    let op = if acquired { op::ACQUIRED } else { op::FAILED };
    let told = stream::lock(task, mm, op, flags);
    confirm(ctx, task, mm, flags, acquired);
    end_wait(ctx, task, mm, flags, u32::from(acquired));
    if acquired {
        push(ctx, task, mm, flags | told.streamed);
        stream::locked(task, mm, op, flags, told);
    }
}

/// A function that acquires was entered. With [`held::TENTATIVE`] it can fail, and [`on_return`] tells how it ended; without, the
/// lock counts as held.
#[inline(always)]
pub(crate) fn on_attempt(ctx: &impl Probed, mm: u64, flags: u32) {
    if ignored(mm) {
        return;
    }
    let Some(task) = task_or_new() else { return };
    settle(task);
    let tentative = flags & held::TENTATIVE != 0;
    let op = if tentative { op::ATTEMPT } else { op::ACQUIRED };
    let told = stream::lock(task, mm, op, flags & !held::TENTATIVE);
    confirm(ctx, task, mm, flags, !tentative);
    push(ctx, task, mm, flags | held::SINCE_CALL | told.streamed);
    if tentative {
        task.attempt_frame = ctx.on_stack();
    }
    stream::locked(task, mm, op, flags & !held::TENTATIVE, told);
}

/// Whether the same function was entered, for a lock that is none of an mm, from where an attempt was made that is still open: the
/// attempt's return was missed then, and the one to come must not be taken for it.
#[inline(always)]
pub(crate) fn tells_of_a_missed_return(ctx: &impl Probed) -> bool {
    task().is_some_and(|task| task.attempt_frame == ctx.on_stack())
}

/// [`tells_of_a_missed_return`].
#[inline(always)]
pub(crate) fn on_missed_return() {
    if let Some(task) = task() {
        settle(task);
    }
}

/// A function that can fail to acquire returned: whose lock it was is told by where it was called.
#[inline(always)]
pub(crate) fn on_return(ctx: &impl Probed, acquired: bool) {
    let Some(task) = task() else { return };
    // The return address is off the stack now.
    if task.attempt_frame.wrapping_add(8) != ctx.on_stack() {
        return;
    }
    task.attempt_frame = 0;
    if task.depth == 0 {
        return;
    }
    let top = task.depth - 1;
    let last = *slot(task, top);
    if last.flags & held::TENTATIVE == 0 {
        return overflow_returned(task, acquired);
    }
    if last.flags & held::STREAMED != 0 {
        stream::returned(task, last.mm, last.flags, acquired);
    }
    end_wait(ctx, task, last.mm, last.flags & !held::TENTATIVE, u32::from(acquired));
    if acquired {
        let last = slot(task, top);
        last.flags &= !(held::TENTATIVE | held::DATED_EARLY | held::SINCE_CALL);
        last.since = now();
    } else {
        task.depth = top;
    }
}

/// The lock is about to be released.
#[inline(always)]
pub(crate) fn on_release(mm: u64, mode: u32) {
    if ignored(mm) {
        return;
    }
    let Some(task) = task() else {
        if stream::on() && stream::wanted(mm) {
            stream::release(mm, mode);
        }
        return on_orphan(mm, mode, 0);
    };
    task.flags &= !flag::PENDING;
    // What found no slot is further in than what did.
    let further_in = task.overflow != 0 && task.overflow_mm == mm;
    let index = if further_in { NOT_HELD } else { innermost(task, mm) };
    if stream::on() && (stream::is_streamed(task, index) || stream::wanted(mm)) {
        stream::release(mm, mode);
    }
    if index == NOT_HELD {
        if further_in || task.overflow != 0 && task.overflow_unsure != 0 {
            return drop_overflow(task);
        }
        return on_orphan(mm, mode, task.kernel_faults);
    }
    let ended = *slot(task, index);
    if ended.flags & mode == 0 {
        count(counter::MODE_MISMATCH);
    }
    remove(task, index);
    emit_hold(&ended);
}

/// A writer becomes a reader.
#[inline(always)]
pub(crate) fn on_downgrade(ctx: &impl Probed, mm: u64) {
    if ignored(mm) {
        return;
    }
    let Some(task) = task_or_new() else { return };
    let index = innermost(task, mm);
    let told = match stream::on() && stream::is_streamed(task, index) {
        true => stream::downgrade(task, mm),
        false => stream::lock(task, mm, op::DOWNGRADE, held::READ),
    };
    if task.overflow != 0 && task.overflow_mm == mm && task.overflow_flags & held::WRITE != 0 {
        task.overflow_flags = downgraded(task.overflow_flags);
    } else if index == NOT_HELD {
        // Write-held since before tracing began: read-held by this task from now on.
        push(ctx, task, mm, held::READ | held::DOWNGRADED | told.streamed);
    } else {
        let slot = slot(task, index);
        slot.flags = downgraded(slot.flags);
    }
}

#[inline(always)]
fn downgraded(flags: u32) -> u32 {
    flags & !held::WRITE | held::READ | held::DOWNGRADED
}

#[inline(always)]
fn on_orphan(mm: u64, mode: u32, kernel_faults: u32) {
    // While probes are being attached, releases are seen before acquisitions are: that is no loss.
    if all_attached() {
        count(counter::UNMATCHED_RELEASE);
    }
    // Whether a writer's hold was released by another, the lock's own word tells: it names the writer.
    if mode & held::READ != 0 {
        orphan_released(number(mm));
    }
    // A task older than the tracing held this lock unseen; a fault it took meanwhile was not judged.
    if kernel_faults != 0 && predates_tracing() {
        count(counter::FAULT_BEFORE_KNOWN);
    }
}

/// Whether what found no slot proves nothing.
#[inline(always)]
pub(crate) fn more_unsure(task: &Task) -> bool {
    task.overflow_unsure != 0
        || task.overflow != 0 && given_away(task.overflow_mm, task.overflow_flags, task.overflow_since)
}

/// An exception is pending and the task goes for its own mm's lock: that is the fault handler, if the stack agrees.
#[inline(always)]
fn confirm(ctx: &impl Probed, task: &mut Task, mm: u64, flags: u32, acquired: bool) {
    if task.flags & flag::PENDING == 0 {
        return;
    }
    task.flags &= !flag::PENDING;
    if setting(setting::CONFIRM_BY_LOCK) == 1 && flags & held::READ != 0 && mm == current_mm() {
        violation::confirmed_by_lock(ctx, task, mm, acquired);
    }
}

/// No hold of the mm. Not an `Option`: the compiler would copy its undefined payload, which the verifier refuses.
pub(crate) const NOT_HELD: u32 = MAX_HELD as u32;

/// Index of the innermost hold of `mm`, or [`NOT_HELD`].
#[inline(always)]
fn innermost(task: &mut Task, mm: u64) -> u32 {
    let depth = task.depth;
    if depth == 0 {
        return NOT_HELD;
    }
    if slot(task, depth - 1).mm == mm {
        return depth - 1;
    }
    let mut found = NOT_HELD;
    for index in 0..MAX_HELD as u32 {
        if index < anew(&task.depth) && slot(task, index).mm == mm {
            found = index;
        }
        found = through(&mut task.number, found);
    }
    found
}

/// Closes the gap that a hold leaves.
#[inline(always)]
pub(crate) fn remove(task: &mut Task, index: u32) {
    let depth = task.depth;
    if index + 1 == depth {
        task.depth = index;
        return;
    }
    for next in 1..MAX_HELD as u32 {
        if next > through(&mut task.number, index) && next < anew(&task.depth) {
            let moved = *slot(task, next);
            *slot(task, next - 1) = moved;
        }
    }
    task.depth = anew(&task.depth).saturating_sub(1);
}

#[inline(always)]
fn push(ctx: &impl Probed, task: &mut Task, mm: u64, flags: u32) {
    let index = innermost(task, mm);
    if index != NOT_HELD {
        let old = slot(task, index);
        if old.flags & held::WRITE != 0 && flags & held::READ != 0 && flags & held::TENTATIVE == 0 {
            // The mmap_lock tracepoints report a downgrade as a read acquisition.
            old.flags = downgraded(old.flags);
            return;
        }
        if flags & held::WRITE != 0 && flags & held::TENTATIVE == 0 {
            // A writer excludes every older hold: its release must have been missed.
            count(counter::STALE_HOLD);
            remove(task, index);
        }
    }
    let depth = anew(&task.depth);
    let stack = stack_id(ctx, task);
    // With some there already, what is further in joins them: by that it is told which of two holds of a lock ends first.
    if depth >= MAX_HELD as u32 || task.overflow != 0 {
        return push_overflow(task, mm, flags, stack);
    }
    let (since, early) = time_of(task, depth, mm);
    *slot(task, depth) = Slot { mm, since, flags: flags | early, stack };
    task.depth = depth + 1;
}

/// Bits of [`Task::pace`] that count; the others have the tick.
const PACE_BITS: u32 = 6;
const PACE_MASK: u32 = (1 << PACE_BITS) - 1;

/// When a hold begins, and whether that is only known to the tick.
///
/// Reading the clock is a sixth of what an acquisition costs. A task that takes and releases one lock dozens of times in a timer
/// tick has it read no more until the next: its holds are then dated by the last reading, up to a tick early. That must not be
/// before a release which could be taken for theirs.
#[inline(always)]
fn time_of(task: &mut Task, depth: u32, mm: u64) -> (u64, u32) {
    // What tells every hold, tells how long it was.
    if depth != 0 || setting(setting::TRACE) != 0 || stream::on() {
        return (now(), 0);
    }
    // SAFETY: no arguments, no preconditions.
    let tick = (unsafe { bpf_jiffies64() } as u32) << PACE_BITS;
    let pace = task.pace;
    if pace & !PACE_MASK != tick {
        task.pace = tick;
    } else if pace & PACE_MASK != PACE_MASK {
        task.pace = pace + 1;
    } else {
        // What the last hold has left there.
        let last = slot(task, 0);
        if last.mm == mm && none_since(last.since) {
            return (last.since, held::DATED_EARLY);
        }
    }
    (now(), 0)
}

/// A hold begins that there is no slot for: those are only counted, and told apart as long as they are of one mm.
#[inline(always)]
fn push_overflow(task: &mut Task, mm: u64, flags: u32, stack: i32) {
    let known = task.overflow != 0 && task.overflow_mm == mm && task.overflow_unsure == 0;
    // See `push`: a downgrade, and what a writer excludes.
    if known && flags & held::TENTATIVE == 0 {
        if flags & held::WRITE != 0 {
            count(counter::STALE_HOLD);
            task.overflow = 0;
        } else if task.overflow_flags & held::WRITE != 0 {
            task.overflow_flags = downgraded(task.overflow_flags);
            return;
        }
    }
    task.overflow_last = now();
    if task.overflow == 0 {
        task.overflow_since = task.overflow_last;
        task.overflow_unsure = 0;
    } else if !known || (task.overflow_flags ^ flags) & held::WRITE != 0 {
        task.overflow_unsure = 1;
    }
    task.overflow += 1;
    task.overflow_mm = mm;
    task.overflow_flags = flags;
    task.overflow_stack = stack;
    count(counter::HELD_OVERFLOW);
}

/// One of those is released, or was never acquired.
#[inline(always)]
fn drop_overflow(task: &mut Task) {
    task.overflow = task.overflow.saturating_sub(1);
    if task.overflow == 0 {
        task.overflow_unsure = 0;
    } else if task.overflow_unsure != 0 {
        // Whose the last is now, nothing tells.
        task.overflow_mm = 0;
    }
    task.overflow_flags &= !held::TENTATIVE;
}

/// The attempt that found no slot ended.
#[inline(always)]
fn overflow_returned(task: &mut Task, acquired: bool) {
    if task.overflow == 0 || task.overflow_flags & held::TENTATIVE == 0 {
        return;
    }
    if task.overflow_flags & held::STREAMED != 0 {
        stream::returned(task, task.overflow_mm, task.overflow_flags, acquired);
    }
    if acquired {
        task.overflow_flags &= !(held::TENTATIVE | held::SINCE_CALL);
        task.overflow_last = now();
    } else {
        drop_overflow(task);
    }
}

#[inline(always)]
fn end_wait(ctx: &impl Probed, task: &mut Task, mm: u64, flags: u32, acquired: u32) {
    // The stream tells begin and end of a wait and of a hold already.
    if setting(setting::TRACE) == 0 || stream::on() || task.flags & flag::WAITING == 0 {
        return;
    }
    task.flags &= !flag::WAITING;
    let duration = now().wrapping_sub(task.wait_since);
    if task.wait_mm != mm || duration < setting(setting::MIN_LOCK_NS) || !target::traced(mm) {
        return;
    }
    let stack = stack_id(ctx, task);
    let Some(mut entry) = RECORDS.reserve::<Wait>(0) else { return count(counter::RING_FULL) };
    // SAFETY: every field is written below before the record is submitted.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    fill_header(&mut record.header, kind::WAIT);
    describe_mm(mm, &mut record.owner);
    record.duration = duration;
    record.flags = flags;
    record.acquired = acquired;
    record.stack_id = stack;
    record.pad = 0;
    entry.submit(0);
}

#[inline(always)]
fn emit_hold(ended: &Slot) {
    if setting(setting::TRACE) == 0 || stream::on() {
        return;
    }
    let duration = now().wrapping_sub(ended.since);
    if duration < setting(setting::MIN_LOCK_NS) || !target::traced(ended.mm) {
        return;
    }
    let Some(mut entry) = RECORDS.reserve::<Hold>(0) else { return count(counter::RING_FULL) };
    // SAFETY: every field is written below before the record is submitted.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    fill_header(&mut record.header, kind::HOLD);
    describe_mm(ended.mm, &mut record.owner);
    record.duration = duration;
    record.flags = ended.flags;
    record.stack_id = ended.stack;
    entry.submit(0);
}

/// Whether the current task holds a lock, for records that say so.
#[inline(always)]
pub(crate) fn held_now() -> u32 {
    task().map_or(0, |task| held_by(task))
}

/// How many mmap locks a task holds.
#[inline(always)]
pub(crate) fn held_by(task: &Task) -> u32 {
    task.depth + task.overflow
}
