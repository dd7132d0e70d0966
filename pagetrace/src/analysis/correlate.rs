//! Violations to findings: severity, proof by stack, one finding a distinct pair of stacks by function.
//!
//! Who does it does not tell two findings apart, nor where in a function: a pattern is the code's, not the task's.

use std::collections::{HashMap, HashSet};

use pagetrace_ebpf::wire::{
    Header, MmOwner,
    fault::{Violation, Vma, X86_PF_WRITE, violation},
    lock::{Held, held},
};

use super::{
    finding::{Access, Class, Finding, HeldLock, LockMode, MmId, Relation, Severity, TaskId, VmaInfo},
    interrupt, latent,
    page::PageInfo,
    repeat::{Fate, Repeat, Told},
};
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
    /// Whether `address` lies in a function that accesses user memory for its caller.
    fn is_user_access(&self, address: u64) -> bool;
    /// Where the function begins that `address` lies in; `None` where no function is known.
    fn function(&self, address: u64) -> Option<u64>;
    /// Whether `address` lies in a function of one of these names, with or without a compiler's suffix.
    fn is_function(&self, _address: u64, _names: &[&str]) -> bool {
        false
    }
}

/// What tells findings apart: functions by where they begin. An address in no known function stands for itself.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    locks: Vec<Vec<u64>>,
    access: Vec<u64>,
    instruction: u64,
}

impl Key {
    fn of(sighting: &Sighting, stacks: &dyn Stacks) -> Self {
        let function = |address: u64| stacks.function(address).unwrap_or(address);
        let functions = |stack: &[u64]| stack.iter().map(|address| function(*address)).collect();
        Self {
            locks: sighting.locks.iter().map(|lock| functions(&lock.stack)).collect(),
            access: functions(&sighting.access.stack),
            instruction: function(sighting.access.ip),
        }
    }

    /// A leak is told by where the lock was taken, wherever it is noticed. No function begins at 1.
    fn of_leak(sighting: &Sighting, stacks: &dyn Stacks) -> Self {
        Self { access: Vec::new(), instruction: 1, ..Self::of(sighting, stacks) }
    }

    /// What the entry of an access and its fault have in common: the caller. `None` for a fault that no function
    /// known to access user memory took part in.
    fn of_caller(sighting: &Sighting, stacks: &dyn Stacks) -> Option<Self> {
        let function = |address: u64| stacks.function(address).unwrap_or(address);
        let functions = |stack: &[u64]| stack.iter().map(|address| function(*address)).collect();
        let caller = latent::caller(&sighting.access.stack, stacks);
        let caller = match sighting.class {
            Class::UaccessUnderLock => caller.unwrap_or(&sighting.access.stack),
            _ => caller?,
        };
        // No function begins at 0: a key of this kind equals none of the other.
        Some(Self {
            locks: sighting.locks.iter().map(|lock| functions(&lock.stack)).collect(),
            access: functions(caller),
            instruction: 0,
        })
    }
}

/// A task, as long as the kernel has it: ids and `task_struct` addresses are both used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct TaskKey {
    task: u64,
    tgid: u32,
    tid: u32,
}

impl TaskKey {
    fn of(header: &Header) -> Self {
        Self { task: header.task, tgid: header.tgid, tid: header.tid }
    }
}

/// One violation, before it is counted into a finding.
struct Sighting {
    class: Class,
    severity: Severity,
    task: TaskId,
    locks: Vec<HeldLock>,
    access: Access,
}

impl Sighting {
    /// The finding that begins with it.
    fn finding(self, time: u64) -> Finding {
        let Self { class, severity, task, locks, access } = self;
        let (count, tasks, seen, stuck) = (1, 1, (time, time), Vec::new());
        Finding { class, severity, task, locks, access, count, tasks, seen, stuck }
    }

    /// A finding shows the worst of its sightings: of two that are as severe, one with a writer queued.
    fn rank(severity: Severity, locks: &[HeldLock]) -> (Severity, bool) {
        (severity, locks.iter().any(|lock| lock.writer_queued == Some(true)))
    }
}

/// Who took part in a finding.
struct Seen {
    /// Every task.
    tasks: HashSet<TaskKey>,
    /// The task whose sighting the finding shows.
    shown: TaskKey,
    /// Of an access seen at its entry: the function entered. Others that the same access passes through do not count.
    entry: Option<u64>,
}

impl Seen {
    fn by(task: TaskKey, entry: Option<u64>) -> Self {
        Self { tasks: HashSet::from([task]), shown: task, entry }
    }
}

