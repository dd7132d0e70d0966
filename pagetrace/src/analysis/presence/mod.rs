//! Which pages should be present, from events, held against which are: the model behind `pagetrace verify`.
//!
//! Pure: it is given faults, changes of maps, births and ends with their times, and what page tables had at moments when
//! nothing ran; it reads nothing and has no clock. An explanation is earned by an event or by a property of a mapping. What earned
//! none is unexplained, and an event that was lost shows as just that.

mod event;
mod look;
mod ranges;
mod space;
mod tally;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

pub use event::{Change, Changed, Fault, Folios, Mode, NoFolios, Occasion, Outcome, Run, Snapshot, SpaceId};
pub use ranges::RangeMap;
pub use tally::{Class, Gone, LISTED, Tally, Unexplained};

use look::Look;
use space::{Event, Space};

/// Most faults of threads that are not known yet which are kept for them.
const MOST_STRANGERS: usize = 65536;

/// All address spaces of a run.
#[derive(Debug)]
pub struct World {
    spaces: BTreeMap<SpaceId, Space>,
    /// Where each thread lives.
    threads: HashMap<u32, SpaceId>,
    /// Which address space an `mm_struct` was last seen to be.
    mms: HashMap<u64, SpaceId>,
    /// Faults of threads that have not been announced yet.
    strangers: Vec<Fault>,
    around: u64,
    page_size: u64,
    tally: Tally,
}

impl World {
    /// Knows nobody. `around` is how many pages the kernel maps at once around a read fault.
    #[must_use]
    pub fn new(page_size: u64, around: u64) -> Self {
        Self {
            spaces: BTreeMap::new(),
            threads: HashMap::new(),
            mms: HashMap::new(),
            strangers: Vec::new(),
            around,
            page_size: page_size.max(1),
            tally: Tally::default(),
        }
    }

    /// A thread lives in an address space that is known, or becomes so now.
    pub fn thread(&mut self, tid: u32, pid: u32, space: SpaceId) {
        self.threads.insert(tid, space);
        self.spaces.entry(space).or_insert_with(|| Space { pid, ..Space::default() });
        for fault in std::mem::take(&mut self.strangers) {
            self.fault(fault);
        }
    }

    /// A fault. It is applied later, by its time.
    pub fn fault(&mut self, fault: Fault) {
        let of_thread = self.threads.get(&fault.tid).copied().filter(|_| fault.mode != Mode::Pinning);
        if let Some(space) = of_thread {
            self.mms.insert(fault.mm, space);
        }
        // Of a foreign thread, or of memory that a thread's own is not.
        // The memory of an mm that is gone serves another's: its owner tells.
        let is_owners =
            |space: &&SpaceId| fault.owner == 0 || self.spaces.get(space).is_some_and(|space| space.pid == fault.owner);
        let by_mm = || self.mms.get(&fault.mm).filter(is_owners).or_else(|| self.threads.get(&fault.owner)).copied();
        let known = of_thread.or_else(by_mm).and_then(|space| self.spaces.get_mut(&space));
        match known {
            Some(space) => {
                self.tally.faults += 1;
                space.touched = true;
                space.pending.push(Event::Fault(fault));
            }
            None if self.strangers.len() < MOST_STRANGERS => self.strangers.push(fault),
            None => self.tally.strangers += 1,
        }
    }

    /// A change of a map.
    pub fn changed(&mut self, space: SpaceId, changed: Changed) {
        if let Some(space) = self.spaces.get_mut(&space) {
            space.touched = true;
            space.pending.push(Event::Changed(changed));
        }
    }

    /// Applies everything up to a moment, in all address spaces: nothing older is to come.
    pub fn settle(&mut self, until: u64) {
        let Self { spaces, around, tally, .. } = self;
        spaces.values_mut().for_each(|space| space.settle(until, *around, tally));
    }

