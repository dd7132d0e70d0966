//! Derives violations from the stream of a recording alone, without asking the kernel side what it concluded.
//!
//! It is written from the rules, not from the gate's code, so that a mistake in either shows as a disagreement:
//!
//! - an attempt holds nothing until it returned with the lock; a failed one never did;
//! - a read acquisition of a lock that the task holds for writing, without an attempt before it, is the tracepoint's way
//!   to tell a downgrade;
//! - a release ends the innermost hold of that address space, whoever's memory map it is; one by a task that holds none
//!   of it was handed over, or began before the tracing, and casts doubt on every older hold of that lock;
//! - a task's end ends its holds: its address may come back as another task;
//! - a kernel-mode fault with faults enabled, taken while a lock is held, is a violation, unless the lock's own words
//!   rule out that it is held.

use std::collections::HashMap;

use pagetrace_ebpf::wire::{
    lock::{MAX_HELD, held},
    stream::{Exception, Handler, Lock, Words, life, op, seen},
};

use super::LockMode;
use crate::record::Record;

/// Most tasks, and address spaces, that are followed: a damaged file must not fill the memory.
const MAX_KNOWN: usize = 1 << 20;
/// Most words that are kept of one fault: far more than it is told with, those of each hold and of what there was no room for.
const MAX_WORDS: usize = 8 * MAX_HELD;
/// kernel/locking/rwsem.c: `RWSEM_WRITER_LOCKED`, `RWSEM_READER_SHIFT`, and the flag bits of the owner.
const WRITER: u64 = 1;
const READER_SHIFT: u32 = 8;
const OWNER_FLAGS: u64 = 7;

/// What of the run the rules depend on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// The handler itself cannot be seen: a task's next attempt on its own lock stands for it.
    pub confirm_by_lock: bool,
    /// When everything was attached, nanoseconds of `CLOCK_MONOTONIC`.
    pub attached_at: u64,
}

/// A violation, as derived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derived {
    /// Address of the task.
    pub task: u64,
    /// The address that faulted.
    pub address: u64,
    /// When the fault was seen going for the lock, nanoseconds of `CLOCK_MONOTONIC`.
    pub ts: u64,
    /// Locks held, outermost first.
    pub held: Vec<(u64, LockMode)>,
    /// Whether at least one of them was certainly held: not handed over, and seen being acquired.
    pub certain: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Hold {
    mm: u64,
    write: bool,
    /// Entered and not returned.
    open: bool,
    /// Its return was missed.
    unsure: bool,
    /// When its task faulted, somebody who did not hold this lock had released it since: it may be this hold.
    doubted: bool,
    /// Place of its acquisition in the stream.
    since: u64,
}

/// A fault that is a violation if the locks' words do not rule it out; they follow in the stream.
#[derive(Debug, Clone)]
struct Candidate {
    mm: u64,
    address: u64,
    ts: u64,
    /// Readers in the faulting mm's word that are the fault handler's own.
    own_readers: u64,
    wanted: bool,
    words: Vec<Words>,
    /// The attempt that told of the fault, and its place: it changes what is held only after the fault was judged.
    then: Option<(Lock, u64)>,
}

/// Holds that there was no room for: counted, and followed as long as they are of one address space.
#[derive(Debug, Default)]
struct More {
    count: u32,
    /// The last of them, but since the first; unsure when they are of several address spaces, or not all known to have been had.
    last: Hold,
}

impl More {
    /// Whether they are known to be all of this address space.
    fn are_of(&self, mm: u64) -> bool {
        self.count != 0 && self.last.mm == mm && !self.last.unsure
    }

    fn begin(&mut self, hold: Hold) {
        let known = self.are_of(hold.mm);
        if known && !hold.open {
            if hold.write {
                // A writer is alone.
                *self = Self::default();
            } else if self.last.write {
                self.last.write = false;
                return;
            }
        }
        self.last = match self.count {
            0 => hold,
            _ => Hold {
                since: self.last.since,
                unsure: self.last.unsure || !known || self.last.write != hold.write,
                ..hold
            },
        };
        self.count += 1;
    }

    fn end(&mut self) {
        *self = match (self.count, self.last.unsure) {
            (0 | 1, _) => Self::default(),
            // Whose the last is now, nothing tells.
            (count, true) => Self { count: count - 1, last: Hold { unsure: true, ..Hold::default() } },
            (count, false) => Self { count: count - 1, last: Hold { open: false, ..self.last } },
        };
    }

