//! Finds tasks that wait for each other now.
//!
//! Reads /proc/PID/task/TID/stat and stack of tasks that are known to hold a lock and to want another, and of the threads
//! beside them: neither needs a lock that may be stuck. A task counts when two looks in a row find it blocked, in the fault
//! handler or in its last call for a lock, and holding what it held.

mod proc;
mod waiting;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
};

use pagetrace_ebpf::wire::{fault::Violation, lock::held, order::OrderTask, task::Slot};

use proc::{asleep, beside, comm, exists, faults, frame};
use waiting::{Waiting, of_slot};

use crate::{
    analysis::{
        LockMode, Stacks, Suspected, TaskId,
        deadlock::{Blocked, Claim, in_circles, standstills},
    },
    output::{
        deadlock::{ReportedDeadlock, StandingLock, StandingTask},
        order::variable,
    },
    symbolize::Symbolizer,
};

/// Candidates that are looked at, at most; a circle that is begun is looked at whole.
const MOST: usize = 256;
/// Tasks that faulted with a lock held, at most: most of them come back at once, and are only asked for their state.
const MOST_FAULTING: usize = 2048;
/// Looks in a row that have to find a task blocked.
const LOOKS: u32 = 2;

/// A lock, before it has a name.
#[derive(Debug, Clone)]
struct Lock {
    claim: Claim,
    name: String,
    /// `mutex` or `rwsem`, for a lock that a variable may be.
    kind: Option<&'static str>,
    /// The function that was called for it can fail, and has not returned.
    attempt: bool,
    stack: Vec<u64>,
}

/// A task that may be blocked.
#[derive(Debug, Clone)]
struct Candidate {
    task: TaskId,
    holds: Vec<Lock>,
    wants: Lock,
    looks: u32,
}

/// An mmap lock that a task held as it faulted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Held {
    mm: u64,
    /// Since when, nanoseconds of `CLOCK_MONOTONIC`.
    since: u64,
    write: bool,
    /// Id of the acquiring stack, or a negative errno.
    stack: i32,
}

impl Held {
    /// Whether this is the same hold, or another one of the same place: a violation that repeats is not recorded again.
    fn is_like(&self, slot: &Slot) -> bool {
        let same = slot.mm == self.mm && slot.since == self.since;
        let again = self.stack >= 0
            && slot.stack == self.stack
            && self.write == (slot.flags & held::WRITE != 0)
            && slot.flags & (held::TENTATIVE | held::UNSURE) == 0;
        same || again
    }
}

/// A task that faulted while it held mmap locks.
#[derive(Debug, Clone)]
struct Faulting {
    /// Address of its `task_struct`.
    address: u64,
    /// When it faulted, nanoseconds of `CLOCK_MONOTONIC`.
    at: u64,
    /// What it held, as the holds of the candidate are ordered.
    held: Vec<Held>,
    candidate: Candidate,
}

impl Faulting {
    /// Takes over what the task holds now. Tells whether these are the very holds of the look before.
    fn holds_on(&mut self, now: &[Slot]) -> bool {
        let mut same = true;
        for (was, shown) in self.held.iter_mut().zip(&mut self.candidate.holds) {
            let Some(slot) = now.iter().find(|slot| was.is_like(slot)) else { return false };
            same &= (slot.mm, slot.since) == (was.mm, was.since);
            if slot.mm != was.mm {
                shown.claim.lock = slot.mm;
                shown.name = format!("mmap_lock of mm {:#x}", slot.mm);
            }
            (was.mm, was.since) = (slot.mm, slot.since);
        }
        same
    }
}

/// A task, by process and thread, and where it took what it held: the stacks, and whether for writing.
type Place = (u32, u32, Vec<(i32, bool)>);

/// Watches.
pub(super) struct Watch {
    proc: PathBuf,
    /// Tasks whose fault wanted an mmap lock while they held one.
    faulting: HashMap<Place, Faulting>,
    /// Tasks that wait for a lock of the order, and the moment that tells this wait from others.
    ordered: HashMap<(u32, u32), (u64, Candidate)>,
    told: HashSet<BTreeSet<u32>>,
}

fn mode(mode: LockMode) -> String {
    if mode == LockMode::Write { "write" } else { "read" }.to_owned()
}

fn mmap_name(owner: Option<&(u32, String)>) -> String {
    owner.map_or_else(|| "mmap_lock".to_owned(), |(pid, comm)| format!("mmap_lock of process {pid} ({comm})"))
}

impl Watch {
    /// Watches below `proc`.
    pub(super) fn new(proc: PathBuf) -> Self {
        Self { proc, faulting: HashMap::new(), ordered: HashMap::new(), told: HashSet::new() }
    }

