//! The sleeping locks that a task holds, of whatever kind, and what is known of locks themselves.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::map,
    maps::{Array, HashMap, LruHashMap},
};
use pagetrace_ebpf::wire::{
    counter,
    lock::held,
    order::{KEY_WORDS, MAX_ORDER, VALUE_WORDS},
};

use crate::{
    kernel::current,
    state::{anew, count, now, through},
};

pub(crate) use pagetrace_ebpf::wire::order::{OrderSlot as Slot, OrderTask as Order};

/// Bits of [`Order::flags`].
pub(crate) mod flag {
    /// An exception on a user address was seen; the next lock attempt tells whether it counts.
    pub(crate) const PENDING: u32 = 1;
}

#[map]
static ORDER_TASKS: HashMap<u64, Order> = HashMap::with_max_entries(16384, 0);

/// An all-zero task: too large for the BPF stack.
#[map]
static ORDER_EMPTY: Array<Order> = Array::with_max_entries(1, 0);

/// Edges told, with how often they were seen since.
#[map]
pub(crate) static ORDER_EDGES: HashMap<[u64; KEY_WORDS], [u64; VALUE_WORDS]> = HashMap::with_max_entries(16384, 0);

/// Locks and where they were initialised, or with the highest bit cleared first taken. The oldest go when it is full: their
/// class is another one then, which loses edges and makes up none.
#[map]
pub(crate) static ORDER_SITES: LruHashMap<u64, u64> = LruHashMap::with_max_entries(16384, 0);

/// When the lock of an address space was initialised: memory of one that is gone is used for the next.
#[map]
pub(crate) static ORDER_BORN: LruHashMap<u64, u64> = LruHashMap::with_max_entries(16384, 0);

/// State of the current task, when it has some.
#[inline(always)]
pub(crate) fn order() -> Option<&'static mut Order> {
    let key = current();
    // SAFETY: entries are deleted only when the task is freed, which the current task is not.
    ORDER_TASKS.get_ptr_mut(&key).map(|order| unsafe { &mut *order })
}

/// State of the current task, made when it has none.
#[inline(always)]
pub(crate) fn order_or_new() -> Option<&'static mut Order> {
    if let Some(order) = order() {
        return Some(order);
    }
    let empty = ORDER_EMPTY.get(0)?;
    let key = current();
    if ORDER_TASKS.insert(&key, empty, 0).is_err() {
        count(counter::ORDER_TASK_MAP_FULL);
        return None;
    }
    let order = order()?;
    let ids = bpf_get_current_pid_tgid();
    order.tid = ids as u32;
    order.tgid = (ids >> 32) as u32;
    Some(order)
}

/// Forgets a task that the kernel frees.
#[inline(always)]
pub(crate) fn forget(task: u64) {
    let _ = ORDER_TASKS.remove(&task);
}

/// One slot; the mask keeps the verifier sure that it lies in the array.
#[inline(always)]
pub(crate) fn slot(order: &mut Order, index: u32) -> &mut Slot {
    let index = core::hint::black_box(index);
    let index = (index & (MAX_ORDER as u32 - 1)) as usize;
    // SAFETY: the index is masked to the array's length, a power of two.
    unsafe { &mut *order.slots.as_mut_ptr().add(index) }
}

/// The lock that is wanted is held from now on, or, if `flags` say so, may be.
#[inline(always)]
pub(crate) fn push(order: &mut Order, flags: u32, stack: i32) {
    let depth = order.depth;
    if depth >= MAX_ORDER as u32 {
        return overflow(order);
    }
    let mut next = order.wanted;
    next.flags = flags;
    next.stack = stack;
    next.since = now();
    *slot(order, depth) = next;
    order.depth = depth + 1;
}

/// What is held already stands for another lock of its class.
#[inline(always)]
fn overflow(order: &mut Order) {
    let wanted = order.wanted;
    for index in 0..MAX_ORDER as u32 {
        if slot(order, index).same_class(&wanted) {
            return;
        }
    }
    count(counter::ORDER_HELD_OVERFLOW);
}

/// When somebody who did not hold a lock last released it for reading, nanoseconds of `CLOCK_MONOTONIC`. The oldest go when it is full.
#[map]
static ORDER_STRANGERS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(4096, 0);

/// A lock is released for reading by a task that is followed and does not hold it.
#[inline(always)]
pub(crate) fn strange(lock: u64) {
    let _ = ORDER_STRANGERS.insert(&lock, &now(), 0);
}

/// Whether a hold of a lock that began at `since` may have been released by another task.
#[inline(always)]
pub(crate) fn given_away(lock: u64, since: u64) -> bool {
    // SAFETY: the value is copied out at once.
    unsafe { ORDER_STRANGERS.get(&lock) }.is_some_and(|&time| time > since)
}

/// Removes the innermost hold of this lock; whether there was one.
#[inline(always)]
pub(crate) fn pop(order: &mut Order, lock: u64) -> bool {
    let depth = order.depth;
    if depth == 0 || depth > MAX_ORDER as u32 {
        return false;
    }
    if slot(order, depth - 1).lock == lock {
        order.depth = depth - 1;
        return true;
    }
    let mut found = MAX_ORDER as u32;
    for index in 0..MAX_ORDER as u32 {
        if index < anew(&order.depth) && slot(order, index).lock == lock {
            found = index;
        }
        found = through(&mut order.number, found);
    }
    if found == MAX_ORDER as u32 {
        return false;
    }
    for next in 1..MAX_ORDER as u32 {
        if next > through(&mut order.number, found) && next < anew(&order.depth) {
            let moved = *slot(order, next);
            *slot(order, next - 1) = moved;
        }
    }
    order.depth = anew(&order.depth).saturating_sub(1);
    true
}

/// The attempt made last, whose return is waited for.
#[inline(always)]
pub(crate) fn tentative(order: &mut Order) -> Option<&mut Slot> {
    let depth = order.depth;
    if depth == 0 {
        return None;
    }
    let top = slot(order, depth - 1);
    if top.flags & held::TENTATIVE == 0 { None } else { Some(top) }
}
