//! What a task carries between events, and the counters.
//!
//! State is keyed by the address of the `task_struct`, so a reused process id never meets old state, and it goes
//! when the kernel frees the task. Only the task itself touches its state, in process context or in an interrupt
//! on top of it.
//!
//! The states lie in an array, each at the first free one of a few places that the address tells. Nearly always that is
//! the first of all, which costs a comparison; looking an address up in a hash map costs several times that. Who puts
//! the place into `TASK_OF` has it: the map's own lock decides between tasks that want the same.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_ns},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use pagetrace_ebpf::wire::{Header, counter, lock::MAX_HELD, setting};

use crate::kernel::{current, member, setting};

pub(crate) use pagetrace_ebpf::wire::task::{Access, OpenFault, OpenWalk, Slot, Task};

/// Bits of [`Task::flags`].
pub(crate) mod flag {
    /// An exception on a user address was seen; the next lock attempt tells whether it counts.
    pub(crate) const PENDING: u32 = 1;
    /// A violation was emitted and waits for its VMA.
    pub(crate) const WANTS_VMA: u32 = 1 << 1;
    /// Waits for a lock.
    pub(crate) const WAITING: u32 = 1 << 2;
    /// The stream of a recording has said who this task is.
    pub(crate) const TOLD: u32 = 1 << 4;
    /// [`Task::window`] has the stack of the violation that is being told: what an interrupt does must leave it alone.
    pub(crate) const TELLING: u32 = 1 << 5;
}

#[map]
static TASKS: Array<Task> = Array::with_max_entries(16384, 0);

/// The place of each task that has state.
#[map]
static TASK_AT: HashMap<u64, u32> = HashMap::with_max_entries(16384, 0);

/// The task that has a place.
#[map]
static TASK_OF: HashMap<u32, u64> = HashMap::with_max_entries(16384, 0);

/// An all-zero task: too large for the BPF stack, so what is over is wiped with this.
#[map]
static EMPTY_TASK: Array<Task> = Array::with_max_entries(1, 0);

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::LEN as u32, 0);

/// Records for userspace.
#[map]
pub(crate) static RECORDS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// Adds one to a counter.
#[inline(always)]
pub(crate) fn count(index: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the pointer is this CPU's slot of the map.
        unsafe { *value += 1 };
    }
}

/// Places that are tried for a task. Half of all are free while there are as many tasks as the loader made room for, so that
/// none of these is free for one task in four thousand million.
const PLACES: u64 = 32;

/// One of the places that a task's state can be at.
#[inline(always)]
fn place(task: u64, nth: u64) -> u32 {
    let mixed = task.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let mixed = mixed.wrapping_add(nth.wrapping_mul(0x85eb_ca6b)) & 0xffff_ffff;
    (mixed.wrapping_mul(setting(setting::TASK_PLACES)) >> 32) as u32
}

/// The state at a place, if it is the task's.
#[inline(always)]
fn state_at(place: u32, task: u64) -> Option<&'static mut Task> {
    let state = TASKS.get_ptr_mut(place)?;
    // SAFETY: the pointer is into the map. Another task's state is only asked whose it is.
    let whose = unsafe { core::ptr::read_volatile(&raw const (*state).task) };
    // SAFETY: it is this task's, and is so until the task is freed.
    if whose == task { Some(unsafe { &mut *state }) } else { None }
}

/// State of the current task, when it has some.
#[inline(always)]
pub(crate) fn task() -> Option<&'static mut Task> {
    state_of(current())
}

/// State of any task, when it has some. The address must be a number to the verifier.
#[inline(always)]
pub(crate) fn state_of(task: u64) -> Option<&'static mut Task> {
    if let Some(state) = state_at(place(task, 0), task) {
        return Some(state);
    }
    // SAFETY: the value is copied out at once.
    let place = *unsafe { TASK_AT.get(&task) }?;
    state_at(place, task)
}

