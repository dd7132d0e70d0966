//! User accesses of a task that holds an mmap lock, whether they fault or not: what `might_fault()` asks on a debug
//! kernel.
//!
//! Judged at the entry of the functions that copy. An access that cannot sleep is none: page faults disabled, or in
//! atomic context, where the fault handler gives up before it wants the lock.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id},
    macros::map,
    maps::HashMap,
};
use pagetrace_ebpf::wire::{
    body, counter,
    fault::{X86_PF_WRITE, violation},
    setting,
};

use super::{
    order,
    settle::settle,
    violation::{emit, wanted},
};
use crate::{
    handover::{GoesOn, Handed, go_on, handed},
    kernel::{current_mm, member, nofault, read, setting},
    state::{Access, count, holds, task},
};

/// Whether user memory is written or read.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Direction {
    /// Read.
    From,
    /// Written.
    To,
}

/// The lowest preempt count seen in a probe on this address when the tracer itself made the access, which it does in
/// no atomic context: what the probe adds by itself. A breakpoint and a jump add different amounts, and the kernel
/// turns one into the other, so each has its own entry. Address 0 stands for all.
#[map]
static BASELINES: HashMap<u64, u64> = HashMap::with_max_entries(256, 0);

/// `PREEMPT_NEED_RESCHED` lives in the count on x86 and says nothing about context (arch/x86/include/asm/preempt.h).
const NEED_RESCHED: u64 = 1 << 31;
/// Softirqs disabled or served (include/linux/preempt.h, `SOFTIRQ_MASK`). No probe adds to it.
const SOFTIRQ: u64 = 0xff00;
/// `NMI_MASK`: a kernel-mode breakpoint is entered like an NMI, a jump is not.
const NMI: u64 = 0xf0_0000;
/// No count.
const UNKNOWN: u64 = u64::MAX;

/// The preempt count of this CPU, or [`UNKNOWN`].
#[inline(always)]
fn preempt_count() -> u64 {
    let (offsets, variable) = (setting(setting::PER_CPU_OFFSET), setting(setting::PREEMPT_COUNT));
    if offsets == setting::NONE || variable == setting::NONE {
        return UNKNOWN;
    }
    // SAFETY: no arguments, no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(base) = read::<u64>(offsets.wrapping_add(u64::from(cpu) * 8)) else { return UNKNOWN };
    match read::<u32>(base.wrapping_add(variable)) {
        Some(count) => u64::from(count) & !NEED_RESCHED,
        None => UNKNOWN,
    }
}

#[inline(always)]
fn baseline_key(ip: u64, count: u64) -> u64 {
    ip << 1 | u64::from(count & NMI != 0)
}

#[inline(always)]
fn baseline(key: u64) -> u64 {
    // SAFETY: the value is copied out at once.
    unsafe { BASELINES.get(&key) }.copied().unwrap_or(UNKNOWN)
}

#[inline(always)]
fn learn(key: u64, count: u64) {
    if count < baseline(key) {
        // Without room the entry for all addresses serves.
        let _ = BASELINES.insert(&key, &count, 0);
    }
}

/// In which context an access is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Context {
    MaySleep,
    Atomic,
    Unknown,
}

#[inline(always)]
fn context(ip: u64) -> Context {
    let count = preempt_count();
    if count == UNKNOWN {
        return Context::Unknown;
    }
    if count & SOFTIRQ != 0 {
        return Context::Atomic;
    }
    let own = baseline(baseline_key(ip, count));
    if own != UNKNOWN {
        return if count > own { Context::Atomic } else { Context::MaySleep };
    }
    let any = baseline(baseline_key(0, count));
    if any != UNKNOWN && count <= any { Context::MaySleep } else { Context::Unknown }
}

/// Whether the access is the tracer's own, from which it learns what a probe adds to the preempt count.
#[inline(always)]
fn is_own(ip: u64) -> bool {
    if bpf_get_current_pid_tgid() >> 32 != setting(setting::SELF_TGID) {
        return false;
    }
    let count = preempt_count();
    if count != UNKNOWN && count & SOFTIRQ == 0 {
        learn(baseline_key(ip, count), count);
        learn(baseline_key(0, count), count);
    }
    true
}

