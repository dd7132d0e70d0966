//! Page faults: the exception, the handler's lock path, the handler itself.

use aya_ebpf::EbpfContext;
use pagetrace_ebpf::wire::{
    counter,
    fault::{Fault, mode, violation},
    kind, setting,
};

use super::{
    before,
    lock::{held_by, held_now},
    settle::settle,
    violation::{emit, emit_vma, wanted},
};
use crate::{
    kernel::{current_mm, describe_mm, member, nofault, number, predates_tracing, setting},
    stacks::Probed,
    state::{Access, OpenFault, RECORDS, Task, count, fill_header, flag, holds, now, task, task_or_new},
    stream, target,
};

/// Privilege level in `pt_regs.cs`.
const CPL_MASK: u64 = 3;
/// `FAULT_FLAG_VMA_LOCK` (include/linux/mm_types.h); no flag has this bit before 6.4.
const VMA_LOCK: u32 = 0x1000;
/// Of pages of 4 KiB.
const PAGE_SHIFT: u32 = 12;

/// A kernel-mode fault of a task that holds nothing, as far as is known. A task older than the tracing may hold a
/// lock unseen: its release will tell.
#[inline(always)]
fn note_unjudged(known: Option<&mut Task>) {
    match known {
        Some(task) => task.kernel_faults = task.kernel_faults.saturating_add(1),
        None if predates_tracing() => {
            if let Some(task) = task_or_new() {
                task.kernel_faults = 1;
            }
        }
        None => {}
    }
}

/// Tracepoint `exceptions:page_fault_kernel`: before any lock, and before the handler looks whether faults are
/// disabled.
#[inline(always)]
pub(crate) fn on_exception(address: u64, regs: u64, error: u64) {
    // Kernel addresses never need mmap_lock (arch/x86/mm/fault.c, do_kern_addr_fault).
    if address >> 63 != 0 {
        return;
    }
    let nofault = nofault();
    if stream::on() {
        stream_exception(address, regs, error, nofault);
    }
    if nofault {
        return;
    }
    match task() {
        Some(task) if holds(task) => pend(task, address, regs, error),
        known if setting(setting::CONFIRM_BY_LOCK) == 1 => {
            if !before::adopts() {
                note_unjudged(known);
            } else if let Some(task) = task() {
                pend(task, address, regs, error);
            }
        }
        _ => {}
    }
}

/// The task's next attempt on its own lock tells whether the exception needs it.
#[inline(always)]
fn pend(task: &mut Task, address: u64, regs: u64, error: u64) {
    task.pending_address = address;
    task.pending_ip = member(regs, setting::REGS_IP).unwrap_or(0);
    task.pending_error = error;
    task.flags |= flag::PENDING;
}

#[inline(always)]
fn stream_exception(address: u64, regs: u64, error: u64, nofault: bool) {
    let mm = current_mm();
    let acts = stream::wanted(mm);
    // The lock attempt that follows is streamed when the exception is.
    let known = if acts { task_or_new() } else { task() };
    if let Some(task) = known
        && (acts || (holds(task) && wanted(mm)))
    {
        stream::exception(task, address, member(regs, setting::REGS_IP).unwrap_or(0), error, nofault, acts);
    }
}

#[inline(always)]
fn stream_handler(mm: u64, address: u64, regs: u64, user: bool) {
    let acts = stream::wanted(mm);
    let known = if acts { task_or_new() } else { task() };
    if let Some(task) = known
        && (acts || (holds(task) && wanted(mm)))
    {
        stream::handler(task, mm, address, member(regs, setting::REGS_IP).unwrap_or(0), user, acts);
    }
}

/// `lock_mm_and_find_vma`: the fault handler goes for mmap_lock, after every benign case was sorted out.
#[inline(always)]
pub(crate) fn on_handler_locks(ctx: &impl EbpfContext, mm: u64, address: u64, regs: u64) {
    let Some(cs) = member::<u64>(regs, setting::REGS_CS) else { return count(counter::READ_FAILED) };
    let user = cs & CPL_MASK != 0;
    if !user && let Some(task) = task() {
        settle(task);
    }
    if stream::on() {
        stream_handler(mm, address, regs, user);
    }
    if user {
        return;
    }
    let task = match task() {
        Some(task) if holds(task) => task,
        known => match before::adopts().then(task).flatten() {
            Some(task) => task,
            None => return note_unjudged(known),
        },
    };
    let mut access = Access {
        mm,
        address,
        ip: member(regs, setting::REGS_IP).unwrap_or(0),
        error: 0,
        flags: violation::PROVEN,
        own_readers: 0,
    };
    if task.flags & flag::PENDING != 0 && task.pending_address == address {
        access.error = task.pending_error;
        access.flags |= violation::ERROR_KNOWN;
    }
    task.flags &= !flag::PENDING;
    emit(ctx, task, access);
}

/// `lock_mm_and_find_vma` returned the VMA.
#[inline(always)]
pub(crate) fn on_handler_locked(vma: u64) {
    if let Some(task) = task()
        && task.flags & flag::WANTS_VMA != 0
    {
        emit_vma(task, vma);
    }
}

