//! Waits that stand now: tasks that are blocked on locks whose holders wait in turn. Pure: the caller says who is blocked.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use super::{LockMode, TaskId};

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
    /// Who.
    pub task: TaskId,
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

/// Who holds a lock and who waits for it, among the tasks that are left.
#[derive(Debug, Clone, Default)]
struct Crowd {
    holders: HashSet<usize>,
    readers: usize,
    writers: HashSet<usize>,
}

impl Crowd {
    /// The crowds of all locks that one of these tasks waits for.
    fn all(blocked: &[Blocked], left: &[usize]) -> HashMap<u64, Self> {
        let mut crowds: HashMap<u64, Self> = HashMap::new();
        for &at in left {
            let wants = blocked[at].wants;
            let crowd = crowds.entry(wants.lock).or_default();
            match wants.mode {
                LockMode::Read => crowd.readers += 1,
                LockMode::Write => {
                    crowd.writers.insert(at);
                }
            }
        }
        for &at in left {
            for claim in &blocked[at].holds {
                crowds.entry(claim.lock).and_modify(|crowd| {
                    crowd.holders.insert(at);
                });
            }
        }
        crowds
    }
}

/// Places of the tasks that can be in a circle, no more than `most` of them unless the last circle is larger: of a crowd that only
/// waits behind others, none. It takes claims at their word, so that what it leaves out need not be looked at any closer; and it is
/// quick where [`standstills`] would compare each task with each.
pub fn in_circles(blocked: &[Blocked], most: usize) -> Vec<usize> {
    let writers = writers(blocked);
    // Whoever waits for nobody that is left, or is waited for by nobody that is left, is in no circle.
    let mut left: Vec<usize> = (0..blocked.len()).collect();
    let mut crowds;
    loop {
        crowds = Crowd::all(blocked, &left);
        let crowd = |lock| crowds.get(&lock);
        let waits = |at: usize| {
            let wants = blocked[at].wants;
            let behind = |crowd: &Crowd| !crowd.holders.is_empty() || !crowd.writers.is_empty();
            crowd(wants.lock).is_some_and(|it| match wants.mode {
                LockMode::Read => behind(it),
                LockMode::Write => !it.holders.is_empty(),
            })
        };
        let awaited = |at: usize| {
            let queued = blocked[at].wants.mode == LockMode::Write;
            blocked[at].holds.iter().any(|claim| crowd(claim.lock).is_some())
                || queued && crowd(blocked[at].wants.lock).is_some_and(|it| it.readers != 0)
        };
        let before = left.len();
        let next: Vec<usize> = left.iter().copied().filter(|at| waits(*at) && awaited(*at)).collect();
        left = next;
        if left.len() == before {
            break;
        }
    }
    if left.len() <= most {
        return left;
    }
    let mut chosen = BTreeSet::new();
    for &start in &left {
        if chosen.len() >= most {
            break;
        }
        if !chosen.contains(&start) {
            chosen.extend(circle(blocked, start, &crowds, &writers));
        }
    }
    chosen.into_iter().collect()
}

/// The tasks of a shortest circle through one of them; none when there is none.
fn circle(blocked: &[Blocked], start: usize, crowds: &HashMap<u64, Crowd>, writers: &HashSet<u64>) -> Vec<usize> {
    let mut before: HashMap<usize, usize> = HashMap::new();
    // All that wait for a lock in one way wait for the same tasks.
    let mut asked: HashSet<Claim> = HashSet::new();
    let mut open = VecDeque::from([start]);
    while let Some(at) = open.pop_front() {
        let one = &blocked[at];
        let Some(crowd) = crowds.get(&one.wants.lock).filter(|_| asked.insert(one.wants)) else { continue };
        for &to in crowd.holders.iter().chain(&crowd.writers) {
            if waits_for(one, &blocked[to], at == to, writers).is_none() {
                continue;
            }
            if to == start {
                let way = std::iter::successors(Some(at), |at| before.get(at).copied());
                return way.collect();
            }
            before.entry(to).or_insert_with(|| {
                open.push_back(to);
                at
            });
        }
    }
    Vec::new()
}

fn writers(blocked: &[Blocked]) -> HashSet<u64> {
    let writers = blocked.iter().filter(|it| it.wants.mode == LockMode::Write);
    writers.map(|it| it.wants.lock).collect()
}

