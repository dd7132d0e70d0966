//! Page walks: the range a walker was given and how long it took.
//!
//! Two levels are kept a task: the reader of pagemap, and the walk it makes. Inner calls of one walker by another
//! (walk_page_range calls walk_page_range_mm on later kernels) belong to the outer walk.

use pagetrace_ebpf::wire::{
    counter, kind, setting,
    walk::{Walk, function},
};

use super::lock::held_now;
use crate::{
    kernel::{describe_mm, member, read, setting},
    state::{OpenWalk, RECORDS, Task, count, fill_header, now, task, task_or_new},
    stream, target,
};

#[inline(always)]
fn level(walker: u32) -> usize {
    usize::from(walker != function::PAGEMAP_READ && walker != function::PAGEMAP_SCAN)
}

#[inline(always)]
fn open(task: &mut Task, walker: u32) -> &mut OpenWalk {
    let [reader, walk] = &mut task.walks;
    if level(walker) == 0 { reader } else { walk }
}

/// A walk begins.
#[inline(always)]
pub(crate) fn on_walk(walker: u32, mm: u64, start: u64, end: u64, ops: u64) {
    if setting(setting::TRACE) == 0 || !target::traced(mm) {
        return;
    }
    let Some(task) = task_or_new() else { return };
    let walk = open(task, walker);
    if walk.depth != 0 && walk.function != walker {
        walk.depth += 1;
        return;
    }
    if walk.depth != 0 {
        // No walker calls itself: the return of the last one was missed.
        count(counter::RETURN_MISSED);
    }
    walk.depth = 1;
    walk.function = walker;
    walk.mm = mm;
    walk.start = start;
    walk.end = end;
    walk.ops = ops;
    walk.since = now();
}

/// `pagemap_read`: its file position counts eight bytes a page.
#[inline(always)]
pub(crate) fn on_pagemap_read(file: u64, count: u64, position: u64) {
    let mm: u64 = member(file, setting::FILE_PRIVATE).unwrap_or(0);
    let from: u64 = read(position).unwrap_or(0);
    let address = |offset: u64| (offset / 8) << 12;
    on_walk(function::PAGEMAP_READ, mm, address(from), address(from.saturating_add(count)), 0);
}

/// A walk that is given a VMA ends where the VMA does.
#[inline(always)]
pub(crate) fn on_walk_vma(vma: u64, ops: u64) {
    let start = member(vma, setting::VMA_START).unwrap_or(0);
    let end = member(vma, setting::VMA_END).unwrap_or(0);
    on_walk(function::VMA, member(vma, setting::VMA_MM).unwrap_or(0), start, end, ops);
}

/// A walk ended.
#[inline(always)]
pub(crate) fn on_walk_end(walker: u32, result: i64) {
    let Some(task) = task() else { return };
    let walk = open(task, walker);
    if walk.depth == 0 {
        return;
    }
    walk.depth -= 1;
    if walk.depth != 0 {
        return;
    }
    let copy = *walk;
    let duration = now().wrapping_sub(copy.since);
    let Some(mut entry) = RECORDS.reserve::<Walk>(0) else { return count(counter::RING_FULL) };
    // SAFETY: every field is written below before the record is submitted.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    fill_header(&mut record.header, kind::WALK);
    describe_mm(copy.mm, &mut record.mm);
    record.start = copy.start;
    record.end = copy.end;
    record.ops = copy.ops;
    record.duration = duration;
    record.result = result;
    record.function = copy.function;
    record.held = held_now();
    entry.submit(stream::wake());
}

/// The address space of a VMA; 0 when it cannot be read.
#[inline(always)]
pub(crate) fn mm_of_vma(vma: u64) -> u64 {
    member(vma, setting::VMA_MM).unwrap_or(0)
}