/// State of the current task, made when it has none.
#[inline(always)]
pub(crate) fn task_or_new() -> Option<&'static mut Task> {
    let key = current();
    if let Some(state) = state_of(key) {
        return Some(state);
    }
    state_at(task_settles(key), key)
}

/// Finds a place for a task that has none, and tells it; `u32::MAX` when there is none.
///
/// An interrupt on top of this one may do the same for the same task: it comes to the same place, and nothing that it writes
/// there is undone. A global function, as the verifier looks at those by themselves, once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn task_settles(task: u64) -> u32 {
    for nth in 0..PLACES {
        let place = place(task, nth);
        let taken = TASK_OF.insert(&place, &task, BPF_NOEXIST.into()).is_ok()
            // SAFETY: the value is copied out at once.
            || unsafe { TASK_OF.get(&place) }.copied() == Some(task);
        if !taken {
            continue;
        }
        if TASK_AT.insert(&task, &place, 0).is_err() {
            let _ = TASK_OF.remove(&place);
            break;
        }
        // What was there before was wiped when it ended.
        if let Some(state) = TASKS.get_ptr_mut(place) {
            // SAFETY: the place is this task's, by the map above.
            unsafe { core::ptr::write_volatile(&raw mut (*state).task, task) };
        }
        return place;
    }
    count(counter::TASK_MAP_FULL);
    u32::MAX
}

/// Forgets a task that the kernel frees.
#[inline(always)]
pub(crate) fn forget(task: u64) {
    // SAFETY: the value is copied out at once.
    let Some(place) = unsafe { TASK_AT.get(&task) }.copied() else { return };
    if let Some(empty) = EMPTY_TASK.get(0) {
        let _ = TASKS.set(place, empty, 0);
    }
    let _ = TASK_AT.remove(&task);
    // Last: from here on another task can have it.
    let _ = TASK_OF.remove(&place);
}

/// One slot; the mask keeps the verifier sure that it lies in the array.
#[inline(always)]
pub(crate) fn slot(task: &mut Task, index: u32) -> &mut Slot {
    // What the compiler proved of the index it would use to drop the mask, and the verifier cannot follow the proof.
    let index = core::hint::black_box(index);
    let index = (index & (MAX_HELD as u32 - 1)) as usize;
    // SAFETY: the index is masked to the array's length, a power of two.
    unsafe { &mut *task.slots.as_mut_ptr().add(index) }
}

/// A number of a map, read anew: what a comparison tells the verifier of a number that is kept in a register it carries
/// along, and then looks at the rest of the program once for each outcome.
#[inline(always)]
pub(crate) fn anew(place: &u32) -> u32 {
    // SAFETY: a reference is valid to read from.
    unsafe { core::ptr::read_volatile(&raw const *place) }
}

/// The same value, of which the verifier knows nothing any more, nor what type of pointer it is, once it went through a
/// place in a map; see [`anew`].
#[inline(always)]
pub(crate) fn through<T: Copy>(place: &mut T, value: T) -> T {
    let place = &raw mut *place;
    // SAFETY: a reference is valid to write to and to read from. Volatile, since what is read must not be taken for what
    // was written.
    unsafe {
        core::ptr::write_volatile(place, value);
        core::ptr::read_volatile(place)
    }
}

/// Whether the task holds any mmap lock.
#[inline(always)]
pub(crate) fn holds(task: &Task) -> bool {
    task.depth != 0 || task.overflow != 0
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// Fills the common part of a record.
#[inline(always)]
pub(crate) fn fill_header(header: &mut Header, kind: u32) {
    let ids = bpf_get_current_pid_tgid();
    header.kind = kind;
    // SAFETY: no arguments, no preconditions.
    header.cpu = unsafe { bpf_get_smp_processor_id() };
    header.ts = now();
    header.task = current();
    header.tid = ids as u32;
    header.tgid = (ids >> 32) as u32;
    header.comm = bpf_get_current_comm().unwrap_or_default();
    header.task_flags = member(header.task, setting::TASK_FLAGS).unwrap_or(0);
    header.pad = 0;
}
