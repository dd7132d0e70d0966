//! The order in which sleeping locks are taken around mmap_lock: edges with their first witness, and the cycles they make.
//!
//! Two graphs, since two questions: between two address spaces, by instance, with nothing but mmap locks in it; and between
//! mmap_lock as one class and the classes of all other locks. Only cycles through mmap_lock are told: what other locks do
//! among themselves is not this program's matter.

pub mod graph;
pub mod known;

use std::collections::HashMap;

use pagetrace_ebpf::wire::{
    lock::held,
    order::{ClassId, Edge as Record, EdgeCount, KEY_WORDS, OrderLock, class, how, key},
};

use self::{
    graph::{Arc, Holds, Wants},
    known::Known,
};
use super::{LockMode, MmId, Stacks, TaskId, interrupt};
use crate::record::name;

/// Edges that are kept; further ones are counted.
pub const MAX_EDGES: usize = 1 << 14;

/// Longest chain of mmap locks of different address spaces that is looked for cycles at once.
const MAX_INSTANCE_ARCS: usize = 1 << 12;

/// A lock of an edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// Its class.
    pub class: ClassId,
    /// Name of the slab cache or the file system type.
    pub class_name: String,
    /// Its address.
    pub address: u64,
    /// Whose address space, for an mmap lock.
    pub mm: Option<MmId>,
    /// How it is held or wanted.
    pub mode: LockMode,
    /// A mutex, and no rwsem.
    pub mutex: bool,
    /// Taken by a trylock.
    pub trylock: bool,
    /// The site of its class is where it was initialised.
    pub site_is_init: bool,
    /// Where it was taken or wanted, innermost first; empty when the stack could not be kept.
    pub stack: Vec<u64>,
}

/// Why the inner lock was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A lock function was called.
    Lock,
    /// A page fault in the kernel.
    Fault,
    /// An access to user memory, which could have faulted.
    Access,
}

/// An edge, as it was first seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// What tells it from others.
    pub key: [u64; KEY_WORDS],
    /// The lock that was held.
    pub held: Lock,
    /// The lock that was wanted.
    pub wanted: Lock,
    /// Who.
    pub task: TaskId,
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// Since when the outer lock was held.
    pub since: u64,
    /// Why.
    pub cause: Cause,
    /// The user address of a fault or an access.
    pub address: Option<u64>,
    /// Times it was seen.
    pub count: u64,
    /// Last time it was seen.
    pub last: u64,
    /// Why it takes part in no cycle.
    pub known: Option<&'static Known>,
}

/// What kind of cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// One mmap lock, wanted again by its holder.
    Recursive,
    /// The mmap locks of several address spaces.
    AddressSpaces,
    /// mmap_lock and locks of other classes.
    Classes,
}

/// A cycle through mmap_lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inversion {
    /// What kind.
    pub shape: Shape,
    /// Its edges, by index, each beginning where the one before ends.
    pub edges: Vec<usize>,
}

/// Collects edges from records.
#[derive(Debug, Default)]
pub struct Orders {
    edges: Vec<Edge>,
    by_key: HashMap<[u64; KEY_WORDS], usize>,
    /// Counts that came before their edge, or belong to one that was not kept.
    early: HashMap<[u64; KEY_WORDS], (u64, u64)>,
    /// Edges that found no room.
    pub overflow: u64,
    /// Fault handlers that the stack does not show.
    pub disproved: u64,
    /// Edges whose stack would have had to show the fault handler, and could not be read, and those from a lock that an interrupt had
    /// taken. Neither may be believed; but the kernel side tells an edge once, and so may have told another's.
    pub uncertain: u64,
}

impl Orders {
    /// Takes an edge; its index when it is new.
    pub fn take(&mut self, record: &Record, stacks: &dyn Stacks) -> Option<usize> {
        let edge = self.judge(record, stacks)?;
        if let Some(index) = self.by_key.get(&edge.key) {
            let known = self.edges.get_mut(*index)?;
            known.count += 1;
            known.last = known.last.max(edge.time);
            return None;
        }
        if self.edges.len() >= MAX_EDGES {
            self.overflow += 1;
            return None;
        }
        let index = self.edges.len();
        self.by_key.insert(edge.key, index);
        self.edges.push(edge);
        Some(index)
    }

    /// Takes the count of an edge, which the kernel side keeps from its record on.
    pub fn count(&mut self, count: &EdgeCount) {
        let before = self.early.entry(count.key).or_default();
        let more = count.count.saturating_sub(before.0);
        *before = (before.0.max(count.count), count.last);
        let key = settled(count.key);
        if let Some(edge) = self.by_key.get(&key).and_then(|&index| self.edges.get_mut(index)) {
            edge.count += more;
            edge.last = edge.last.max(count.last);
        }
    }

    /// The edges so far, oldest first.
    pub fn edges(&self) -> &[Edge] {
        &self.edges
    }