/// Collects findings from records.
#[derive(Default)]
pub struct Correlator {
    findings: Vec<Finding>,
    /// One entry a finding.
    seen: Vec<Seen>,
    by_key: HashMap<Key, usize>,
    /// Findings by the caller of the access.
    by_caller: HashMap<Key, usize>,
    told: Told,
    /// The finding that each task's last violation went into.
    last_of_task: HashMap<TaskKey, usize>,
    /// Violations that cannot be told from a benign event.
    pub uncertain: u64,
    /// What turned out benign: an exception whose stack shows no fault handler, a fault while only an interrupt held a lock.
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
    /// As [`Outcome::Again`], and worse than all before: the finding shows this one now.
    Worse(usize),
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
            Record::Page(page) => {
                if let Some(access) = self.shown(&page.header, page.address) {
                    access.page.get_or_insert(PageInfo::of(page.entry, page.level));
                }
                Outcome::None
            }
            Record::Unknown { .. } => {
                self.unknown_records += 1;
                Outcome::None
            }
            // The rest makes no finding: plain events, and the stream that the model reads.
            _ => Outcome::None,
        }
    }

    /// The findings so far, oldest first.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Marks the finding that the last violation of a task, found stuck, went into.
    pub fn mark_hung(&mut self, pid: u32, tid: u32) {
        let of_task = self.last_of_task.iter().filter(|(task, _)| task.tgid == pid && task.tid == tid);
        for (_, index) in of_task {
            if let Some(finding) = self.findings.get_mut(*index)
                && !finding.stuck.contains(&tid)
            {
                finding.stuck.push(tid);
            }
        }
    }

    /// Takes what the kernel side counted since it told a violation.
    pub fn again(&mut self, repeat: &Repeat) {
        match self.told.repeat(repeat) {
            Some((Fate::Counted(index, class), more)) if more != 0 => {
                // What was counted at the entry of an access says nothing about how often it faulted.
                if let Some(finding) = self.findings.get_mut(index).filter(|finding| finding.class == class) {
                    finding.count += more;
                    finding.seen.1 = finding.seen.1.max(repeat.last);
                }
            }
            Some((Fate::Uncertain, more)) => self.uncertain += more,
            _ => {}
        }
    }

    fn violation(&mut self, record: &Violation, stacks: &dyn Stacks) -> Outcome {
        let (outcome, fate) = self.judge(record, stacks);
        self.told.record(record.header.task, record.header.ts, fate);
        outcome
    }

    fn judge(&mut self, record: &Violation, stacks: &dyn Stacks) -> (Outcome, Fate) {
        let stack = stack_of(record);
        if record.flags & violation::NEEDS_STACK != 0 {
            if stack.is_empty() {
                self.uncertain += 1;
                return (Outcome::None, Fate::Uncertain);
            }
            if !stack.iter().any(|address| stacks.is_fault_entry(*address)) {
                self.disproved += 1;
                return (Outcome::None, Fate::Nothing);
            }
        }
        let certain = certain(record, stacks);
        let more = record.flags & violation::MORE_HELD != 0 && record.flags & violation::MORE_UNSURE == 0;
        if certain.is_empty() && !more {
            let known = sure(record).count() == record.held_len as usize && record.flags & violation::MORE_HELD == 0;
            if known && record.held_len != 0 {
                self.disproved += 1;
                return (Outcome::None, Fate::Nothing);
            }
            self.uncertain += 1;
            return (Outcome::None, Fate::Uncertain);
        }
        let (latent, leaked) = (record.flags & violation::LATENT != 0, record.flags & violation::LEAKED != 0);
        let sighting = Sighting {
            class: match (latent, leaked) {
                (_, true) => Class::LockLeak,
                (true, _) => Class::UaccessUnderLock,
                _ => Class::FaultUnderLock,
            },
            severity: severity_of(record, &certain),
            task: task_of(record),
            locks: certain.into_iter().map(|(lock, stack)| held_lock(lock, stack, record)).collect(),
            access: Access {
                address: record.address,
                ip: record.ip,
                write: (record.flags & violation::ERROR_KNOWN != 0).then_some(record.error & X86_PF_WRITE != 0),
                mm: mm_id(&record.mm),
                vma: None,
                page: None,
                stack,
            },
        };
        let task = TaskKey::of(&record.header);
        let caller = Key::of_caller(&sighting, stacks);
        let (outcome, fate) = if leaked {
            self.count(Key::of_leak(&sighting, stacks), None, sighting, task, record.header.ts)
        } else if latent {
            let entry = stacks.function(record.ip).unwrap_or(record.ip);
            self.count_latent(caller, sighting, task, record.header.ts, entry)
        } else {
            self.count(Key::of(&sighting, stacks), caller, sighting, task, record.header.ts)
        };
        if let Outcome::New(index) | Outcome::Again(index) | Outcome::Worse(index) = outcome {
            self.last_of_task.insert(task, index);
        }
        (outcome, fate)
    }

    /// Counts a fault into its finding, or makes it one: out of the finding about the same access that had not
    /// faulted before, where there is one.
    fn count(
        &mut self,
        key: Key,
        caller: Option<Key>,
        sighting: Sighting,
        task: TaskKey,
        time: u64,
    ) -> (Outcome, Fate) {
        if let Some(&index) = self.by_key.get(&key) {
            return self.count_into(index, sighting, task, time);
        }
        let latent = caller.as_ref().and_then(|caller| self.by_caller.get(caller)).copied();
        if let Some(index) = latent
            && let (Some(finding), Some(seen)) = (self.findings.get_mut(index), self.seen.get_mut(index))
            && finding.class == Class::UaccessUnderLock
        {
            *finding = sighting.finding(time);
            *seen = Seen::by(task, None);
            self.by_key.insert(key, index);
            return (Outcome::Worse(index), Fate::Counted(index, Class::FaultUnderLock));
        }
        let (outcome, fate, index) = self.add(sighting, task, time, None);
        self.by_key.insert(key, index);
        if let Some(caller) = caller {
            self.by_caller.entry(caller).or_insert(index);
        }
        (outcome, fate)
    }

    /// Counts an access seen at its entry. One that faulted is told by its fault.
    fn count_latent(
        &mut self,
        caller: Option<Key>,
        sighting: Sighting,
        task: TaskKey,
        time: u64,
        entry: u64,
    ) -> (Outcome, Fate) {
        if let Some(&index) = caller.as_ref().and_then(|caller| self.by_caller.get(caller)) {
            let faulted = self.findings.get(index).is_some_and(|finding| finding.class != Class::UaccessUnderLock);
            if faulted || self.seen.get(index).is_some_and(|seen| seen.entry != Some(entry)) {
                return (Outcome::Again(index), Fate::Nothing);
            }
            return self.count_into(index, sighting, task, time);
        }
        let (outcome, fate, index) = self.add(sighting, task, time, Some(entry));
        if let Some(caller) = caller {
            self.by_caller.insert(caller, index);
        }
        (outcome, fate)
    }

    /// Counts a sighting into a finding, which shows it when it is the worst so far.
    fn count_into(&mut self, index: usize, sighting: Sighting, task: TaskKey, time: u64) -> (Outcome, Fate) {
        let (Some(finding), Some(seen)) = (self.findings.get_mut(index), self.seen.get_mut(index)) else {
            return (Outcome::None, Fate::Nothing);
        };
        let fate = Fate::Counted(index, finding.class);
        finding.count += 1;
        finding.seen = (finding.seen.0.min(time), finding.seen.1.max(time));
        if seen.tasks.insert(task) {
            finding.tasks += 1;
        }
        let Sighting { class: _, severity, task: who, locks, access } = sighting;
        if Sighting::rank(severity, &locks) <= Sighting::rank(finding.severity, &finding.locks) {
            return (Outcome::Again(index), fate);
        }
        (finding.severity, finding.task, finding.locks, finding.access) = (severity, who, locks, access);
        seen.shown = task;
        (Outcome::Worse(index), fate)
    }

    fn add(&mut self, sighting: Sighting, task: TaskKey, time: u64, entry: Option<u64>) -> (Outcome, Fate, usize) {
        let index = self.findings.len();
        let class = sighting.class;
        self.findings.push(sighting.finding(time));
        self.seen.push(Seen::by(task, entry));
        (Outcome::New(index), Fate::Counted(index, class), index)
    }

    /// The access that a finding shows, if it is this one: other tasks have other mappings at the same address.
    fn shown(&mut self, header: &Header, address: u64) -> Option<&mut Access> {
        let task = TaskKey::of(header);
        let index = *self.last_of_task.get(&task)?;
        let (finding, seen) = (self.findings.get_mut(index)?, self.seen.get(index)?);
        (finding.access.address == address && seen.shown == task).then_some(&mut finding.access)
    }

    fn vma(&mut self, record: &Vma) {
        // One whose return the kernel had no room to see leaves the next to be taken for its own.
        if !(record.start..record.end).contains(&record.address) {
            return;
        }
        let Some(access) = self.shown(&record.header, record.address) else { return };
        access.vma = Some(VmaInfo {
            start: record.start,
            end: record.end,
            perms: perms(record.vm_flags),
            offset: if record.inode == 0 { 0 } else { record.pgoff.saturating_mul(4096) },
            file: (record.inode != 0).then(|| name(&record.name)),
        });
    }
}

