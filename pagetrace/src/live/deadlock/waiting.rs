//! What the map of held locks says of tasks that wait: claims, and locks as they are shown. Looks at no task.

use pagetrace_ebpf::wire::{
    lock::held,
    order::{OVER, OrderSlot, OrderTask, class, how},
};

use super::Lock;
use crate::analysis::{
    LockMode, Stacks,
    deadlock::{Blocked, Claim},
};

/// How long a lock of the order is waited for before its task is looked at, nanoseconds.
const LONG_NS: u64 = 200_000_000;

/// A task that has waited for a lock of the order for a while.
pub(super) struct Waiting<'a> {
    pub(super) task: &'a OrderTask,
    holds: &'a [OrderSlot],
    pub(super) wants: &'a OrderSlot,
}

impl<'a> Waiting<'a> {
    /// `None` for a task that holds nothing, or has not waited for long.
    pub(super) fn of(task: &'a OrderTask, now: u64) -> Option<Self> {
        let (wants, holds) = task.slots.get(..task.depth as usize)?.split_last()?;
        let long = now.saturating_sub(wants.since) >= LONG_NS;
        (long && !holds.is_empty()).then_some(Self { task, holds, wants })
    }

    /// What it holds for certain.
    pub(super) fn holds(&self) -> impl Iterator<Item = &'a OrderSlot> {
        self.holds.iter().filter(|slot| slot.flags & (OVER | held::TENTATIVE) == 0)
    }

    /// Both, by claim.
    pub(super) fn facts(&self) -> Blocked {
        Blocked { holds: self.holds().map(claim).collect(), wants: claim(self.wants) }
    }
}

fn claim(slot: &OrderSlot) -> Claim {
    let mode = if slot.flags & held::WRITE != 0 { LockMode::Write } else { LockMode::Read };
    // An address space stands for its lock, as in what faults tell.
    let lock = if slot.kind == class::MMAP { slot.owner } else { slot.lock };
    Claim { lock, mode }
}

/// The lock of a slot, and where it was taken or is wanted.
pub(super) fn of_slot(slot: &OrderSlot, stacks: &dyn Stacks) -> Lock {
    let what = match (slot.kind, slot.flags & how::MUTEX != 0) {
        (class::MMAP, _) => "mmap_lock",
        (_, true) => "mutex",
        (_, false) => "rwsem",
    };
    let of =
        if slot.kind == class::MMAP { format!(" of mm {:#x}", slot.owner) } else { format!(" at {:#x}", slot.lock) };
    Lock {
        claim: claim(slot),
        name: format!("{what}{of}"),
        kind: (slot.kind != class::MMAP).then_some(what),
        attempt: slot.flags & held::TENTATIVE != 0,
        stack: stacks.stack(slot.stack).unwrap_or_default(),
    }
}