    /// The attempt that is open has ended, unseen or not.
    fn settle(&mut self) {
        self.last.unsure |= self.last.open;
        self.last.open = false;
    }
}

#[derive(Debug, Default)]
struct Task {
    /// `task_struct.start_time`; 0 while unknown.
    start: u64,
    holds: Vec<Hold>,
    /// Holds that there was no room for.
    more: More,
    /// An exception that may lead to the handler.
    pending: Option<u64>,
    /// Kernel-mode faults taken while nothing was known to be held.
    unjudged: bool,
    candidate: Option<Candidate>,
}

/// The locks of every task of a recording.
#[derive(Debug, Default)]
pub struct Model {
    rules: Rules,
    tasks: HashMap<u64, Task>,
    /// Place in the stream of the last release by somebody who did not hold the lock.
    strangers: HashMap<u64, u64>,
    place: u64,
    /// Releases of locks that were taken before the tracing began, by tasks that had taken a kernel-mode fault until
    /// then: what they did could not be judged.
    pub before_known: u64,
    /// Tasks or address spaces that there was no room for.
    pub crowded: u64,
}

impl Model {
    /// With the rules of a run.
    pub fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// Takes a record of the stream; others are not looked at. Gives the violation that this record settles: the locks'
    /// words follow the fault, so a fault is judged when its task does something else.
    pub fn take(&mut self, record: &Record) -> Option<Derived> {
        self.place += 1;
        match record {
            Record::Lock(lock) => {
                let settled = self.settle(lock.brief.task);
                self.lock(lock);
                settled
            }
            Record::Exception(exception) => {
                let settled = self.settle(exception.brief.task);
                self.exception(exception);
                settled
            }
            Record::Handler(handler) => {
                let settled = self.settle(handler.brief.task);
                self.handler(handler);
                settled
            }
            Record::Words(words) => {
                let candidate = self.tasks.get_mut(&words.brief.task).and_then(|task| task.candidate.as_mut());
                if let Some(candidate) = candidate.filter(|candidate| candidate.words.len() < MAX_WORDS) {
                    candidate.words.push(*words);
                }
                None
            }
            Record::Task(told) => {
                let settled = if told.op == life::FREE { self.settle(told.brief.task) } else { None };
                match told.op {
                    life::FREE => drop(self.tasks.remove(&told.brief.task)),
                    life::FORK => {}
                    _ => {
                        if let Some(task) = known(&mut self.tasks, &mut self.crowded, told.brief.task) {
                            task.start = told.start;
                        }
                    }
                }
                settled
            }
            _ => None,
        }
    }

    /// Judges the fault that a task has taken last, if it has not been.
    pub fn settle(&mut self, address: u64) -> Option<Derived> {
        let task = self.tasks.get_mut(&address)?;
        let candidate = task.candidate.take()?;
        let Candidate { mm, address: fault, ts, own_readers, mut wanted, mut words, then } = candidate;
        let of_more = words
            .iter()
            .position(|words| words.flags & seen::MORE != 0 && words.mm == task.more.last.mm)
            .map(|at| words.remove(at));
        if let Some(words) = of_more.filter(|words| task.more.are_of(words.mm))
            && rules_out(&words, task.more.last.write, address, if words.mm == mm { own_readers } else { 0 })
        {
            task.more = More::default();
        }
        // Innermost first: with one address space held twice, the later words are the outer hold's.
        let mut over = Vec::new();
        for (index, hold) in task.holds.iter().enumerate().rev() {
            let own = if hold.mm == mm { own_readers } else { 0 };
            let told = words.iter().position(|words| words.mm == hold.mm).map(|at| words.remove(at));
            if told.is_some_and(|words| rules_out(&words, hold.write, address, own)) {
                over.push(index);
            }
        }
        for index in over {
            task.holds.remove(index);
        }
        if task.holds.is_empty() && task.more.count != 0 && !task.more.last.unsure {
            task.holds.push(Hold { open: false, ..task.more.last });
            task.more.end();
        }
        wanted |= !task.holds.is_empty();
        let mode = |write: bool| if write { LockMode::Write } else { LockMode::Read };
        let mut held: Vec<(u64, LockMode)> = task.holds.iter().map(|hold| (hold.mm, mode(hold.write))).collect();
        let more = (task.more.count != 0).then_some(&task.more.last);
        let mut certain = task.holds.iter().chain(more).any(|hold| !hold.unsure && !hold.doubted);
        // What is left are locks that the recording was not to follow: another process's, held by another's task.
        for words in words.iter().filter(|words| words.flags & held::STREAMED == 0) {
            let write = words.flags & held::WRITE != 0;
            let own = if words.mm == mm { own_readers } else { 0 };
            if !rules_out(words, write, address, own) {
                wanted |= words.flags & seen::WANTED != 0;
                certain = true;
                held.push((words.mm, mode(write)));
            }
        }
        let any = !held.is_empty() || task.more.count != 0;
        if let Some((lock, place)) = then {
            task.apply(&lock, place);
        }
        (any && wanted).then_some(Derived { task: address, address: fault, ts, held, certain })
    }

