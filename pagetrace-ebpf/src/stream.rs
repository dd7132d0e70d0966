//! Emits the stream of a recording: what a hook saw, in addition to what the gate makes of it.
//!
//! Nothing here changes the gate's state or asks it for a verdict: the stream is what its verdicts are checked against.
//!
//! What emits is a global function, which the verifier looks at once and not on every path that leads to it: inlined, it
//! took a 5.10 kernel longer than anybody waits. Such a function takes numbers only, so what may be a typed pointer is
//! laundered first.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_smp_processor_id},
    macros::map,
    maps::{Array, LruHashMap},
};
use pagetrace_ebpf::wire::{
    COMM_LEN, MmOwner, counter, kind,
    lock::held,
    setting,
    stream::{Brief, Exception, Handler, Lock, Mm, Task as TaskRecord, Words, life, op, seen},
};

use crate::{
    hooks::lock::NOT_HELD,
    kernel::{current, current_mm, describe_mm, member, number, setting},
    state::{RECORDS, Slot, Task, count, flag, now, slot, state_of},
    target,
};

/// How often at most the reader is woken, nanoseconds: a wakeup costs an interrupt.
const WAKE_EVERY_NS: u64 = 500_000;

/// What became of a lock's event.
#[derive(Clone, Copy)]
pub(crate) struct Told {
    /// [`held::STREAMED`] for the hold that begins, or nothing.
    pub(crate) streamed: u32,
    /// [`seen::WANTED`], or nothing.
    wanted: u32,
    /// It goes out when the hold has its stack.
    later: bool,
}

/// Address spaces whose owner was told. The oldest go when it is full, and are told again.
#[map]
static MMS_TOLD: LruHashMap<u64, u32> = LruHashMap::with_max_entries(4096, 0);

/// When the reader was last woken, nanoseconds of `CLOCK_MONOTONIC`.
#[map]
static WOKEN_AT: Array<u64> = Array::with_max_entries(1, 0);

/// Whether there is a stream.
#[inline(always)]
pub(crate) fn on() -> bool {
    setting(setting::STREAM) == 1
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stream_wanted(mm: u64) -> u32 {
    u32::from(target::traced(mm))
}

/// Whether an event of the current task in this address space is the recording's.
#[inline(always)]
pub(crate) fn wanted(mm: u64) -> bool {
    stream_wanted(number(mm)) != 0
}

/// Flags for the submission of a frequent record: the reader is woken when there is a good part of the ring to read.
#[inline(always)]
pub(crate) fn wake() -> u64 {
    if !on() {
        return 0;
    }
    if RECORDS.query(u64::from(BPF_RB_AVAIL_DATA)) < setting(setting::RING_WAKE) {
        return u64::from(BPF_RB_NO_WAKEUP);
    }
    let Some(last) = WOKEN_AT.get_ptr_mut(0) else { return 0 };
    let time = now();
    // SAFETY: an array map's entry 0 always exists; a lost update only wakes the reader once more.
    unsafe {
        if time.wrapping_sub(*last) < WAKE_EVERY_NS {
            return u64::from(BPF_RB_NO_WAKEUP);
        }
        *last = time;
    }
    u64::from(BPF_RB_FORCE_WAKEUP)
}

macro_rules! emit {
    ($ty:ty, $record:ident => $fill:block) => {
        match RECORDS.reserve::<$ty>(0) {
            Some(mut entry) => {
                // SAFETY: the block writes every field before the record is submitted.
                let $record = unsafe { &mut *entry.as_mut_ptr() };
                $fill
                entry.submit(wake());
            }
            None => lost(),
        }
    };
}

#[inline(always)]
fn lost() {
    count(counter::RING_FULL);
    count(counter::STREAM_LOST);
}

#[inline(always)]
fn brief(out: &mut Brief, kind: u32, task: u64) {
    out.kind = kind;
    // SAFETY: no arguments, no preconditions.
    out.cpu = unsafe { bpf_get_smp_processor_id() };
    out.ts = now();
    out.task = task;
}

/// Says who the current task is, once.
#[inline(always)]
fn tell_task(task: &mut Task) {
    if task.flags & flag::TOLD != 0 {
        return;
    }
    task.flags |= flag::TOLD;
    stream_current(life::SEEN);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stream_current(op: u32) -> u32 {
    let ids = bpf_get_current_pid_tgid();
    let this = current();
    emit!(TaskRecord, record => {
        brief(&mut record.brief, kind::TASK, this);
        record.start = member(this, setting::TASK_START).unwrap_or(0);
        record.parent = 0;
        record.op = op;
        record.tid = ids as u32;
        record.tgid = (ids >> 32) as u32;
        record.task_flags = member(this, setting::TASK_FLAGS).unwrap_or(0);
        record.comm = bpf_get_current_comm().unwrap_or_default();
    });
    0
}

/// Says who another task is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stream_other(op: u32, task: u64, parent: u64) -> u32 {
    emit!(TaskRecord, record => {
        brief(&mut record.brief, kind::TASK, task);
        record.start = member(task, setting::TASK_START).unwrap_or(0);
        record.parent = parent;
        record.op = op;
        record.tid = member(task, setting::TASK_PID).unwrap_or(0);
        record.tgid = member(task, setting::TASK_TGID).unwrap_or(0);
        record.task_flags = member(task, setting::TASK_FLAGS).unwrap_or(0);
        record.comm = member(task, setting::TASK_COMM).unwrap_or([0; COMM_LEN]);
    });
    0
}

/// Says whose address space this is, once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stream_mm(mm: u64) -> u32 {
    // SAFETY: only presence matters.
    if unsafe { MMS_TOLD.get(&mm) }.is_some() {
        return 0;
    }
    let _ = MMS_TOLD.insert(&mm, &1, 0);
    emit!(Mm, record => {
        brief(&mut record.brief, kind::MM, current());
        let owner: &mut MmOwner = &mut record.owner;
        describe_mm(mm, owner);
    });
    0
}

