//! The traced command: started but held back before its first instruction, released when tracing is armed, waited for.
//!
//! It stays in pagetrace's process group, so that Ctrl-C and terminal programs work. Nothing here reads the command's
//! `/proc` files that take `mmap_lock` (cmdline, environ, maps): the tracer must not be an event of its own trace.

mod cgroup;
mod gate;
pub mod targets;
#[cfg(test)]
mod tests;
pub mod user;

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{ExitStatus, Stdio},
};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};

use self::gate::Gate;
pub use self::user::RunAs;

/// Why the command did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There was nothing to start.
    #[error("no command was given after `--`")]
    Empty,
    /// A pipe, thread or process could not be made, or the user could not be switched to.
    #[error("cannot {doing} for the command: {source}")]
    Setup {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused to execute it.
    #[error("cannot run {}: {} ({source})", program.to_string_lossy().escape_debug(), explain(source))]
    Exec {
        /// The command's first word.
        program: OsString,
        /// The reason; `raw_os_error()` is the errno.
        source: io::Error,
    },
}

impl StartError {
    /// What a shell would exit with: 127 for a command that does not exist, 126 for one that cannot be run.
    #[must_use]
    pub fn shell_code(&self) -> Option<u8> {
        match self {
            Self::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound => Some(127),
            Self::Exec { .. } => Some(126),
            Self::Empty | Self::Setup { .. } => None,
        }
    }
}

fn explain(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "it, or the interpreter its first line names, does not exist or is not in PATH",
        Some(libc::EACCES) => {
            "it is not executable, or a directory before it may not be entered by the user it runs as"
        }
        Some(libc::ENOEXEC) => "it is neither a program for this machine nor a script with an interpreter",
        Some(libc::E2BIG) => "its arguments and environment are too long",
        _ => "the kernel refused",
    }
}

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this code.
    Exited(i32),
    /// This signal killed it.
    Signalled(i32),
    /// It is gone, but somebody else took its status, as the kernel does where `SIGCHLD` is ignored.
    Unknown,
}

impl Ended {
    /// As an exit code: 128+n for a signal; `None` if it is not known.
    #[must_use]
    pub fn code(self) -> Option<u8> {
        match self {
            Self::Exited(code) => Some(u8::try_from(code).unwrap_or(u8::MAX)),
            Self::Signalled(signal) => Some(u8::try_from(signal.saturating_add(128)).unwrap_or(u8::MAX)),
            Self::Unknown => None,
        }
    }
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, Some(signal)) => Self::Signalled(signal),
            (None, None) => Self::Unknown,
        }
    }
}

/// A command, held back or running. Dropping one that was not released ends it before it executes anything; dropping
/// one that runs leaves it running.
#[derive(Debug)]
pub struct Workload {
    program: OsString,
    pid: Pid,
    pidfd: OwnedFd,
    gate: Option<Gate>,
    ended: Option<Ended>,
}

impl Workload {
    /// Makes a process for `argv` that waits, as the user it shall run as, just before `execve`. Its id is known and
    /// can be put in filters; its address space is still a copy of pagetrace's own. Its standard output goes to `stdout`.
    ///
    /// # Errors
    /// If there is no command, or the process could not be made or could not become that user.
    pub fn spawn_stopped(argv: &[OsString], run_as: &RunAs, stdout: Stdio) -> Result<Self, StartError> {
        let (program, args) = argv.split_first().ok_or(StartError::Empty)?;
        let (pid, gate) = Gate::spawn(program, args, run_as, stdout)?;
        // Until it is waited for, the id cannot be given to another process; the gate's thread only waits if exec fails.
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|errno| StartError::Setup { doing: "open a pidfd", source: errno.into() })?;
        Ok(Self { program: program.clone(), pid, pidfd, gate: Some(gate), ended: None })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The command's first word.
    #[must_use]
    pub fn program(&self) -> &OsStr {
        &self.program
    }

    /// Lets the command execute, and returns when it has begun to. A second call does nothing. Waits as long as the
    /// kernel takes to open the program; may be dropped meanwhile and called anew.
    ///
    /// # Errors
    /// [`StartError::Exec`] if the program cannot be executed; the process has ended then.
    pub async fn release(&mut self) -> Result<(), StartError> {
        let Some(gate) = &mut self.gate else { return Ok(()) };
        let result = gate.open().await;
        self.gate = None;
        if let Err(source) = result {
            self.ended = Some(Ended::Unknown);
            return Err(StartError::Exec { program: self.program.clone(), source });
        }
        Ok(())
    }

    /// Waits for the command's end; the same answer again when called later. Safe to drop and call anew, so a limit
    /// may be put on it: a command in an uninterruptible wait does not end, whatever is sent to it.
    ///
    /// # Errors
    /// If the pidfd cannot be polled, for one outside of a tokio runtime with I/O.
    pub async fn wait(&mut self) -> io::Result<Ended> {
        loop {
            if let Some(ended) = self.try_wait()? {
                return Ok(ended);
            }
            gate::readable(self.pidfd.as_fd()).await?;
        }
    }

    /// The command's end, if it has ended.
    ///
    /// # Errors
    /// If the kernel refuses to wait for it.
    pub fn try_wait(&mut self) -> io::Result<Option<Ended>> {
        if self.ended.is_some() {
            return Ok(self.ended);
        }
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        self.ended = match status {
            Ok(None) => None,
            Ok(Some(status)) => Some(match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Ended::Exited(code),
                (None, Some(signal)) => Ended::Signalled(signal),
                (None, None) => Ended::Unknown,
            }),
            Err(rustix::io::Errno::CHILD) => Some(Ended::Unknown),
            Err(errno) => return Err(errno.into()),
        };
        Ok(self.ended)
    }

    /// Sends `SIGKILL`. Does not wait; a command that has ended already is no error.
    ///
    /// # Errors
    /// If the kernel refuses, for one because the command changed its user.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    /// Sends a signal through the pidfd, so that it cannot reach a later process of the same id.
    ///
    /// # Errors
    /// As [`Workload::kill`].
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The state letter of `proc_pid_stat(5)`, `D` for an uninterruptible wait; `None` once it was waited for.
    #[must_use]
    pub fn state(&self, proc: &Path) -> Option<char> {
        if self.ended.is_some() {
            return None;
        }
        let stat = fs::read(proc.join(self.pid().to_string()).join("stat")).ok()?;
        targets::Stat::parse(&stat).map(|stat| stat.state)
    }
}
