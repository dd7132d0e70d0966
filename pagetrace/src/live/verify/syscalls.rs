//! System calls that change which pages a process has, from their numbers and arguments. Pure.
//!
//! Page tables are also changed by `shmdt` (its mapping is gone, which the next look sees), by userfaultfd and by drivers.

use std::ops::Range;

use crate::analysis::presence::Change;

const PAGE: u64 = 4096;
/// Of whatever is mapped.
const ALL: Range<u64> = 0..1 << 36;

/// A system call that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    /// Its number.
    pub(super) number: i64,
    /// Its arguments.
    pub(super) arguments: [u64; 6],
    /// When it began, nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) at: u64,
}

/// What earlier calls have settled for later ones, of an address space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Where the heap ends.
    heap: Option<u64>,
    /// What is mapped from now on is locked, and so present (`MCL_FUTURE`).
    locked: bool,
}

/// Whether the number is that of a call that matters here.
pub(super) fn matters(number: i64) -> bool {
    is_exec(number) || is_fork(number) || CHANGING.contains(&number)
}

const CHANGING: [i64; 14] = [
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_brk,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_munlockall,
    libc::SYS_remap_file_pages,
    libc::SYS_process_madvise,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
];

/// Whether it replaces the address space.
pub(super) fn is_exec(number: i64) -> bool {
    matches!(number, libc::SYS_execve | libc::SYS_execveat)
}

fn is_fork(number: i64) -> bool {
    matches!(number, libc::SYS_clone | libc::SYS_clone3 | libc::SYS_fork | libc::SYS_vfork)
}

/// The pages of so many bytes from an address on.
fn pages(address: u64, bytes: u64) -> Range<u64> {
    let end = address.saturating_add(bytes);
    address / PAGE..end / PAGE + u64::from(!end.is_multiple_of(PAGE))
}

/// What a call that has ended did: `result` is none if it failed.
pub(super) fn changes(call: &Call, result: Option<u64>, memory: &mut Memory) -> Vec<Change> {
    let [first, second, third, fourth, fifth, _] = call.arguments;
    let range = pages(first, second);
    match (call.number, result) {
        (libc::SYS_mmap, Some(at)) => {
            let range = pages(at, second);
            let populates = fourth & (libc::MAP_POPULATE | libc::MAP_LOCKED) as u64 != 0 || memory.locked;
            let populate = populates.then(|| Change::Populate(range.clone()));
            std::iter::once(Change::Unmap(range)).chain(populate).collect()
        }
        // What a fixed mapping replaces is gone before the new one can fail.
        (libc::SYS_mmap, None) if fourth & libc::MAP_FIXED as u64 != 0 => vec![Change::MayLose(range)],
        (libc::SYS_munmap, Some(_)) => vec![Change::Unmap(range)],
        (libc::SYS_brk, Some(end)) => brk(end, memory),
        (libc::SYS_mremap, Some(at)) => mremap(first, second, third, at, memory),
        (libc::SYS_mremap, None) if fourth & libc::MREMAP_FIXED as u64 != 0 => {
            vec![Change::MayLose(pages(fifth, third))]
        }
        (libc::SYS_madvise, result) => madvise(range, third, result.is_some()),
        (libc::SYS_mlock | libc::SYS_mlock2, _) => vec![Change::Populate(range)],
        (libc::SYS_mlockall, Some(_)) => {
            memory.locked = first & libc::MCL_FUTURE as u64 != 0;
            let now = first & libc::MCL_CURRENT as u64 != 0;
            now.then_some(Change::Populate(ALL)).into_iter().collect()
        }
        (libc::SYS_munlockall, Some(_)) => {
            memory.locked = false;
            Vec::new()
        }
        // Whose pages, and which, stands in the caller's memory, which is not read: it could fault.
        (libc::SYS_process_madvise, _) => vec![Change::MayLose(ALL)],
        (libc::SYS_remap_file_pages, _) => vec![Change::MayLose(range)],
        (libc::SYS_truncate | libc::SYS_ftruncate | libc::SYS_fallocate, _) => vec![Change::Shortened],
        _ => Vec::new(),
    }
}

fn brk(end: u64, memory: &mut Memory) -> Vec<Change> {
    let before = memory.heap.replace(end).unwrap_or(end);
    // The pages that the heap's end lies in stay.
    let (low, high) = (end.min(before).div_ceil(PAGE), end.max(before).div_ceil(PAGE));
    match () {
        () if low == high => Vec::new(),
        () if end < before => vec![Change::Unmap(low..high)],
        () if memory.locked => vec![Change::Populate(low..high)],
        () => Vec::new(),
    }
}

fn mremap(old: u64, old_bytes: u64, new_bytes: u64, at: u64, memory: &Memory) -> Vec<Change> {
    let (old_pages, new_pages) = (pages(old, old_bytes), pages(at, new_bytes));
    let keeps = (old_pages.end - old_pages.start).min(new_pages.end - new_pages.start);
    let kept = old_pages.start..old_pages.start + keeps;
    let mut out = Vec::new();
    if kept.end < old_pages.end {
        out.push(Change::Unmap(kept.end..old_pages.end));
    }
    if at != old {
        // A length of nothing asks for a second mapping of the same memory; nothing is moved then.
        out.push(Change::Unmap(new_pages.clone()));
        out.push(Change::Move(kept, new_pages.start));
    }
    if memory.locked {
        out.push(Change::Populate(new_pages));
    }
    out
}