    /// A task faulted while it held an mmap lock: it may not come back.
    pub(super) fn suspect(&mut self, violation: &Violation, suspected: Suspected) {
        let Suspected { task, holds, wants, severity: _ } = suspected;
        let held: Vec<Held> = holds
            .iter()
            .map(|(lock, _)| Held {
                mm: lock.owner.mm,
                since: lock.since,
                write: lock.flags & held::WRITE != 0,
                stack: lock.stack_id,
            })
            .collect();
        let place = (task.pid, task.tid, held.iter().map(|lock| (lock.stack, lock.write)).collect());
        if self.faulting.len() >= MOST_FAULTING && !self.faulting.contains_key(&place) {
            self.make_room();
        }
        let of = |mm: &crate::analysis::MmId, mode, stack| Lock {
            claim: Claim { lock: mm.address, mode },
            name: mmap_name(mm.owner.as_ref()),
            kind: None,
            attempt: false,
            stack,
        };
        let holds = holds.into_iter().map(|(_, lock)| of(&lock.mm, lock.mode, lock.stack)).collect();
        let wants = of(&wants, LockMode::Read, Vec::new());
        let candidate = Candidate { task, holds, wants, looks: 0 };
        let (address, at) = (violation.header.task, violation.header.ts);
        self.faulting.insert(place, Faulting { address, at, held, candidate });
    }

    /// Gives up the oldest that was not found blocked when it was last looked at.
    fn make_room(&mut self) {
        let moving = self.faulting.iter().filter(|(_, it)| it.candidate.looks == 0);
        let oldest = moving.min_by_key(|(_, it)| it.at).map(|(place, _)| place.clone());
        if let Some(place) = oldest {
            self.faulting.remove(&place);
        }
    }

    /// Takes over what the order's map says now.
    pub(super) fn ordered(&mut self, tasks: &[OrderTask], now: u64, stacks: &dyn Stacks) {
        let mut waiting: Vec<Waiting<'_>> = tasks.iter().filter_map(|task| Waiting::of(task, now)).collect();
        // Each look is to choose the same of too many.
        waiting.sort_by_key(|it| (it.task.tgid, it.task.tid));
        let mut blocked: Vec<Blocked> = waiting.iter().map(Waiting::facts).collect();
        blocked.extend(self.faulting.values().map(|it| facts(&it.candidate)));
        let mut next = HashMap::new();
        for it in in_circles(&blocked, MOST).into_iter().filter_map(|at| waiting.get(at)) {
            let (key, since) = ((it.task.tgid, it.task.tid), it.wants.since);
            let known = self.ordered.remove(&key).filter(|(known, _)| *known == since);
            let fresh = || {
                let holds = it.holds().map(|slot| of_slot(slot, stacks)).collect();
                let (pid, tid) = key;
                let task = TaskId { pid, tid, comm: comm(&self.proc, pid, tid), kernel_thread: false };
                (since, Candidate { task, holds, wants: of_slot(it.wants, stacks), looks: 0 })
            };
            next.insert(key, known.unwrap_or_else(fresh));
        }
        self.ordered = next;
    }

    /// Deadlocks that were not told before. `holds` tells the mmap locks that the task at an address holds now.
    pub(super) fn look(&mut self, names: &mut Symbolizer, holds: &dyn Fn(u64) -> Vec<Slot>) -> Vec<ReportedDeadlock> {
        let proc = self.proc.clone();
        // One that has come back may do the same again.
        self.faulting.retain(|(pid, tid, _), _| exists(&proc, *pid, *tid));
        for it in self.faulting.values_mut() {
            let same = it.holds_on(&holds(it.address));
            let it = &mut it.candidate;
            it.looks = if same && faults(&proc, it.task.pid, it.task.tid) { it.looks + 1 } else { 0 };
        }
        for (_, it) in self.ordered.values_mut() {
            // A wait that a signal can end is a wait: `mutex_lock_interruptible`.
            let stack = asleep(&proc, it.task.pid, it.task.tid, &['D', 'S']);
            let inside = stack.is_some_and(|stack| is_inside(it, &stack, names));
            it.looks = if inside { it.looks + 1 } else { 0 };
        }
        // The order knows more of a task than its fault does.
        let of_order = self.ordered.values().map(|(_, it)| it).filter(|it| it.looks >= LOOKS);
        let mut blocked: Vec<&Candidate> = of_order.collect();
        for Faulting { candidate: it, .. } in self.faulting.values().filter(|it| it.candidate.looks >= LOOKS) {
            if !blocked.iter().any(|of| (of.task.pid, of.task.tid) == (it.task.pid, it.task.tid)) {
                blocked.push(it);
            }
        }
        let facts: Vec<Blocked> = blocked.iter().map(|it| facts(it)).collect();
        let mut out = Vec::new();
        for cycle in standstills(&facts) {
            let of = || cycle.iter().filter_map(|step| Some((blocked.get(step.task)?, step.because)));
            let tids: BTreeSet<u32> = of().map(|(it, _)| it.task.tid).collect();
            if !self.told.insert(tids.clone()) {
                continue;
            }
            let tasks: Vec<StandingTask> = of().map(|(it, because)| standing(it, because, &proc, names)).collect();
            let pids: BTreeSet<u32> = of().map(|(it, _)| it.task.pid).collect();
            let beside = pids.iter().flat_map(|pid| beside(&proc, *pid, &tids)).collect();
            out.push(ReportedDeadlock::of(tasks, beside));
        }
        out
    }
}

