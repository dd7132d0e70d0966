//! Waits that stand now: tasks that are blocked on locks whose holders wait in turn. Pure: the caller says who is blocked.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use super::LockMode;

/// A lock and how it is held or wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim {
    /// What tells the lock from others: its address, or the address space that it is of.
    pub lock: u64,
    /// Read or write.
    pub mode: LockMode,
}

/// A task that does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// What it holds.
    pub holds: Vec<Claim>,
    /// What it waits for.
    pub wants: Claim,
}

/// Why one task waits for the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Because {
    /// The next holds the lock.
    Holds,
    /// The next is a writer that queued for the lock, and readers queue behind it.
    Queued,
    /// The next reads, and a writer that is not known has queued for the lock in between.
    QueuedUnknown,
}

/// A task of a cycle, by its place among the blocked, and why it waits for the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Place of the task.
    pub task: usize,
    /// Why it waits.
    pub because: Because,
}

/// Tasks that wait for each other, each for the next and the last for the first.
pub type Standstill = Vec<Step>;

/// Why `one` waits for `other`, if it does. `writers` are the locks that a blocked task is known to want for writing.
fn waits_for(one: &Blocked, other: &Blocked, same: bool, writers: &HashSet<u64>) -> Option<Because> {
    let wants = one.wants;
    let held = other.holds.iter().filter(|claim| claim.lock == wants.lock);
    let mut modes = held.map(|claim| claim.mode);
    let first = modes.next();
    if first.is_some() && wants.mode == LockMode::Write
        || first.into_iter().chain(modes).any(|mode| mode == LockMode::Write)
    {
        return Some(Because::Holds);
    }
    // A writer waits for who holds the lock, and for nobody in the queue that is not let in by these.
    if wants.mode == LockMode::Write {
        return None;
    }
    // Readers do not wait for readers, but queue behind a writer (kernel/locking/rwsem.c, `RWSEM_READ_FAILED_MASK`).
    let writer = other.wants == (Claim { lock: wants.lock, mode: LockMode::Write });
    if !same && writer {
        return Some(Because::Queued);
    }
    // One that is blocked all the same is behind a writer that is not known, and that one waits for every reader.
    (first.is_some() && !writers.contains(&wants.lock)).then_some(Because::QueuedUnknown)
}

/// Who holds a lock and who waits for it.
#[derive(Debug, Clone, Default)]
struct Crowd {
    holders: BTreeSet<usize>,
    readers: usize,
    writers: BTreeSet<usize>,
}

impl Crowd {
    /// The crowds of all locks that one of these tasks waits for.
    fn all(blocked: &[Blocked], tasks: &[usize]) -> HashMap<u64, Self> {
        let mut crowds: HashMap<u64, Self> = HashMap::new();
        for &at in tasks {
            let wants = blocked[at].wants;
            let crowd = crowds.entry(wants.lock).or_default();
            match wants.mode {
                LockMode::Read => crowd.readers += 1,
                LockMode::Write => {
                    crowd.writers.insert(at);
                }
            }
        }
        for &at in tasks {
            for claim in &blocked[at].holds {
                crowds.entry(claim.lock).and_modify(|crowd| {
                    crowd.holders.insert(at);
                });
            }
        }
        crowds
    }

    /// Whether whoever wants the lock in this mode can have somebody to wait for.
    fn keeps(&self, mode: LockMode) -> bool {
        !self.holders.is_empty() || mode == LockMode::Read && !self.writers.is_empty()
    }
}

/// Who waits for whom, told by the locks in between: comparing each task with each takes long where many wait.
struct Waits<'a> {
    blocked: &'a [Blocked],
    crowds: HashMap<u64, Crowd>,
    /// Locks that a blocked task is known to want for writing.
    writers: HashSet<u64>,
}

impl<'a> Waits<'a> {
    fn new(blocked: &'a [Blocked], crowds: HashMap<u64, Crowd>) -> Self {
        Self { blocked, crowds, writers: writers(blocked) }
    }

    /// Whom a task waits for, and why.
    fn next(&self, at: usize) -> impl Iterator<Item = (usize, Because)> + '_ {
        let one = &self.blocked[at];
        let crowd = self.crowds.get(&one.wants.lock);
        let others = crowd.into_iter().flat_map(|crowd| crowd.holders.union(&crowd.writers).copied());
        others.filter_map(move |to| Some((to, waits_for(one, &self.blocked[to], at == to, &self.writers)?)))
    }

    /// A shortest way from a task back to it.
    fn around(&self, start: usize) -> Option<Standstill> {
        let mut before: HashMap<usize, Step> = HashMap::new();
        // All that wait for a lock in one way wait for the same tasks.
        let mut asked: HashSet<Claim> = HashSet::new();
        let mut open = VecDeque::from([start]);
        while let Some(at) = open.pop_front() {
            if !asked.insert(self.blocked[at].wants) {
                continue;
            }
            for (to, because) in self.next(at) {
                let step = Step { task: at, because };
                if to == start {
                    let back = |step: &Step| before.get(&step.task).copied();
                    let mut cycle: Standstill = std::iter::successors(Some(step), back).collect();
                    cycle.reverse();
                    return Some(cycle);
                }
                before.entry(to).or_insert_with(|| {
                    open.push_back(to);
                    step
                });
            }
        }
        None
    }
}