fn madvise(range: Range<u64>, advice: u64, worked: bool) -> Vec<Change> {
    /// include/uapi/asm-generic/mman-common.h; since 5.18 and 6.13.
    const DONTNEED_LOCKED: i32 = 24;
    const GUARD_INSTALL: i32 = 102;
    let Ok(advice) = i32::try_from(advice) else { return Vec::new() };
    match advice {
        libc::MADV_POPULATE_READ | libc::MADV_POPULATE_WRITE => vec![Change::Populate(range)],
        libc::MADV_DONTNEED | libc::MADV_REMOVE | DONTNEED_LOCKED | GUARD_INSTALL if worked => {
            vec![Change::Discard(range)]
        }
        libc::MADV_DONTNEED
        | libc::MADV_REMOVE
        | DONTNEED_LOCKED
        | GUARD_INSTALL
        | libc::MADV_FREE
        | libc::MADV_PAGEOUT
        | libc::MADV_COLD
        | libc::MADV_HWPOISON
        | libc::MADV_SOFT_OFFLINE => vec![Change::MayLose(range)],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn did(number: i64, arguments: [u64; 6], result: Option<u64>) -> Vec<Change> {
        changes(&Call { number, arguments, at: 0 }, result, &mut Memory::default())
    }

    #[test]
    fn a_mapping_replaces_what_was_there() {
        let flags = libc::MAP_POPULATE as u64;
        let unmap = Change::Unmap(5..7);
        assert_eq!(did(libc::SYS_mmap, [0, 0x1001, 3, 0, 0, 0], Some(0x5000)), std::slice::from_ref(&unmap));
        assert_eq!(did(libc::SYS_mmap, [0, 0x2000, 3, flags, 0, 0], Some(0x5000)), [unmap, Change::Populate(5..7)]);
        assert_eq!(did(libc::SYS_mmap, [0, 0x2000, 3, 0, 0, 0], None), []);
        let fixed = libc::MAP_FIXED as u64;
        assert_eq!(did(libc::SYS_mmap, [0x5000, 0x2000, 3, fixed, 0, 0], None), [Change::MayLose(5..7)]);
        assert_eq!(did(libc::SYS_munmap, [0x5000, 1, 0, 0, 0, 0], Some(0)), [Change::Unmap(5..6)]);
    }

    #[test]
    fn a_heap_that_shrinks_gives_its_pages_back() {
        let mut memory = Memory::default();
        let mut brk = |end| {
            let call = Call { number: libc::SYS_brk, arguments: [end, 0, 0, 0, 0, 0], at: 0 };
            changes(&call, Some(end), &mut memory)
        };
        assert_eq!(brk(0x5800), []);
        assert_eq!(brk(0x9000), []);
        assert_eq!(brk(0x6800), [Change::Unmap(7..9)]);
        assert_eq!(brk(0x6801), []);
    }

    #[test]
    fn page_tables_move_as_far_as_both_places_reach() {
        let moved =
            |old, old_bytes, new_bytes, at| did(libc::SYS_mremap, [old, old_bytes, new_bytes, 1, 0, 0], Some(at));
        assert_eq!(moved(0x5000, 0x3000, 0x1000, 0x5000), [Change::Unmap(6..8)]);
        assert_eq!(moved(0x5000, 0x1000, 0x3000, 0x5000), []);
        assert_eq!(moved(0x5000, 0x1000, 0x3000, 0x9000), [Change::Unmap(9..12), Change::Move(5..6, 9)]);
        assert_eq!(moved(0x5000, 0, 0x3000, 0x9000), [Change::Unmap(9..12), Change::Move(5..5, 9)]);
    }

    #[test]
    fn advice_that_failed_may_have_worked_in_part() {
        let advise = |advice: i32, result| did(libc::SYS_madvise, [0x5000, 0x1000, advice as u64, 0, 0, 0], result);
        assert_eq!(advise(libc::MADV_DONTNEED, Some(0)), [Change::Discard(5..6)]);
        assert_eq!(advise(libc::MADV_DONTNEED, None), [Change::MayLose(5..6)]);
        assert_eq!(advise(libc::MADV_FREE, Some(0)), [Change::MayLose(5..6)]);
        assert_eq!(advise(libc::MADV_POPULATE_READ, Some(0)), [Change::Populate(5..6)]);
        assert_eq!(advise(libc::MADV_RANDOM, Some(0)), []);
    }

    #[test]
    fn what_is_locked_from_now_on_is_there() {
        let mut memory = Memory::default();
        let mut call =
            |number, arguments, result| changes(&Call { number, arguments, at: 0 }, Some(result), &mut memory);
        let all = (libc::MCL_CURRENT | libc::MCL_FUTURE) as u64;
        assert_eq!(call(libc::SYS_mlockall, [all, 0, 0, 0, 0, 0], 0), [Change::Populate(ALL)]);
        let mapped = call(libc::SYS_mmap, [0, 0x1000, 3, 0, 0, 0], 0x5000);
        assert_eq!(mapped, [Change::Unmap(5..6), Change::Populate(5..6)]);
        assert_eq!(call(libc::SYS_munlockall, [0; 6], 0), []);
        assert_eq!(call(libc::SYS_mmap, [0, 0x1000, 3, 0, 0, 0], 0x5000), [Change::Unmap(5..6)]);
    }

    proptest! {
        #[test]
        fn any_call_has_an_answer(which in 0_usize..16, arguments: [u64; 6], result: Option<u64>) {
            let number = CHANGING.get(which).copied().unwrap_or(libc::SYS_execve);
            prop_assert!(matters(number));
            let mut memory = Memory { heap: Some(arguments[3]), locked: arguments[4] % 2 == 0 };
            let _ = changes(&Call { number, arguments, at: 0 }, result, &mut memory);
        }
    }
}
