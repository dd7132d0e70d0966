//! Turns a fault under a lock into a record, after the lock words had their say.

use aya_ebpf::{EbpfContext, helpers::generated::bpf_get_stack};
use pagetrace_ebpf::wire::{
    STACK_FRAMES, counter,
    fault::{Violation, violation},
    kind,
    lock::{MAX_HELD, held},
    setting,
};

use super::{
    lock::{given_away, remove},
    seen,
};
use crate::{
    kernel::{current, describe_mm, member, read, setting},
    state::{RECORDS, Slot, Task, count, fill_header, flag, holds, slot},
    stream, target,
};

/// `RWSEM_WRITER_LOCKED`, kernel/locking/rwsem.c.
pub(super) const WRITER_LOCKED: u64 = 1;
/// Readers count from this bit, `RWSEM_READER_SHIFT`.
pub(super) const READER_SHIFT: u32 = 8;
/// Flag bits in the low end of `rw_semaphore.owner`.
pub(super) const OWNER_FLAGS: u64 = 7;

/// The fault, as the exception told it.
pub(crate) struct Access {
    pub(crate) mm: u64,
    pub(crate) address: u64,
    pub(crate) ip: u64,
    pub(crate) error: u64,
    pub(crate) flags: u32,
    /// Readers in the faulting mm's lock word that are the fault handler's own.
    pub(crate) own_readers: u64,
}

/// The exception seen before this lock attempt.
#[inline(always)]
pub(crate) fn confirmed_by_lock(ctx: &impl EbpfContext, task: &mut Task, mm: u64, acquired: bool) {
    let access = Access {
        mm,
        address: task.pending_address,
        ip: task.pending_ip,
        error: task.pending_error,
        flags: violation::NEEDS_STACK | violation::ERROR_KNOWN,
        own_readers: u64::from(acquired),
    };
    emit(ctx, task, &access);
}

#[inline(always)]
pub(super) fn sem_word(mm: u64, word: usize) -> Option<u64> {
    read(mm.wrapping_add(setting(setting::MM_LOCK)).wrapping_add(setting(word)))
}

/// Whether the lock words rule out that `slot` is still held by the current task.
#[inline(always)]
fn is_over(slot: &Slot, word: u64, owner: u64, fault: &Access) -> bool {
    if slot.flags & held::WRITE != 0 {
        return word & WRITER_LOCKED == 0 || owner & !OWNER_FLAGS != current();
    }
    let own = if slot.mm == fault.mm { fault.own_readers } else { 0 };
    word & WRITER_LOCKED != 0 || (word & (i64::MAX as u64)) >> READER_SHIFT <= own
}

/// Removes holds that the lock words rule out: handed over and released elsewhere, or a release that was missed.
#[inline(always)]
fn prune(task: &mut Task, fault: &Access) {
    let streamed = stream::on() && wanted(task, fault.mm);
    for back in 0..MAX_HELD as u32 {
        let index = MAX_HELD as u32 - 1 - back;
        if index >= task.depth {
            continue;
        }
        let copy = *slot(task, index);
        let word = sem_word(copy.mm, setting::SEM_COUNT);
        let owner = sem_word(copy.mm, setting::SEM_OWNER).unwrap_or(0);
        if streamed {
            stream::words(&copy, word, owner);
        }
        let Some(word) = word else { continue };
        if is_over(&copy, word, owner, fault) {
            count(counter::STALE_HOLD);
            remove(task, index);
        }
    }
}

/// Whether a fault in `mm` is the target's: by the task, by the address space, or by a lock held.
#[inline(always)]
pub(super) fn wanted(task: &mut Task, mm: u64) -> bool {
    if target::acts() || target::owns(mm) {
        return true;
    }
    for index in 0..MAX_HELD as u32 {
        if index < task.depth {
            let held = *slot(task, index);
            if held.flags & held::STREAMED != 0 || target::owns(held.mm) {
                return true;
            }
        }
    }
    false
}

