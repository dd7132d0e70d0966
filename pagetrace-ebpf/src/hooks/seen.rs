//! Remembers which violations were told, so that a storm of the same one fills no ring: it only counts.
//!
//! What is not certain to be the same is told again: a stack that could not be kept, a map without room.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_stackid},
    macros::map,
    maps::{HashMap, StackTrace},
};
use pagetrace_ebpf::wire::{
    counter,
    lock::{MAX_HELD, held},
    seen::{KEY_WORDS, VALUE_COUNT, VALUE_FIRST, VALUE_LAST, VALUE_WORDS},
    setting,
};

use super::violation::sem_word;
use crate::{
    hooks::{lock::more_unsure, orphan::given_away},
    kernel::current,
    state::{Task, count, now, slot, task},
};

/// Violations told so far.
#[map]
static SEEN: HashMap<[u64; KEY_WORDS], [u64; VALUE_WORDS]> = HashMap::with_max_entries(4096, 0);

/// Stacks of accesses; only their ids are used.
#[map]
static ACCESS_STACKS: StackTrace = StackTrace::with_max_entries(1024, 0);

/// `RWSEM_FLAG_WAITERS`, kernel/locking/rwsem.c.
const WAITERS: u64 = 1 << 1;
/// Marks in a key, above the bits of [`held`]: the lock is the accessed mm's; somebody waits for it.
const OWN: u32 = 1 << 30;
const QUEUED: u32 = 1 << 31;

/// Id of the current kernel stack; negative when it could not be kept. Another stack in the same bucket is avoided by
/// leaving innermost frames out, which the id's upper bits tell.
#[inline(always)]
pub(crate) fn access_stack(ctx: &impl EbpfContext) -> i32 {
    let mut id = -1;
    for skip in 0..3_u64 {
        // SAFETY: the context is the one the program was called with, the map a stack map.
        id = unsafe { bpf_get_stackid(ctx.as_ptr(), (&raw const ACCESS_STACKS).cast_mut().cast(), skip) } as i32;
        if id >= 0 {
            return id | (skip as i32) << 24;
        }
    }
    id
}

/// What a key says of a hold. A global function: see `stream`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn seen_word(index: u32) -> u64 {
    let Some(task) = task() else { return 0 };
    if index >= task.depth {
        return 0;
    }
    let held = *slot(task, index);
    let mut flags = held.flags & !held::DATED_EARLY;
    if held.mm == task.access.mm {
        flags |= OWN;
    }
    if sem_word(held.mm, setting::SEM_COUNT).unwrap_or(0) & WAITERS != 0 {
        flags |= QUEUED;
    }
    if given_away(held.mm, held.flags, held.since) {
        flags |= held::GIVEN_AWAY;
    }
    u64::from(held.stack as u32) << 32 | u64::from(flags)
}

/// Makes the key, in the task's state: it is too large for the stack, which hooks and what they call share. Two
/// violations with the same key are certain to be the same if their stack could be kept.
#[inline(always)]
pub(crate) fn key(task: &mut Task, stack: i32) {
    for index in 0..MAX_HELD {
        let word = seen_word(index as u32);
        let [_, _, _, _, _, locks @ ..] = &mut task.seen_key;
        locks[index] = word;
    }
    let (access, depth) = (task.access, task.depth);
    let more = u64::from(task.overflow != 0) << 8 | u64::from(more_unsure(task)) << 9;
    let [who, mm, ip, id, kind, ..] = &mut task.seen_key;
    *who = current();
    *mm = access.mm;
    *ip = access.ip;
    *id = bpf_get_current_pid_tgid() << 32 | stack as u32 as u64;
    *kind = u64::from(access.flags) << 32 | more | u64::from(depth);
}

/// Counts the violation that the key was made for when it was told before.
#[inline(always)]
pub(crate) fn again(task: &Task) -> bool {
    let Some(value) = SEEN.get_ptr_mut(&task.seen_key) else { return false };
    // SAFETY: entries are never deleted, and the key names the current task: nobody else writes to this one.
    let value = unsafe { &mut *value };
    value[VALUE_COUNT] += 1;
    value[VALUE_LAST] = now();
    true
}

/// The violation that the key was made for was told by a record of this time.
#[inline(always)]
pub(crate) fn told(task: &Task, time: u64) {
    let mut value = [0; VALUE_WORDS];
    value[VALUE_FIRST] = time;
    value[VALUE_LAST] = time;
    if SEEN.insert(&task.seen_key, &value, 0).is_err() {
        count(counter::SEEN_MAP_FULL);
    }
}
