//! Tracepoints for the lock order: the exception, where the fault handler itself cannot be hooked.

use aya_ebpf::{
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};

use crate::hooks::order;

#[btf_tracepoint]
pub(crate) fn tb_order_page_fault_kernel(ctx: BtfTracePointContext) -> i32 {
    order::on_exception(ctx.arg(0));
    0
}

#[raw_tracepoint]
pub(crate) fn tr_order_page_fault_kernel(ctx: RawTracePointContext) -> i32 {
    order::on_exception(ctx.arg(0));
    0
}
