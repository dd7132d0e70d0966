//! A world of tasks and locks that knows the truth, since it makes it: it keeps who holds which lock as the lock itself
//! would, not as a stack of holds a task, and tells only what hooks would see. Nothing of the model's rules is in it.

use std::collections::{BTreeMap, BTreeSet};

use pagetrace_ebpf::wire::{
    lock::held,
    stream::{self, Brief, Exception, Handler, Lock, Words, life, op, seen},
};

use super::super::{MAX_HELD, Rules};
use crate::record::Record;

/// A small generator: schedules must be many, and each must be told by its number.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
    pub(super) fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

/// A lock as it really is.
#[derive(Debug, Clone, Default)]
pub(super) struct Sem {
    writer: Option<u64>,
    /// Tasks by how often they hold it for reading.
    readers: BTreeMap<u64, u32>,
    last_reader: u64,
}

impl Sem {
    fn free(&self) -> bool {
        self.writer.is_none() && self.readers.is_empty()
    }
    /// As kernel/locking/rwsem.c keeps them.
    fn words(&self) -> (u64, u64) {
        let readers: u32 = self.readers.values().sum();
        let count = u64::from(readers) << 8 | u64::from(self.writer.is_some());
        (count, self.writer.unwrap_or(self.last_reader | 1))
    }
    fn drop_reader(&mut self, task: u64) {
        if let Some(times) = self.readers.get_mut(&task) {
            *times -= 1;
            if *times == 0 {
                self.readers.remove(&task);
            }
        }
    }
}

/// How the hooks of a run see locks and faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attach {
    /// Attempts and returns; the handler is seen.
    Functions,
    /// Outcomes only; downgrades look like read acquisitions; the handler is not seen.
    Tracepoints,
}

#[derive(Debug, Clone)]
pub(super) struct Actor {
    address: u64,
    mm: u64,
    born: u64,
}

/// What must be derived of one fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Truth {
    pub(super) task: u64,
    pub(super) address: u64,
    pub(super) held: BTreeSet<(u64, bool)>,
    /// Not all of them can be known by name.
    pub(super) piled: bool,
}

pub(super) struct World {
    dice: Dice,
    pub(super) attach: Attach,
    sems: BTreeMap<u64, Sem>,
    actors: Vec<Actor>,
    clock: u64,
    next_task: u64,
    told: bool,
    /// Holds of each task as far as events tell them: acquisitions less its own releases.
    told_holds: BTreeMap<u64, u32>,
    /// Tasks that have held more locks at once than are told apart.
    piled: BTreeSet<u64>,
    /// There was such a task.
    pub(super) ever_piled: bool,
    /// Locks whose reader was handed to another task: whether the giver still holds it cannot be known.
    doubtful: BTreeSet<u64>,
    /// Locks taken before the tracing.
    unseen: BTreeSet<(u64, u64)>,
    /// Tasks that have held such, or have released what others had taken.
    strange: BTreeSet<u64>,
    pub(super) records: Vec<Record>,
    pub(super) truths: Vec<Truth>,
    /// Faults that nothing can be demanded of.
    pub(super) excused: BTreeSet<(u64, u64)>,
}

