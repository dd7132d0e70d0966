//! The order in which sleeping locks are taken. Loaded for `--order` only.
//!
//! An edge "wanted while held" is told when the lock is wanted and not when it is had, as lockdep does: the task that
//! completes a deadlock never has it. A trylock waits for nobody and makes no edge to its lock; what is wanted while it is
//! held makes some. Each edge leaves the kernel once, by the classes and modes of its locks.
//!
//! What does the work is in global functions, which the verifier looks at once; they take numbers only and find the task's
//! state themselves.

mod classify;
mod state;

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_stack},
};
use pagetrace_ebpf::wire::{
    STACK_FRAMES, counter, kind,
    lock::held,
    order::{Edge, MAX_ORDER, NAME_LEN, OVER, OrderLock, class, how, key},
    setting,
};

use self::{
    classify::Found,
    state::{ORDER_BORN, ORDER_EDGES, Order, Slot, flag, order, order_or_new, pop, push, slot, tentative},
};
use super::{
    settle::{self, Outcome, already_owned},
    violation::OWNER_FLAGS,
};
use crate::{
    kernel::{
        current, current_mm, describe_mm, member, mm_of_lock, nofault, number, owner_task, read, read_str, setting,
    },
    stacks::{Probed, stack_id},
    state::{RECORDS, count, fill_header, now, task_or_new},
    target,
};

/// Privilege level in `pt_regs.cs`.
const CPL_MASK: u64 = 3;

/// What [`order_want`] and [`order_sited`] answer: the task and the lock are followed.
const FOLLOWED: u32 = 1;
/// There are edges to tell.
const FRESH: u32 = 1 << 1;
/// The class of the lock lacks its site.
const NEEDS_SITE: u32 = 1 << 2;

/// Whether the current task's locks are followed: the target's, and never the tracer's own.
#[inline(always)]
pub(crate) fn is_followed() -> bool {
    bpf_get_current_pid_tgid() >> 32 != setting(setting::SELF_TGID) && target::acts()
}

/// A lock function was entered. With [`held::TENTATIVE`] it can fail, and [`on_return`] tells how it ended.
#[inline(always)]
pub(crate) fn on_want(ctx: &impl Probed, lock: u64, flags: u32) {
    let lock = number(lock);
    let mut answer = order_want(lock, flags);
    if answer & NEEDS_SITE != 0 {
        answer = order_sited(classify::site(ctx), flags);
    }
    if answer & FOLLOWED == 0 {
        return;
    }
    if answer & FRESH != 0 {
        tell(ctx);
    }
    let stack = match task_or_new() {
        Some(task) => stack_id(ctx, task),
        None => -1,
    };
    order_push(flags, stack);
}

/// The function entered last returned.
#[inline(always)]
pub(crate) fn on_return(acquired: bool) {
    order_return(u32::from(acquired));
}

/// A lock is about to be released, by a reader or not.
#[inline(always)]
pub(crate) fn on_release(lock: u64, read: bool) {
    order_release(number(lock), u32::from(read));
}

/// A writer becomes a reader.
#[inline(always)]
pub(crate) fn on_downgrade(lock: u64) {
    order_downgrade(number(lock));
}

/// A lock is initialised, by whatever task: its memory may have been another lock.
#[inline(always)]
pub(crate) fn on_init(ctx: &impl EbpfContext, lock: u64, mutex: bool) {
    let lock = number(lock);
    if order_init(lock, u32::from(mutex)) != 0 {
        classify::initialised(lock, classify::site(ctx));
    }
}

/// `lock_mm_and_find_vma`: the fault handler goes for mmap_lock.
#[inline(always)]
pub(crate) fn on_fault(ctx: &impl EbpfContext, mm: u64, address: u64, regs: u64) {
    let Some(order) = order() else { return };
    if order.depth == 0 || member::<u64>(regs, setting::REGS_CS).is_none_or(|cs| cs & CPL_MASK != 0) {
        return;
    }
    order.flags &= !flag::PENDING;
    if order_want_mm(number(mm), number(address), how::BY_FAULT) & FRESH != 0 {
        tell(ctx);
    }
}

