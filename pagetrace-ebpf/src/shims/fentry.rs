//! fentry and fexit: arguments and return values straight from the trampoline, typed by BTF.
//!
//! A function's return value stands behind its last argument; `bpf_get_func_ret` would need Linux 5.17.

use aya_ebpf::{
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use pagetrace_ebpf::wire::{lock::held, walk::function};

use crate::{
    hooks::{fault, lock, walk},
    kernel::mm_of_lock,
};

macro_rules! wait {
    ($($name:ident),*) => {$(
        #[fentry]
        pub(crate) fn $name(ctx: FEntryContext) -> i32 {
            if let Some(mm) = mm_of_lock(ctx.arg(0)) {
                lock::on_wait(mm);
            }
            0
        }
    )*};
}
wait!(
    fe_down_read,
    fe_down_read_interruptible,
    fe_down_read_killable,
    fe_down_write,
    fe_down_write_killable,
    fe_down_read_nested,
    fe_down_read_non_owner,
    fe_down_read_killable_nested,
    fe_down_write_nested,
    fe_down_write_nest_lock,
    fe_down_write_killable_nested
);

macro_rules! acquire {
    ($($name:ident, $args:literal, $flags:expr, |$ret:ident| $ok:expr;)*) => {$(
        #[fexit]
        // By force: programs with the same body would be given one function of it, and a call each.
        #[inline(always)]
        pub(crate) fn $name(ctx: FExitContext) -> i32 {
            if let Some(mm) = mm_of_lock(ctx.arg(0)) {
                let $ret = || ctx.arg::<i32>($args);
                lock::on_outcome(&ctx, mm, $flags, $ok);
            }
            0
        }
    )*};
}
acquire! {
    fx_down_read, 1, held::READ, |_ret| true;
    fx_down_write, 1, held::WRITE, |_ret| true;
    fx_down_read_interruptible, 1, held::READ, |ret| ret() == 0;
    fx_down_read_killable, 1, held::READ, |ret| ret() == 0;
    fx_down_write_killable, 1, held::WRITE, |ret| ret() == 0;
    fx_down_read_trylock, 1, held::READ | held::TRY, |ret| ret() != 0;
    fx_down_write_trylock, 1, held::WRITE | held::TRY, |ret| ret() != 0;
    fx_down_read_nested, 2, held::READ, |_ret| true;
    fx_down_read_non_owner, 1, held::READ, |_ret| true;
    fx_down_read_killable_nested, 2, held::READ, |ret| ret() == 0;
    fx_down_write_nested, 2, held::WRITE, |_ret| true;
    fx_down_write_nest_lock, 2, held::WRITE, |_ret| true;
    fx_down_write_killable_nested, 2, held::WRITE, |ret| ret() == 0;
}

macro_rules! release {
    ($($name:ident, $mode:expr;)*) => {$(
        #[fentry]
        pub(crate) fn $name(ctx: FEntryContext) -> i32 {
            if let Some(mm) = mm_of_lock(ctx.arg(0)) {
                lock::on_release(mm, $mode);
            }
            0
        }
    )*};
}
release! {
    fe_up_read, held::READ;
    fe_up_read_non_owner, held::READ;
    fe_up_write, held::WRITE;
}

#[fentry]
pub(crate) fn fe_downgrade_write(ctx: FEntryContext) -> i32 {
    if let Some(mm) = mm_of_lock(ctx.arg(0)) {
        lock::on_downgrade(&ctx, mm);
    }
    0
}

#[fentry]
pub(crate) fn fe_lock_mm_and_find_vma(ctx: FEntryContext) -> i32 {
    fault::on_handler_locks(&ctx, ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

#[fexit]
pub(crate) fn fx_lock_mm_and_find_vma(ctx: FExitContext) -> i32 {
    fault::on_handler_locked(ctx.arg(3));
    0
}

#[fentry]
pub(crate) fn fe_handle_mm_fault(ctx: FEntryContext) -> i32 {
    fault::on_fault(&ctx, ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg(3));
    0
}

#[fexit]
pub(crate) fn fx_handle_mm_fault(ctx: FExitContext) -> i32 {
    fault::on_fault_end(&ctx, ctx.arg(4));
    0
}

#[fentry]
pub(crate) fn fe_pagemap_read(ctx: FEntryContext) -> i32 {
    walk::on_pagemap_read(ctx.arg(0), ctx.arg(2), ctx.arg(3));
    0
}

#[fexit]
pub(crate) fn fx_pagemap_read(ctx: FExitContext) -> i32 {
    walk::on_walk_end(function::PAGEMAP_READ, ctx.arg(4));
    0
}

#[fentry]
pub(crate) fn fe_do_pagemap_scan(ctx: FEntryContext) -> i32 {
    walk::on_walk(function::PAGEMAP_SCAN, ctx.arg(0), 0, 0, 0);
    0
}

#[fexit]
pub(crate) fn fx_do_pagemap_scan(ctx: FExitContext) -> i32 {
    walk::on_walk_end(function::PAGEMAP_SCAN, ctx.arg(2));
    0
}

#[fentry]
pub(crate) fn fe_walk_page_vma(ctx: FEntryContext) -> i32 {
    walk::on_walk_vma(ctx.arg(0), ctx.arg(1));
    0
}

#[fexit]
pub(crate) fn fx_walk_page_vma(ctx: FExitContext) -> i32 {
    walk::on_walk_end(function::VMA, i64::from(ctx.arg::<i32>(3)));
    0
}

macro_rules! walk {
    ($($enter:ident, $leave:ident, $function:expr, $args:literal, $mm:expr;)*) => {$(
        #[fentry]
        pub(crate) fn $enter(ctx: FEntryContext) -> i32 {
            let mm: fn(u64) -> u64 = $mm;
            walk::on_walk($function, mm(ctx.arg(0)), ctx.arg(1), ctx.arg(2), ctx.arg(3));
            0
        }

        #[fexit]
        pub(crate) fn $leave(ctx: FExitContext) -> i32 {
            walk::on_walk_end($function, i64::from(ctx.arg::<i32>($args)));
            0
        }
    )*};
}
walk! {
    fe_walk_page_range, fx_walk_page_range, function::RANGE, 5, |mm| mm;
    fe_walk_page_range_mm, fx_walk_page_range_mm, function::RANGE_MM, 5, |mm| mm;
    fe_walk_page_range_novma, fx_walk_page_range_novma, function::RANGE_NOVMA, 6, |mm| mm;
    fe_walk_page_range_vma, fx_walk_page_range_vma, function::RANGE_VMA, 5, walk::mm_of_vma;
    fe_walk_page_mapping, fx_walk_page_mapping, function::MAPPING, 5, |_mapping| 0;
}
