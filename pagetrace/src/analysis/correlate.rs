//! Violations to findings: severity, proof by stack, one finding a distinct pair of stacks.

use std::collections::HashMap;

use pagetrace_ebpf::wire::{
    MmOwner,
    fault::{Violation, Vma, X86_PF_WRITE, violation},
    lock::{Held, held},
};

use super::finding::{Access, Class, Finding, HeldLock, LockMode, MmId, Relation, Severity, TaskId, VmaInfo};
use crate::record::{Record, name};

/// `PF_KTHREAD`, include/linux/sched.h.
const PF_KTHREAD: u32 = 0x0020_0000;
/// `RWSEM_FLAG_WAITERS`, kernel/locking/rwsem.c. Behind a reader the first waiter is a writer: readers would not wait.
const RWSEM_WAITERS: u64 = 1 << 1;

/// What a stack of addresses is looked up in.
pub trait Stacks {
    /// The stack stored under `id`, innermost first.
    fn stack(&self, id: i32) -> Option<Vec<u64>>;
    /// Whether `address` lies in the page-fault entry code.
    fn is_fault_entry(&self, address: u64) -> bool;
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    tid: u32,
    task: u64,
    severity: Severity,
    locks: Vec<(i32, u32)>,
    stack: Vec<u64>,
}

/// Collects findings from records.
#[derive(Default)]
pub struct Correlator {
    findings: Vec<Finding>,
    by_key: HashMap<Key, usize>,
    /// The finding that each task's last violation went into.
    last_of_task: HashMap<u64, usize>,
    /// Violations that cannot be told from a benign event.
    pub uncertain: u64,
    /// Exceptions that turned out benign: the stack shows no fault handler.
    pub disproved: u64,
    /// Records of unknown kind.
    pub unknown_records: u64,
}

/// What became of a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A new finding, by index.
    New(usize),
    /// Counted into a finding that was there.
    Again(usize),
    /// No finding.
    None,
}

impl Correlator {
    /// Takes one record.
    pub fn take(&mut self, record: &Record, stacks: &dyn Stacks) -> Outcome {
        match record {
            Record::Violation(violation) => self.violation(violation, stacks),
            Record::Vma(vma) => {
                self.vma(vma);
                Outcome::None
            }
            Record::Unknown { .. } => {
                self.unknown_records += 1;
                Outcome::None
            }
            Record::Fault(_) | Record::Walk(_) | Record::Wait(_) | Record::Hold(_) => Outcome::None,
        }
    }

    /// The findings so far, oldest first.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Marks findings of a task that was found stuck.
    pub fn mark_hung(&mut self, tid: u32) {
        for finding in self.findings.iter_mut().filter(|finding| finding.task.tid == tid) {
            finding.hung = true;
        }
    }

    fn violation(&mut self, record: &Violation, stacks: &dyn Stacks) -> Outcome {
        let stack = stack_of(record);
        if record.flags & violation::NEEDS_STACK != 0 {
            if stack.is_empty() {
                self.uncertain += 1;
                return Outcome::None;
            }
            if !stack.iter().any(|address| stacks.is_fault_entry(*address)) {
                self.disproved += 1;
                return Outcome::None;
            }
        }
        let held: Vec<&Held> = record.held.iter().take(record.held_len as usize).collect();
        // A hold that may have been given away, or never taken, proves nothing.
        let certain: Vec<&Held> =
            held.iter().copied().filter(|lock| lock.flags & (held::GIVEN_AWAY | held::UNSURE) == 0).collect();
        if certain.is_empty() && record.flags & violation::MORE_HELD == 0 {
            self.uncertain += 1;
            return Outcome::None;
        }
        let severity = certain.iter().map(|lock| severity(lock, record)).max().unwrap_or(Severity::CrossMm);
        let key = Key {
            tid: record.header.tid,
            task: record.header.task,
            severity,
            locks: certain.iter().map(|lock| (lock.stack_id, lock.flags)).collect(),
            stack: stack.clone(),
        };
        if let Some(&index) = self.by_key.get(&key) {
            if let Some(finding) = self.findings.get_mut(index) {
                finding.count += 1;
                finding.seen.1 = record.header.ts;
            }
            self.last_of_task.insert(record.header.task, index);
            return Outcome::Again(index);
        }
        let locks = certain.iter().map(|lock| held_lock(lock, record, stacks)).collect();
        let index = self.findings.len();
        self.findings.push(Finding {
            class: Class::FaultUnderLock,
            severity,
            task: task_of(record),
            locks,
            access: Access {
                address: record.address,
                ip: record.ip,
                write: (record.flags & violation::ERROR_KNOWN != 0).then_some(record.error & X86_PF_WRITE != 0),
                mm: mm_id(&record.mm),
                vma: None,
                stack,
            },
            count: 1,
            seen: (record.header.ts, record.header.ts),
            hung: false,
        });
        self.by_key.insert(key, index);
        self.last_of_task.insert(record.header.task, index);
        Outcome::New(index)
    }