/// An access to user memory that may fault and sleep.
#[inline(always)]
pub(crate) fn on_access(ctx: &impl EbpfContext, mm: u64, address: u64) {
    if order_want_mm(number(mm), number(address), how::BY_ACCESS) & FRESH != 0 {
        tell(ctx);
    }
}

/// Whether the current task holds a sleeping lock that is followed.
#[inline(always)]
pub(crate) fn holds() -> bool {
    setting(setting::ORDER) == 1 && order().is_some_and(|order| order.depth != 0)
}

/// Tracepoint `exceptions:page_fault_kernel`, where the handler itself cannot be hooked.
#[inline(always)]
pub(crate) fn on_exception(address: u64) {
    let Some(order) = order() else { return };
    if order.depth == 0 || address >> 63 != 0 || nofault() {
        return;
    }
    order.address = address;
    order.flags |= flag::PENDING;
}

/// The kernel frees a task.
#[inline(always)]
pub(crate) fn on_free(task: u64) {
    if setting(setting::ORDER) == 1 {
        state::forget(task);
    }
}

/// Takes the stack and tells the edges that are new.
#[inline(always)]
fn tell(ctx: &impl EbpfContext) {
    let Some(order) = order() else { return };
    // SAFETY: the buffer is the state's own and has this size.
    order.stack_len =
        unsafe { bpf_get_stack(ctx.as_ptr(), order.stack.as_mut_ptr().cast(), (STACK_FRAMES * 8) as u32, 0) } as i64;
    if order.stack_len <= 0 {
        count(counter::STACK_UNREADABLE);
    }
    order_tell();
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn order_want(lock: u64, flags: u32) -> u32 {
    if !is_followed() {
        return 0;
    }
    let Some(order) = order_or_new() else { return 0 };
    settle(order);
    let mut wanted = order.wanted;
    let found = classify::classify(lock, flags & how::MUTEX != 0, &mut wanted);
    order.wanted = wanted;
    match found {
        Found::Ignored => 0,
        Found::NeedsSite => NEEDS_SITE,
        Found::Whole => order_edges(flags),
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn order_sited(site: u64, flags: u32) -> u32 {
    let Some(order) = order() else { return 0 };
    classify::sited(site, &mut order.wanted);
    order_edges(flags)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn order_want_mm(mm: u64, address: u64, how: u32) -> u32 {
    if mm == 0 || !is_followed() {
        return 0;
    }
    let Some(order) = order() else { return 0 };
    settle(order);
    order.wanted.lock = mm.wrapping_add(setting(setting::MM_LOCK));
    classify::by_mm(mm, &mut order.wanted);
    order.address = address;
    order_edges(held::READ | how)
}

/// Finds the edges to the lock that is wanted.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn order_edges(flags: u32) -> u32 {
    let Some(order) = order() else { return 0 };
    let mut flags = flags & !held::TENTATIVE;
    let pending = order.flags & flag::PENDING != 0;
    order.flags &= !flag::PENDING;
    if flags & (how::BY_FAULT | how::BY_ACCESS) == 0 {
        if pending && order.wanted.kind == class::MMAP && flags & held::READ != 0 && order.wanted.owner == current_mm()
        {
            // The fault handler tries first, and waits when that fails.
            flags = held::READ | how::BY_FAULT | how::NEEDS_STACK;
        } else {
            order.address = 0;
        }
    }
    order.wanted.flags = flags | classify::site_flags(order.wanted.site);
    order.fresh = 0;
    if flags & held::TRY != 0 {
        return FOLLOWED;
    }
    for index in 0..MAX_ORDER as u32 {
        if index >= order.depth {
            break;
        }
        if order_is_fresh(index) != 0 {
            order.fresh |= 1 << index;
        }
    }
    if order.fresh == 0 { FOLLOWED } else { FOLLOWED | FRESH }
}

/// The task runs outside of any lock function: an attempt that is still open has ended without being seen.
#[inline(always)]
fn settle(order: &mut Order) {
    if tentative(order).is_some() {
        order_settle();
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn order_settle() -> u32 {
    let Some(order) = order() else { return 0 };
    let depth = order.depth;
    if depth == 0 || depth > MAX_ORDER as u32 {
        return 0;
    }
    let attempt = outer(order, depth - 1);
    let mut outcome = outcome(attempt);
    if outcome == Outcome::Acquired && already_owned(attempt.flags) && holds_below(order, attempt.lock, depth - 1) {
        outcome = Outcome::Unknown;
    }
    count(match outcome {
        // Then it is not followed.
        Outcome::Unknown => counter::ORDER_RETURN_MISSED,
        _ => counter::ORDER_RETURN_SETTLED,
    });
    if outcome == Outcome::Acquired {
        slot(order, depth - 1).flags &= !held::TENTATIVE;
    } else {
        order.depth = depth - 1;
    }
    0
}

/// What the words of the lock tell of an attempt, or of a hold that began as one. A mutex names its owner (kernel/locking/mutex.c, `__mutex_owner`).
#[inline(always)]
fn outcome(attempt: &Slot) -> Outcome {
    if attempt.flags & how::MUTEX == 0 {
        let word = |word: usize| read::<u64>(attempt.lock.wrapping_add(setting(word)));
        return settle::of_rwsem(word(setting::SEM_COUNT), word(setting::SEM_OWNER), attempt.flags);
    }
    match member::<u64>(attempt.lock, setting::MUTEX_OWNER) {
        None => Outcome::Unknown,
        Some(owner) if owner & !OWNER_FLAGS != current() => Outcome::Failed,
        Some(_) => Outcome::Acquired,
    }
}

/// Whether a hold of the lock is below this index.
#[inline(always)]
fn holds_below(order: &mut Order, lock: u64, index: u32) -> bool {
    let mut found = false;
    for below in 0..MAX_ORDER as u32 {
        found |= below < index && slot(order, below).lock == lock;
    }
    found
}

/// A slot, to be read beside the rest of the task: a copy would lie on the stack.
#[inline(always)]
fn outer(order: &mut Order, index: u32) -> &'static Slot {
    let outer: *const Slot = slot(order, index);
    // SAFETY: slots lie in a value of the map, whose entries outlive their task's events, and only this task changes them.
    unsafe { &*outer }
}

/// Whether the edge from this slot to the lock that is wanted was not told; counts it when it was.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn order_is_fresh(index: u32) -> u32 {
    let Some(order) = order() else { return 0 };
    let outer = outer(order, index);
    if outer.flags & (held::TENTATIVE | OVER) != 0 {
        return 0;
    }
    // Asked each time, known edge or not: a standstill is told by what is held.
    if is_over(outer) {
        slot(order, index).flags |= OVER;
        count(counter::ORDER_STALE_HOLD);
        return 0;
    }
    let mmaps = outer.kind == class::MMAP && order.wanted.kind == class::MMAP;
    if mmaps {
        // The fault of a task that holds the same lock is a violation of its own kind; a new address space is nobody's yet.
        let by_access = order.wanted.flags & (how::BY_FAULT | how::BY_ACCESS) != 0;
        if outer.owner == order.wanted.owner && by_access || is_nobodys(order.wanted.owner) {
            return 0;
        }
    } else if outer.same_class(&order.wanted) {
        return 0;
    }
    order.key = key(&outer.class(), outer.flags, &order.wanted.class(), order.wanted.flags);
    if let Some(value) = ORDER_EDGES.get_ptr_mut(&order.key) {
        // SAFETY: entries are deleted only while nobody was told of them; a lost count is a lost count.
        let value = unsafe { &mut *value };
        value[0] += 1;
        value[1] = now();
        return 0;
    }
    1
}

/// Whether the lock words rule out that the current task still holds the lock, or another task has released it, for a reader,
/// whom no word names.
#[inline(always)]
fn is_over(outer: &Slot) -> bool {
    outcome(outer) == Outcome::Failed || outer.flags & held::READ != 0 && state::given_away(outer.lock, outer.since)
}

/// Whether the address space belongs to no task yet: fork and exec make them before anybody can reach them
/// (kernel/fork.c, `copy_mm` and `mm_alloc`).
#[inline(always)]
fn is_nobodys(mm: u64) -> bool {
    match owner_task(mm) {
        Some((task, _)) => member::<u64>(task, setting::TASK_MM) != Some(mm),
        None => false,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn order_tell() -> u32 {
    let Some(order) = order() else { return 0 };
    let fresh = order.fresh;
    order.fresh = 0;
    for index in 0..MAX_ORDER as u32 {
        if fresh >> index & 1 != 0 {
            order_tell_one(index);
        }
    }
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn order_tell_one(index: u32) -> u32 {
    let Some(order) = order() else { return 0 };
    let outer = outer(order, index);
    order.key = key(&outer.class(), outer.flags, &order.wanted.class(), order.wanted.flags);
    if ORDER_EDGES.insert(&order.key, &[0, 0], 0).is_err() {
        count(counter::ORDER_EDGE_MAP_FULL);
        return 0;
    }
    let Some(mut entry) = RECORDS.reserve::<Edge>(0) else {
        count(counter::RING_FULL);
        count(counter::ORDER_EDGE_LOST);
        // It is told the next time.
        let _ = ORDER_EDGES.remove(&order.key);
        return 0;
    };
    // SAFETY: every field is written below before the record is submitted.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    fill_header(&mut record.header, kind::EDGE);
    describe(outer, &mut record.held);
    describe(&order.wanted, &mut record.wanted);
    record.wanted.since = 0;
    record.wanted.stack_id = -1;
    record.address = order.address;
    record.stack_len = order.stack_len;
    for frame in 0..STACK_FRAMES {
        record.stack[frame] = order.stack[frame];
    }
    entry.submit(0);
    0
}

#[inline(always)]
fn describe(lock: &Slot, out: &mut OrderLock) {
    out.class.kind = lock.kind;
    out.class.offset = lock.offset;
    out.class.owner = lock.owner;
    out.class.site = lock.site;
    out.class.name = [0; NAME_LEN];
    out.address = lock.lock;
    out.since = lock.since;
    out.flags = lock.flags | classify::site_flags(lock.site);
    out.stack_id = lock.stack;
    describe_mm(if lock.kind == class::MMAP { lock.owner } else { 0 }, &mut out.mm);
    let name: u64 = match lock.kind {
        class::SLAB | class::SLAB_SITE => member(lock.owner, setting::CACHE_NAME).unwrap_or(0),
        class::INODE => member(lock.owner, setting::FS_TYPE_NAME).unwrap_or(0),
        _ => 0,
    };
    if name != 0 {
        read_str(name, &mut out.class.name);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn order_push(flags: u32, stack: i32) -> u32 {
    if let Some(order) = order() {
        push(order, flags, stack);
    }
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn order_return(acquired: u32) -> u32 {
    let Some(order) = order() else { return 0 };
    let depth = order.depth;
    let Some(top) = tentative(order) else { return 0 };
    if acquired != 0 {
        top.flags &= !held::TENTATIVE;
        top.since = now();
    } else {
        order.depth = depth - 1;
    }
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn order_release(lock: u64, read: u32) -> u32 {
    let known = match order() {
        Some(order) => {
            order.flags &= !flag::PENDING;
            pop(order, lock)
        }
        None => false,
    };
    // Of all others the lock's own word tells.
    if !known && read != 0 && is_followed() {
        state::strange(lock);
    }
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn order_downgrade(lock: u64) -> u32 {
    let Some(order) = order() else { return 0 };
    for index in 0..MAX_ORDER as u32 {
        if index < order.depth {
            let held = slot(order, index);
            if held.lock == lock {
                held.flags = held.flags & !held::WRITE | held::READ | held::DOWNGRADED;
            }
        }
    }
    0
}

/// Whether the site of the lock is worth remembering.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn order_init(lock: u64, mutex: u32) -> u32 {
    if mutex == 0
        && let Some(mm) = mm_of_lock(lock)
    {
        let _ = ORDER_BORN.insert(&mm, &now(), 0);
        return 0;
    }
    let mut found = Slot { lock: 0, owner: 0, site: 0, since: 0, kind: 0, offset: 0, flags: 0, stack: 0 };
    classify::classify(lock, mutex != 0, &mut found);
    u32::from(matches!(found.kind, class::SLAB_SITE | class::ADDRESS))
}
