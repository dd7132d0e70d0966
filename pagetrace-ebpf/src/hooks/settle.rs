//! Decides what an attempt came to whose return was missed, from the lock's words and the task's signals.
//!
//! A kretprobe has few instances (kernel/kprobes.c, `register_kretprobe`; one a processor on a kernel without
//! preemption), and a task that sleeps in the function keeps one. What cannot be decided stays unsure and is counted.

use pagetrace_ebpf::wire::{
    counter,
    lock::{MAX_HELD, held},
    setting,
    stream::op,
};

use super::violation::{OWNER_FLAGS, WRITER_LOCKED, readers, sem_word};
use crate::{
    kernel::{current, member},
    state::{Slot, Task, count, slot, task},
    stream,
};

/// SIGKILL's bit in a `sigset_t`, whose first signal is 1.
const SIGKILL: u64 = 1 << 8;

/// What an attempt came to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The task has the lock.
    Acquired,
    /// It has not.
    Failed,
    /// The lock's words do not tell.
    Unknown,
}

/// The task runs outside of any lock function: an attempt that is still open has ended without being seen.
#[inline(always)]
pub(crate) fn settle(task: &mut Task) {
    if task.attempt_frame != 0 {
        settle_last();
    }
}

/// A global function: see `stream`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn settle_last() -> u32 {
    let Some(task) = task() else { return 0 };
    task.attempt_frame = 0;
    let depth = task.depth;
    if depth == 0 || depth > MAX_HELD as u32 {
        return 0;
    }
    let last = *slot(task, depth - 1);
    if last.flags & held::TENTATIVE == 0 {
        // It found no slot.
        if task.overflow_flags & held::TENTATIVE != 0 {
            task.overflow_flags &= !held::TENTATIVE;
            task.overflow_unsure = 1;
            count(counter::RETURN_MISSED);
            if task.overflow_flags & held::STREAMED != 0 {
                stream::settled(task, task.overflow_mm, task.overflow_flags, op::UNSETTLED);
            }
        }
        return 0;
    }
    let outcome = outcome(task, &last, depth - 1);
    count(if outcome == Outcome::Unknown { counter::RETURN_MISSED } else { counter::RETURN_SETTLED });
    let operation = match outcome {
        Outcome::Acquired => {
            slot(task, depth - 1).flags = last.flags & !held::TENTATIVE;
            op::SETTLED
        }
        Outcome::Failed => {
            task.depth = depth - 1;
            op::RETURNED_FAIL
        }
        Outcome::Unknown => {
            slot(task, depth - 1).flags = last.flags & !held::TENTATIVE | held::UNSURE;
            op::UNSETTLED
        }
    };
    if last.flags & held::STREAMED != 0 {
        stream::settled(task, last.mm, last.flags, operation);
    }
    0
}

#[inline(always)]
fn outcome(task: &mut Task, attempt: &Slot, index: u32) -> Outcome {
    let (word, owner) = (sem_word(attempt.mm, setting::SEM_COUNT), sem_word(attempt.mm, setting::SEM_OWNER));
    match of_rwsem(word, owner, attempt.flags) {
        Outcome::Acquired if already_owned(attempt.flags) && holds_below(task, attempt.mm, index) => Outcome::Unknown,
        outcome => outcome,
    }
}

/// Whether the lock's words tell as much when the attempt failed because the task has the lock already: a trylock fails
/// against the task itself, which then is the owner all the same.
#[inline(always)]
pub(super) fn already_owned(flags: u32) -> bool {
    flags & held::WRITE != 0 && flags & held::TRY != 0
}

/// What the words of an rwsem tell of an attempt with these [`held`] flags.
#[inline(always)]
pub(super) fn of_rwsem(word: Option<u64>, owner: Option<u64>, flags: u32) -> Outcome {
    let Some(word) = word else { return Outcome::Unknown };
    if flags & held::WRITE != 0 {
        return match owner {
            None => Outcome::Unknown,
            Some(owner) if word & WRITER_LOCKED == 0 || owner & !OWNER_FLAGS != current() => Outcome::Failed,
            Some(_) => Outcome::Acquired,
        };
    }
    if word & WRITER_LOCKED != 0 || readers(word) == 0 {
        return Outcome::Failed;
    }
    // A killable wait ends without the lock for nothing but a fatal signal, and that stays pending until the task is gone
    // (kernel/sched/core.c, `signal_pending_state`).
    match flags & (held::TRY | held::ANY_SIGNAL) == 0 && !dies() {
        true => Outcome::Acquired,
        false => Outcome::Unknown,
    }
}

/// Whether a hold of `mm` is below this index.
#[inline(always)]
fn holds_below(task: &mut Task, mm: u64, index: u32) -> bool {
    let mut found = false;
    for below in 0..MAX_HELD as u32 {
        found |= below < index && slot(task, below).mm == mm;
    }
    found
}

/// Whether a fatal signal is pending for the current task, or may be (include/linux/sched/signal.h, `fatal_signal_pending`).
#[inline(always)]
fn dies() -> bool {
    member::<u64>(current(), setting::TASK_PENDING).is_none_or(|signals| signals & SIGKILL != 0)
}