    fn vma(&mut self, record: &Vma) {
        let Some(&index) = self.last_of_task.get(&record.header.task) else { return };
        let Some(finding) = self.findings.get_mut(index) else { return };
        if finding.access.address != record.address {
            return;
        }
        finding.access.vma = Some(VmaInfo {
            start: record.start,
            end: record.end,
            perms: perms(record.vm_flags),
            offset: if record.inode == 0 { 0 } else { record.pgoff.saturating_mul(4096) },
            file: (record.inode != 0).then(|| name(&record.name)),
        });
    }
}

fn severity(lock: &Held, record: &Violation) -> Severity {
    match (lock.owner.mm == record.mm.mm, lock.flags & held::WRITE != 0) {
        (true, true) => Severity::Deadlock,
        (true, false) => Severity::RecursiveRead,
        (false, _) => Severity::CrossMm,
    }
}

fn held_lock(lock: &Held, record: &Violation, stacks: &dyn Stacks) -> HeldLock {
    let write = lock.flags & held::WRITE != 0;
    HeldLock {
        mm: mm_id(&lock.owner),
        relation: if lock.owner.mm == record.mm.mm { Relation::Own } else { Relation::Foreign },
        mode: if write { LockMode::Write } else { LockMode::Read },
        trylock: lock.flags & held::TRY != 0,
        downgraded: lock.flags & held::DOWNGRADED != 0,
        held_ns: record.header.ts.saturating_sub(lock.since),
        writer_queued: (!write).then_some(lock.count & RWSEM_WAITERS != 0),
        stack: stacks.stack(lock.stack_id).unwrap_or_default(),
    }
}

fn stack_of(record: &Violation) -> Vec<u64> {
    let frames = usize::try_from(record.stack_len).unwrap_or(0) / 8;
    record.stack.iter().take(frames).copied().filter(|address| *address != 0).collect()
}

fn task_of(record: &Violation) -> TaskId {
    TaskId {
        pid: record.header.tgid,
        tid: record.header.tid,
        comm: name(&record.header.comm),
        kernel_thread: record.header.task_flags & PF_KTHREAD != 0,
    }
}

fn mm_id(owner: &MmOwner) -> MmId {
    MmId { address: owner.mm, owner: (owner.tgid != 0).then(|| (owner.tgid, name(&owner.comm))) }
}

/// `vm_flags` as /proc/PID/maps prints them (fs/proc/task_mmu.c, `show_vma_header_prefix`).
fn perms(flags: u64) -> String {
    let bit = |bit: u64, set: char, clear: char| if flags & bit != 0 { set } else { clear };
    [bit(1, 'r', '-'), bit(2, 'w', '-'), bit(4, 'x', '-'), bit(0x80, 's', 'p')].iter().collect()
}

#[cfg(test)]
mod tests;
