//! What a task carries between events, and the counters.
//!
//! State is keyed by the address of the `task_struct`, so a reused process id never meets old state, and it goes
//! when the kernel frees the task. Only the task itself touches its state, in process context or in an interrupt
//! on top of it.

use aya_ebpf::{
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_ns},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use pagetrace_ebpf::wire::{Header, counter, lock::MAX_HELD, setting};

use crate::kernel::{current, member};

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
static TASKS: HashMap<u64, Task> = HashMap::with_max_entries(16384, 0);

/// An all-zero task: too large for the BPF stack, so new entries are copied from here.
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

/// State of the current task, when it has some.
#[inline(always)]
pub(crate) fn task() -> Option<&'static mut Task> {
    let key = current();
    // SAFETY: entries are deleted only when the task is freed, which the current task is not.
    TASKS.get_ptr_mut(&key).map(|task| unsafe { &mut *task })
}

/// State of any task, when it has some.
#[inline(always)]
pub(crate) fn state_of(task: u64) -> Option<&'static mut Task> {
    // SAFETY: the caller is the hook that is about to delete the entry.
    TASKS.get_ptr_mut(&task).map(|task| unsafe { &mut *task })
}

/// State of the current task, made when it has none.
#[inline(always)]
pub(crate) fn task_or_new() -> Option<&'static mut Task> {
    if let Some(task) = task() {
        return Some(task);
    }
    let empty = EMPTY_TASK.get(0)?;
    let key = current();
    if TASKS.insert(&key, empty, 0).is_err() {
        count(counter::TASK_MAP_FULL);
        return None;
    }
    task()
}

/// Forgets a task that the kernel frees.
#[inline(always)]
pub(crate) fn forget(task: u64) {
    let _ = TASKS.remove(&task);
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
