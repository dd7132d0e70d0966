//! kprobes and kretprobes: arguments from registers at function entry, return values at the return.
//!
//! The functions that always acquire count as acquired from their entry: their task runs nothing else in between,
//! and a kretprobe would be lost when more tasks sleep in the function than it has instances. Those that can fail
//! are tentative until their return is seen, and so are all in a trace, which times the wait.

use aya_ebpf::{
    macros::{kprobe, kretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use pagetrace_ebpf::wire::{body, lock::held, setting, walk::function};

use crate::{
    handover::{Handed, go_on, handed},
    hooks::{fault, lock, task, walk},
    kernel::{mm_of_lock, setting},
};

#[inline(always)]
fn arg(ctx: &ProbeContext, index: usize) -> u64 {
    ctx.arg(index).unwrap_or(0)
}

macro_rules! acquire {
    ($($name:ident, $always:literal, $flags:expr;)*) => {$(
        #[kprobe]
        // By force: programs with the same body would be given one function of it, and a call each.
        #[inline(always)]
        pub(crate) fn $name(ctx: ProbeContext) -> u32 {
            if let Some(mm) = mm_of_lock(arg(&ctx, 0)) {
                let tentative = if $always { 0 } else { held::TENTATIVE };
                go_on(&ctx, body::ACQUIRE, Handed { about: mm, ip: 0, flags: $flags | tentative });
            } else if (!$always || setting(setting::TRACE) == 1) && lock::tells_of_a_missed_return(&ctx) {
                go_on(&ctx, body::ACQUIRE, Handed { about: NONE, ip: 0, flags: 0 });
            }
            0
        }
    )*};
}
acquire! {
    kp_down_read, true, held::READ;
    kp_down_write, true, held::WRITE;
    kp_down_read_interruptible, false, held::READ | held::ANY_SIGNAL;
    kp_down_read_killable, false, held::READ;
    kp_down_write_killable, false, held::WRITE;
    kp_down_read_trylock, false, held::READ | held::TRY;
    kp_down_write_trylock, false, held::WRITE | held::TRY;
}

/// Stands for the mm of a lock that is none's.
const NONE: u64 = 0;

/// What all of these go on to when the lock is an mm's, or tells of one that was.
#[kprobe]
pub(crate) fn kp_acquire(ctx: ProbeContext) -> u32 {
    let Some(Handed { about: mm, flags, .. }) = handed() else { return 0 };
    if mm == NONE {
        lock::on_missed_return();
        return 0;
    }
    let trace = setting(setting::TRACE) == 1;
    if trace {
        lock::begin_wait(mm);
    }
    lock::on_attempt(&ctx, mm, if trace { flags | held::TENTATIVE } else { flags });
    0
}

macro_rules! returned {
    ($($name:ident, |$ret:ident| $ok:expr;)*) => {$(
        #[kretprobe]
        pub(crate) fn $name(ctx: RetProbeContext) -> u32 {
            let $ret = || ctx.ret::<i32>();
            lock::on_return(&ctx, $ok);
            0
        }
    )*};
}
returned! {
    kr_down_read, |_ret| true;
    kr_down_write, |_ret| true;
    kr_down_read_interruptible, |ret| ret() == 0;
    kr_down_read_killable, |ret| ret() == 0;
    kr_down_write_killable, |ret| ret() == 0;
    kr_down_read_trylock, |ret| ret() != 0;
    kr_down_write_trylock, |ret| ret() != 0;
}

/// Every child passes here before it runs, and no other task is in this program's way: kprobes run with preemption disabled.
#[kprobe]
pub(crate) fn kp_wake_up_new_task(ctx: ProbeContext) -> u32 {
    task::on_new_task(arg(&ctx, 0));
    0
}

macro_rules! release {
    ($($name:ident, $mode:expr;)*) => {$(
        #[kprobe]
        pub(crate) fn $name(ctx: ProbeContext) -> u32 {
            if let Some(mm) = mm_of_lock(arg(&ctx, 0)) {
                lock::on_release(mm, $mode);
            }
            0
        }
    )*};
}
release! {
    kp_up_read, held::READ;
    kp_up_write, held::WRITE;
}

#[kprobe]
pub(crate) fn kp_downgrade_write(ctx: ProbeContext) -> u32 {
    if let Some(mm) = mm_of_lock(arg(&ctx, 0)) {
        lock::on_downgrade(&ctx, mm);
    }
    0
}

#[kprobe]
pub(crate) fn kp_lock_mm_and_find_vma(ctx: ProbeContext) -> u32 {
    fault::on_handler_locks(&ctx, arg(&ctx, 0), arg(&ctx, 1), arg(&ctx, 2));
    0
}

#[kretprobe]
pub(crate) fn kr_lock_mm_and_find_vma(ctx: RetProbeContext) -> u32 {
    fault::on_handler_locked(ctx.ret());
    0
}

#[kprobe]
pub(crate) fn kp_handle_mm_fault(ctx: ProbeContext) -> u32 {
    fault::on_fault(&ctx, arg(&ctx, 0), arg(&ctx, 1), arg(&ctx, 2) as u32, arg(&ctx, 3));
    0
}

#[kretprobe]
pub(crate) fn kr_handle_mm_fault(ctx: RetProbeContext) -> u32 {
    fault::on_fault_end(&ctx, ctx.ret());
    0
}

#[kprobe]
pub(crate) fn kp_pagemap_read(ctx: ProbeContext) -> u32 {
    walk::on_pagemap_read(arg(&ctx, 0), arg(&ctx, 2), arg(&ctx, 3));
    0
}

#[kretprobe]
pub(crate) fn kr_pagemap_read(ctx: RetProbeContext) -> u32 {
    walk::on_walk_end(function::PAGEMAP_READ, ctx.ret());
    0
}

#[kprobe]
pub(crate) fn kp_do_pagemap_scan(ctx: ProbeContext) -> u32 {
    walk::on_walk(function::PAGEMAP_SCAN, arg(&ctx, 0), 0, 0, 0);
    0
}

#[kretprobe]
pub(crate) fn kr_do_pagemap_scan(ctx: RetProbeContext) -> u32 {
    walk::on_walk_end(function::PAGEMAP_SCAN, ctx.ret());
    0
}

#[kprobe]
pub(crate) fn kp_walk_page_vma(ctx: ProbeContext) -> u32 {
    walk::on_walk_vma(arg(&ctx, 0), arg(&ctx, 1));
    0
}

#[kretprobe]
pub(crate) fn kr_walk_page_vma(ctx: RetProbeContext) -> u32 {
    walk::on_walk_end(function::VMA, i64::from(ctx.ret::<i32>()));
    0
}

macro_rules! walk {
    ($($enter:ident, $leave:ident, $function:expr, $mm:expr;)*) => {$(
        #[kprobe]
        pub(crate) fn $enter(ctx: ProbeContext) -> u32 {
            let mm: fn(u64) -> u64 = $mm;
            walk::on_walk($function, mm(arg(&ctx, 0)), arg(&ctx, 1), arg(&ctx, 2), arg(&ctx, 3));
            0
        }

        #[kretprobe]
        pub(crate) fn $leave(ctx: RetProbeContext) -> u32 {
            walk::on_walk_end($function, i64::from(ctx.ret::<i32>()));
            0
        }
    )*};
}
walk! {
    kp_walk_page_range, kr_walk_page_range, function::RANGE, |mm| mm;
    kp_walk_page_range_mm, kr_walk_page_range_mm, function::RANGE_MM, |mm| mm;
    kp_walk_page_range_novma, kr_walk_page_range_novma, function::RANGE_NOVMA, |mm| mm;
    kp_walk_page_range_vma, kr_walk_page_range_vma, function::RANGE_VMA, walk::mm_of_vma;
    kp_walk_page_mapping, kr_walk_page_mapping, function::MAPPING, |_mapping| 0;
}