/// Places of the tasks that can be in a circle, no more than `most` of them unless the last circle is larger: of a crowd that only
/// waits behind others, none. It takes claims at their word, so that what it leaves out need not be looked at any closer.
pub fn in_circles(blocked: &[Blocked], most: usize) -> Vec<usize> {
    // Whoever waits for nobody that is left, or is waited for by nobody that is left, is in no circle.
    let mut left: Vec<usize> = (0..blocked.len()).collect();
    let crowds = loop {
        let crowds = Crowd::all(blocked, &left);
        let before = left.len();
        left.retain(|at| {
            let Blocked { holds, wants } = &blocked[*at];
            let crowd = crowds.get(&wants.lock);
            let queued = wants.mode == LockMode::Write && crowd.is_some_and(|it| it.readers != 0);
            let awaited = queued || holds.iter().any(|claim| crowds.contains_key(&claim.lock));
            awaited && crowd.is_some_and(|it| it.keeps(wants.mode))
        });
        if left.len() == before {
            break crowds;
        }
    };
    if left.len() <= most {
        return left;
    }
    let waits = Waits::new(blocked, crowds);
    let mut chosen = BTreeSet::new();
    for start in left {
        if chosen.len() >= most {
            break;
        }
        if !chosen.contains(&start) {
            chosen.extend(waits.around(start).into_iter().flatten().map(|step| step.task));
        }
    }
    chosen.into_iter().collect()
}

fn writers(blocked: &[Blocked]) -> HashSet<u64> {
    let writers = blocked.iter().filter(|it| it.wants.mode == LockMode::Write);
    writers.map(|it| it.wants.lock).collect()
}