/// Locks that are held for certain: one that may have been given away, or never taken, proves nothing.
fn sure(record: &Violation) -> impl Iterator<Item = &Held> {
    let held = record.held.iter().take(record.held_len as usize);
    held.filter(|lock| lock.flags & (held::GIVEN_AWAY | held::UNSURE) == 0)
}

/// Those of them that the task holds, and not an interrupt that came while it ran, with the stacks they were taken on.
fn certain<'a>(record: &'a Violation, stacks: &dyn Stacks) -> Vec<(&'a Held, Vec<u64>)> {
    let taken = sure(record).map(|lock| (lock, stacks.stack(lock.stack_id).unwrap_or_default()));
    taken.filter(|(_, stack)| !interrupt::is_one(stack, stacks)).collect()
}

/// How bad a violation is by itself, whatever finding it belongs to.
fn severity_of(record: &Violation, certain: &[(&Held, Vec<u64>)]) -> Severity {
    if record.flags & violation::LATENT != 0 {
        return Severity::Latent;
    }
    if record.flags & violation::LEAKED != 0 {
        return Severity::Leak;
    }
    certain.iter().map(|(lock, _)| severity(lock, record)).max().unwrap_or(Severity::CrossMm)
}

/// A task whose fault wants an mmap lock while it holds one.
pub struct Suspected {
    /// The task.
    pub task: TaskId,
    /// What it holds for certain, as recorded and as shown.
    pub holds: Vec<(Held, HeldLock)>,
    /// The address space whose lock its fault wants.
    pub wants: MmId,
    /// How bad its fault is.
    pub severity: Severity,
}

