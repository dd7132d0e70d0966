//! Edges and cycles from records, and from random schedules against an oracle that only knows who holds what.

use std::collections::{BTreeMap, BTreeSet};

use pagetrace_ebpf::wire::{
    Header, MmOwner, Wire as _, kind,
    order::{LockClass, class},
};
use proptest::prelude::*;

use super::*;

const FAULT_ENTRY: u64 = 0xfa;
const DUP_MMAP: u64 = 0xd0;
const DOWN_WRITE: u64 = 0xd1;
const TIMER: u64 = 0xd2;

struct Fake;

impl Stacks for Fake {
    fn stack(&self, id: i32) -> Option<Vec<u64>> {
        u64::try_from(id).ok().map(|id| vec![id])
    }
    fn is_fault_entry(&self, address: u64) -> bool {
        address == FAULT_ENTRY
    }
    fn is_user_access(&self, _address: u64) -> bool {
        false
    }
    fn function(&self, address: u64) -> Option<u64> {
        Some(address)
    }
    fn is_function(&self, address: u64, names: &[&str]) -> bool {
        let name = match address {
            DUP_MMAP => "dup_mmap",
            DOWN_WRITE => "down_write",
            TIMER => "hrtimer_interrupt",
            _ => return false,
        };
        names.contains(&name)
    }
}

fn of(kind: u32, owner: u64, flags: u32) -> OrderLock {
    let class = LockClass { kind, owner, ..LockClass::default() };
    let mm =
        if kind == class::MMAP { MmOwner { mm: owner, tgid: 7, ..MmOwner::default() } } else { MmOwner::default() };
    OrderLock { class, address: owner, since: 1, mm, flags, stack_id: 3 }
}

fn mmap(mm: u64, flags: u32) -> OrderLock {
    of(class::MMAP, mm, flags)
}

fn mutex(address: u64) -> OrderLock {
    of(class::ADDRESS, address, held::WRITE | how::MUTEX)
}

fn edge(held: OrderLock, wanted: OrderLock, stack: &[u64]) -> Record {
    let mut record = Record { held, wanted, stack_len: stack.len() as i64 * 8, ..Record::default() };
    record.header = Header { kind: kind::EDGE, ts: 5, tid: 9, tgid: 8, ..Header::default() };
    record.stack[..stack.len()].copy_from_slice(stack);
    record
}

fn orders(edges: &[(OrderLock, OrderLock)]) -> Orders {
    let mut out = Orders::default();
    for (held, wanted) in edges {
        out.take(&edge(*held, *wanted, &[1]), &Fake);
    }
    out
}

const READ: u32 = held::READ;
const WRITE: u32 = held::WRITE;

#[test]
fn a_mutex_under_the_lock_and_the_lock_under_the_mutex_is_an_inversion_whosever_the_lock_is() {
    let orders = orders(&[(mmap(1, WRITE), mutex(50)), (mutex(50), mmap(2, READ | how::BY_FAULT))]);
    let inversions = orders.inversions();
    assert_eq!(inversions, [Inversion { shape: Shape::Classes, edges: vec![0, 1] }]);
    assert_eq!(orders.edges()[1].cause, Cause::Fault);
    assert_eq!(orders.edges()[0].held.stack, [3]);
}

#[test]
fn one_order_alone_is_none_and_other_locks_among_themselves_are_nobody_s_matter() {
    assert!(orders(&[(mmap(1, WRITE), mutex(50)), (mmap(2, READ), mutex(50))]).inversions().is_empty());
    assert!(orders(&[(mutex(50), mutex(51)), (mutex(51), mutex(50))]).inversions().is_empty());
}

#[test]
fn two_address_spaces_in_both_orders_are_an_inversion_and_in_one_order_not() {
    let one = [(mmap(1, READ), mmap(2, READ)), (mmap(2, READ), mmap(3, READ)), (mmap(1, READ), mmap(3, WRITE))];
    assert!(orders(&one).inversions().is_empty());
    let inversions = orders(&[one[0], one[1], (mmap(3, READ), mmap(1, READ))]).inversions();
    assert_eq!(inversions, [Inversion { shape: Shape::AddressSpaces, edges: vec![0, 1, 2] }]);
    // The memory of an address space that is gone serves another: its time tells.
    let mut later = mmap(1, READ);
    later.class.site = 99;
    assert!(orders(&[(mmap(1, READ), mmap(2, READ)), (mmap(2, READ), later)]).inversions().is_empty());
}