/// The cycles in which the blocked tasks wait for each other, each set of tasks once, shortest first.
pub fn standstills(blocked: &[Blocked]) -> Vec<Standstill> {
    let all: Vec<usize> = (0..blocked.len()).collect();
    let waits = Waits::new(blocked, Crowd::all(blocked, &all));
    let mut found: Vec<Standstill> = all.into_iter().filter_map(|start| waits.around(start)).collect();
    found.sort_by_key(Vec::len);
    let mut told: Vec<BTreeSet<usize>> = Vec::new();
    found.retain(|cycle| {
        let tasks: BTreeSet<usize> = cycle.iter().map(|step| step.task).collect();
        let new = !told.iter().any(|known| known.is_subset(&tasks));
        told.extend(new.then_some(tasks));
        new
    });
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const READ: LockMode = LockMode::Read;
    const WRITE: LockMode = LockMode::Write;

    fn task(holds: &[(u64, LockMode)], wants: (u64, LockMode)) -> Blocked {
        let claim = |(lock, mode): (u64, LockMode)| Claim { lock, mode };
        Blocked { holds: holds.iter().copied().map(claim).collect(), wants: claim(wants) }
    }

    fn tasks(cycle: &Standstill) -> Vec<(usize, Because)> {
        cycle.iter().map(|step| (step.task, step.because)).collect()
    }

    #[test]
    fn a_task_can_wait_for_itself() {
        let found = standstills(&[task(&[(7, WRITE)], (7, READ))]);
        assert_eq!(found.iter().map(tasks).collect::<Vec<_>>(), [[(0, Because::Holds)]]);
    }

    #[test]
    fn a_reader_waits_behind_a_writer_that_waits_for_it() {
        let blocked = [task(&[(7, READ)], (7, READ)), task(&[], (7, WRITE))];
        let found = standstills(&blocked);
        assert_eq!(found.iter().map(tasks).collect::<Vec<_>>(), [[(0, Because::Queued), (1, Because::Holds)]]);
        let alone = standstills(&blocked[..1]);
        assert_eq!(alone.iter().map(tasks).collect::<Vec<_>>(), [[(0, Because::QueuedUnknown)]]);
    }

    #[test]
    fn two_and_three_tasks_wait_in_a_circle_and_who_waits_behind_them_is_not_in_it() {
        let blocked = [
            task(&[(1, WRITE)], (2, WRITE)),
            task(&[(2, READ)], (3, WRITE)),
            task(&[(3, WRITE)], (1, READ)),
            task(&[(4, WRITE)], (1, WRITE)),
        ];
        let found = standstills(&blocked);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].iter().map(|step| step.task).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn readers_that_wait_for_each_other_have_writers_between_them() {
        let mut blocked = vec![task(&[(1, READ)], (2, READ)), task(&[(2, READ)], (1, READ))];
        let why = |blocked: &[Blocked]| standstills(blocked).iter().map(tasks).collect::<Vec<_>>();
        assert_eq!(why(&blocked), [[(0, Because::QueuedUnknown), (1, Because::QueuedUnknown)]]);
        blocked.push(task(&[], (2, WRITE)));
        assert_eq!(why(&blocked), [[(0, Because::Queued), (2, Because::Holds), (1, Because::QueuedUnknown)]]);
    }

    #[test]
    fn waiting_is_no_deadlock() {
        assert!(standstills(&[task(&[(1, WRITE)], (2, WRITE)), task(&[(3, WRITE)], (1, WRITE))]).is_empty());
        assert!(standstills(&[task(&[(1, READ)], (2, READ)), task(&[(3, READ)], (2, WRITE))]).is_empty());
        // Two writers behind a holder that is on its way.
        assert!(standstills(&[task(&[(1, READ)], (2, WRITE)), task(&[(3, READ)], (2, WRITE))]).is_empty());
        assert!(standstills(&[task(&[], (2, WRITE)), task(&[], (2, WRITE)), task(&[], (2, READ))]).is_empty());
    }

    #[test]
    fn a_crowd_that_waits_does_not_hide_the_two_that_stand() {
        // A thousand that hold a lock each and wait for one that is busy, and one that waits for each of them.
        let mut blocked: Vec<_> = (0..1000_u64).map(|nth| task(&[(100 + nth, WRITE)], (1, WRITE))).collect();
        blocked.extend((0..1000_u64).map(|nth| task(&[(5000 + nth, WRITE)], (100 + nth, READ))));
        assert!(in_circles(&blocked, 8).is_empty());
        blocked.insert(700, task(&[(2, WRITE)], (3, READ)));
        blocked.push(task(&[(3, WRITE)], (2, WRITE)));
        assert_eq!(in_circles(&blocked, 8), [700, 2001]);
        // Many circles: as many as are asked for, each whole.
        let pairs = |pair: u32| {
            let (a, b) = (u64::from(pair) * 2, u64::from(pair) * 2 + 1);
            [task(&[(a, WRITE)], (b, WRITE)), task(&[(b, WRITE)], (a, WRITE))]
        };
        let many: Vec<_> = (0..500).flat_map(pairs).collect();
        assert_eq!(in_circles(&many, 7), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    proptest! {
        #[test]
        fn every_standstill_is_one_and_none_is_missed(
            world in proptest::collection::vec(
                (proptest::collection::vec((0_u64..4, any::<bool>()), 0..3), 0_u64..4, any::<bool>()), 0..6),
        ) {
            let mode = |write: bool| if write { WRITE } else { READ };
            let blocked: Vec<_> = world
                .iter()
                .map(|(holds, lock, write)| {
                    let holds: Vec<_> = holds.iter().map(|(lock, write)| (*lock, mode(*write))).collect();
                    task(&holds, (*lock, mode(*write)))
                })
                .collect();
            let found = standstills(&blocked);
            let writers = writers(&blocked);
            let why = |one: usize, other: usize| waits_for(&blocked[one], &blocked[other], one == other, &writers);
            for cycle in &found {
                for (step, next) in cycle.iter().zip(cycle.iter().cycle().skip(1)) {
                    prop_assert_eq!(why(step.task, next.task), Some(step.because));
                }
            }
            // Strike out, again and again, who waits for none of the rest: whoever is left stands still.
            let mut stuck: Vec<usize> = (0..blocked.len()).collect();
            loop {
                let waits = |one: &usize| stuck.iter().any(|&other| why(*one, other).is_some());
                let left: Vec<usize> = stuck.iter().copied().filter(waits).collect();
                if left.len() == stuck.len() {
                    break;
                }
                stuck = left;
            }
            prop_assert_eq!(found.is_empty(), stuck.is_empty());
            // Those in circles are enough to find the same, and few of them to find something.
            let of = |places: &[usize], found: &[Standstill]| -> BTreeSet<Vec<usize>> {
                let sorted = |cycle: &Standstill| {
                    let mut tasks: Vec<usize> = cycle.iter().map(|step| places[step.task]).collect();
                    tasks.sort_unstable();
                    tasks
                };
                found.iter().map(sorted).collect()
            };
            let among = |most: usize| {
                let places = in_circles(&blocked, most);
                let blocked: Vec<_> = places.iter().map(|at| blocked[*at].clone()).collect();
                of(&places, &standstills(&blocked))
            };
            let all: Vec<usize> = (0..blocked.len()).collect();
            prop_assert_eq!(&among(usize::MAX), &of(&all, &found));
            prop_assert_eq!(among(1).is_empty(), found.is_empty());
        }
    }
}