/// Emits the violation, unless no lock is left or it is not the target's.
#[inline(always)]
pub(crate) fn emit(ctx: &impl EbpfContext, task: &mut Task, fault: &Access) {
    prune(task, fault);
    if !holds(task) || !wanted(task, fault.mm) {
        return;
    }
    let certain = seen::key(ctx, task, fault);
    // A recording tells each, so that it can be checked against its own stream.
    if !stream::on() && certain && seen::again(task) {
        return;
    }
    let Some(mut entry) = RECORDS.reserve::<Violation>(0) else {
        count(counter::RING_FULL);
        return count(counter::VIOLATION_LOST);
    };
    // SAFETY: every field is written below before the record is submitted.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    fill_header(&mut record.header, kind::VIOLATION);
    describe_mm(fault.mm, &mut record.mm);
    record.address = fault.address;
    record.ip = fault.ip;
    record.error = fault.error;
    record.flags = fault.flags;
    if task.overflow != 0 {
        record.flags |= violation::MORE_HELD;
    }
    record.held_len = task.depth;
    for index in 0..MAX_HELD as u32 {
        let Some(out) = record.held.get_mut(index as usize) else { break };
        let copy = if index < task.depth { *slot(task, index) } else { Slot { mm: 0, since: 0, flags: 0, stack: -1 } };
        describe_mm(copy.mm, &mut out.owner);
        out.since = copy.since;
        out.flags = copy.flags & !held::STREAMED;
        out.stack_id = copy.stack;
        out.count = 0;
        out.sem_owner = 0;
        if copy.mm != 0 {
            out.count = sem_word(copy.mm, setting::SEM_COUNT).unwrap_or(0);
            out.sem_owner = sem_word(copy.mm, setting::SEM_OWNER).unwrap_or(0);
            if given_away(copy.mm, copy.since) {
                out.flags |= held::GIVEN_AWAY;
            }
        }
    }
    // SAFETY: the buffer is the record's own and has this size.
    record.stack_len =
        unsafe { bpf_get_stack(ctx.as_ptr(), record.stack.as_mut_ptr().cast(), (STACK_FRAMES * 8) as u32, 0) };
    if record.stack_len <= 0 {
        count(counter::STACK_UNREADABLE);
    }
    // Only now: a violation that found no room must be told the next time.
    if certain {
        seen::told(task, record.header.ts);
    }
    entry.submit(0);
    if fault.flags & (violation::LATENT | violation::LEAKED) == 0 {
        task.pending_address = fault.address;
        task.flags |= flag::WANTS_VMA;
    }
}

/// The VMA that the last violation fell into, when it is one of this task's.
#[inline(always)]
pub(crate) fn emit_vma(task: &mut Task, vma: u64) {
    use pagetrace_ebpf::wire::fault::{NAME_LEN, Vma};

    use crate::kernel::read_str;

    task.flags &= !flag::WANTS_VMA;
    if vma == 0 {
        return;
    }
    let Some(mut entry) = RECORDS.reserve::<Vma>(0) else { return count(counter::RING_FULL) };
    // SAFETY: every field is written below before the record is submitted.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    fill_header(&mut record.header, kind::VMA);
    record.address = task.pending_address;
    record.start = member(vma, setting::VMA_START).unwrap_or(0);
    record.end = member(vma, setting::VMA_END).unwrap_or(0);
    record.vm_flags = member(vma, setting::VMA_FLAGS).unwrap_or(0);
    record.pgoff = member(vma, setting::VMA_PGOFF).unwrap_or(0);
    record.inode = 0;
    record.name = [0; NAME_LEN];
    let file: u64 = member(vma, setting::VMA_FILE).unwrap_or(0);
    if file != 0 {
        let dentry: u64 = member(file, setting::FILE_DENTRY).unwrap_or(0);
        let inode: u64 = member(dentry, setting::DENTRY_INODE).unwrap_or(0);
        record.inode = member(inode, setting::INODE_INO).unwrap_or(0);
        let name: u64 = member(dentry, setting::DENTRY_NAME).unwrap_or(0);
        read_str(name, &mut record.name);
    }
    entry.submit(0);
}