/// The cycles in which the blocked tasks wait for each other, each set of tasks once, shortest first.
pub fn standstills(blocked: &[Blocked]) -> Vec<Standstill> {
    let writers = writers(blocked);
    let mut next: HashMap<usize, Vec<(usize, Because)>> = HashMap::new();
    for (from, one) in blocked.iter().enumerate() {
        for (to, other) in blocked.iter().enumerate() {
            if let Some(because) = waits_for(one, other, from == to, &writers) {
                next.entry(from).or_default().push((to, because));
            }
        }
    }
    let mut found: Vec<Standstill> = (0..blocked.len()).filter_map(|start| around(start, &next)).collect();
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

/// A shortest way from a task back to it.
fn around(start: usize, next: &HashMap<usize, Vec<(usize, Because)>>) -> Option<Standstill> {
    let mut before: HashMap<usize, Step> = HashMap::new();
    let mut open = VecDeque::from([start]);
    while let Some(at) = open.pop_front() {
        for &(to, because) in next.get(&at).into_iter().flatten() {
            let step = Step { task: at, because };
            if to == start {
                let mut cycle = vec![step];
                while let Some(&step) =
                    before.get(&cycle.last()?.task).filter(|_| cycle.last().is_some_and(|it| it.task != start))
                {
                    cycle.push(step);
                }
                cycle.reverse();
                return Some(cycle);
            }
            if to != start && !before.contains_key(&to) {
                before.insert(to, step);
                open.push_back(to);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const READ: LockMode = LockMode::Read;
    const WRITE: LockMode = LockMode::Write;

    fn task(tid: u32, holds: &[(u64, LockMode)], wants: (u64, LockMode)) -> Blocked {
        let claim = |(lock, mode): (u64, LockMode)| Claim { lock, mode };
        Blocked {
            task: TaskId { pid: tid, tid, comm: String::new(), kernel_thread: false },
            holds: holds.iter().copied().map(claim).collect(),
            wants: claim(wants),
        }
    }

    fn tasks(cycle: &Standstill) -> Vec<(usize, Because)> {
        cycle.iter().map(|step| (step.task, step.because)).collect()
    }

    #[test]
    fn a_task_can_wait_for_itself() {
        let found = standstills(&[task(1, &[(7, WRITE)], (7, READ))]);
        assert_eq!(found.iter().map(tasks).collect::<Vec<_>>(), [[(0, Because::Holds)]]);
    }

    #[test]
    fn a_reader_waits_behind_a_writer_that_waits_for_it() {
        let blocked = [task(1, &[(7, READ)], (7, READ)), task(2, &[], (7, WRITE))];
        let found = standstills(&blocked);
        assert_eq!(found.iter().map(tasks).collect::<Vec<_>>(), [[(0, Because::Queued), (1, Because::Holds)]]);
        let alone = standstills(&blocked[..1]);
        assert_eq!(alone.iter().map(tasks).collect::<Vec<_>>(), [[(0, Because::QueuedUnknown)]]);
    }

    #[test]
    fn two_and_three_tasks_wait_in_a_circle_and_who_waits_behind_them_is_not_in_it() {
        let blocked = [
            task(1, &[(1, WRITE)], (2, WRITE)),
            task(2, &[(2, READ)], (3, WRITE)),
            task(3, &[(3, WRITE)], (1, READ)),
            task(4, &[(4, WRITE)], (1, WRITE)),
        ];
        let found = standstills(&blocked);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].iter().map(|step| step.task).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn readers_that_wait_for_each_other_have_writers_between_them() {
        let mut blocked = vec![task(1, &[(1, READ)], (2, READ)), task(2, &[(2, READ)], (1, READ))];
        let why = |blocked: &[Blocked]| standstills(blocked).iter().map(tasks).collect::<Vec<_>>();
        assert_eq!(why(&blocked), [[(0, Because::QueuedUnknown), (1, Because::QueuedUnknown)]]);
        blocked.push(task(3, &[], (2, WRITE)));
        assert_eq!(why(&blocked), [[(0, Because::Queued), (2, Because::Holds), (1, Because::QueuedUnknown)]]);
    }

    #[test]
    fn waiting_is_no_deadlock() {
        assert!(standstills(&[task(1, &[(1, WRITE)], (2, WRITE)), task(2, &[(3, WRITE)], (1, WRITE))]).is_empty());
        assert!(standstills(&[task(1, &[(1, READ)], (2, READ)), task(2, &[(3, READ)], (2, WRITE))]).is_empty());
        // Two writers behind a holder that is on its way.
        assert!(standstills(&[task(1, &[(1, READ)], (2, WRITE)), task(2, &[(3, READ)], (2, WRITE))]).is_empty());
        assert!(standstills(&[task(1, &[], (2, WRITE)), task(2, &[], (2, WRITE)), task(3, &[], (2, READ))]).is_empty());
    }

    #[test]
    fn a_crowd_that_waits_does_not_hide_the_two_that_stand() {
        // A thousand that hold a lock each and wait for one that is busy, and one that waits for each of them.
        let mut blocked: Vec<_> =
            (0..1000).map(|tid| task(tid, &[(100 + u64::from(tid), WRITE)], (1, WRITE))).collect();
        blocked.extend(
            (0..1000).map(|tid| task(5000 + tid, &[(5000 + u64::from(tid), WRITE)], (100 + u64::from(tid), READ))),
        );
        assert!(in_circles(&blocked, 8).is_empty());
        blocked.insert(700, task(2001, &[(2, WRITE)], (3, READ)));
        blocked.push(task(2002, &[(3, WRITE)], (2, WRITE)));
        assert_eq!(in_circles(&blocked, 8), [700, 2001]);
        // Many circles: as many as are asked for, each whole.
        let pairs = |pair: u32| {
            let (a, b) = (u64::from(pair) * 2, u64::from(pair) * 2 + 1);
            [task(pair * 2, &[(a, WRITE)], (b, WRITE)), task(pair * 2 + 1, &[(b, WRITE)], (a, WRITE))]
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
                .enumerate()
                .map(|(tid, (holds, lock, write))| {
                    let holds: Vec<_> = holds.iter().map(|(lock, write)| (*lock, mode(*write))).collect();
                    task(tid as u32, &holds, (*lock, mode(*write)))
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
