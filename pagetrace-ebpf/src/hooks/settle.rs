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

use super::violation::{OWNER_FLAGS, READER_SHIFT, WRITER_LOCKED, sem_word};
use crate::{
    kernel::{current, member},
    state::{Slot, Task, count, slot, task},
    stream,
};

/// SIGKILL's bit in a `sigset_t`, whose first signal is 1.
const SIGKILL: u64 = 1 << 8;

/// What an attempt came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Acquired,
    Failed,
    Unknown,
}

/// The task runs outside of any lock function: an attempt that is still open has ended without being seen.
#[inline(always)]
pub(crate) fn settle(task: &mut Task) {
    let depth = task.depth;
    if depth != 0 && slot(task, depth - 1).flags & held::TENTATIVE != 0 {
        settle_last();
    }
}

/// A global function: see `stream`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn settle_last() -> u32 {
    let Some(task) = task() else { return 0 };
    let depth = task.depth;
    if depth == 0 || depth > MAX_HELD as u32 {
        return 0;
    }
    let last = *slot(task, depth - 1);
    if last.flags & held::TENTATIVE == 0 {
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
    let Some(word) = sem_word(attempt.mm, setting::SEM_COUNT) else { return Outcome::Unknown };
    if attempt.flags & held::WRITE != 0 {
        let Some(owner) = sem_word(attempt.mm, setting::SEM_OWNER) else { return Outcome::Unknown };
        if word & WRITER_LOCKED == 0 || owner & !OWNER_FLAGS != current() {
            return Outcome::Failed;
        }
        // A trylock also fails against the task itself, which then is the owner all the same.
        return match attempt.flags & held::TRY != 0 && holds_below(task, attempt.mm, index) {
            true => Outcome::Unknown,
            false => Outcome::Acquired,
        };
    }
    if word & WRITER_LOCKED != 0 || (word & (i64::MAX as u64)) >> READER_SHIFT == 0 {
        return Outcome::Failed;
    }
    // A killable wait ends without the lock for nothing but a fatal signal, and that stays pending until the task is gone
    // (kernel/sched/core.c, `signal_pending_state`).
    match attempt.flags & (held::TRY | held::ANY_SIGNAL) == 0 && !dies() {
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
