//! Whose pages are read: a process held by its pidfd, and the address space it had at first, so that neither a reused id nor
//! an `execve` in the middle goes unnoticed.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

/// A process.
#[derive(Debug)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its directory below `/proc`.
    pub dir: PathBuf,
    /// What it was called at first.
    pub comm: String,
    pidfd: OwnedFd,
    first: Life,
}

/// What has become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Now {
    /// It lives, in the address space that it had at first.
    Same,
    /// It has ended.
    Ended,
    /// It lives, and runs another program.
    Executed,
}

/// The part of `/proc/PID/stat` that tells one life of a process from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    comm: Vec<u8>,
    state: u8,
    kernel_thread: bool,
    ending: bool,
    start_time: u64,
    /// Where its code begins and ends and where its stack begins: chosen anew by each `execve`. Zero without an address space.
    layout: [u64; 3],
}

impl Life {
    /// Reads the line. The name ends at the last closing parenthesis, as it may contain such itself.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        /// `PF_KTHREAD`.
        const KERNEL_THREAD: u64 = 0x20_0000;
        /// `PF_EXITING`.
        const EXITING: u64 = 4;
        let open = line.iter().position(|byte| *byte == b'(')?;
        let close = line.iter().rposition(|byte| *byte == b')')?;
        let comm = line.get(open + 1..close)?.to_vec();
        let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // Numbered from 3, the state, as in proc_pid_stat(5).
        let number = |field: usize| fields.get(field - 3)?.parse().ok();
        Some(Self {
            comm,
            state: *fields.first()?.as_bytes().first()?,
            kernel_thread: number(9)? & KERNEL_THREAD != 0,
            ending: number(9)? & EXITING != 0,
            start_time: number(22)?,
            layout: [number(26)?, number(27)?, number(28)?],
        })
    }

    fn of(dir: &Path) -> io::Result<Self> {
        let line = fs::read(dir.join("stat"))?;
        Self::parse(&line).ok_or_else(|| io::Error::other("stat has not the form that proc_pid_stat(5) describes"))
    }
}

/// Why a process has no pages to be read.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// No such process.
    #[error("there is no process {0}; it may have ended, or live in another pid namespace")]
    None(u32),
    /// The id is of a thread that is not its process's first.
    #[error("{0} is a thread, not a process: give the id of its process (Tgid in /proc/{0}/status)")]
    Thread(u32),
    /// A kernel thread.
    #[error("process {0} is a kernel thread: it has no address space of its own")]
    Kernel(u32),
    /// A zombie.
    #[error(
        "process {0} has ended, or its first thread has: its address space is gone, or has no name in /proc any more"
    )]
    Zombie(u32),
    /// The kernel keeps it from the caller.
    #[error("may not look into process {pid} ({source}): be its user, or root, or have CAP_SYS_PTRACE")]
    Forbidden {
        /// Which.
        pid: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file below `/proc` cannot be read.
    #[error("cannot read {} of process {pid}: {source}", file)]
    Read {
        /// Which.
        pid: u32,
        /// Its file.
        file: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl ProcessError {
    /// The error of reading a file of the process.
    #[must_use]
    pub fn of(pid: u32, file: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => Self::Forbidden { pid, source },
            Some(libc::ESRCH | libc::ENOENT) => Self::None(pid),
            _ => Self::Read { pid, file, source },
        }
    }
}

impl Process {
    /// Takes hold of a process.
    ///
    /// # Errors
    /// When there is none, or it has no address space.
    pub fn open(proc: &Path, pid: u32) -> Result<Self, ProcessError> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(ProcessError::None(pid))?;
        let dir = proc.join(pid.to_string());
        let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // A thread that is not its process's first has a directory, though it is not listed.
            Err(_) if dir.join("stat").exists() => return Err(ProcessError::Thread(pid)),
            Err(_) => return Err(ProcessError::None(pid)),
        };
        let first = Life::of(&dir).map_err(|err| ProcessError::of(pid, "stat", err))?;
        if first.kernel_thread {
            return Err(ProcessError::Kernel(pid));
        }
        if matches!(first.state, b'Z' | b'X') {
            return Err(ProcessError::Zombie(pid));
        }
        let comm = String::from_utf8_lossy(&first.comm).escape_debug().to_string();
        let process = Self { pid, dir, comm, pidfd, first };
        match process.lives() {
            true => Ok(process),
            false => Err(ProcessError::None(pid)),
        }
    }

    fn lives(&self) -> bool {
        let mut exit = [PollFd::new(&self.pidfd, PollFlags::IN)];
        matches!(poll(&mut exit, Some(&Timespec::default())), Ok(0))
    }

    /// Asks again. What was read by its id before was then read from it.
    #[must_use]
    pub fn now(&self) -> Now {
        let life = Life::of(&self.dir);
        if !self.lives() {
            return Now::Ended;
        }
        match life {
            // An ending process gives its address space up before the pidfd tells; within an `execve` there is none either.
            Ok(life) if life.ending => Now::Ended,
            Ok(life) if (life.start_time, life.layout) == (self.first.start_time, self.first.layout) => Now::Same,
            Ok(_) => Now::Executed,
            Err(_) => Now::Ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn this_process_is_the_same_as_before() {
        let process = Process::open(Path::new("/proc"), std::process::id()).unwrap();
        assert_eq!(process.now(), Now::Same);
    }

    #[test]
    fn an_execve_and_an_end_are_told_apart() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo; read x; exec sleep 60"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        // Before it speaks it may still be on the way to be `sh`.
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let process = Process::open(Path::new("/proc"), child.id()).unwrap();
        assert_eq!(process.now(), Now::Same);
        drop(child.stdin.take());
        while process.now() == Now::Same {}
        assert_eq!(process.now(), Now::Executed);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(process.now(), Now::Ended);
    }

    #[test]
    fn what_has_no_pages_is_named() {
        let proc = Path::new("/proc");
        assert!(matches!(Process::open(proc, u32::MAX), Err(ProcessError::None(_))));
        assert!(matches!(Process::open(proc, 0), Err(ProcessError::None(0))));
        let mut child = Command::new("true").spawn().unwrap();
        while fs::read_to_string(format!("/proc/{}/stat", child.id())).is_ok_and(|stat| !stat.contains(") Z ")) {}
        assert!(matches!(Process::open(proc, child.id()), Err(ProcessError::Zombie(_))));
        child.wait().unwrap();
        if fs::read_to_string("/proc/2/comm").is_ok_and(|comm| comm == "kthreadd\n") {
            assert!(matches!(Process::open(proc, 2), Err(ProcessError::Kernel(2))));
        }
    }

    proptest! {
        #[test]
        fn any_line_has_an_answer(line: Vec<u8>) {
            let _ = Life::parse(&line);
        }
    }
}
