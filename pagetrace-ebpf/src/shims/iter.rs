//! Task iterators: find the address spaces that exist when tracing begins, and those that are locked then.

use pagetrace_ebpf::wire::setting;

use crate::{
    hooks::before,
    kernel::{know_mm, member},
};

/// `struct bpf_iter__task` (kernel/bpf/task_iter.c): two pointers, each eight bytes wide on every kernel.
#[repr(C)]
pub(crate) struct IterTask {
    meta: u64,
    task: u64,
}

/// Remembers the mm of every task.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub(crate) extern "C" fn it_task(ctx: *const IterTask) -> i32 {
    // SAFETY: the kernel calls iterator programs with this context.
    let task = unsafe { (*ctx).task };
    if task != 0 {
        know_mm(member(task, setting::TASK_MM).unwrap_or(0));
    }
    0
}

/// Finds the address spaces that are locked.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub(crate) extern "C" fn it_locked(ctx: *const IterTask) -> i32 {
    // SAFETY: the kernel calls iterator programs with this context.
    let task = unsafe { (*ctx).task };
    if task != 0 {
        before::on_pass(member(task, setting::TASK_MM).unwrap_or(0));
    }
    0
}
