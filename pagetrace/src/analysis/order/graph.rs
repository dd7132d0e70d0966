//! Cycles in a graph of lock dependencies, with the modes that locks are held and wanted in. Knows no locks, only arcs.
//!
//! The rule is lockdep's (Documentation/locking/lockdep-design.rst, "Recursive read locks"; kernel/locking/lockdep.c,
//! `__bfs`): a lock that is wanted by a recursive reader waits for nobody who only reads, so an arc that ends so, followed by
//! one whose lock is held for reading, blocks nobody. Readers of rwsems, of mmap_lock for one, are no such readers: they
//! queue behind a writer that waits (`rwsem_acquire_read` is `lock_acquire_shared`, include/linux/lockdep.h), so a cycle of
//! nothing but rwsem readers is one, and needs only writers to come in between.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    hash::Hash,
};

/// How the lock at the start of an arc is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Holds {
    /// By a reader.
    Shared,
    /// By its only owner.
    Exclusive,
}

/// How the lock at the end of an arc is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wants {
    /// By a reader that waits only for a writer that holds it. No rwsem has such readers.
    Recursive,
    /// By a reader that queues behind writers that wait.
    Shared,
    /// By a writer or the owner of a mutex.
    Exclusive,
}

/// "`to` was wanted while `from` was held."
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Arc<N> {
    /// The lock held.
    pub from: N,
    /// The lock wanted.
    pub to: N,
    /// How the first was held.
    pub holds: Holds,
    /// How the second was wanted.
    pub wants: Wants,
}

impl<N> Arc<N> {
    /// Whether whoever waits at the end of this arc can wait for whoever is at the start of the next.
    pub fn blocks_on(&self, next: &Self) -> bool {
        !(self.wants == Wants::Recursive && next.holds == Holds::Shared)
    }
}

/// A cycle: indices of its arcs, in order.
pub type Cycle = Vec<usize>;

/// A shortest cycle for each arc out of `node` and into it, each set of locks once, and none that only adds locks to a
/// shorter one.
pub fn through<N: Copy + Eq + Hash + Ord>(arcs: &[Arc<N>], node: N) -> Vec<Cycle> {
    let out = outgoing(arcs);
    let touching = arcs.iter().enumerate().filter(|(_, arc)| arc.from == node || arc.to == node);
    let mut cycles: Vec<Cycle> = touching.filter_map(|(first, _)| shortest(arcs, &out, first)).collect();
    for cycle in &mut cycles {
        // Each is told from the same lock on.
        let start = cycle.iter().position(|&index| arcs.get(index).is_some_and(|arc| arc.from == node));
        cycle.rotate_left(start.unwrap_or(0));
    }
    minimal(arcs, cycles)
}

/// As [`through`], for cycles through any node.
pub fn all<N: Copy + Eq + Hash + Ord>(arcs: &[Arc<N>]) -> Vec<Cycle> {
    let out = outgoing(arcs);
    minimal(arcs, (0..arcs.len()).filter_map(|first| shortest(arcs, &out, first)).collect())
}

fn outgoing<N: Copy + Eq + Hash>(arcs: &[Arc<N>]) -> HashMap<N, Vec<usize>> {
    let mut out: HashMap<N, Vec<usize>> = HashMap::new();
    for (index, arc) in arcs.iter().enumerate() {
        out.entry(arc.from).or_default().push(index);
    }
    out
}

/// A shortest cycle that begins with this arc and passes through no lock twice.
fn shortest<N: Copy + Eq + Hash>(arcs: &[Arc<N>], out: &HashMap<N, Vec<usize>>, first: usize) -> Option<Cycle> {
    let begin = arcs.get(first)?;
    if begin.from == begin.to {
        return begin.blocks_on(begin).then(|| vec![first]);
    }
    // Where a search stands is told by the lock and by whether its reader is a recursive one.
    let state = |arc: &Arc<N>| (arc.to, arc.wants == Wants::Recursive);
    let mut before: HashMap<usize, usize> = HashMap::new();
    let mut seen = HashSet::from([state(begin)]);
    let mut open = VecDeque::from([first]);
    while let Some(at) = open.pop_front() {
        let last = arcs.get(at)?;
        for &next in out.get(&last.to).into_iter().flatten() {
            let arc = arcs.get(next)?;
            if !last.blocks_on(arc) {
                continue;
            }
            if arc.to == begin.from {
                if !arc.blocks_on(begin) {
                    continue;
                }
                let mut cycle = vec![next];
                let mut step = Some(at);
                while let Some(index) = step {
                    cycle.push(index);
                    step = before.get(&index).copied();
                }
                cycle.reverse();
                if nodes_of(arcs, &cycle).len() == cycle.len() {
                    return Some(cycle);
                }
                continue;
            }
            if seen.insert(state(arc)) {
                before.insert(next, at);
                open.push_back(next);
            }
        }
    }
    None
}

fn nodes_of<N: Copy + Eq + Hash>(arcs: &[Arc<N>], cycle: &[usize]) -> HashSet<N> {
    cycle.iter().filter_map(|&index| arcs.get(index)).map(|arc| arc.from).collect()
}

