//! A task's life: state ends with the task, children of the target are followed.

use pagetrace_ebpf::wire::{counter, setting};

use super::{leak, order};
use crate::{
    kernel::{as_number, current_mm, know_mm, member, setting},
    state::{self, count},
    stream, target,
};

/// What comes a little earlier or later than `sched_process_fork`: where the kernel skips one of the two, the other sees the child.
#[inline(always)]
pub(crate) fn on_new_task(child: u64) {
    if setting(setting::MM_CACHE) == setting::NONE {
        know_mm(member(child, setting::TASK_MM).unwrap_or(0));
    }
    target::on_fork(child);
}

/// `sched_process_fork`.
#[inline(always)]
pub(crate) fn on_fork(child: u64) {
    on_new_task(child);
    if stream::on() {
        stream::on_fork(child);
    }
}

/// `sched_process_exec`: the new program's mm is in place. `former` is the id that the thread had until then.
#[inline(always)]
pub(crate) fn on_exec(former: u32) {
    if setting(setting::MM_CACHE) == setting::NONE {
        know_mm(current_mm());
    }
    target::on_exec(former);
    if stream::on() {
        stream::on_exec();
    }
}

/// `sched_process_free`: the task_struct's memory is about to be reused.
#[inline(always)]
pub(crate) fn on_free(task: u64) {
    let Some(task) = as_number(task) else { return count(counter::READ_FAILED) };
    if stream::on() {
        stream::on_free(task);
    }
    leak::on_end(task);
    state::forget(task);
    order::on_free(task);
    target::on_free(task);
}