fn facts(it: &Candidate) -> Blocked {
    let holds = it.holds.iter().map(|lock| lock.claim).collect();
    Blocked { holds, wants: it.wants.claim }
}

fn standing(
    it: &Candidate,
    because: crate::analysis::deadlock::Because,
    proc: &Path,
    names: &mut Symbolizer,
) -> StandingTask {
    let addresses: Vec<u64> = it.holds.iter().chain([&it.wants]).map(|lock| lock.claim.lock).collect();
    let stacks = it.holds.iter().map(|lock| lock.stack.as_slice()).chain([addresses.as_slice()]);
    names.cover(&stacks.collect::<Vec<_>>());
    let lock = |lock: &Lock, stack| StandingLock {
        name: match lock.kind.zip(variable(lock.claim.lock, names)) {
            Some((kind, (name, _))) => format!("{kind} {name}"),
            None => lock.name.clone(),
        },
        address: format!("{:#x}", lock.claim.lock),
        mode: mode(lock.claim.mode),
        stack,
    };
    StandingTask {
        pid: it.task.pid,
        tid: it.task.tid,
        comm: it.task.comm.clone(),
        holds: it.holds.iter().map(|held| lock(held, names.frames(&held.stack))).collect(),
        waits_for: lock(&it.wants, Vec::new()),
        because,
        waits_at: asleep(proc, it.task.pid, it.task.tid, &['D', 'S'])
            .unwrap_or_default()
            .iter()
            .map(|line| frame(line))
            .collect(),
    }
}

