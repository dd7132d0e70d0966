//! How long a process's mmap_lock is held by pagetrace reading its pages: seen by another pagetrace that traces it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::tool::{self, Ended, LIMIT, Tool, tail};

/// What is mapped of the target: 1 GiB, a page written in every 64 KiB, so that all of its page tables are there.
const SPARSE: [&str; 3] = ["sparse", "1", "65536"];
/// Pieces that the kernel takes the lock for: 2 MiB of addresses each.
const PIECES: u64 = 512;

/// The target.
struct Target {
    child: Child,
    range: String,
}

impl Target {
    fn start(tool: &Tool) -> Result<Self> {
        let mut command = Command::new(&tool.fixture);
        let mut child = command.args(SPARSE).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout is a pipe")?).read_line(&mut line)?;
        let mut target = Self { child, range: String::new() };
        let words: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [start, length] = words.as_slice() else { anyhow::bail!("the fixture says {line:?}") };
        target.range = format!("{start:x}-{:x}", start + length);
        Ok(target)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Ways to read, and the process that read that way.
type Readers = [(&'static str, u64); 3];

/// Traces the target while it is read by entries, and while it is scanned. What is lost is counted over the whole machine, and
/// a lock that anybody holds while probes are attached can count; a trace in which nothing was must come soon.
///
/// # Errors
/// When no trace is whole, or the holds are not those that were to be expected.
pub fn measured(tool: &Tool) -> Result<()> {
    let target = Target::start(tool)?;
    let mut said = String::new();
    for _ in 0..3 {
        let (ended, events, readers) = traced(tool, &target)?;
        if ended.stderr.contains("loss: none") {
            return readers.into_iter().try_for_each(|(way, reader)| held(&target, &events, way, reader));
        }
        said = ended.stderr;
    }
    anyhow::bail!("the trace is not whole: {}", tail(&said))
}

/// One trace, from before the first reader to after the last.
fn traced(tool: &Tool, target: &Target) -> Result<(Ended, Vec<Value>, Readers)> {
    let pid = target.child.id().to_string();
    let events = tool.path("holds");
    let path = events.to_str().context("the path is UTF-8")?;
    let trace =
        tool.start(tool.command(&["trace", "-p", &pid, "--min-us", "0", "--format", "json", "--output", path]))?;
    tool.await_stderr("attached ", Duration::from_secs(120))?;
    let read = |options: &[&str]| -> Result<u64> {
        let mut command = tool.command(&["pagemap", &pid, "--range", &target.range]);
        let mut child =
            command.args(options).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let reader = u64::from(child.id());
        ensure!(child.wait()?.success(), "cannot read the target with {options:?}");
        Ok(reader)
    };
    let readers = [
        ("by entries", read(&["--scan", "never"])?),
        ("by entries, paced", read(&["--scan", "never", "--pace", "1"])?),
        ("a picture", read(&["--view", "map"])?),
    ];
    tool::signal(&trace, 2)?;
    let ended = tool.finish(trace, LIMIT)?;
    let text = fs::read_to_string(&events).context("no events")?;
    let events = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    Ok((ended, events, readers))
}

/// Whether the target's lock was held as is to be expected of this reader.
fn held(target: &Target, events: &[Value], way: &str, reader: u64) -> Result<()> {
    let mut holds = Vec::new();
    let of = |event: &&Value| {
        event["event"] == "lock-hold" && event["pid"] == reader && event["owner_pid"] == target.child.id()
    };
    for event in events.iter().filter(of) {
        ensure!(event["mode"] == "read", "the lock was held for writing: {event}");
        holds.push(event["duration_ns"].as_u64().context("a duration")? / 1000);
    }
    holds.sort_unstable();
    let (count, sum) = (holds.len() as u64, holds.iter().sum::<u64>());
    let median = holds.get(holds.len() / 2).context("the lock was never held")?;
    let longest = holds.last().context("the lock was never held")?;
    println!("note {way}: lock held {count} times, {median} us in the median, {longest} at most, {sum} in all");
    // A hold a piece, and in some kernels another for a read to find out how addresses are tagged; a few for maps.
    let expected = if way == "a picture" { 1..=PIECES * 3 } else { PIECES..=PIECES * 3 };
    ensure!(expected.contains(&count), "{way}: {count} holds instead of {expected:?}");
    // A holder can lose its processor; half of them do not.
    ensure!(*median < 5_000, "{way}: {median} us in the median");
    Ok(())
}
