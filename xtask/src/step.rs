//! Steps that take a while: a line when one begins, a sign of life while it runs, a line at its end.

use std::{
    io::{BufRead as _, BufReader, Read},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// A sign of life this often.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// So much of a failed step's output is shown.
const TAIL: usize = 40;

/// Says what goes on; stdout is for results.
pub(crate) fn note(text: &str) {
    eprintln!("xtask: {text}");
}

/// What a child process left.
#[derive(Debug)]
pub(crate) struct Finished {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// Its stdout and stderr, interleaved as they came.
    pub(crate) output: String,
    /// How long it took.
    pub(crate) took: Duration,
}

impl Finished {
    /// The end of the output.
    pub(crate) fn tail(&self) -> String {
        let lines: Vec<_> = self.output.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }
}

/// Runs a child to its end, whatever that is.
pub(crate) fn capture(title: &str, command: &mut Command) -> Result<Finished> {
    let start = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let (sender, lines) = channel();
    let streams: [Option<Box<dyn Read + Send>>; 2] =
        [child.stdout.take().map(|s| Box::new(s) as _), child.stderr.take().map(|s| Box::new(s) as _)];
    for stream in streams.into_iter().flatten() {
        let sender = sender.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(std::result::Result::ok) {
                let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
            }
        });
    }
    drop(sender);
    let mut output = String::new();
    let mut last = String::new();
    let mut next = start + HEARTBEAT;
    loop {
        match lines.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                output.push_str(&line);
                output.push('\n');
                if !line.trim().is_empty() {
                    line.trim().clone_into(&mut last);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let shown: String = last.chars().filter(|c| !c.is_control()).take(80).collect();
                note(&format!("{title}: {} s ... {shown}", start.elapsed().as_secs()));
                next = Instant::now() + HEARTBEAT;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for {command:?}"))?;
    Ok(Finished { status, output, took: start.elapsed() })
}

/// Runs a step that must succeed, saying so.
pub(crate) fn run(title: &str, command: &mut Command) -> Result<Finished> {
    note(title);
    let finished = capture(title, command)?;
    if !finished.status.success() {
        bail!("{title}: {command:?} failed ({})\n{}", finished.status, finished.tail());
    }
    if finished.took > Duration::from_secs(1) {
        note(&format!("{title}: done in {} s", finished.took.as_secs()));
    }
    Ok(finished)
}