    /// A child was forked between two moments, into an address space of its own.
    pub fn forked(&mut self, parent: SpaceId, child: SpaceId, pid: u32, call: u64, now: u64) {
        let Self { spaces, around, tally, .. } = self;
        if let Some(parent) = spaces.get_mut(&parent) {
            parent.settle(call, *around, tally);
            let mut copy = parent.fork(pid);
            // Other threads went on meanwhile; whether the copy was made before or after is not known.
            parent.settle(now, *around, tally);
            copy.join(parent);
            spaces.insert(child, copy);
        }
        self.thread(pid, pid, child);
    }

    /// A thread's process runs another program, in a new address space, since a moment; the call began at another.
    pub fn executed(&mut self, tid: u32, pid: u32, space: SpaceId, call: u64, now: u64) {
        let mut made = Space { pid, base: Some(Class::Exec), ..Space::default() };
        let before = self.threads.get(&tid).copied();
        if let Some(old) = before.and_then(|before| self.spaces.get_mut(&before)) {
            // The kernel touched the old memory or built the new one; only being there tells which.
            // On its way a thread gets its process's id (fs/exec.c, `de_thread`).
            let by_exec = |fault: &Fault| [tid, pid].contains(&fault.tid) && (call..=now).contains(&fault.at);
            let (by_exec, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut old.pending)
                .into_iter()
                .partition(|event| matches!(event, Event::Fault(fault) if by_exec(fault)));
            old.pending = rest;
            for event in by_exec {
                if let Event::Fault(fault) = event {
                    made.built.set(fault.page..fault.page.saturating_add(1), ());
                }
            }
            old.settle(now, self.around, &mut self.tally);
        }
        self.threads.remove(&tid);
        self.mms.retain(|_, of| Some(*of) != before);
        self.spaces.insert(space, made);
        self.thread(pid, pid, space);
        if let Some(before) = before {
            self.leave(before, Gone::Exec);
        }
    }

    /// A thread is gone.
    pub fn ended(&mut self, tid: u32) {
        if let Some(space) = self.threads.remove(&tid) {
            self.leave(space, Gone::NotLooked);
        }
    }

    /// An address space goes with the last of its threads.
    fn leave(&mut self, space: SpaceId, why: Gone) {
        if self.threads.values().any(|of| *of == space) {
            return;
        }
        if let Some(mut gone) = self.spaces.remove(&space) {
            gone.settle(u64::MAX, self.around, &mut self.tally);
            gone.end(why, &mut self.tally);
        }
        self.mms.retain(|_, of| *of != space);
    }

    /// Compares an address space with what was found. All faults up to now have to be known, those during the reading as well.
    pub fn look(&mut self, id: SpaceId, snapshot: &Snapshot, folios: &mut dyn Folios) {
        let Self { spaces, around, tally, page_size, .. } = self;
        let Some(space) = spaces.get_mut(&id) else { return };
        space.settle(snapshot.begun, *around, tally);
        let mut meanwhile = RangeMap::default();
        for event in &space.pending {
            if let Event::Fault(fault) = event {
                meanwhile.set(fault.page..fault.page.saturating_add(1), Class::Fault);
            }
        }
        let unfinished = space.unfinished(snapshot.begun);
        let look = Look { space, snapshot, meanwhile, unfinished, around: *around, page_size: *page_size };
        let found = look.compare(folios, tally);
        space.cells = found;
        space.around.clear();
        space.reads.clear();
        space.built.clear();
        space.base = None;
        space.shortened = false;
        space.touched = false;
    }

    /// Events that wait to be applied.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.spaces.values().map(|space| space.pending.len()).sum()
    }

    /// Whether nothing happened in it since it was looked at.
    #[must_use]
    pub fn is_idle(&self, id: SpaceId) -> bool {
        self.spaces.get(&id).is_none_or(|space| !space.touched)
    }

    /// The sums. Ends all that still lives.
    #[must_use]
    pub fn finish(mut self) -> Tally {
        for space in self.spaces.values_mut() {
            space.settle(u64::MAX, self.around, &mut self.tally);
            space.end(Gone::LeftRunning, &mut self.tally);
        }
        self.tally.strangers += self.strangers.len() as u64;
        self.tally
    }
}
