//! The processes to push: those given and their descendants, each held by a pidfd so that a reused id is never touched.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::set::PageSet;
use crate::live::workload::targets::{Stat, parents};

/// A process, and what is remembered about its pages.
#[derive(Debug)]
pub(super) struct Process {
    pidfd: OwnedFd,
    /// Its directory below `/proc`.
    pub(super) dir: PathBuf,
    /// Pages that were pushed out and have not been seen resident since.
    pub(super) out: PageSet,
    /// Where the next round goes on in mappings too large for one, by their first address.
    pub(super) windows: HashMap<u64, u64>,
}

impl Process {
    /// Takes hold of a process.
    pub(super) fn open(proc: &Path, pid: u32) -> Option<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).ok()?;
        Some(Self { pidfd, dir: proc.join(pid.to_string()), out: PageSet::default(), windows: HashMap::new() })
    }

    /// Whether it still lives. What was read by its id before, was then read from it.
    pub(super) fn lives(&self) -> bool {
        let mut exit = [PollFd::new(&self.pidfd, PollFlags::IN)];
        matches!(poll(&mut exit, Some(&Timespec::default())), Ok(0))
    }

    fn parent(&self) -> Option<u32> {
        let stat = fs::read(self.dir.join("stat")).ok()?;
        Some(Stat::parse(&stat)?.ppid)
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// The target.
#[derive(Debug)]
pub(super) struct Processes {
    proc: PathBuf,
    /// Never pushed, nor what they start: pagetrace itself can be a descendant of its target.
    except: BTreeSet<u32>,
    known: BTreeMap<u32, Process>,
}

impl Processes {
    /// Those of `roots` that live.
    pub(super) fn new(proc: &Path, roots: &BTreeSet<u32>, except: BTreeSet<u32>) -> Self {
        let open = |pid: &u32| Some((*pid, Process::open(proc, *pid)?));
        let known = roots.difference(&except).filter_map(open).collect();
        Self { proc: proc.to_owned(), except, known }
    }

    /// Forgets processes that have ended and finds new children. One whose parent ended stays known.
    pub(super) fn refresh(&mut self) {
        self.known.retain(|_, process| process.lives());
        let Ok(parents) = parents(&self.proc) else { return };
        loop {
            let is_new = |pid: &u32, parent: &u32| {
                self.known.contains_key(parent) && !self.known.contains_key(pid) && !self.except.contains(pid)
            };
            let new: Vec<u32> =
                parents.iter().filter(|(pid, parent)| is_new(pid, parent)).map(|(pid, _)| *pid).collect();
            let before = self.known.len();
            for pid in new {
                self.admit(pid);
            }
            if self.known.len() == before {
                return;
            }
        }
    }

    /// Between the listing and the pidfd the id may have gone to another process: its parent is asked for again.
    fn admit(&mut self, pid: u32) {
        let Some(process) = Process::open(&self.proc, pid) else { return };
        let parent = process.parent().and_then(|parent| self.known.get(&parent));
        if parent.is_some_and(Process::lives) && process.lives() {
            self.known.insert(pid, process);
        }
    }

    /// Each.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Process> {
        self.known.values_mut()
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn sleeper() -> Killed {
        Killed(Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap())
    }

    fn pids(processes: &mut Processes) -> BTreeSet<u32> {
        processes.known.keys().copied().collect()
    }

    #[test]
    fn children_are_found_and_the_dead_forgotten() {
        let this = std::process::id();
        let mut processes = Processes::new(Path::new("/proc"), &BTreeSet::from([this]), BTreeSet::new());
        let child = sleeper();
        let pid = child.0.id();
        processes.refresh();
        assert!(pids(&mut processes).is_superset(&BTreeSet::from([this, pid])));
        drop(child);
        processes.refresh();
        assert!(!pids(&mut processes).contains(&pid));
    }

    #[test]
    fn what_is_excepted_is_never_taken() {
        let this = std::process::id();
        let child = sleeper();
        let except = BTreeSet::from([child.0.id()]);
        let mut processes = Processes::new(Path::new("/proc"), &BTreeSet::from([this, child.0.id()]), except);
        processes.refresh();
        assert!(pids(&mut processes).contains(&this) && !pids(&mut processes).contains(&child.0.id()));
    }
}