/// `handle_mm_fault` was entered. `regs` is null when get_user_pages calls.
#[inline(always)]
pub(crate) fn on_fault(ctx: &impl Probed, vma: u64, address: u64, flags: u32, regs: u64) {
    let known = task();
    if setting(setting::VMA_BY_RETURN) == 0
        && let Some(task) = known
        && task.flags & flag::WANTS_VMA != 0
        && regs != 0
    {
        // Where nothing was mapped, this function was not called, and this fault is another.
        let same = (address ^ task.pending_address) >> PAGE_SHIFT == 0;
        if same && member::<u64>(regs, setting::REGS_CS).is_some_and(|cs| cs & CPL_MASK == 0) {
            emit_vma(task, vma);
        } else {
            task.flags &= !flag::WANTS_VMA;
        }
    }
    if setting(setting::TRACE) == 0 {
        return;
    }
    begin(number(ctx.on_stack()), vma, address, flags, regs);
}

/// Keeps what is known of a fault until its end.
#[inline(always)]
fn begin(frame: u64, vma: u64, address: u64, flags: u32, regs: u64) {
    let mm: u64 = member(vma, setting::VMA_MM).unwrap_or(0);
    if !target::traced(mm) {
        return;
    }
    let Some(task) = task_or_new() else { return };
    let mut held = held_by(task);
    let (mut ip, mut mode) = (0, mode::REMOTE);
    if regs != 0 {
        if flags & VMA_LOCK == 0 {
            // The handler's own.
            held = held.saturating_sub(1);
        }
        ip = member(regs, setting::REGS_IP).unwrap_or(0);
        let cs: u64 = member(regs, setting::REGS_CS).unwrap_or(0);
        mode = if cs & CPL_MASK != 0 { mode::USER } else { mode::KERNEL };
    }
    // No handler is below user mode, nor below one that was called farther out: the end of such a fault was not seen.
    let over = |fault: &OpenFault| mode == mode::USER || fault.frame <= frame;
    if task.fault_depth == 2 && over(&task.faults[1]) {
        count(counter::FAULT_END_MISSED);
        task.fault_depth = 1;
    }
    if task.fault_depth == 1 && over(&task.faults[0]) {
        count(counter::FAULT_END_MISSED);
        task.fault_depth = 0;
    }
    let [outer, inner] = &mut task.faults;
    let place = match task.fault_depth {
        0 => outer,
        1 => inner,
        _ => return count(counter::FAULT_END_MISSED),
    };
    *place = OpenFault { since: now(), address, ip, mm, frame, flags, mode, held, pad: 0 };
    task.fault_depth += 1;
}

/// `handle_mm_fault` returned. The program may have been left out when a fault within this one ended.
#[inline(always)]
pub(crate) fn on_fault_end(ctx: &impl Probed, result: u32) {
    let Some(task) = task() else { return };
    if task.fault_depth == 0 {
        return;
    }
    let frame = number(ctx.on_stack());
    let [outer, inner] = &task.faults;
    let fault = if task.fault_depth == 2 && is_at(inner, frame) {
        task.fault_depth = 1;
        *inner
    } else if is_at(outer, frame) {
        if task.fault_depth == 2 {
            count(counter::FAULT_END_MISSED);
        }
        task.fault_depth = 0;
        *outer
    } else {
        // One that nobody wanted to know of, or there was no room for.
        return;
    };
    let duration = now().wrapping_sub(fault.since);
    if duration >= setting(setting::MIN_FAULT_NS) {
        emit_fault(&fault, duration, result);
    }
}

/// Whether a handler that was called from there returns to here: the stack pointer is that of the call, but for the return address and
/// what the probe itself puts there.
#[inline(always)]
fn is_at(fault: &OpenFault, frame: u64) -> bool {
    const NEAR: u64 = 64;
    frame.wrapping_sub(fault.frame).wrapping_add(NEAR) < 2 * NEAR
}

#[inline(always)]
fn emit_fault(fault: &OpenFault, duration: u64, result: u32) {
    let Some(mut entry) = RECORDS.reserve::<Fault>(0) else { return count(counter::RING_FULL) };
    // SAFETY: every field is written below before the record is submitted.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    fill_header(&mut record.header, kind::FAULT);
    describe_mm(fault.mm, &mut record.mm);
    record.address = fault.address;
    record.ip = fault.ip;
    record.duration = duration;
    record.fault_flags = fault.flags;
    record.result = result;
    record.mode = fault.mode;
    record.held = fault.held;
    entry.submit(stream::wake());
}

/// An exception where the handler itself cannot be hooked: its end stays unknown.
#[inline(always)]
pub(crate) fn on_exception_only(address: u64, regs: u64, error: u64, mode: u32) {
    let mm = current_mm();
    if address >> 63 != 0 || mm == 0 || nofault() || !target::traced(mm) {
        return;
    }
    let ip = member(regs, setting::REGS_IP).unwrap_or(0);
    // FAULT_FLAG_WRITE is bit 0, the error code's write bit is bit 1.
    let flags = (error >> 1 & 1) as u32;
    emit_fault(&OpenFault { since: 0, address, ip, mm, frame: 0, flags, mode, held: held_now(), pad: 0 }, u64::MAX, 0);
}