fn minimal<N: Copy + Eq + Hash + Ord>(arcs: &[Arc<N>], mut cycles: Vec<Cycle>) -> Vec<Cycle> {
    cycles.sort_by_key(Vec::len);
    let mut kept: Vec<(BTreeSet<N>, Cycle)> = Vec::new();
    for cycle in cycles {
        let nodes: BTreeSet<N> = nodes_of(arcs, &cycle).into_iter().collect();
        if !kept.iter().any(|(smaller, _)| smaller.is_subset(&nodes)) {
            kept.push((nodes, cycle));
        }
    }
    kept.into_iter().map(|(_, cycle)| cycle).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn arc((from, to, shared, wants): (u8, u8, bool, u8)) -> Arc<u8> {
        let wants = [Wants::Exclusive, Wants::Shared, Wants::Recursive][usize::from(wants)];
        Arc { from, to, holds: if shared { Holds::Shared } else { Holds::Exclusive }, wants }
    }

    /// Every simple cycle through a node, by trying every path.
    fn naive(arcs: &[Arc<u8>], node: u8) -> Vec<Cycle> {
        fn go(arcs: &[Arc<u8>], node: u8, path: &mut Vec<usize>, out: &mut Vec<Cycle>) {
            let here = path.last().map_or(node, |&last| arcs[last].to);
            for (index, arc) in arcs.iter().enumerate() {
                let follows = path.last().is_none_or(|&last| arcs[last].blocks_on(arc));
                if arc.from != here || !follows {
                    continue;
                }
                path.push(index);
                if arc.to == node {
                    if arc.blocks_on(&arcs[path[0]]) {
                        out.push(path.clone());
                    }
                } else if path.iter().all(|&past| arcs[past].from != arc.to) {
                    go(arcs, node, path, out);
                }
                path.pop();
            }
        }
        let mut out = Vec::new();
        go(arcs, node, &mut Vec::new(), &mut out);
        out
    }

    fn is_cycle(arcs: &[Arc<u8>], cycle: &[usize]) -> bool {
        let turns = cycle.iter().zip(cycle.iter().cycle().skip(1));
        turns.into_iter().all(|(&a, &b)| arcs[a].to == arcs[b].from && arcs[a].blocks_on(&arcs[b]))
            && nodes_of(arcs, cycle).len() == cycle.len()
    }

    #[test]
    fn recursive_readers_alone_block_nobody_and_rwsem_readers_do() {
        let both = |wants| [arc((1, 2, true, wants)), arc((2, 1, true, wants))];
        assert!(through(&both(2), 1).is_empty());
        assert_eq!(through(&both(1), 1).len(), 1);
        // One writer in the cycle is enough only where somebody waits for it.
        assert!(through(&[arc((1, 2, false, 2)), arc((2, 1, true, 0))], 1).is_empty());
        assert_eq!(through(&[arc((1, 2, true, 2)), arc((2, 1, false, 0))], 1).len(), 1);
    }

    #[test]
    fn a_longer_way_around_the_same_locks_is_not_told_again() {
        let arcs = [arc((1, 2, false, 0)), arc((2, 1, false, 0)), arc((2, 3, false, 0)), arc((3, 1, false, 0))];
        assert_eq!(through(&arcs, 1), [[0, 1]]);
        assert_eq!(all(&arcs).len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn cycles_are_those_that_trying_every_path_finds(
            arcs in proptest::collection::vec((0_u8..6, 0_u8..6, any::<bool>(), 0_u8..2), 0..14),
            recursive in proptest::collection::vec((0_u8..6, 0_u8..6, any::<bool>(), 0_u8..3), 0..4),
        ) {
            let plain: Vec<_> = arcs.into_iter().map(arc).collect();
            let mixed: Vec<_> = plain.iter().copied().chain(recursive.into_iter().map(arc)).collect();
            for arcs in [&plain, &mixed] {
                let (found, truth) = (through(arcs, 0), naive(arcs, 0));
                for cycle in &found {
                    prop_assert!(is_cycle(arcs, cycle), "{cycle:?}");
                    prop_assert!(cycle.iter().any(|&index| arcs[index].from == 0));
                }
                prop_assert!(found.is_empty() || !truth.is_empty());
                if arcs.len() == plain.len() {
                    // What leads into a cycle, or out of one to the lock, has one that was found within its locks.
                    for touching in truth.iter().flat_map(|cycle| cycle.first().into_iter().chain(cycle.last())) {
                        let of = truth.iter().filter(|cycle| cycle.contains(touching));
                        let within = |cycle: &Cycle| {
                            let nodes = nodes_of(arcs, cycle);
                            found.iter().any(|found| nodes_of(arcs, found).is_subset(&nodes))
                        };
                        prop_assert!(of.into_iter().any(within), "{touching} of {arcs:?}");
                    }
                }
            }
            let (found, truth): (Vec<_>, bool) = (all(&plain), (0..6).any(|node| !naive(&plain, node).is_empty()));
            prop_assert_eq!(found.is_empty(), !truth);
            prop_assert!(found.iter().all(|cycle| is_cycle(&plain, cycle)));
        }
    }
}
