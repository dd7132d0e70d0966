//! Whom a target covers: its own tasks, and whoever takes its lock. Each case is a process that violates the rule while
//! pagetrace watches it, its victim, or somebody else; what is not the target's must stay silent.
#![expect(unsafe_code, reason = "a mount is a system call")]

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Asked, Tally, report,
    tool::{self, LIMIT, Tool, tail},
};
use crate::fixture::cases;

/// Runs these cases. On the machine's own kernel nothing is mounted.
///
/// Programs that look for a task and those that look for a control group are not the same to a verifier, so each kernel has to
/// take both.
pub fn run(tool: &Tool, asked: &Asked<'_>, tally: &mut Tally) {
    if asked.kernel() {
        tally
            .case("target/pid-acts", || seen(tool, &["uprobe-fault"], |actor, _| vec!["-p".into(), actor.to_string()]));
    }
    if asked.rest() {
        others(tool, tally);
    }
    // Whoever is among none of these is not looked at.
    let elsewhere = |other: u32| ["-p".to_owned(), other.to_string(), "-c".into(), "ptf-nobody".into()];
    match Group::make(asked.host) {
        Ok(Some(group)) => {
            let option = || vec!["--cgroup".to_owned(), group.0.display().to_string()];
            if asked.kernel() {
                tally.case("target/cgroup-acts", || {
                    seen(tool, &["uprobe-fault"], |actor, _| {
                        // A group that cannot be joined shows as a finding that is missing.
                        let _ = group.join(actor);
                        option()
                    })
                });
            }
            if asked.rest() {
                tally.case("target/elsewhere", || {
                    silent(tool, &["uprobe-fault"], |_, other| [&elsewhere(other)[..], &option()].concat())
                });
            }
        }
        Ok(None) => {
            tally.skip("target/cgroup", "no cgroup2 hierarchy that this machine lets us use");
            tally.case("target/elsewhere", || silent(tool, &["uprobe-fault"], |_, other| elsewhere(other).to_vec()));
        }
        Err(error) => tally.case("target/cgroup", || Err(error)),
    }
}

/// What else a target can be.
fn others(tool: &Tool, tally: &mut Tally) {
    // A child whose other thread has executed the program: it is the first thread now.
    tally.case("target/child-by-thread-acts", || {
        seen(tool, &["in-child", "by-thread", "uprobe-fault"], |actor, _| vec!["-p".into(), actor.to_string()])
    });
    tally.case("target/tid-acts", || seen(tool, &["uprobe-fault"], |actor, _| vec!["-t".into(), actor.to_string()]));
    tally.case("target/comm-acts", || {
        seen(tool, &["uprobe-fault"], |_, _| vec!["-c".into(), cases::comm_of("uprobe-fault")])
    });
    tally.case("target/pid-is-locked", || {
        seen(tool, &["iter-fault-of"], |_, other| vec!["-p".into(), other.to_string()])
    });
}

/// A process that is ended with this value.
struct Process(Child);

impl Process {
    fn start(tool: &Tool, words: &[&str]) -> Result<Self> {
        let mut command = Command::new(&tool.fixture);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().map(Self).with_context(|| format!("cannot start {command:?}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn seen(tool: &Tool, words: &[&str], target: impl FnOnce(u32, u32) -> Vec<String>) -> Result<()> {
    let (code, report, stderr) = watch(tool, words, target)?;
    ensure!(code == Some(1), "ended with {code:?}, not 1: {stderr}");
    let case = words.last().copied().unwrap_or_default();
    let comm = cases::comm_of(if case == "iter-fault-of" { "iter-fault" } else { case });
    let found = report::list(&report["findings"]).iter().any(|finding| report::comm(finding) == comm);
    ensure!(found, "no finding about {comm}: {}", report["findings"]);
    Ok(())
}

fn silent(tool: &Tool, words: &[&str], target: impl FnOnce(u32, u32) -> Vec<String>) -> Result<()> {
    let (code, report, stderr) = watch(tool, words, target)?;
    report::is_clean(&report)?;
    ensure!(code == Some(0), "ended with {code:?}, not 0: {stderr}");
    Ok(())
}

/// Watches `target`, given the process ids of who violates the rule and of a bystander, while the former does.
fn watch(
    tool: &Tool,
    words: &[&str],
    target: impl FnOnce(u32, u32) -> Vec<String>,
) -> Result<(Option<i32>, serde_json::Value, String)> {
    let other = Process::start(tool, &["hold"])?;
    let pid = other.0.id().to_string();
    let mut gated = vec!["gate"];
    gated.extend(words);
    if words == ["iter-fault-of"] {
        gated.push(&pid);
    }
    let mut actor = Process::start(tool, &gated)?;
    let options = target(actor.0.id(), other.0.id());
    let mut command = tool.command(&["check", "--format", "json"]);
    command.args(options).env("RUST_LOG", "pagetrace=info");
    let watcher = tool.start(command)?;
    let attached = tool.await_stderr("attached ", LIMIT);
    if attached.is_ok() {
        let mut gate = actor.0.stdin.take().context("the gate has a pipe")?;
        gate.write_all(b"\n").context("cannot open the gate")?;
        let since = Instant::now();
        while actor.0.try_wait()?.is_none() && since.elapsed() < LIMIT {
            thread::sleep(Duration::from_millis(20));
        }
    }
    // It may have ended by itself, with its target.
    let _ = tool::signal(&watcher, libc::SIGINT);
    let ended = tool.finish(watcher, Duration::from_secs(60))?;
    attached?;
    let status = actor.0.wait()?;
    ensure!(status.success(), "not exercised: the violating process ended with {status}");
    Ok((ended.status.code(), report::parse(&ended.stdout)?, tail(&ended.stderr)))
}

/// A cgroup of this suite's own, removed in the end.
struct Group(PathBuf);

impl Group {
    /// `None` where there is no hierarchy to use.
    fn make(host: bool) -> Result<Option<Self>> {
        let root = Path::new("/sys/fs/cgroup");
        let mounted = || {
            let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
            mounts.lines().find_map(|line| {
                let mut words = line.split_whitespace().skip(1);
                let (point, kind) = (words.next()?, words.next()?);
                (kind == "cgroup2").then(|| PathBuf::from(point))
            })
        };
        if mounted().is_none() && !host && root.is_dir() {
            // SAFETY: the strings end with zero, and the kernel only reads them.
            let result = unsafe {
                libc::mount(c"none".as_ptr(), c"/sys/fs/cgroup".as_ptr(), c"cgroup2".as_ptr(), 0, std::ptr::null())
            };
            ensure!(result == 0, "cannot mount a cgroup2 hierarchy: {}", std::io::Error::last_os_error());
        }
        let Some(point) = mounted() else { return Ok(None) };
        let path = point.join(format!("pagetrace-suite-{}", std::process::id()));
        match fs::create_dir(&path) {
            Ok(()) => Ok(Some(Self(path))),
            Err(_) if host => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot create {}", path.display())),
        }
    }

    fn join(&self, pid: u32) -> Result<()> {
        let path = self.0.join("cgroup.procs");
        fs::write(&path, pid.to_string()).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
