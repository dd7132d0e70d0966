//! From `-p`, `-t`, `-c` and `--cgroup` to the tasks that exist when tracing begins.
//!
//! Reads only `stat`, `status` and `comm` of processes, which take no `mmap_lock`. Tasks that come later are the BPF
//! programs' business; a process that ends while it is looked at is left out without a word.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::cgroup;
pub use super::cgroup::{Cgroup, CgroupError};

/// What the command line asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Process ids.
    pub pids: Vec<u32>,
    /// Thread ids.
    pub tids: Vec<u32>,
    /// Task names; the kernel keeps 15 bytes, longer ones are cut.
    pub comms: Vec<String>,
    /// A control group of the second version: a directory, or its path within the hierarchy.
    pub cgroup: Option<PathBuf>,
}

/// What is traced from the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Targets {
    /// Processes: those asked for and all their descendants.
    pub tgids: BTreeSet<u32>,
    /// Threads asked for by id.
    pub tids: BTreeSet<u32>,
    /// Names as the kernel stores them, filled up with NUL bytes.
    pub comms: Vec<[u8; 16]>,
    /// Threads that have one of these names now.
    pub comm_tids: BTreeSet<u32>,
    /// The control group.
    pub cgroup: Option<Cgroup>,
}

/// Why a target cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// No such process.
    #[error("there is no process {0}; it may have ended, or live in another pid namespace")]
    NoProcess(u32),
    /// No such thread.
    #[error("there is no thread {0}; it may have ended, or live in another pid namespace")]
    NoThread(u32),
    /// The id is that of a thread which is not its process's first.
    #[error("{tid} is a thread of process {tgid}: give -t {tid} for the thread, or -p {tgid} for the process")]
    NotAProcess {
        /// The id given.
        tid: u32,
        /// Its process.
        tgid: u32,
    },
    /// An empty name matches nothing.
    #[error("a task name must not be empty")]
    EmptyComm,
    /// The control group cannot be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// procfs cannot be listed.
    #[error("cannot list {}: {source}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Targets {
    /// Looks the selection up below `proc`.
    ///
    /// # Errors
    /// [`TargetError`] for whatever does not exist.
    pub fn resolve(selection: &Selection, proc: &Path) -> Result<Self, TargetError> {
        let Selection { pids, tids, comms, cgroup } = selection;
        let mut targets = Self::default();
        for &pid in pids {
            match tgid_of(proc, pid) {
                Some(tgid) if tgid == pid => targets.tgids.insert(pid),
                Some(tgid) => return Err(TargetError::NotAProcess { tid: pid, tgid }),
                None => return Err(TargetError::NoProcess(pid)),
            };
        }
        for &tid in tids {
            tgid_of(proc, tid).ok_or(TargetError::NoThread(tid))?;
            targets.tids.insert(tid);
        }
        targets.comms = comms.iter().map(|name| comm_bytes(name)).collect::<Result<_, _>>()?;
        if !targets.tgids.is_empty() {
            targets.add_descendants(&parents(proc)?);
        }
        if !targets.comms.is_empty() {
            targets.comm_tids = named(proc, &targets.comms)?;
        }
        targets.cgroup = cgroup.as_deref().map(|path| cgroup::find(path, proc)).transpose()?;
        Ok(targets)
    }

    /// Whether nothing was asked for, so that every task is traced.
    #[must_use]
    pub fn whole_machine(&self) -> bool {
        let Self { tgids, tids, comms, comm_tids: _, cgroup } = self;
        tgids.is_empty() && tids.is_empty() && comms.is_empty() && cgroup.is_none()
    }

    fn add_descendants(&mut self, parents: &BTreeMap<u32, u32>) {
        let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (&pid, &parent) in parents {
            children.entry(parent).or_default().push(pid);
        }
        let mut open: Vec<u32> = self.tgids.iter().copied().collect();
        while let Some(pid) = open.pop() {
            let new = children.get(&pid).into_iter().flatten().copied().filter(|&child| self.tgids.insert(child));
            open.extend(new.collect::<Vec<_>>());
        }
    }
}

/// The fields of `/proc/PID/stat` that are used here (`proc_pid_stat(5)`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The name, up to 15 bytes; may hold any byte but NUL.
    pub comm: Vec<u8>,
    /// The state letter.
    pub state: char,
    /// The parent process; 0 for the first ones.
    pub ppid: u32,
}

impl Stat {
    /// Reads one line. The name ends at the last closing parenthesis, as it may contain such itself.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let open = line.iter().position(|&byte| byte == b'(')?;
        let close = line.iter().rposition(|&byte| byte == b')')?;
        let comm = line.get(open + 1..close)?.to_vec();
        let mut rest = std::str::from_utf8(line.get(close + 1..)?).ok()?.split_ascii_whitespace();
        Some(Self { comm, state: rest.next()?.chars().next()?, ppid: rest.next()?.parse().ok()? })
    }
}

fn tgid_of(proc: &Path, tid: u32) -> Option<u32> {
    let status = fs::read(proc.join(tid.to_string()).join("status")).ok()?;
    let value = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Tgid:"))?;
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

fn comm_bytes(name: &str) -> Result<[u8; 16], TargetError> {
    if name.is_empty() {
        return Err(TargetError::EmptyComm);
    }
    let mut comm = [0; 16];
    for (to, from) in comm.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    Ok(comm)
}

/// The numbered entries of a directory, processes or threads.
fn numbers(dir: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(numbers)
}

fn processes(proc: &Path) -> Result<Vec<u32>, TargetError> {
    numbers(proc).map_err(|source| TargetError::List { path: proc.to_owned(), source })
}

/// The parent of every process there is.
pub(in crate::live) fn parents(proc: &Path) -> Result<BTreeMap<u32, u32>, TargetError> {
    let parent = |pid: u32| {
        let stat = fs::read(proc.join(pid.to_string()).join("stat")).ok()?;
        Some((pid, Stat::parse(&stat)?.ppid))
    };
    Ok(processes(proc)?.into_iter().filter_map(parent).collect())
}

fn named(proc: &Path, comms: &[[u8; 16]]) -> Result<BTreeSet<u32>, TargetError> {
    let mut found = BTreeSet::new();
    for pid in processes(proc)? {
        let tasks = proc.join(pid.to_string()).join("task");
        let Ok(tids) = numbers(&tasks) else { continue };
        found.extend(tids.into_iter().filter(|tid| {
            let Ok(name) = fs::read(tasks.join(tid.to_string()).join("comm")) else { return false };
            let name = name.strip_suffix(b"\n").unwrap_or(&name);
            comms.iter().any(|comm| comm.iter().take_while(|&&byte| byte != 0).eq(name))
        }));
    }
    Ok(found)
}