#[test]
fn a_lock_wanted_again_is_an_inversion_by_itself_unless_a_fault_wants_it() {
    let orders_of = |how| orders(&[(mmap(1, READ), mmap(1, READ | how))]).inversions();
    assert_eq!(orders_of(0), [Inversion { shape: Shape::Recursive, edges: vec![0] }]);
    assert!(orders_of(how::BY_FAULT).is_empty(), "that is a fault under the lock");
}

#[test]
fn what_fork_does_is_known() {
    let mut orders = Orders::default();
    orders.take(&edge(mmap(1, WRITE), mmap(2, WRITE), &[4, DOWN_WRITE, DUP_MMAP, 5]), &Fake);
    orders.take(&edge(mmap(2, WRITE), mmap(1, WRITE), &[DOWN_WRITE, 4]), &Fake);
    assert!(orders.edges()[0].known.is_some_and(|known| known.source.contains("dup_mmap")));
    assert!(orders.inversions().is_empty());
    // Another's lock, taken by what that function calls, is a lock as any.
    let mut orders = Orders::default();
    orders.take(&edge(mmap(1, WRITE), mmap(2, WRITE), &[DOWN_WRITE, 4, DUP_MMAP]), &Fake);
    orders.take(&edge(mmap(2, WRITE), mmap(1, WRITE), &[DOWN_WRITE, 4]), &Fake);
    assert_eq!(orders.inversions().len(), 1);
}

#[test]
fn an_exception_counts_when_its_stack_shows_the_handler() {
    let wanted = mmap(1, READ | how::BY_FAULT | how::NEEDS_STACK);
    let mut orders = Orders::default();
    assert_eq!(orders.take(&edge(mutex(50), wanted, &[1, 2]), &Fake), None);
    assert_eq!(orders.take(&edge(mutex(50), wanted, &[]), &Fake), None);
    assert_eq!((orders.disproved, orders.uncertain), (1, 1));
    assert_eq!(orders.take(&edge(mutex(50), wanted, &[1, FAULT_ENTRY]), &Fake), Some(0));
    assert_eq!(orders.take(&edge(mutex(50), mmap(1, READ), &[1]), &Fake), None, "the same edge, however proven");
}

#[test]
fn a_lock_that_an_interrupt_took_is_not_the_tasks_and_leaves_the_order_open() {
    let taken_by = |stack_id| OrderLock { stack_id, ..mmap(1, READ | held::TRY) };
    let seen = |stack_id| {
        let mut orders = Orders::default();
        orders.take(&edge(taken_by(stack_id), mutex(50), &[1]), &Fake);
        orders.take(&edge(mutex(50), mmap(2, READ), &[1]), &Fake);
        (orders.inversions().len(), orders.left_out())
    };
    assert_eq!(seen(TIMER as i32), (0, [("order_edge_dropped", 0), ("order_edge_unproven", 1)]));
    assert_eq!(seen(3), (1, [("order_edge_dropped", 0), ("order_edge_unproven", 0)]));
}

#[test]
fn edges_between_address_spaces_that_are_not_looked_at_are_told() {
    let owner = |number: usize| number as u64 * 8 + 8;
    let chain: Vec<_> =
        (0..MAX_INSTANCE_ARCS + 3).map(|at| (mmap(owner(at), READ), mmap(owner(at + 1), READ))).collect();
    assert_eq!(orders(&chain).left_out(), [("order_edge_dropped", 3), ("order_edge_unproven", 0)]);
    assert_eq!(orders(&chain[3..]).left_out(), [("order_edge_dropped", 0), ("order_edge_unproven", 0)]);
}