const MMS: [u64; 4] = [0xffff_8880_0000_1000, 0xffff_8880_0000_2000, 0xffff_8880_0000_3000, 0xffff_8880_0000_4000];
const ATTACHED_AT: u64 = 1000;

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let attach = if dice.one_in(2) { Attach::Functions } else { Attach::Tracepoints };
        let mut world = Self {
            dice,
            attach,
            sems: MMS.iter().map(|mm| (*mm, Sem::default())).collect(),
            actors: Vec::new(),
            clock: 1,
            next_task: 0xffff_8880_1000_0000,
            told: false,
            told_holds: BTreeMap::new(),
            piled: BTreeSet::new(),
            ever_piled: false,
            doubtful: BTreeSet::new(),
            strange: BTreeSet::new(),
            unseen: BTreeSet::new(),
            records: Vec::new(),
            truths: Vec::new(),
            excused: BTreeSet::new(),
        };
        for _ in 0..2 + world.dice.roll(3) {
            world.be_born();
        }
        world
    }

    fn be_born(&mut self) {
        // Every other task gets the address of one that ended.
        let used: BTreeSet<u64> = self.actors.iter().map(|actor| actor.address).collect();
        let address = (0..4).map(|n| 0xffff_8880_1000_0000 + n * 64).find(|at| !used.contains(at));
        self.next_task += 4096;
        let address = address.filter(|_| self.dice.one_in(2)).unwrap_or(self.next_task);
        let mm = MMS[self.dice.roll(3) as usize];
        self.actors.push(Actor { address, mm, born: self.clock });
        let (start, op) = (self.clock, life::SEEN);
        let brief = self.brief(address, 0);
        self.tell(Record::Task(stream::Task { brief, start, op, ..stream::Task::default() }));
    }

    fn brief(&self, task: u64, kind: u32) -> Brief {
        Brief { kind, cpu: 0, ts: self.clock, task }
    }

    fn tell(&mut self, record: Record) {
        if self.told {
            self.records.push(record);
        }
    }

    fn lock_event(&mut self, actor: &Actor, mm: u64, op: u32, mode: u32) {
        let own = if actor.mm == mm { seen::OWN_MM } else { 0 };
        let flags = mode | own | seen::WANTED;
        let brief = self.brief(actor.address, 16);
        self.tell(Record::Lock(Lock { brief, mm, op, flags, stack_id: -1, pad: 0 }));
    }

    /// Tells of an acquisition as the hooks see it.
    fn told_acquisition(&mut self, actor: &Actor, mm: u64, mode: u32, can_fail: bool, had: bool) {
        // One that fails takes room until it has.
        self.counts(actor.address);
        if !had {
            self.uncount(actor.address);
        }
        match (self.attach, can_fail) {
            (Attach::Functions, true) => {
                self.lock_event(actor, mm, op::ATTEMPT, mode);
                self.clock += 1;
                // A return that is missed is made up for when it matters.
                let ended = match (had, self.dice.one_in(8)) {
                    (true, true) => op::SETTLED,
                    (true, false) => op::RETURNED_OK,
                    (false, _) => op::RETURNED_FAIL,
                };
                self.lock_event(actor, mm, ended, mode);
            }
            _ => self.lock_event(actor, mm, if had { op::ACQUIRED } else { op::FAILED }, mode & !held::TRY),
        }
    }

    fn really_holds(&self, task: u64) -> BTreeSet<(u64, bool)> {
        let mut out = BTreeSet::new();
        for (mm, sem) in &self.sems {
            if sem.writer == Some(task) {
                out.insert((*mm, true));
            }
            if sem.readers.contains_key(&task) {
                out.insert((*mm, false));
            }
        }
        out
    }

    fn step(&mut self) {
        self.clock += 1;
        let who = self.dice.roll(self.actors.len() as u64) as usize;
        let actor = self.actors[who].clone();
        let mm = MMS[self.dice.roll(MMS.len() as u64) as usize];
        match self.dice.roll(21) {
            0..=4 => self.read_lock(&actor, mm),
            5..=6 => self.write_lock(&actor, mm),
            7..=10 => self.release_something(&actor),
            11 => self.downgrade(&actor),
            12..=15 => self.fault(&actor, mm),
            16 => self.nofault(&actor, mm),
            17 => self.hand_over(&actor),
            18 => self.end(who),
            19 => self.pile(&actor, mm),
            _ => self.be_born(),
        }
    }

    fn read_lock(&mut self, actor: &Actor, mm: u64) {
        let task = actor.address;
        let had = self.sems[&mm].writer.is_none();
        // A reader that would have to wait only tries.
        let tries = !had || self.dice.one_in(3);
        if had {
            let sem = self.sems.get_mut(&mm).unwrap();
            *sem.readers.entry(task).or_insert(0) += 1;
            sem.last_reader = task;
            if !self.told {
                self.unseen.insert((task, mm));
                self.strange.insert(task);
            }
        }
        let mode = held::READ | if tries { held::TRY } else { 0 };
        self.told_acquisition(actor, mm, mode, tries, had);
    }

    /// One address space's lock, time and again; sometimes another task lets go of all that.
    fn pile(&mut self, actor: &Actor, mm: u64) {
        let times = MAX_HELD as u64 - 2 + self.dice.roll(6);
        for _ in 0..times {
            self.read_lock(actor, mm);
        }
        if self.dice.one_in(2) {
            (0..times).for_each(|_| self.hand_over(actor));
        }
    }

    fn uncount(&mut self, task: u64) {
        if let Some(holds) = self.told_holds.get_mut(&task) {
            *holds = holds.saturating_sub(1);
        }
    }

    /// A hold began that events tell of.
    fn counts(&mut self, task: u64) {
        let holds = self.told_holds.entry(task).or_default();
        *holds += u32::from(self.told);
        if *holds as usize > MAX_HELD {
            self.piled.insert(task);
            self.ever_piled = true;
        }
    }

    fn write_lock(&mut self, actor: &Actor, mm: u64) {
        let had = self.sems[&mm].free();
        if had {
            self.sems.get_mut(&mm).unwrap().writer = Some(actor.address);
            if !self.told {
                self.unseen.insert((actor.address, mm));
                self.strange.insert(actor.address);
            }
        }
        let tries = !had || self.dice.one_in(3);
        self.told_acquisition(actor, mm, held::WRITE | if tries { held::TRY } else { 0 }, tries, had);
    }

    fn release(&mut self, actor: &Actor, mm: u64) {
        let sem = self.sems.get_mut(&mm).unwrap();
        let mode = if sem.writer == Some(actor.address) { held::WRITE } else { held::READ };
        // The hook fires before the lock is free.
        let (write, task) = (mode == held::WRITE, actor.address);
        if write {
            sem.writer = None;
        } else {
            sem.drop_reader(task);
        }
        let still = sem.readers.contains_key(&task);
        if !self.unseen.contains(&(task, mm)) {
            self.uncount(task);
        } else {
            // To whoever did not see it taken, this is a stranger's release.
            self.doubtful.insert(mm);
            if !still {
                self.unseen.remove(&(task, mm));
            }
        }
        self.lock_event(actor, mm, op::RELEASE, mode);
    }

    fn release_something(&mut self, actor: &Actor) {
        let held: Vec<_> = self.really_holds(actor.address).into_iter().collect();
        if !held.is_empty() {
            // Not always the innermost.
            let (mm, _) = held[self.dice.roll(held.len() as u64) as usize];
            self.release(actor, mm);
        }
    }

    fn downgrade(&mut self, actor: &Actor) {
        let Some((mm, _)) = self.really_holds(actor.address).into_iter().find(|(_, write)| *write) else { return };
        let sem = self.sems.get_mut(&mm).unwrap();
        sem.writer = None;
        sem.readers.insert(actor.address, 1);
        sem.last_reader = actor.address;
        if self.unseen.contains(&(actor.address, mm)) {
            // From now on events tell of it.
            self.counts(actor.address);
        }
        let seen_as = if self.attach == Attach::Functions { op::DOWNGRADE } else { op::ACQUIRED };
        self.lock_event(actor, mm, seen_as, held::READ);
    }

    /// A reader's lock is released by somebody else, as `up_read_non_owner` serves for.
    fn hand_over(&mut self, actor: &Actor) {
        let read = self.really_holds(actor.address).into_iter().find(|(_, write)| !write);
        let stranger = self.actors.iter().find(|other| {
            other.address != actor.address && self.really_holds(other.address).iter().all(|(_, write)| *write)
        });
        let (Some((mm, _)), Some(stranger)) = (read, stranger.cloned()) else { return };
        if self.really_holds(stranger.address).iter().any(|(of, _)| *of == mm) {
            return;
        }
        self.sems.get_mut(&mm).unwrap().drop_reader(actor.address);
        self.doubtful.insert(mm);
        self.strange.insert(stranger.address);
        if !self.sems[&mm].readers.contains_key(&actor.address) {
            self.unseen.remove(&(actor.address, mm));
        }
        self.lock_event(&stranger, mm, op::RELEASE, held::READ);
    }

    /// A kernel-mode access to untouched user memory, faults enabled.
    fn fault(&mut self, actor: &Actor, mm: u64) {
        // Mostly in one's own address space; a kernel thread may fault in any.
        let foreign = self.attach == Attach::Functions && self.dice.one_in(4);
        let mm = if foreign { mm } else { actor.mm };
        let task = actor.address;
        let address = 0x7000_0000_0000 + self.clock * 4096;
        let truth = self.really_holds(task);
        if self.told {
            let blind = truth.iter().any(|(of, _)| self.unseen.contains(&(task, *of)));
            // Of a lock that nobody holds the words tell.
            let unsure = |of: &u64| !self.sems[of].free() && self.model_may_think(task, *of);
            // A release of a lock that it was not seen to take is taken for that of another, when there are too many to tell.
            let blind = blind || self.piled.contains(&task) && self.strange.contains(&task);
            if blind || self.doubtful.iter().any(unsure) {
                self.excused.insert((task, address));
            }
            if !truth.is_empty() {
                self.truths.push(Truth { task, address, held: truth, piled: self.piled.contains(&task) });
            }
        }
        let brief = self.brief(task, 17);
        self.tell(Record::Exception(Exception { brief, address, ip: 1, error: 0, nofault: 0, flags: seen::WANTED }));
        self.clock += 1;
        let can = self.sems[&mm].writer.is_none();
        match self.attach {
            Attach::Functions => {
                let brief = self.brief(task, 18);
                let flags = seen::WANTED;
                self.tell(Record::Handler(Handler { brief, mm, address, ip: 1, user: 0, flags }));
                self.tell_words(task);
            }
            Attach::Tracepoints => {
                // The handler's attempt is what tells; its own reader is in the word by then.
                if can {
                    *self.sems.get_mut(&mm).unwrap().readers.entry(task).or_insert(0) += 1;
                }
                self.lock_event(actor, mm, if can { op::ACQUIRED } else { op::FAILED }, held::READ);
                self.tell_words(task);
                if can {
                    self.sems.get_mut(&mm).unwrap().drop_reader(task);
                    self.clock += 1;
                    self.lock_event(actor, mm, op::RELEASE, held::READ);
                }
                return;
            }
        }
        if can {
            self.lock_event(actor, mm, op::ATTEMPT, held::READ | held::TRY);
            self.lock_event(actor, mm, op::RETURNED_OK, held::READ | held::TRY);
            self.clock += 1;
            self.lock_event(actor, mm, op::RELEASE, held::READ);
        }
    }

    /// Whether a task that follows events can take `task` for a holder of a lock that was handed over.
    fn model_may_think(&self, task: u64, mm: u64) -> bool {
        self.records
            .iter()
            .any(|record| matches!(record, Record::Lock(lock) if lock.brief.task == task && lock.mm == mm))
    }

    /// The words of every lock; which of them count as held is for the reader to know.
    fn tell_words(&mut self, task: u64) {
        let brief = self.brief(task, 21);
        let all: Vec<_> = self.sems.iter().map(|(mm, sem)| (*mm, sem.words())).collect();
        for (mm, (count, sem_owner)) in all {
            // As often as the lock can be held, and once for what there is no room for.
            for more in [seen::MORE].into_iter().chain([0; MAX_HELD]) {
                let flags = held::STREAMED | seen::READABLE | more;
                self.tell(Record::Words(Words { brief, mm, count, sem_owner, flags, pad: 0 }));
            }
        }
    }

    /// Faults that are none of the handler's: disabled, kernel addresses, get_user_pages, user mode.
    fn nofault(&mut self, actor: &Actor, mm: u64) {
        let brief = self.brief(actor.address, 17);
        let (address, nofault) = if self.dice.one_in(2) { (0x1000, 1) } else { (0xffff_c900_0000_0000, 0) };
        self.tell(Record::Exception(Exception { brief, address, ip: 1, error: 0, nofault, flags: seen::WANTED }));
        if self.attach == Attach::Functions && self.dice.one_in(2) {
            let brief = self.brief(actor.address, 18);
            self.tell(Record::Handler(Handler { brief, mm, address, ip: 1, user: 1, flags: seen::WANTED }));
        }
    }

    fn end(&mut self, who: usize) {
        if self.actors.len() < 2 {
            return;
        }
        let actor = self.actors[who].clone();
        // Most tasks let go of what they hold. One that does not leaves the lock locked, and its state must go all the same.
        let leaks = self.dice.one_in(4);
        for (mm, write) in self.really_holds(actor.address) {
            if leaks {
                let sem = self.sems.get_mut(&mm).unwrap();
                if write {
                    sem.writer = None;
                } else {
                    sem.readers.remove(&actor.address);
                }
                self.unseen.remove(&(actor.address, mm));
            } else {
                while self.really_holds(actor.address).contains(&(mm, write)) {
                    self.release(&actor, mm);
                }
            }
        }
        self.actors.remove(who);
        self.told_holds.remove(&actor.address);
        self.piled.remove(&actor.address);
        self.strange.remove(&actor.address);
        let brief = self.brief(actor.address, 19);
        self.tell(Record::Task(stream::Task { brief, op: life::FREE, start: actor.born, ..stream::Task::default() }));
    }

    /// Plays a schedule; the tracing begins somewhere in it.
    pub(super) fn play(mut self) -> Self {
        for _ in 0..self.dice.roll(12) {
            self.step();
        }
        self.told = true;
        self.clock = self.clock.max(ATTACHED_AT);
        for actor in self.actors.clone() {
            let brief = self.brief(actor.address, 19);
            let (start, op) = (actor.born, life::SEEN);
            self.tell(Record::Task(stream::Task { brief, start, op, ..stream::Task::default() }));
        }
        for _ in 0..20 + self.dice.roll(40) {
            self.step();
        }
        self
    }

    pub(super) fn rules(&self) -> Rules {
        Rules { confirm_by_lock: self.attach == Attach::Tracepoints, attached_at: ATTACHED_AT }
    }
}
