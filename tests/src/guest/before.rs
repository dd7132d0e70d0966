//! Locks that were taken before tracing began, and are held until after it: a writer must be found, for the lock names
//! it; a reader's fault must not pass for clean; and a task as old that holds nothing must.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Tally,
    report::{self, list, text},
    tool::{self, LIMIT, Tool, tail},
};
use crate::fixture::cases;

/// Runs these cases, by each attach type in `ways`.
pub fn run(tool: &Tool, ways: &[&str], tally: &mut Tally) {
    for attach in ways {
        tally.case(&format!("before/{attach}/write"), || write(tool, attach));
        tally.case(&format!("before/{attach}/read"), || read(tool, attach));
    }
}

fn write(tool: &Tool, attach: &str) -> Result<()> {
    let (code, report, stderr) = watch(tool, attach, "across-write")?;
    ensure!(code == Some(1), "ended with {code:?}, not 1: {}: {stderr}", report["loss"]);
    let comm = cases::comm_of("across-write");
    let found: Vec<_> = list(&report["findings"]).iter().filter(|finding| report::comm(finding) == comm).collect();
    let [finding] = found.as_slice() else { anyhow::bail!("{} findings about {comm}", found.len()) };
    let lock = &finding["locks"][0];
    ensure!(text(&finding["severity"]) == "cross-mm", "the severity is {}", finding["severity"]);
    ensure!(text(&lock["mode"]) == "write", "the lock is held for {}", lock["mode"]);
    ensure!(lock["taken_unseen"] == true, "the lock's acquisition cannot have been seen: {lock}");
    ensure!(list(&lock["stack"]).is_empty(), "nobody saw where the lock was taken: {lock}");
    Ok(())
}

fn read(tool: &Tool, attach: &str) -> Result<()> {
    let (code, report, stderr) = watch(tool, attach, "across-ioctl")?;
    ensure!(list(&report["findings"]).is_empty(), "whose lock it is, is not known: {}", report["findings"]);
    ensure!(code == Some(4), "ended with {code:?}, not 4: {}: {stderr}", report["loss"]);
    let because = report["coverage"]["incomplete_because"].to_string();
    ensure!(because.contains("fault_before_known"), "incomplete because of {because}");
    Ok(())
}

/// A fixture that says what it has done and waits for a line.
struct Steps {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Steps {
    fn start(tool: &Tool, case: &str) -> Result<Self> {
        let mut command = Command::new(&tool.fixture);
        command.args(["kmod-before", case]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let input = child.stdin.take().context("its input is a pipe")?;
        let output = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        Ok(Self { child, input, output })
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("cannot read from the fixture")?;
        ensure!(line.trim() == word, "the fixture said {line:?}, not {word}");
        Ok(())
    }

    fn go_on(&mut self) -> Result<()> {
        self.input.write_all(b"\n").context("cannot tell the fixture to go on")
    }

    fn end(mut self) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(status.success(), "not exercised: the fixture ended with {status}");
        Ok(())
    }
}

/// Watches the fixture between its taking a lock and its releasing it.
fn watch(tool: &Tool, attach: &str, case: &str) -> Result<(Option<i32>, Value, String)> {
    let mut steps = Steps::start(tool, case)?;
    steps.expect("locked")?;
    let pid = steps.child.id().to_string();
    let mut command = tool.command(&["check", "--format", "json", "--attach", attach, "-p", &pid]);
    command.env("RUST_LOG", "pagetrace=info");
    let watcher = tool.start(command)?;
    let touched = tool.await_stderr("attached ", LIMIT).and_then(|()| {
        steps.go_on()?;
        steps.expect("touched")
    });
    let _ = tool::signal(&watcher, libc::SIGINT);
    let ended = tool.finish(watcher, Duration::from_secs(60))?;
    touched?;
    steps.go_on()?;
    steps.end()?;
    Ok((ended.status.code(), report::parse(&ended.stdout)?, tail(&ended.stderr)))
}