#[test]
fn counts_are_added_once() {
    let mut orders = orders(&[(mmap(1, WRITE), mutex(50))]);
    let count =
        |count, last| EdgeCount { kind: kind::EDGE_COUNT, key: orders_key(), count, last, ..EdgeCount::default() };
    fn orders_key() -> [u64; KEY_WORDS] {
        key(&mmap(1, WRITE).class.id(), WRITE, &mutex(50).class.id(), WRITE | how::MUTEX)
    }
    for sent in [count(4, 40), count(4, 40), count(6, 60)] {
        assert_eq!(EdgeCount::decode(&sent.encode()), Some(sent));
        orders.count(&sent);
    }
    assert_eq!((orders.edges()[0].count, orders.edges()[0].last), (7, 60));
}

#[test]
fn edges_without_room_are_counted() {
    let mut orders = Orders::default();
    for lock in 0..MAX_EDGES as u64 + 5 {
        orders.take(&edge(mmap(1, WRITE), mutex(lock), &[1]), &Fake);
    }
    assert_eq!((orders.edges().len(), orders.overflow), (MAX_EDGES, 5));
}

/// A lock of the small world: an address space below [`MMS`], another lock from there on.
type World = Vec<(u8, u8, bool, bool)>;
const MMS: u8 = 3;

fn in_world(lock: u8, write: bool, trylock: bool) -> OrderLock {
    let mode = if write { WRITE } else { READ };
    let flags = mode | if trylock { held::TRY } else { 0 };
    if lock < MMS { mmap(u64::from(lock) + 1, flags) } else { of(class::SLAB, u64::from(lock), flags) }
}

/// Plays a schedule: each step a task takes a lock, or gives back its last one when it holds it. Returns what the kernel
/// side tells, and for the oracle which lock was waited for under which.
fn play(world: &World) -> (Orders, BTreeSet<(u8, u8)>) {
    let mut held: BTreeMap<u8, Vec<(u8, bool, bool)>> = BTreeMap::new();
    let (mut orders, mut pairs) = (Orders::default(), BTreeSet::new());
    for &(task, lock, write, trylock) in world {
        let mine = held.entry(task).or_default();
        if let Some(at) = mine.iter().rposition(|(of, ..)| *of == lock) {
            mine.remove(at);
            continue;
        }
        if !trylock {
            for &(outer, mode, tried) in mine.iter() {
                orders.take(&edge(in_world(outer, mode, tried), in_world(lock, write, false), &[1]), &Fake);
                pairs.insert((outer, lock));
            }
        }
        mine.push((lock, write, trylock));
    }
    (orders, pairs)
}

/// Whether one can walk from `from` to `to` along pairs, by repeated joining.
fn reaches(pairs: &BTreeSet<(u8, u8)>) -> BTreeSet<(u8, u8)> {
    let mut all = pairs.clone();
    loop {
        let more: Vec<_> = all
            .iter()
            .flat_map(|&(a, b)| all.iter().filter(move |(c, _)| *c == b).map(move |&(_, d)| (a, d)))
            .filter(|pair| !all.contains(pair))
            .collect();
        if more.is_empty() {
            return all;
        }
        all.extend(more);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn inversions_are_there_when_the_oracle_says_so(
        world in proptest::collection::vec((0_u8..4, 0_u8..7, any::<bool>(), proptest::bool::weighted(0.2)), 0..60),
    ) {
        let (orders, pairs) = play(&world);
        let inversions = orders.inversions();
        let instances: BTreeSet<_> = pairs.iter().copied().filter(|(a, b)| *a < MMS && *b < MMS).collect();
        let abba = reaches(&instances).iter().any(|(a, b)| a == b);
        // All mmap locks as one.
        let one = |lock: u8| if lock < MMS { 0 } else { lock };
        let classes: BTreeSet<_> =
            pairs.iter().filter(|(a, b)| *a >= MMS || *b >= MMS).map(|(a, b)| (one(*a), one(*b))).collect();
        let crossed = reaches(&classes).contains(&(0, 0));
        prop_assert_eq!(inversions.iter().any(|it| it.shape == Shape::AddressSpaces), abba);
        prop_assert_eq!(inversions.iter().any(|it| it.shape == Shape::Classes), crossed);
        for inversion in &inversions {
            let edges: Vec<_> = inversion.edges.iter().map(|&index| &orders.edges()[index]).collect();
            for (edge, next) in edges.iter().zip(edges.iter().cycle().skip(1)) {
                prop_assert_eq!(ends(&edge.key)[1], ends(&next.key)[0]);
            }
        }
    }
}