/// Whether an access here and now is worth looking at.
#[inline(always)]
fn concerns(ip: u64) -> bool {
    !is_own(ip) && (task().is_some_and(|task| holds(task)) || order::holds())
}

/// A function that accesses user memory at `address` was entered; `ip` is where its probe sits.
#[inline(always)]
pub(crate) fn on_access(ctx: &impl GoesOn, ip: u64, address: u64, direction: Direction) {
    if concerns(ip) {
        look_into(ctx, ip, address, direction);
    }
}

/// A function that copies from `from` to `to` was entered: whichever is a user address is the access.
#[inline(always)]
pub(crate) fn on_move(ctx: &impl GoesOn, ip: u64, to: u64, from: u64) {
    if !concerns(ip) {
        return;
    }
    let (address, direction) = if to >> 63 == 0 { (to, Direction::To) } else { (from, Direction::From) };
    look_into(ctx, ip, address, direction);
}

/// A function that copies to or from what an iterator describes was entered.
#[inline(always)]
pub(crate) fn on_iterator(ctx: &impl GoesOn, ip: u64, iter: u64, direction: Direction) {
    if !concerns(ip) || nofault() {
        return;
    }
    let kind = match setting(setting::ITER_TYPE_SIZE) {
        1 => member::<u8>(iter, setting::ITER_TYPE).map(u64::from),
        // Until 5.14 the lowest bit tells the direction (include/linux/uio.h, `iov_iter_type`).
        4 => member::<u32>(iter, setting::ITER_TYPE).map(|kind| u64::from(kind) & !1),
        _ => None,
    };
    let unknown = Access { mm: current_mm(), address: 0, ip, error: 0, flags: 0, own_readers: 0 };
    let Some(kind) = kind else { return count_unknown(&unknown) };
    let offset = member::<u64>(iter, setting::ITER_OFFSET).unwrap_or(0);
    let start = if kind == setting(setting::ITER_UBUF) {
        member::<u64>(iter, setting::ITER_BUFFER)
    } else if kind == setting(setting::ITER_IOVEC) {
        // `iovec.iov_base` is the first member (include/uapi/linux/uio.h).
        member::<u64>(iter, setting::ITER_VECTOR).and_then(read::<u64>)
    } else {
        // Kernel memory, pages or nothing.
        return;
    };
    let Some(start) = start else { return count_unknown(&unknown) };
    look_into(ctx, ip, start.wrapping_add(offset), direction);
}

/// Counts an access that cannot be judged, when it would have been the target's.
#[inline(always)]
fn count_unknown(access: &Access) {
    if task().is_some() && wanted(access.mm) {
        count(counter::ACCESS_UNKNOWN);
    }
}

/// Goes on to the program that [`judge`]s.
#[inline(always)]
fn look_into(ctx: &impl GoesOn, ip: u64, address: u64, direction: Direction) {
    go_on(ctx, body::ACCESS, Handed { about: address, ip, flags: direction as u32 });
}

/// The access that was given along.
#[inline(always)]
pub(crate) fn judge(ctx: &impl EbpfContext) {
    let Some(Handed { about: address, ip, flags: direction }) = handed() else { return };
    let mm = current_mm();
    if address >> 63 != 0 || mm == 0 || nofault() {
        return;
    }
    let context = context(ip);
    if context == Context::Atomic {
        return;
    }
    let access = Access {
        mm,
        address,
        ip,
        error: if direction == Direction::To as u32 { X86_PF_WRITE } else { 0 },
        flags: violation::LATENT | violation::ERROR_KNOWN,
        own_readers: 0,
    };
    if context == Context::Unknown {
        return count_unknown(&access);
    }
    if order::holds() {
        order::on_access(ctx, mm, address);
    }
    if let Some(task) = task()
        && holds(task)
    {
        settle(task);
        emit(ctx, task, access);
    }
}