    /// Judges what is left when the stream has ended.
    pub fn finish(&mut self) -> Vec<Derived> {
        let mut open: Vec<u64> =
            self.tasks.iter().filter(|(_, task)| task.candidate.is_some()).map(|(address, _)| *address).collect();
        open.sort_unstable();
        open.into_iter().filter_map(|address| self.settle(address)).collect()
    }

    fn lock(&mut self, lock: &Lock) {
        let (place, confirm_by_lock) = (self.place, self.rules.confirm_by_lock);
        let (write, address) = (lock.flags & held::WRITE != 0, lock.brief.task);
        if lock.op == op::RELEASE {
            return self.release(address, lock.mm, write);
        }
        let Some(task) = known(&mut self.tasks, &mut self.crowded, address) else { return };
        if matches!(lock.op, op::ATTEMPT | op::ACQUIRED | op::FAILED)
            && let Some(fault) = task.pending.take()
            && confirm_by_lock
            && !write
            && lock.flags & seen::OWN_MM != 0
        {
            let candidate = Candidate {
                mm: lock.mm,
                address: fault,
                ts: lock.brief.ts,
                own_readers: u64::from(lock.op == op::ACQUIRED),
                wanted: lock.flags & seen::WANTED != 0,
                words: Vec::new(),
                then: Some((*lock, place)),
            };
            return task.faults(candidate, &self.strangers);
        }
        task.apply(lock, place);
    }

    fn release(&mut self, address: u64, mm: u64, write: bool) {
        let attached_at = self.rules.attached_at;
        let mut unjudged = false;
        if let Some(task) = self.tasks.get_mut(&address) {
            task.pending = None;
            // What there was no room for is further in than what there was.
            let further_in = task.more.count != 0 && task.more.last.mm == mm;
            if !further_in && let Some(index) = task.holds.iter().rposition(|hold| hold.mm == mm) {
                task.holds.remove(index);
                return;
            }
            if further_in || task.more.last.unsure {
                task.more.end();
                return;
            }
            unjudged = task.unjudged && task.start < attached_at;
        }
        // Whether a writer's hold was released by another, the lock's own word tells: it names the writer.
        if !write {
            if self.strangers.len() < MAX_KNOWN || self.strangers.contains_key(&mm) {
                self.strangers.insert(mm, self.place);
            } else {
                self.crowded += 1;
            }
        }
        self.before_known += u64::from(unjudged);
    }

    fn exception(&mut self, exception: &Exception) {
        // Kernel addresses need no mmap_lock, and with faults disabled the handler goes for none.
        if exception.nofault != 0 || exception.address >> 63 != 0 {
            return;
        }
        let confirm_by_lock = self.rules.confirm_by_lock;
        let Some(task) = known(&mut self.tasks, &mut self.crowded, exception.brief.task) else { return };
        if task.holds_any() {
            task.pending = Some(exception.address);
        } else if confirm_by_lock {
            task.unjudged = true;
        }
    }

    fn handler(&mut self, handler: &Handler) {
        if handler.user != 0 {
            return;
        }
        let Some(task) = known(&mut self.tasks, &mut self.crowded, handler.brief.task) else { return };
        // A task that the stream follows in part may hold what it was not told of; the words will say.
        if !task.holds_any() && handler.flags & seen::WANTED != 0 {
            task.unjudged = true;
        }
        task.pending = None;
        let candidate = Candidate {
            mm: handler.mm,
            address: handler.address,
            ts: handler.brief.ts,
            own_readers: 0,
            wanted: handler.flags & seen::WANTED != 0,
            words: Vec::new(),
            then: None,
        };
        task.faults(candidate, &self.strangers);
    }
}

