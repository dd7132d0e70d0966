//! Starts pagetrace and keeps what it left.

use std::{
    env,
    io::Read as _,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// No test may take longer.
const LIMIT: Duration = Duration::from_secs(20);

/// The program: `$PAGETRACE`, or the one this build made, or, once, the one it makes now.
pub(crate) fn binary() -> Result<PathBuf> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BINARY.get_or_init(|| find().map_err(|err| format!("{err:#}"))).clone().map_err(anyhow::Error::msg)
}

fn find() -> Result<PathBuf> {
    if let Some(given) = env::var_os("PAGETRACE") {
        return Ok(given.into());
    }
    // target/PROFILE/deps/this-test
    let this = env::current_exe().context("where is this test?")?;
    let profile = this.ancestors().nth(2).context("the test lies in target/PROFILE/deps")?;
    let binary = profile.join("pagetrace");
    // Cargo skips what is up to date; without this an old binary would be tested.
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "pagetrace", "--bin", "pagetrace"]);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let target = profile.parent().context("a profile lies in the target directory")?;
    let status = cargo.arg("--target-dir").arg(target).current_dir(env!("CARGO_MANIFEST_DIR")).status();
    ensure!(status.is_ok_and(|status| status.success()) || binary.is_file(), "{cargo:?} failed");
    Ok(binary)
}

/// Whether the test can trace; says so where it cannot.
pub(crate) fn root() -> bool {
    // procfs shows a process as its owner's, so no system call is needed.
    let root = std::fs::metadata("/proc/self").is_ok_and(|of| std::os::unix::fs::MetadataExt::uid(&of) == 0);
    if !root {
        eprintln!("skipped: tracing needs root");
    }
    root
}

/// What a run left.
#[derive(Debug)]
pub(crate) struct Ran {
    status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// The code, 128+n for a signal.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Fails, showing everything, unless the code is this.
    pub(crate) fn exits(self, code: i32) -> Result<Self> {
        ensure!(self.code() == code, "exit code {} instead of {code}: {self:#?}", self.code());
        ensure!(!self.stderr.contains("panicked"), "a panic: {self:#?}");
        Ok(self)
    }

    /// Fails unless stderr says this.
    pub(crate) fn says(self, text: &str) -> Result<Self> {
        ensure!(self.stderr.contains(text), "stderr does not say {text:?}: {self:#?}");
        Ok(self)
    }

    /// Fails unless nothing is on stdout.
    pub(crate) fn silent(self) -> Result<Self> {
        ensure!(self.stdout.is_empty(), "there is something on stdout: {self:#?}");
        Ok(self)
    }

    /// Stdout as a document.
    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("stdout is no JSON: {self:#?}"))
    }
}

impl From<Output> for Ran {
    fn from(Output { status, stdout, stderr }: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { status, stdout: text(stdout), stderr: text(stderr) }
    }
}

/// A command line.
pub(crate) fn pagetrace(args: &[&str]) -> Result<Command> {
    Ok(prepared(Command::new(binary()?), args))
}

/// Any command, with these arguments too, in an environment that says nothing to pagetrace and with its output kept.
pub(crate) fn prepared(mut command: Command, args: &[&str]) -> Command {
    command.args(args).env_remove("RUST_LOG").env_remove("NO_COLOR").env_remove("SUDO_UID").env_remove("SUDO_GID");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end.
pub(crate) fn run(args: &[&str]) -> Result<Ran> {
    Running::start(&mut pagetrace(args)?)?.end()
}

/// A process that is killed with the value, so that a failed test leaves none.
#[derive(Debug)]
pub(crate) struct Running(Option<Child>);

impl Running {
    /// Starts it.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(Some(command.spawn().with_context(|| format!("cannot start {command:?}"))?)))
    }

    /// A process that does nothing.
    pub(crate) fn sleeper() -> Result<Self> {
        Self::start(Command::new("sleep").arg("60").stdin(Stdio::null()).stdout(Stdio::null()))
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Result<u32> {
        Ok(self.0.as_ref().context("it was started")?.id())
    }

    /// Sends a signal to it alone.
    pub(crate) fn signal(&self, name: &str) -> Result<()> {
        let status = Command::new("kill").args(["-s", name, &self.pid()?.to_string()]).status()?;
        ensure!(status.success(), "cannot send {name}");
        Ok(())
    }

    /// Waits until it has a child with this name, which it executes once everything is attached; gives its id.
    pub(crate) fn child(&self, comm: &str) -> Result<u32> {
        let pid = self.pid()?;
        let mut found = None;
        eventually(&format!("the command {comm} runs"), || {
            let children: String = std::fs::read_dir(format!("/proc/{pid}/task"))
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
                .collect();
            found = children.split_whitespace().filter_map(|child| child.parse().ok()).find(|child| is(*child, comm));
            found.is_some()
        })?;
        found.context("it was found")
    }

    /// Its stdout, to be read by the test.
    pub(crate) fn stdout(&mut self) -> Result<std::process::ChildStdout> {
        self.0.as_mut().and_then(|child| child.stdout.take()).context("stdout is a pipe")
    }

    /// Reads stderr until a line has this text; what comes later goes unread.
    pub(crate) fn await_stderr(&mut self, text: &str) -> Result<()> {
        let stderr = self.0.as_mut().and_then(|child| child.stderr.as_mut()).context("stderr is a pipe")?;
        let mut said = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&said).contains(text) {
            ensure!(stderr.read(&mut byte)? == 1, "stderr ended: {}", String::from_utf8_lossy(&said));
            said.push(byte[0]);
        }
        Ok(())
    }

    /// Waits for its end alone: a command it left may keep its streams open.
    pub(crate) fn end_of_itself(mut self) -> Result<i32> {
        let status = self.0.as_mut().context("it was started")?.wait()?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }

    /// Waits for its end, within the limit.
    pub(crate) fn end(mut self) -> Result<Ran> {
        let mut child = self.0.take().context("it was started")?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let out = thread::spawn(move || read(out));
        let err = thread::spawn(move || read(err));
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                let join = |thread: thread::JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
                return Ok(Output { status, stdout: join(out), stderr: join(err) }.into());
            }
            if begun.elapsed() > LIMIT {
                child.kill()?;
                child.wait()?;
                bail!("not ended after {LIMIT:?}");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn read(from: Option<impl std::io::Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        let _ = from.read_to_end(&mut bytes);
    }
    bytes
}

/// Whether a process of this id and name lives.
pub(crate) fn is(pid: u32, comm: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.contains(&format!("({comm})")) && !stat.contains(") Z ")
}

/// Waits for something, and fails if it does not come.
pub(crate) fn eventually(what: &str, mut came: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !came() {
        ensure!(begun.elapsed() < LIMIT, "did not happen: {what}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A directory of this test's own, gone with the value.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    /// Makes one.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let dir = env::temp_dir().join(format!("pagetrace-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }

    /// A copy of a program, under this name, that every user may run. Another process writes it: a process that
    /// another test forks off while this one writes would keep the file open for writing until it executes its own
    /// program, and what is open for writing cannot be executed (ETXTBSY).
    pub(crate) fn program(&self, from: &Path, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        let mut install = Command::new("install");
        install.args(["-m", "0755", "--"]).arg(from).arg(&path);
        ensure!(install.status().with_context(|| format!("cannot start {install:?}"))?.success(), "{install:?} failed");
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
