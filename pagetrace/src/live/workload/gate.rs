//! A process held between fork and exec. The one place that runs code in a forked child, hence the unsafe code.
//!
//! `Command::spawn` returns only after exec, so it runs on a thread of its own; the child tells its id through one
//! pipe, blocks in reading another, and the thread's end of a third tells when spawn has returned.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    process::{self, Command, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    thread,
};

use rustix::{
    fs::{OFlags, fcntl_setfl},
    pipe::{PipeFlags, pipe_with},
    process::Pid,
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{RunAs, StartError, user::Identity};

/// Holds one process back. When dropped unopened, the process ends without executing anything.
#[derive(Debug)]
pub(super) struct Gate {
    /// One byte opens the gate; closing it tells the child to give up.
    latch: Option<OwnedFd>,
    /// Readable when `outcome` holds something.
    done: OwnedFd,
    outcome: Receiver<io::Result<process::Child>>,
}

impl Gate {
    pub(super) fn spawn(
        program: &OsStr,
        args: &[OsString],
        run_as: &RunAs,
        stdout: Stdio,
    ) -> Result<(Pid, Self), StartError> {
        let setup = |doing| move |source: io::Error| StartError::Setup { doing, source };
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).map_err(setup("make a pipe"));
        let (ready, tell_ready) = pipe()?;
        let (latch_of_child, latch) = pipe()?;
        let (done, tell_done) = pipe()?;

        let mut command = Command::new(program);
        command.args(args).stdout(stdout);
        if let RunAs::User(user) = run_as {
            command.env("HOME", &user.home).env("USER", &user.name).env("LOGNAME", &user.name);
        }
        let ignores_ends = keep_ends().map_err(setup("let the kernel keep the status"))?;
        hold_back(&mut command, run_as.identity(), ignores_ends, tell_ready, latch_of_child, latch.as_raw_fd());

        let (send, outcome) = sync_channel(1);
        thread::Builder::new()
            .name("workload".to_owned())
            .spawn(move || {
                // The receiver is gone if the workload was dropped; then nobody wants to know.
                let _ = send.send(command.spawn());
                drop(command);
                drop(tell_done);
            })
            .map_err(setup("start a thread"))?;

        let mut id = [0; 4];
        if std::fs::File::from(ready).read_exact(&mut id).is_err() {
            // The child ended before it was ready, so spawn has returned or is about to, with the reason.
            let lost = || io::Error::other("the process ended before it was ready");
            let source = outcome.recv().ok().and_then(Result::err).unwrap_or_else(lost);
            return Err(StartError::Setup { doing: "make the process or switch to its user", source });
        }
        let pid = Pid::from_raw(i32::from_ne_bytes(id))
            .ok_or_else(|| setup("learn the process id")(io::Error::other("the process id was 0")))?;
        Ok((pid, Self { latch: Some(latch), done, outcome }))
    }

    /// Lets the process execute, and gives the error if it could not.
    pub(super) async fn open(&mut self) -> io::Result<()> {
        if let Some(latch) = self.latch.take() {
            // A child that was killed meanwhile has closed its end; what spawn says about it counts.
            let _ = rustix::io::write(&latch, &[1]);
        }
        fcntl_setfl(&self.done, OFlags::NONBLOCK)?;
        readable(self.done.as_fd()).await?;
        self.outcome.recv().map_err(|_| io::Error::other("the thread that starts the command is gone"))?.map(drop)
    }
}

/// Returns when `fd`, a pidfd or the end of a pipe, can be read from.
#[expect(unsafe_code, reason = "tokio has no safe way to wait for a descriptor it does not own")]
pub(super) async fn readable(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the borrow keeps the descriptor open, and the same, until this function's end, where `ready` is dropped.
    let ready = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
    let _guard = ready.readable().await?;
    Ok(())
}

#[expect(unsafe_code, reason = "code between fork and exec can only be had through pre_exec")]
fn hold_back(
    command: &mut Command,
    identity: Option<Identity>,
    ignores_ends: bool,
    ready: OwnedFd,
    latch: OwnedFd,
    parents_latch: RawFd,
) {
    let in_child = move || {
        default_interrupts()?;
        if ignores_ends {
            // SAFETY: ignoring a signal is no handler, so nothing can run that this child must not run.
            unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        }
        if let Some(identity) = &identity {
            identity.assume()?;
        }
        // SAFETY: the descriptor is the fork's copy of the parent's end, which nothing in this child uses; without
        // closing it the child would keep its own pipe open and never see the parent go.
        unsafe { libc::close(parents_latch) };
        rustix::io::write(&ready, &rustix::process::getpid().as_raw_nonzero().get().to_ne_bytes())?;
        let mut byte = [0];
        loop {
            match rustix::io::read(&latch, &mut byte) {
                Ok(1) => return Ok(()),
                Ok(_) => return Err(io::Error::from_raw_os_error(libc::ECANCELED)),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    };
    // SAFETY: the closure runs in a fork of a process with threads. It makes system calls only; it takes no lock and
    // allocates nothing, not for its errors either, which are plain errno values.
    unsafe { command.pre_exec(in_child) };
}

/// The action of a signal now.
#[expect(unsafe_code, reason = "signal dispositions have no safe interface")]
fn action(signal: libc::c_int) -> io::Result<libc::sighandler_t> {
    // SAFETY: an all-zero sigaction is a valid value: the default action, no flags, an empty mask.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: `now` outlives the call, and a null new action only asks.
    match unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut now) } {
        0 => Ok(now.sa_sigaction),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Where `SIGCHLD` is ignored, as its starter may have left it, the kernel throws the status of children away, and `Command::spawn`
/// panics when it waits for one that could not execute. Says whether it was; the command then gets it as it was.
#[expect(unsafe_code, reason = "signal dispositions have no safe interface")]
fn keep_ends() -> io::Result<bool> {
    let ignored = action(libc::SIGCHLD)? == libc::SIG_IGN;
    if ignored {
        // SAFETY: the default action is no handler.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    }
    Ok(ignored)
}

/// Handlers of the parent would run in the child until exec, and swallow a Ctrl-C meant for it too.
#[expect(unsafe_code, reason = "signal dispositions have no safe interface")]
fn default_interrupts() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        let now = action(signal)?;
        // Ignored stays ignored, as under nohup.
        if now != libc::SIG_IGN && now != libc::SIG_DFL {
            // SAFETY: the default action is no handler, so nothing can run that this child must not run.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
    Ok(())
}
