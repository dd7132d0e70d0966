//! Starts pagetrace, with a limit to everything.
#![expect(unsafe_code, reason = "a signal is a system call")]

use std::{
    env, fs,
    fs::File,
    io,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use pagetrace::live::workload::targets::Stat;

use super::report;
use crate::fixture;

/// No run may take longer.
pub const LIMIT: Duration = Duration::from_secs(420);

/// Where the programs under test are, and a directory for what they leave.
#[derive(Debug)]
pub struct Tool {
    pagetrace: PathBuf,
    /// The fixture program.
    pub fixture: PathBuf,
    scratch: PathBuf,
}

/// What a run left.
#[derive(Debug)]
pub struct Ended {
    /// How pagetrace ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// What the fixture said.
    pub log: String,
}

impl Ended {
    /// Whether the fixture said this.
    ///
    /// # Errors
    /// When it did not: what it said instead, and how the run ended.
    pub fn exercised(&self, line: &str) -> Result<()> {
        let Self { status, stderr, log, .. } = self;
        ensure!(
            log.contains(line),
            "not exercised, no \"{line}\" in its log: {}; ended with {status}: {}",
            tail(log),
            tail(stderr)
        );
        Ok(())
    }
}

impl Tool {
    /// Finds the programs.
    ///
    /// # Errors
    /// When one is missing, or there is no place for temporary files.
    pub fn find() -> Result<Self> {
        let path = |name: &str, default: &str| env::var_os(name).map_or_else(|| default.into(), PathBuf::from);
        let pagetrace = path("PAGETRACE_BIN", "/bin/pagetrace");
        let fixture = path("PAGETRACE_FIXTURE_BIN", "/bin/pagetrace-fixture");
        for program in [&pagetrace, &fixture] {
            ensure!(program.is_file(), "{} is missing", program.display());
        }
        let scratch = env::temp_dir().join(format!("pagetrace-guest-suite.{}", std::process::id()));
        fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
        // Commands may run as another user.
        fs::set_permissions(&scratch, fs::Permissions::from_mode(0o777))?;
        Ok(Self { pagetrace, fixture, scratch })
    }

    /// `pagetrace` with these arguments.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.pagetrace);
        command.args(arguments).env_remove("SUDO_UID").env_remove("SUDO_GID").env_remove("SUDO_USER");
        command
    }

    /// Whether the kernel lets locks be had by this attach type; exit code 3 says that it does not.
    #[must_use]
    pub fn may_attach(&self, attach: &str) -> bool {
        let tried = self.command(&["probes", "--attach", attach]).output();
        tried.map_or(true, |output| output.status.code() != Some(3))
    }

    /// A file in the directory that goes with this value.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// `pagetrace check OPTIONS -- pagetrace-fixture WORDS`.
    #[must_use]
    pub fn check(&self, options: &[&str], words: &[&str]) -> Command {
        let mut command = self.command(&["check", "--format", "json"]);
        command.args(options).arg("--").arg(&self.fixture).args(words);
        command
    }

    /// Starts it, its output going to files.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, mut command: Command) -> Result<Child> {
        let log = self.scratch.join("log");
        File::create(&log).context("cannot create the log")?;
        fs::set_permissions(&log, fs::Permissions::from_mode(0o666))?;
        command.stdin(Stdio::null()).env(fixture::LOG, &log);
        command.stdout(File::create(self.scratch.join("out"))?).stderr(File::create(self.scratch.join("err"))?);
        command.spawn().with_context(|| format!("cannot start {command:?}"))
    }

    /// Waits until the standard error of what was started last contains `text`.
    ///
    /// # Errors
    /// When it does not, in time.
    pub fn await_stderr(&self, text: &str, limit: Duration) -> Result<()> {
        let said = || fs::read_to_string(self.scratch.join("err")).is_ok_and(|err| err.contains(text));
        until(limit, &format!("no \"{text}\" on standard error"), || Ok(said().then_some(())))
    }

    /// Waits for its end; past the limit it is killed.
    ///
    /// # Errors
    /// When it did not end by itself.
    pub fn finish(&self, mut child: Child, limit: Duration) -> Result<Ended> {
        let since = Instant::now();
        let read = |name: &str| {
            let bytes = fs::read(self.scratch.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Ended { status, stdout: read("out"), stderr: read("err"), log: read("log") });
            }
            if since.elapsed() > limit {
                let _ = child.kill();
                bail!("pagetrace did not end in {} s; stderr: {}", limit.as_secs(), tail(&read("err")));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs what makes its tasks hang. Where the kernel skipped events, what tells of the hanging may have been among them, and then
    /// nothing ends: that is interrupted after a while, has to say what was skipped, and is tried anew.
    ///
    /// # Errors
    /// When it does not end, or did not say.
    pub fn run_hanging(&self, make: impl Fn() -> Command) -> Result<Ended> {
        const WHILE: Duration = Duration::from_secs(90);
        const TRIES: u32 = 3;
        let mut tries = 0;
        loop {
            tries += 1;
            let mut child = self.start(make())?;
            let interrupted = until(WHILE, "no end", || Ok(child.try_wait()?)).is_err();
            if interrupted {
                signal(&child, libc::SIGINT)?;
            }
            let ended = self.finish(child, LIMIT)?;
            if !interrupted {
                return Ok(ended);
            }
            let report = report::parse(&ended.stdout)?;
            let skipped = report::loss(&report, "recursion_misses");
            ensure!(
                skipped > 0 && tries < TRIES,
                "nothing told of the hanging, though {skipped} events were skipped: {}",
                report["loss"]
            );
            eprintln!("not told of in {} s, with {skipped} events skipped: {}", WHILE.as_secs(), report["findings"]);
        }
    }

    /// Both.
    ///
    /// # Errors
    /// As above.
    pub fn run(&self, command: Command) -> Result<Ended> {
        self.finish(self.start(command)?, LIMIT)
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

/// The end of a text, on one line.
#[must_use]
pub fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}

/// Sends `signal` to a child that has not been waited for.
///
/// # Errors
/// When the kernel refuses.
pub fn signal(child: &Child, signal: libc::c_int) -> Result<()> {
    let pid = i32::try_from(child.id()).context("a process id fits an int")?;
    // SAFETY: touches no memory; the id is a child's that was not reaped, so it is nobody else's.
    let result = unsafe { libc::kill(pid, signal) };
    ensure!(result == 0, "cannot signal {pid}: {}", io::Error::last_os_error());
    Ok(())
}

/// Waits until `parent` has started a command, and tells its process id.
///
/// # Errors
/// When it has not, in time.
pub fn wait_for_child(parent: u32, limit: Duration) -> Result<u32> {
    let begun = |pid: u32| {
        let stat = Stat::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)?;
        // A stopped child has not begun.
        (stat.ppid == parent && stat.comm.starts_with(b"pagetrace-fixt")).then_some(pid)
    };
    until(limit, "pagetrace started no command", || {
        let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(pids.into_iter().find_map(begun))
    })
}

/// Waits until every thread of a process is stopped.
///
/// # Errors
/// When one is not, in time.
pub fn await_stopped(pid: u32, limit: Duration) -> Result<()> {
    let tasks = format!("/proc/{pid}/task");
    let stopped = |path: PathBuf| Some(Stat::parse(&fs::read(path.join("stat")).ok()?)?.state == 'T');
    until(limit, &format!("process {pid} was not stopped"), || {
        let mut all = fs::read_dir(&tasks).with_context(|| format!("cannot list {tasks}"))?.flatten();
        Ok(all.all(|task| stopped(task.path()) == Some(true)).then_some(()))
    })
}

/// Asks until there is an answer; `missing` says what there was not.
///
/// # Errors
/// When there is none in time, or it cannot be asked for.
pub fn until<T>(limit: Duration, missing: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let since = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(since.elapsed() < limit, "{missing} in {} s", limit.as_secs());
        thread::sleep(Duration::from_millis(50));
    }
}

/// Kills a process that [`wait_for_child`] found, if it is still there.
pub fn end(pid: u32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if comm.starts_with("pagetrace-fixt") {
        // SAFETY: touches no memory; the process bears the fixture's name.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}