/// The task of a fault, if it holds something for certain; `None` for what wants no lock.
pub fn suspected(record: &Violation, stacks: &dyn Stacks) -> Option<Suspected> {
    if record.flags & (violation::LATENT | violation::LEAKED) != 0 {
        return None;
    }
    let certain = certain(record, stacks);
    let severity = severity_of(record, &certain);
    let holds: Vec<_> = certain.into_iter().map(|(lock, stack)| (*lock, held_lock(lock, stack, record))).collect();
    (!holds.is_empty()).then(|| Suspected { task: task_of(record), holds, wants: mm_id(&record.mm), severity })
}

fn severity(lock: &Held, record: &Violation) -> Severity {
    match (lock.owner.mm == record.mm.mm, lock.flags & held::WRITE != 0) {
        (true, true) => Severity::Deadlock,
        (true, false) => Severity::RecursiveRead,
        (false, _) => Severity::CrossMm,
    }
}

fn held_lock(lock: &Held, stack: Vec<u64>, record: &Violation) -> HeldLock {
    let write = lock.flags & held::WRITE != 0;
    HeldLock {
        mm: mm_id(&lock.owner),
        relation: if lock.owner.mm == record.mm.mm { Relation::Own } else { Relation::Foreign },
        mode: if write { LockMode::Write } else { LockMode::Read },
        trylock: lock.flags & held::TRY != 0,
        downgraded: lock.flags & held::DOWNGRADED != 0,
        taken_unseen: lock.flags & held::BEFORE != 0,
        held_ns: record.header.ts.saturating_sub(lock.since),
        at_most: lock.flags & held::DATED_EARLY != 0,
        writer_queued: (!write).then_some(lock.count & RWSEM_WAITERS != 0),
        stack,
    }
}

fn stack_of(record: &Violation) -> Vec<u64> {
    let frames = usize::try_from(record.stack_len).unwrap_or(0) / 8;
    record.stack.iter().take(frames).copied().filter(|address| *address != 0).collect()
}

fn task_of(record: &Violation) -> TaskId {
    task_of_header(&record.header)
}

pub(super) fn task_of_header(header: &Header) -> TaskId {
    TaskId {
        pid: header.tgid,
        tid: header.tid,
        comm: name(&header.comm),
        kernel_thread: header.task_flags & PF_KTHREAD != 0,
    }
}

pub(super) fn mm_id(owner: &MmOwner) -> MmId {
    MmId { address: owner.mm, owner: (owner.tgid != 0).then(|| (owner.tgid, name(&owner.comm))) }
}

/// `vm_flags` as /proc/PID/maps prints them (fs/proc/task_mmu.c, `show_vma_header_prefix`).
fn perms(flags: u64) -> String {
    let bit = |bit: u64, set: char, clear: char| if flags & bit != 0 { set } else { clear };
    [bit(1, 'r', '-'), bit(2, 'w', '-'), bit(4, 'x', '-'), bit(0x80, 's', 'p')].iter().collect()
}

#[cfg(test)]
mod tests;
