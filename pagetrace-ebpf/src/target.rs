//! Decides what belongs to the target: the acting task, or the address space that is locked or faulted in.

use aya_ebpf::{
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, generated::bpf_get_current_ancestor_cgroup_id},
    macros::map,
    maps::HashMap,
};
use pagetrace_ebpf::wire::{
    counter,
    setting::{self, target, target_key},
};

use crate::{
    kernel::{current, member, owner_task, setting},
    state::count,
};

/// Target ids; the value is the process's `signal_struct`, or 0 when the loader put it in. It tells a reused process id from the
/// process that was meant. The first thread's `task_struct` would not do: when another thread executes a program, it becomes
/// the first (fs/exec.c, `de_thread`).
#[map]
static TARGETS: HashMap<u64, u64> = HashMap::with_max_entries(65536, 0);

#[inline(always)]
fn listed(key: u64, process: u64) -> bool {
    // SAFETY: the value is copied out at once.
    match unsafe { TARGETS.get(&key) } {
        Some(&known) => known == 0 || known == process,
        None => false,
    }
}

#[inline(always)]
fn process_of(task: u64) -> u64 {
    member(task, setting::TASK_SIGNAL).unwrap_or(0)
}

/// Whether the current task itself has what the target asks for, listed or not.
#[inline(always)]
fn matches_by_nature() -> bool {
    match setting(setting::TARGET_MODE) {
        target::COMM => {
            let comm = bpf_get_current_comm().unwrap_or_default();
            let (low, high) = comm.split_at(8);
            let word = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |word, &byte| word << 8 | u64::from(byte));
            word(low) == setting(setting::TARGET_COMM_LO) && word(high) == setting(setting::TARGET_COMM_HI)
        }
        target::CGROUP => {
            // SAFETY: the helper takes any level and returns 0 for one that does not exist.
            let id = unsafe { bpf_get_current_ancestor_cgroup_id(setting(setting::TARGET_CGROUP_LEVEL) as i32) };
            id != 0 && id == setting(setting::TARGET_CGROUP)
        }
        _ => false,
    }
}

/// Whether the current task belongs to the target.
#[inline(always)]
pub(crate) fn acts() -> bool {
    if setting(setting::TARGET_MODE) == target::ALL {
        return true;
    }
    let ids = bpf_get_current_pid_tgid();
    listed(target_key::PROCESS | ids >> 32, process_of(current()))
        || listed(target_key::THREAD | ids & 0xffff_ffff, 0)
        || matches_by_nature()
}

/// Whether a task that is not the current one belongs to the target by its id.
#[inline(always)]
pub(crate) fn has(task: u64) -> bool {
    if setting(setting::TARGET_MODE) == target::ALL {
        return true;
    }
    let tgid: u32 = member(task, setting::TASK_TGID).unwrap_or(0);
    let tid: u32 = member(task, setting::TASK_PID).unwrap_or(0);
    listed(target_key::PROCESS | u64::from(tgid), process_of(task)) || listed(target_key::THREAD | u64::from(tid), 0)
}

/// Whether the address space belongs to the target.
#[inline(always)]
pub(crate) fn owns(mm: u64) -> bool {
    if setting(setting::TARGET_MODE) == target::ALL {
        return true;
    }
    let Some((task, tgid)) = owner_task(mm) else { return false };
    let process = process_of(task);
    listed(target_key::PROCESS | u64::from(tgid), process) || listed(target_key::MM_ONLY | u64::from(tgid), process)
}

/// Whether `trace` shows an event of the current task in this address space. Its own events would feed on themselves.
#[inline(always)]
pub(crate) fn traced(mm: u64) -> bool {
    bpf_get_current_pid_tgid() >> 32 != setting(setting::SELF_TGID) && (acts() || owns(mm))
}

/// A child of the target belongs to it as well.
#[inline(always)]
pub(crate) fn on_fork(child: u64) {
    if setting(setting::TARGET_MODE) == target::ALL {
        return;
    }
    let Some(tgid) = member::<u32>(child, setting::TASK_TGID) else { return count(counter::READ_FAILED) };
    if u64::from(tgid) == bpf_get_current_pid_tgid() >> 32 || !acts() {
        return;
    }
    add(tgid, process_of(child));
}

/// A program's new name, or its cgroup, can make it the target. A thread that was not its process's first is from now on, and
/// has its id: a target it is still.
#[inline(always)]
pub(crate) fn on_exec(former: u32) {
    if setting(setting::TARGET_MODE) == target::ALL {
        return;
    }
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if former != tgid && listed(target_key::THREAD | u64::from(former), 0) {
        insert(target_key::THREAD | u64::from(tgid), 0);
    }
    if matches_by_nature() {
        add(tgid, process_of(current()));
    }
}

#[inline(always)]
fn add(tgid: u32, process: u64) {
    insert(target_key::PROCESS | u64::from(tgid), process);
}

#[inline(always)]
fn insert(key: u64, process: u64) {
    if TARGETS.insert(&key, &process, 0).is_err() {
        count(counter::TARGET_MAP_FULL);
    }
}

/// The process id of a first thread that is freed means nothing any more, unless another target took it over.
#[inline(always)]
pub(crate) fn on_free(task: u64) {
    if setting(setting::TARGET_MODE) == target::ALL {
        return;
    }
    let Some(tgid) = member::<u32>(task, setting::TASK_TGID) else { return };
    if member::<u32>(task, setting::TASK_PID) != Some(tgid) {
        return;
    }
    let key = target_key::PROCESS | u64::from(tgid);
    if listed(key, process_of(task)) {
        let _ = TARGETS.remove(&key);
    }
}
