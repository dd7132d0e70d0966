//! Tracepoints: typed by BTF, and raw for kernels or users that BTF tracepoints are closed to.
//!
//! Which argument tells `write` differs between kernels: a cgroup path stood before it for a time. Each form has its
//! own program, and the plan picks by the argument count in BTF: one program with a branch would not do, since the
//! compiler merges the two loads into one at a computed offset, which the verifier refuses.

use aya_ebpf::{
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use pagetrace_ebpf::wire::{fault::mode, lock::held};

use crate::{
    hooks::{fault, leak, lock, module, task},
    stacks::Probed,
};

#[inline(always)]
fn mode_of(write: u64) -> u32 {
    if write & 0xff != 0 { held::WRITE } else { held::READ }
}

#[inline(always)]
fn acquired(ctx: &impl Probed, mm: u64, write: u64, success: u64) {
    lock::on_outcome(ctx, mm, mode_of(write), success & 0xff != 0);
}

/// Defines the same entry twice: for BTF and for raw tracepoints. Inlined by force, or programs with the same body would be given
/// one function of it, and a call each.
macro_rules! both {
    ($($btf:ident, $raw:ident, |$ctx:ident| $body:expr;)*) => {$(
        #[btf_tracepoint]
        #[inline(always)]
        pub(crate) fn $btf($ctx: BtfTracePointContext) -> i32 {
            $body;
            0
        }

        #[raw_tracepoint]
        #[inline(always)]
        pub(crate) fn $raw($ctx: RawTracePointContext) -> i32 {
            $body;
            0
        }
    )*};
}

both! {
    tb_mmap_lock_start_locking, tr_mmap_lock_start_locking, |ctx| lock::on_wait(ctx.arg(0));
    tb_mmap_lock_acquire_returned, tr_mmap_lock_acquire_returned, |ctx| {
        acquired(&ctx, ctx.arg(0), ctx.arg(1), ctx.arg(2))
    };
    tb_mmap_lock_acquire_returned_path, tr_mmap_lock_acquire_returned_path, |ctx| {
        acquired(&ctx, ctx.arg(0), ctx.arg(2), ctx.arg(3))
    };
    tb_mmap_lock_released, tr_mmap_lock_released, |ctx| lock::on_release(ctx.arg(0), mode_of(ctx.arg(1)));
    tb_mmap_lock_released_path, tr_mmap_lock_released_path, |ctx| lock::on_release(ctx.arg(0), mode_of(ctx.arg(2)));
    tb_page_fault_kernel, tr_page_fault_kernel, |ctx| fault::on_exception(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    tb_trace_fault_kernel, tr_trace_fault_kernel, |ctx| {
        fault::on_exception_only(ctx.arg(0), ctx.arg(1), ctx.arg(2), mode::KERNEL)
    };
    tb_trace_fault_user, tr_trace_fault_user, |ctx| {
        fault::on_exception_only(ctx.arg(0), ctx.arg(1), ctx.arg(2), mode::USER)
    };
    tb_sys_enter, tr_sys_enter, |ctx| leak::on_user_boundary(&ctx);
    tb_sys_exit, tr_sys_exit, |ctx| leak::on_user_boundary(&ctx);
    tb_sched_process_fork, tr_sched_process_fork, |ctx| task::on_fork(ctx.arg(1));
    tb_task_newtask, tr_task_newtask, |ctx| task::on_new_task(ctx.arg(0));
    tb_sched_process_exec, tr_sched_process_exec, |ctx| task::on_exec(ctx.arg::<u64>(1) as u32);
    tb_sched_process_free, tr_sched_process_free, |ctx| task::on_free(ctx.arg(0));
    tb_module_free, tr_module_free, |ctx| module::on_unload(ctx.arg(0));
}
