//! Finds out whether a task that violated the rule is stuck now.
//!
//! Reads /proc/PID/task/TID/stat and stack only: neither needs the stuck lock, unlike cmdline, maps, environ or status
//! of later kernels' memory lines.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::workload::targets::Stat;

/// How long a task has to be seen waiting before it is called stuck.
const PATIENCE: Duration = Duration::from_secs(2);

/// A task to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Suspect {
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
}

/// What is known of a task that is watched.
#[derive(Debug, Clone, Copy, Default)]
struct Wait {
    /// Since when it has been seen waiting.
    since: Option<Instant>,
    /// It is part of a deadlock that was found: that it is blocked is enough.
    in_deadlock: bool,
}

/// Watches tasks.
pub struct HangWatch {
    proc: PathBuf,
    waiting_since: HashMap<Suspect, Wait>,
    unseen: bool,
    found: bool,
}

impl HangWatch {
    /// Watches below `proc`.
    pub fn new(proc: PathBuf) -> Self {
        Self { proc, waiting_since: HashMap::new(), unseen: false, found: false }
    }

    /// Begins to watch a task.
    pub fn suspect(&mut self, suspect: Suspect) {
        self.waiting_since.entry(suspect).or_default();
        self.unseen = true;
    }

    /// Begins to watch a task of a deadlock.
    pub fn suspect_in_deadlock(&mut self, suspect: Suspect) {
        self.waiting_since.entry(suspect).or_default().in_deadlock = true;
        self.unseen = true;
    }

    /// Whether a task may be stuck: one was named and has not been looked at since, one was waiting when it was looked
    /// at last, or one was found stuck.
    pub fn suspects_a_hang(&self) -> bool {
        self.unseen || self.found || self.waiting_since.values().any(|wait| wait.since.is_some())
    }

    /// The tasks that have been waiting for a lock for the whole of the patience. Each is told once.
    pub fn stuck(&mut self, now: Instant) -> Vec<Suspect> {
        let mut out = Vec::new();
        let proc = self.proc.clone();
        self.waiting_since.retain(|suspect, wait| {
            match waits_for_lock(&proc, *suspect, wait.in_deadlock) {
                None => return false,
                Some(false) => wait.since = None,
                Some(true) => {
                    let since = *wait.since.get_or_insert(now);
                    if now.duration_since(since) >= PATIENCE {
                        out.push(*suspect);
                        return false;
                    }
                }
            }
            true
        });
        self.unseen = false;
        self.found |= !out.is_empty();
        out
    }
}

/// Whether a task waits uninterruptibly (or killably) inside an rwsem, or, if `anywhere`, wherever; `None` when it is gone.
fn waits_for_lock(proc: &Path, suspect: Suspect, anywhere: bool) -> Option<bool> {
    let dir = proc.join(suspect.pid.to_string()).join("task").join(suspect.tid.to_string());
    let stat = fs::read(dir.join("stat")).ok()?;
    if Stat::parse(&stat)?.state != 'D' {
        return Some(false);
    }
    if anywhere {
        return Some(true);
    }
    // Without the stack (not root, or no CONFIG_STACKTRACE) the state has to do.
    let Ok(stack) = fs::read_to_string(dir.join("stack")) else { return Some(true) };
    Some(stack.is_empty() || shows_lock_wait(&stack))
}

/// Whether a kernel stack waits for a lock. A BPF trampoline on the lock function hides that function and what it
/// calls, so a fault handler that has not come to handling the fault counts as well: until then it can only wait for
/// the lock, and once there it may wait for a disk.
pub(super) fn shows_lock_wait(stack: &str) -> bool {
    let shows = |name: &str| stack.contains(name);
    shows("rwsem_down_")
        || shows(" down_read")
        || shows("mutex_lock")
        || (shows("exc_page_fault") && !shows("handle_mm_fault"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(state: char, stack: &str) -> (tempfile::TempDir, Suspect) {
        let dir = tempfile::tempdir().unwrap();
        let task = dir.path().join("7/task/8");
        fs::create_dir_all(&task).unwrap();
        fs::write(task.join("stat"), format!("8 (a) b) {state} 1 7 7 0 -1 0 0 0 0 0\n")).unwrap();
        fs::write(task.join("stack"), stack).unwrap();
        (dir, Suspect { pid: 7, tid: 8 })
    }

    #[test]
    fn only_a_long_wait_inside_an_rwsem_is_a_hang() {
        let (dir, suspect) = task('D', "[<0>] rwsem_down_read_slowpath+0x1/0x2\n[<0>] down_read+0x1/0x2\n");
        let mut watch = HangWatch::new(dir.path().to_owned());
        watch.suspect(suspect);
        let start = Instant::now();
        assert!(watch.stuck(start).is_empty(), "not at first sight");
        assert_eq!(watch.stuck(start + PATIENCE), [suspect]);
        assert!(watch.stuck(start + PATIENCE * 2).is_empty(), "told once");
    }

    #[test]
    fn a_hang_is_suspected_from_the_start_until_the_task_runs() {
        let (dir, suspect) = task('R', "");
        let mut watch = HangWatch::new(dir.path().to_owned());
        assert!(!watch.suspects_a_hang());
        watch.suspect(suspect);
        assert!(watch.suspects_a_hang(), "before the first look");
        let start = Instant::now();
        watch.stuck(start);
        assert!(!watch.suspects_a_hang(), "it runs");
        let wait = "8 (a) D 1 7 7 0 -1 0 0 0 0 0\n";
        fs::write(dir.path().join("7/task/8/stat"), wait).unwrap();
        fs::write(dir.path().join("7/task/8/stack"), "[<0>] down_read+0x1/0x2\n").unwrap();
        watch.stuck(start);
        assert!(watch.suspects_a_hang(), "it waits");
        assert_eq!(watch.stuck(start + PATIENCE), [suspect]);
        assert!(watch.suspects_a_hang(), "found stuck, and watched no more");
    }

    #[test]
    fn a_trampoline_does_not_hide_a_hang() {
        assert!(shows_lock_wait(
            "[<0>] bpf_trampoline_1+0x1/0x2\n[<0>] lock_mm_and_find_vma+0x1/0x2\n[<0>] exc_page_fault+0x1/0x2\n"
        ));
    }

    #[test]
    fn a_task_of_a_deadlock_is_stuck_wherever_it_is_blocked() {
        let (dir, suspect) = task('D', "[<0>] drv_ioctl+0x1/0x2\n");
        let mut watch = HangWatch::new(dir.path().to_owned());
        watch.suspect(suspect);
        watch.suspect_in_deadlock(suspect);
        let start = Instant::now();
        assert!(watch.stuck(start).is_empty(), "not at first sight");
        assert_eq!(watch.stuck(start + PATIENCE), [suspect]);
    }

    #[test]
    fn a_disk_wait_or_a_runner_is_no_hang() {
        let major = "[<0>] io_schedule+0x1/0x2\n[<0>] handle_mm_fault+0x1/0x2\n[<0>] exc_page_fault+0x1/0x2\n";
        for (state, stack) in [('D', "[<0>] io_schedule+0x1/0x2\n"), ('D', major), ('R', "[<0>] down_read+0x1/0x2\n")] {
            let (dir, suspect) = task(state, stack);
            let mut watch = HangWatch::new(dir.path().to_owned());
            watch.suspect(suspect);
            let start = Instant::now();
            assert!(watch.stuck(start).is_empty());
            assert!(watch.stuck(start + PATIENCE * 3).is_empty(), "{state} {stack}");
        }
    }
}