#[inline(always)]
fn emit_lock(mm: u64, op: u32, flags: u32, stack: i32) {
    stream_lock(number(mm), op, flags, stack);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stream_lock(mm: u64, op: u32, flags: u32, stack: i32) -> u32 {
    emit!(Lock, record => {
        brief(&mut record.brief, kind::LOCK, current());
        record.mm = mm;
        record.op = op;
        record.flags = flags | if mm == current_mm() { seen::OWN_MM } else { 0 };
        record.stack_id = stack;
        record.pad = 0;
    });
    0
}

/// An attempt, an acquisition, a failure, or a downgrade, before the gate acts on it.
///
/// What tells of a pending exception goes out now, since what the gate makes of that has to follow it.
#[inline(always)]
pub(crate) fn lock(task: &mut Task, mm: u64, operation: u32, flags: u32) -> Told {
    let none = Told { streamed: 0, wanted: 0, later: false };
    if !on() {
        return none;
    }
    let pending = task.flags & flag::PENDING != 0;
    let wanted = if wanted(mm) { seen::WANTED } else { 0 };
    // The attempt that a pending exception leads to has to be seen, whosever it is.
    if wanted == 0 && !pending {
        return none;
    }
    tell_task(task);
    stream_mm(number(mm));
    let later = !pending && matches!(operation, op::ATTEMPT | op::ACQUIRED);
    if !later {
        emit_lock(mm, operation, flags | wanted, -1);
    }
    Told { streamed: held::STREAMED, wanted, later }
}

/// The same event, after the gate acted on it: the hold that it began has the stack.
#[inline(always)]
pub(crate) fn locked(task: &mut Task, mm: u64, operation: u32, flags: u32, told: Told) {
    if !on() || !told.later {
        return;
    }
    let mut stack = -1;
    if task.depth != 0 {
        let last = *slot(task, task.depth - 1);
        if last.mm == mm {
            stack = last.stack;
        }
    }
    emit_lock(mm, operation, flags | told.wanted, stack);
}

/// The task begins to wait.
#[inline(always)]
pub(crate) fn waits(mm: u64) {
    emit_lock(mm, op::WAIT, seen::WANTED, -1);
}

/// An attempt ended.
#[inline(always)]
pub(crate) fn returned(task: &mut Task, mm: u64, flags: u32, acquired: bool) {
    tell_task(task);
    let mode = flags & (held::READ | held::WRITE | held::TRY);
    emit_lock(mm, if acquired { op::RETURNED_OK } else { op::RETURNED_FAIL }, mode, -1);
}

/// An attempt ended whose return was missed.
#[inline(always)]
pub(crate) fn settled(task: &mut Task, mm: u64, flags: u32, operation: u32) {
    tell_task(task);
    emit_lock(mm, operation, flags & (held::READ | held::WRITE | held::TRY), -1);
}

/// A lock is released.
#[inline(always)]
pub(crate) fn release(mm: u64, mode: u32) {
    emit_lock(mm, op::RELEASE, mode, -1);
}

/// A lock whose acquisition was streamed is downgraded.
#[inline(always)]
pub(crate) fn downgrade(task: &mut Task, mm: u64) -> Told {
    tell_task(task);
    emit_lock(mm, op::DOWNGRADE, held::READ, -1);
    Told { streamed: held::STREAMED, wanted: 0, later: false }
}

/// Whether the acquisition of this hold was streamed.
#[inline(always)]
pub(crate) fn is_streamed(task: &mut Task, index: u32) -> bool {
    index != NOT_HELD && slot(task, index).flags & held::STREAMED != 0
}

/// A kernel-mode exception on a user address.
#[inline(always)]
pub(crate) fn exception(task: &mut Task, address: u64, ip: u64, error: u64, nofault: bool, wanted: bool) {
    tell_task(task);
    let flags = if wanted { seen::WANTED } else { 0 };
    stream_exception(number(address), ip, number(error), u32::from(nofault), flags);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stream_exception(address: u64, ip: u64, error: u64, nofault: u32, flags: u32) -> u32 {
    emit!(Exception, record => {
        brief(&mut record.brief, kind::EXCEPTION, current());
        record.address = address;
        record.ip = ip;
        record.error = error;
        record.nofault = nofault;
        record.flags = flags;
    });
    0
}

/// The fault handler goes for the lock.
#[inline(always)]
pub(crate) fn handler(task: &mut Task, mm: u64, address: u64, ip: u64, user: bool, wanted: bool) {
    tell_task(task);
    stream_mm(number(mm));
    let flags = if wanted { seen::WANTED } else { 0 };
    stream_handler(number(mm), number(address), ip, u32::from(user), flags);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stream_handler(mm: u64, address: u64, ip: u64, user: u32, flags: u32) -> u32 {
    emit!(Handler, record => {
        brief(&mut record.brief, kind::HANDLER, current());
        record.mm = mm;
        record.address = address;
        record.ip = ip;
        record.user = user;
        record.flags = flags;
    });
    0
}

/// The words of a lock that counts as held, with [`seen::MORE`] or nothing.
#[inline(always)]
pub(crate) fn words(held: &Slot, word: Option<u64>, owner: u64, more: u32) {
    let readable = if word.is_some() { seen::READABLE } else { 0 };
    stream_words(held.mm, word.unwrap_or(0), owner, held.flags | readable | more);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stream_words(mm: u64, count: u64, owner: u64, flags: u32) -> u32 {
    stream_mm(mm);
    emit!(Words, record => {
        brief(&mut record.brief, kind::WORDS, current());
        record.mm = mm;
        record.count = count;
        record.sem_owner = owner;
        record.flags = flags | if target::owns(mm) { seen::WANTED } else { 0 };
        record.pad = 0;
    });
    0
}

/// A child of a recorded task.
#[inline(always)]
pub(crate) fn on_fork(child: u64) {
    let mm: u64 = member(child, setting::TASK_MM).unwrap_or(0);
    if mm != current_mm() {
        let _ = MMS_TOLD.remove(&mm);
    }
    if wanted(mm) {
        stream_other(life::FORK, number(child), current());
    }
}

/// The current task runs another program, in an address space that was made for it.
#[inline(always)]
pub(crate) fn on_exec() {
    let mm = current_mm();
    let _ = MMS_TOLD.remove(&mm);
    if wanted(mm) {
        stream_current(life::EXEC);
    }
}

/// The kernel frees a task; its address must be a number to the verifier.
#[inline(always)]
pub(crate) fn on_free(task: u64) {
    if let Some(state) = state_of(task)
        && state.flags & flag::TOLD != 0
    {
        stream_other(life::FREE, task, 0);
    }
}