/// Whether the task is still in the lock function that its last slot is about: the callers of that are the last frames of
/// where it waits. Frames are compared by name and offset.
fn is_inside(it: &Candidate, now: &[String], names: &mut Symbolizer) -> bool {
    // Before return probes could be looked through (kernel/trace/rethook.c, 5.18), the kernel's own unwinding ends at the
    // return probe of a function that can fail. That this has not fired says the same.
    if it.wants.attempt && now.len() <= 2 {
        return true;
    }
    let now: Vec<String> = now.iter().map(|line| frame(line)).collect();
    names.cover(&[&it.wants.stack]);
    let then: Vec<String> = names.frames(&it.wants.stack).iter().skip(1).map(crate::symbolize::Frame::text).collect();
    !then.is_empty()
        && now.len() >= then.len()
        && now.iter().rev().zip(then.iter().rev()).all(|(now, then)| now == then)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const FAULT: &str = "[<0>] lock_mm_and_find_vma+0x5/0x6\n[<0>] exc_page_fault+0x1/0x2\n[<0>] asm_exc_page_fault+0x3/0x4\n\
                         [<0>] ptf_touch+0x7/0x8 [pagetrace_fixture]\n";

    fn task(proc: &Path, tid: u32, state: char, stack: &str) {
        let dir = proc.join(format!("7/task/{tid}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("stat"), format!("{tid} (a) b) {state} 1 7 7 0 -1 0 0 0 0 0\n")).unwrap();
        fs::write(dir.join("stack"), stack).unwrap();
    }

    fn candidate(tid: u32, holds: LockMode) -> Candidate {
        let lock = |mode| Lock {
            claim: Claim { lock: 1, mode },
            name: "mmap_lock".to_owned(),
            kind: None,
            attempt: false,
            stack: vec![1],
        };
        let task = TaskId { pid: 7, tid, comm: "a) b".to_owned(), kernel_thread: false };
        Candidate { task, holds: vec![lock(holds)], wants: lock(LockMode::Read), looks: 0 }
    }

    fn watch(dir: &Path, tid: u32, mode: LockMode) -> Watch {
        let mut watch = Watch::new(dir.to_owned());
        let held = Held { mm: 1, since: 50, write: mode == LockMode::Write, stack: 3 };
        let faulting = Faulting { address: 1, at: 60, held: vec![held], candidate: candidate(tid, mode) };
        watch.faulting.insert((7, tid, Vec::new()), faulting);
        watch
    }

    /// What a task holds of the one lock, since then.
    fn since(since: u64) -> impl Fn(u64) -> Vec<Slot> {
        move |_task| vec![Slot { mm: 1, since, ..Slot::default() }]
    }

    fn names() -> Symbolizer {
        Symbolizer::recorded()
    }

    #[test]
    fn a_task_that_waits_for_itself_is_told_once_at_the_second_look() {
        let dir = tempfile::tempdir().unwrap();
        task(dir.path(), 8, 'D', FAULT);
        task(dir.path(), 9, 'D', "[<0>] vm_mmap_pgoff+0xb7/0x1c0\n[<0>] do_syscall_64+0x87/0x180\n");
        task(dir.path(), 10, 'S', "");
        let mut watch = watch(dir.path(), 8, LockMode::Write);
        assert!(watch.look(&mut names(), &since(50)).is_empty(), "one look is none");
        let found = watch.look(&mut names(), &since(50));
        let [deadlock] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(deadlock.tasks[0].waits_at[3], "ptf_touch+0x7 [pagetrace_fixture]");
        assert_eq!(deadlock.beside.iter().map(|it| it.tid).collect::<Vec<_>>(), [9]);
        assert!(watch.look(&mut names(), &since(50)).is_empty(), "told once");
    }

    #[test]
    fn a_return_probe_that_has_not_fired_says_that_the_task_is_inside() {
        let mut it = candidate(8, LockMode::Write);
        let cut = ["[<0>] elfcorehdr_read+0x40/0x40".to_owned()];
        assert!(!is_inside(&it, &cut, &mut names()));
        it.wants.attempt = true;
        assert!(is_inside(&it, &cut, &mut names()));
        let elsewhere = ["a+0x1/0x2", "b+0x1/0x2", "c+0x1/0x2"].map(str::to_owned);
        assert!(!is_inside(&it, &elsewhere, &mut names()), "the stack says more, and something else");
    }

    #[test]
    fn a_task_that_has_not_gone_to_sleep_yet_is_looked_at_again() {
        let dir = tempfile::tempdir().unwrap();
        task(dir.path(), 8, 'R', "");
        let mut watch = watch(dir.path(), 8, LockMode::Read);
        assert!(watch.look(&mut names(), &since(50)).is_empty());
        task(dir.path(), 8, 'D', FAULT);
        assert!(watch.look(&mut names(), &since(50)).is_empty());
        assert_eq!(watch.look(&mut names(), &since(50)).len(), 1);
    }

    #[test]
    fn room_is_made_by_the_oldest_that_moves() {
        let mut watch = Watch::new(PathBuf::new());
        for (tid, at, looks) in [(8, 1, 1), (9, 3, 0), (10, 2, 0)] {
            let candidate = Candidate { looks, ..candidate(tid, LockMode::Read) };
            let faulting = Faulting { address: 1, at, held: Vec::new(), candidate };
            watch.faulting.insert((7, tid, Vec::new()), faulting);
        }
        let mut left = || {
            watch.make_room();
            let mut tids: Vec<u32> = watch.faulting.keys().map(|(_, tid, _)| *tid).collect();
            tids.sort_unstable();
            tids
        };
        assert_eq!(left(), [8, 9]);
        assert_eq!(left(), [8]);
        assert_eq!(left(), [8], "one that may stand still is kept");
    }

    #[test]
    fn a_task_that_comes_back_may_do_the_same_again() {
        let dir = tempfile::tempdir().unwrap();
        task(dir.path(), 8, 'D', FAULT);
        let mut watch = watch(dir.path(), 8, LockMode::Read);
        assert!(watch.look(&mut names(), &since(50)).is_empty());
        assert!(watch.look(&mut names(), &since(51)).is_empty(), "another hold, taken in another place");
        assert!(watch.look(&mut names(), &since(51)).is_empty());
        let repeats = |since| move |_task| vec![Slot { mm: 1, since, stack: 3, flags: held::READ }];
        assert!(watch.look(&mut names(), &repeats(60)).is_empty(), "the same again, for the first time");
        assert!(watch.look(&mut names(), &repeats(61)).is_empty(), "it has come back meanwhile");
        assert!(watch.look(&mut names(), &repeats(61)).is_empty(), "one look is none");
        assert_eq!(watch.look(&mut names(), &repeats(61)).len(), 1);
        fs::remove_dir_all(dir.path().join("7")).unwrap();
        watch.look(&mut names(), &repeats(61));
        assert!(watch.faulting.is_empty(), "it has ended");
    }
}