    /// Edges in which no cycle is looked for, by the name that a report gives their number.
    pub fn left_out(&self) -> [(&'static str, u64); 2] {
        let usable = self.edges.iter().filter(|edge| edge.known.is_none() && between_instances(edge));
        let beyond = usable.count().saturating_sub(MAX_INSTANCE_ARCS);
        let dropped = self.overflow.saturating_add(u64::try_from(beyond).unwrap_or(u64::MAX));
        [("order_edge_dropped", dropped), ("order_edge_unproven", self.uncertain)]
    }

    /// The cycles that the edges make.
    pub fn inversions(&self) -> Vec<Inversion> {
        let mut out = Vec::new();
        let usable = || self.edges.iter().enumerate().filter(|(_, edge)| edge.known.is_none());
        let (mut instances, mut classes) = (Vec::new(), Vec::new());
        for (index, edge) in usable() {
            let [from, to] = ends(&edge.key);
            let arc = Arc { from, to, holds: holds(&edge.held), wants: wants(&edge.wanted) };
            if !are_mmaps(edge) {
                classes.push((index, arc));
            } else if between_instances(edge) && instances.len() < MAX_INSTANCE_ARCS {
                instances.push((index, arc));
            }
        }
        let mut add = |shape: fn(usize) -> Shape, of: &[(usize, Arc<[u64; 3]>)], cycles: Vec<graph::Cycle>| {
            for cycle in cycles {
                let edges = cycle.iter().filter_map(|&at| of.get(at)).map(|(index, _)| *index);
                out.push(Inversion { shape: shape(cycle.len()), edges: edges.collect() });
            }
        };
        let arcs = |of: &[(usize, Arc<[u64; 3]>)]| of.iter().map(|(_, arc)| *arc).collect::<Vec<_>>();
        let recursive = |length| if length == 1 { Shape::Recursive } else { Shape::AddressSpaces };
        add(recursive, &instances, graph::all(&arcs(&instances)));
        add(|_| Shape::Classes, &classes, graph::through(&arcs(&classes), MMAP_CLASS));
        out
    }

    fn judge(&mut self, record: &Record, stacks: &dyn Stacks) -> Option<Edge> {
        let frames = usize::try_from(record.stack_len).unwrap_or(0) / 8;
        let stack: Vec<u64> = record.stack.iter().take(frames).copied().filter(|address| *address != 0).collect();
        if record.wanted.flags & how::NEEDS_STACK != 0 {
            if stack.is_empty() {
                self.uncertain += 1;
                return None;
            }
            if !stack.iter().any(|address| stacks.is_fault_entry(*address)) {
                self.disproved += 1;
                return None;
            }
        }
        let held_stack = stacks.stack(record.held.stack_id).unwrap_or_default();
        if interrupt::is_one(&held_stack, stacks) {
            self.uncertain += 1;
            return None;
        }
        let raw = key(&record.held.class.id(), record.held.flags, &record.wanted.class.id(), record.wanted.flags);
        let key = settled(raw);
        let [from, to] = ends(&key);
        let taker = taker(&stack, stacks);
        let takes = |functions: &[&str]| taker.is_some_and(|address| stacks.is_function(address, functions));
        let known = known::known(from == to, is_mmap(&record.wanted.class.id()), takes);
        Some(Edge {
            key,
            held: lock(&record.held, held_stack),
            wanted: lock(&record.wanted, stack),
            task: super::correlate::task_of_header(&record.header),
            time: record.header.ts,
            since: record.held.since,
            cause: match record.wanted.flags {
                flags if flags & how::BY_FAULT != 0 => Cause::Fault,
                flags if flags & how::BY_ACCESS != 0 => Cause::Access,
                _ => Cause::Lock,
            },
            address: (record.address != 0).then_some(record.address),
            count: 1,
            last: record.header.ts,
            known,
        })
    }
}

/// Whether both locks are mmap locks.
fn are_mmaps(edge: &Edge) -> bool {
    is_mmap(&edge.held.class) && is_mmap(&edge.wanted.class)
}

/// Whether an edge is one between address spaces. The fault of a task that holds the same lock is told as such.
fn between_instances(edge: &Edge) -> bool {
    let [from, to] = ends(&edge.key);
    are_mmaps(edge) && (from != to || edge.cause == Cause::Lock)
}

/// Where on a stack the lock was taken: the caller of the innermost function that takes locks. A tracer's own code can be
/// further in; without such a function the stack begins there.
fn taker(stack: &[u64], stacks: &dyn Stacks) -> Option<u64> {
    let takes = |address: &u64| stacks.is_function(*address, known::LOCKING);
    let from = stack.iter().position(takes).unwrap_or(0);
    stack.get(from..)?.iter().copied().find(|address| !takes(address))
}

/// mmap_lock as a class, in the form that [`key`] gives it.
const MMAP_CLASS: [u64; 3] = [class::MMAP as u64, 0, 0];

/// The key of an edge that is believed: how it was proven does not tell it from others.
fn settled(mut key: [u64; KEY_WORDS]) -> [u64; KEY_WORDS] {
    if let Some(modes) = key.last_mut() {
        *modes &= !(u64::from(how::NEEDS_STACK) << 32);
    }
    key
}

fn ends(key: &[u64; KEY_WORDS]) -> [[u64; 3]; 2] {
    let [a, b, c, d, e, f, _modes] = *key;
    [[a, b, c], [d, e, f]]
}

fn is_mmap(class: &ClassId) -> bool {
    class.kind == class::MMAP
}

fn holds(lock: &Lock) -> Holds {
    if lock.mode == LockMode::Read { Holds::Shared } else { Holds::Exclusive }
}

fn wants(lock: &Lock) -> Wants {
    // Every rwsem's reader queues behind a writer that waits.
    if lock.mode == LockMode::Read { Wants::Shared } else { Wants::Exclusive }
}

fn lock(record: &OrderLock, stack: Vec<u64>) -> Lock {
    Lock {
        class: record.class.id(),
        class_name: name(&record.class.name),
        address: record.address,
        mm: (record.class.kind == class::MMAP).then(|| super::correlate::mm_id(&record.mm)),
        mode: if record.flags & held::WRITE != 0 { LockMode::Write } else { LockMode::Read },
        mutex: record.flags & how::MUTEX != 0,
        trylock: record.flags & held::TRY != 0,
        site_is_init: record.flags & how::SITE_IS_INIT != 0,
        stack,
    }
}

#[cfg(test)]
mod tests;
