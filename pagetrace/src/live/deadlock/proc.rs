//! What /proc says of a task, as far as that needs no lock which may be stuck: its stat and its stack.

use std::{collections::BTreeSet, fs, path::Path};

use super::super::{hang::shows_lock_wait, workload::targets::Stat};
use crate::output::deadlock::Bystander;

/// Threads of a process beside those of a deadlock that are shown, at most.
const MOST_BESIDE: usize = 256;

/// Whether a task is there.
pub(super) fn exists(proc: &Path, pid: u32, tid: u32) -> bool {
    proc.join(pid.to_string()).join("task").join(tid.to_string()).exists()
}

/// Whether a task waits for a lock in the fault handler.
pub(super) fn faults(proc: &Path, pid: u32, tid: u32) -> bool {
    blocked(proc, pid, tid).is_some_and(|stack| shows_lock_wait(&stack.join("\n")))
}

/// The stack of a task that waits uninterruptibly, or until it is killed; `None` when it does not, or is gone. The kernel
/// leaves functions of the scheduler out of it, and lock functions are among these (`in_sched_functions`).
fn blocked(proc: &Path, pid: u32, tid: u32) -> Option<Vec<String>> {
    asleep(proc, pid, tid, &['D'])
}

/// The stack of a task that is in one of these states.
pub(super) fn asleep(proc: &Path, pid: u32, tid: u32, states: &[char]) -> Option<Vec<String>> {
    let dir = proc.join(pid.to_string()).join("task").join(tid.to_string());
    let stat = fs::read(dir.join("stat")).ok()?;
    if !states.contains(&Stat::parse(&stat)?.state) {
        return None;
    }
    let stack = fs::read_to_string(dir.join("stack")).ok()?;
    Some(stack.lines().map(str::to_owned).collect())
}

/// `[<0>] name+0x1/0x2 [module]` as other stacks are shown: `name+0x1 [module]`.
pub(super) fn frame(line: &str) -> String {
    let line = line.trim().trim_start_matches("[<0>] ");
    let (place, module) =
        line.split_once(' ').map_or((line, String::new()), |(place, module)| (place, format!(" {module}")));
    format!("{}{module}", place.split('/').next().unwrap_or(place))
}

/// A task's name; empty when it is gone.
pub(super) fn comm(proc: &Path, pid: u32, tid: u32) -> String {
    let stat = fs::read(proc.join(pid.to_string()).join("task").join(tid.to_string()).join("stat")).unwrap_or_default();
    Stat::parse(&stat).map(|stat| crate::record::name(&stat.comm)).unwrap_or_default()
}

/// The threads of a process that are blocked as well and are in no cycle that is known: the writers among them.
pub(super) fn beside(proc: &Path, pid: u32, known: &BTreeSet<u32>) -> Vec<Bystander> {
    let tasks = fs::read_dir(proc.join(pid.to_string()).join("task")).into_iter().flatten().flatten();
    let tids = tasks.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let found = tids.filter(|tid| !known.contains(tid)).take(MOST_BESIDE).filter_map(|tid| {
        let waits_at = blocked(proc, pid, tid)?.iter().map(|line| frame(line)).collect();
        Some(Bystander { pid, tid, comm: comm(proc, pid, tid), waits_at })
    });
    found.collect()
}