/// The state of a task, made when there is none and room for it.
fn known<'a>(tasks: &'a mut HashMap<u64, Task>, crowded: &mut u64, address: u64) -> Option<&'a mut Task> {
    if tasks.len() >= MAX_KNOWN && !tasks.contains_key(&address) {
        *crowded += 1;
        return None;
    }
    Some(tasks.entry(address).or_default())
}

/// Whether a lock's words rule out that `task` holds it, or that another's release left no reader. `own` readers are the fault
/// handler's.
fn rules_out(words: &Words, write: bool, task: u64, own: u64) -> bool {
    if words.flags & seen::ENDED != 0 {
        return true;
    }
    if words.flags & seen::READABLE == 0 {
        return false;
    }
    let written = words.count & WRITER != 0;
    if write {
        return !written || words.sem_owner & !OWNER_FLAGS != task;
    }
    written || (words.count & (u64::MAX >> 1)) >> READER_SHIFT <= own
}

impl Task {
    /// The task faults: which of its holds are in doubt is settled now, whatever is released later.
    fn faults(&mut self, candidate: Candidate, strangers: &HashMap<u64, u64>) {
        let doubted = |mm: u64, since: u64| strangers.get(&mm).is_some_and(|place| *place > since);
        for hold in self.holds.iter_mut().chain([&mut self.more.last]) {
            hold.doubted = !hold.write && doubted(hold.mm, hold.since);
        }
        self.candidate = Some(candidate);
    }

    fn holds_any(&self) -> bool {
        !self.holds.is_empty() || self.more.count != 0
    }

    /// What a lock's event changes, besides telling of a fault.
    fn apply(&mut self, lock: &Lock, place: u64) {
        let write = lock.flags & held::WRITE != 0;
        let begin =
            Hold { mm: lock.mm, write, open: lock.op == op::ATTEMPT, unsure: false, doubted: false, since: place };
        match lock.op {
            op::ATTEMPT => {
                if let Some(last) = self.holds.last_mut().filter(|last| last.open) {
                    (last.open, last.unsure) = (false, true);
                }
                self.more.settle();
                self.begin(begin);
            }
            op::ACQUIRED => {
                self.more.settle();
                self.acquire(begin);
            }
            op::RETURNED_OK => {
                if let Some(last) = self.holds.last_mut().filter(|last| last.open) {
                    (last.open, last.since) = (false, place);
                }
                self.more.last.open = false;
            }
            op::SETTLED | op::UNSETTLED => {
                if let Some(last) = self.holds.last_mut().filter(|last| last.open) {
                    (last.open, last.unsure) = (false, lock.op == op::UNSETTLED);
                }
                self.more.settle();
            }
            op::RETURNED_FAIL if self.more.last.open => self.more.end(),
            op::RETURNED_FAIL => drop(self.holds.pop_if(|last| last.open)),
            op::DOWNGRADE if self.more.count != 0 && self.more.last.mm == lock.mm && self.more.last.write => {
                self.more.last.write = false;
            }
            op::DOWNGRADE => match self.holds.iter_mut().rfind(|hold| hold.mm == lock.mm) {
                Some(hold) => hold.write = false,
                None => self.begin(Hold { write: false, ..begin }),
            },
            _ => {}
        }
    }

    /// A hold begins; without room it is only counted.
    fn begin(&mut self, hold: Hold) {
        // With some there already, what is further in joins them.
        if self.holds.len() < MAX_HELD && self.more.count == 0 {
            self.holds.push(hold);
        } else {
            self.more.begin(hold);
        }
    }

    /// The lock is held for certain.
    fn acquire(&mut self, hold: Hold) {
        if let Some(index) = self.holds.iter().rposition(|old| old.mm == hold.mm) {
            match (self.holds.get_mut(index), hold.write) {
                (Some(old), false) if old.write => {
                    old.write = false;
                    return;
                }
                // A writer is alone: an older hold of the same lock cannot still be there.
                (_, true) => drop(self.holds.remove(index)),
                _ => {}
            }
        }
        self.begin(hold);
    }
}

#[cfg(test)]
mod tests;
