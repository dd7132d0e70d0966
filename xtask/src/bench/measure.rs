//! The measurement: starts the storms, plain and watched, in turns.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use super::{parse, stats::Sample};
use crate::step::note;

/// A storm of the fixture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storm {
    /// The fixture's subcommand.
    pub(super) name: &'static str,
    /// What an operation is.
    pub(super) operation: &'static str,
    /// Operations in an iteration.
    pub(super) operations: f64,
}

/// The storms.
pub(super) const STORMS: [Storm; 2] = [
    Storm { name: "mmap-storm", operation: "mmap, one page fault, munmap", operations: 1.0 },
    Storm {
        name: "fault-storm",
        operation: "a page fault (and a 64th of the madvise that gives pages back)",
        operations: 64.0,
    },
];

/// The attach type that pagetrace chooses by itself.
pub(super) const DEFAULT: &str = "default";

/// The programs.
#[derive(Debug, Clone)]
pub(super) struct Tools {
    /// The tracer.
    pub(super) pagetrace: PathBuf,
    /// The storms.
    pub(super) fixture: PathBuf,
}

/// What to measure.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Attach types; none for the tracer's own choice.
    pub(super) attach: Vec<String>,
    /// Rounds.
    pub(super) rounds: u32,
    /// Seconds a storm.
    pub(super) seconds: u32,
    /// Storms at once.
    pub(super) jobs: u32,
    /// Recorded instead of checked.
    pub(super) record: bool,
    /// What else is asked of the check: `--strict`, `--order`.
    pub(super) options: Vec<&'static str>,
}

impl Plan {
    /// The arguments that ask for this plan.
    pub(super) fn arguments(&self) -> Vec<String> {
        let Self { attach, rounds, seconds, jobs, record, options } = self;
        let attach = attach.iter().flat_map(|attach| ["--attach".to_owned(), attach.clone()]);
        let rest = ["--rounds".to_owned(), rounds.to_string(), "--seconds".to_owned(), seconds.to_string()];
        let jobs = (*jobs != 1).then(|| ["--jobs".to_owned(), jobs.to_string()]);
        let record = record.then(|| "--record".to_owned());
        attach
            .chain(rest)
            .chain(jobs.into_iter().flatten())
            .chain(record)
            .chain(options.iter().map(|option| (*option).to_owned()))
            .collect()
    }

    /// The command that measures the same again.
    pub(super) fn command(&self, kernel: Option<&str>) -> String {
        let kernel = kernel.map_or_else(String::new, |kernel| format!(" --kernel {kernel}"));
        format!("cargo xtask bench{kernel} {}", self.arguments().join(" "))
    }

    /// The attach types as the table names them.
    fn ways(&self) -> Vec<&str> {
        if self.attach.is_empty() { vec![DEFAULT] } else { self.attach.iter().map(String::as_str).collect() }
    }

    /// Runs of a storm, plain or watched.
    pub(super) fn runs(&self) -> u32 {
        let ways = u32::try_from(self.ways().len()).unwrap_or(u32::MAX);
        self.rounds.saturating_mul(ways.saturating_add(1)).saturating_mul(2)
    }
}

/// A storm under an attach type.
#[derive(Debug)]
pub(super) struct Row {
    /// The storm.
    pub(super) storm: &'static str,
    /// The attach type.
    pub(super) attach: String,
    /// Nanoseconds an operation, unwatched.
    pub(super) plain: Sample,
    /// Nanoseconds an operation, watched.
    pub(super) checked: Sample,
}

/// How soon an attach type is ready.
#[derive(Debug)]
pub(super) struct Start {
    /// The attach type.
    pub(super) attach: String,
    /// Programs attached.
    pub(super) programs: u32,
    /// Milliseconds from the tracer's start as a process.
    pub(super) whole: Sample,
    /// Of these, what the tracer says planning, loading and attaching took.
    pub(super) attaching: Sample,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Measured {
    /// The storms.
    pub(super) rows: Vec<Row>,
    /// The starts.
    pub(super) starts: Vec<Start>,
    /// Watched runs whose verdict was not `clean`: the figures stand, but were had at a loss.
    pub(super) not_clean: Vec<String>,
    /// What each recording held, and how fast it was read.
    pub(super) recordings: Vec<String>,
}

/// One watched run.
struct Checked {
    ns: f64,
    programs: u32,
    whole_ms: f64,
    attaching_ms: f64,
    exit: i32,
    recorded: Option<String>,
}

/// What has been gathered for an attach type.
#[derive(Default)]
struct Way {
    ns: Vec<f64>,
    whole_ms: Vec<f64>,
    attaching_ms: Vec<f64>,
    programs: u32,
}

/// Measures.
pub(super) fn all(tools: &Tools, plan: &Plan) -> Result<Measured> {
    let names = plan.ways();
    let mut measured = Measured { rows: Vec::new(), starts: Vec::new(), not_clean: Vec::new(), recordings: Vec::new() };
    let mut starts: Vec<Way> = names.iter().map(|_| Way::default()).collect();
    for storm in STORMS {
        let mut plain = Vec::new();
        let mut ways: Vec<Way> = names.iter().map(|_| Way::default()).collect();
        for round in 1..=plan.rounds {
            note(&format!("{}: round {round} of {}", storm.name, plan.rounds));
            plain.push(unwatched(tools, storm, plan)?);
            for ((name, way), start) in names.iter().zip(&mut ways).zip(&mut starts) {
                let run = watched(tools, storm, plan, name).with_context(|| format!("attach type {name}"))?;
                way.ns.push(run.ns);
                start.whole_ms.push(run.whole_ms);
                start.attaching_ms.push(run.attaching_ms);
                start.programs = run.programs;
                measured
                    .recordings
                    .extend(run.recorded.map(|text| format!("{}, {name}, round {round}: {text}", storm.name)));
                if run.exit != 0 {
                    measured.not_clean.push(format!("{}, {name}, round {round}: exit code {}", storm.name, run.exit));
                }
            }
        }
        for (name, way) in names.iter().zip(&ways) {
            measured.rows.push(Row {
                storm: storm.name,
                attach: (*name).to_owned(),
                plain: Sample::of(&plain).context("no rounds")?,
                checked: Sample::of(&way.ns).context("no rounds")?,
            });
        }
    }
    for (name, way) in names.iter().zip(&starts) {
        measured.starts.push(Start {
            attach: (*name).to_owned(),
            programs: way.programs,
            whole: Sample::of(&way.whole_ms).context("no rounds")?,
            attaching: Sample::of(&way.attaching_ms).context("no rounds")?,
        });
    }
    Ok(measured)
}

fn ns_an_operation(output: &str, storm: Storm, jobs: u32) -> Result<f64> {
    Ok(1e9 * f64::from(jobs) / (parse::rate(output, storm.name)? * storm.operations))
}

/// The fixture's arguments for a storm, or for several of them at once.
fn words(storm: Storm, plan: &Plan) -> Vec<String> {
    let alone = [storm.name.to_owned(), format!("{}s", plan.seconds)];
    let several = (plan.jobs != 1).then(|| ["at-once".to_owned(), plan.jobs.to_string()]);
    several.into_iter().flatten().chain(alone).collect()
}

fn unwatched(tools: &Tools, storm: Storm, plan: &Plan) -> Result<f64> {
    let mut command = Command::new(&tools.fixture);
    command.args(words(storm, plan)).stdin(Stdio::null());
    let done = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let output = String::from_utf8_lossy(&done.stdout);
    if !done.status.success() {
        bail!("{command:?} failed ({}): {output}{}", done.status, String::from_utf8_lossy(&done.stderr));
    }
    ns_an_operation(&output, storm, plan.jobs)
}

fn watched(tools: &Tools, storm: Storm, plan: &Plan, attach: &str) -> Result<Checked> {
    let seconds = plan.seconds;
    let file = env::temp_dir().join(format!("pagetrace-bench-{}.ptrace", std::process::id()));
    let mut command = Command::new(&tools.pagetrace);
    // As root like the plain storm, whoever called sudo.
    match plan.record {
        true => command.args(["record", "--output"]).arg(&file),
        false => command.arg("check"),
    };
    command.args(&plan.options).arg("--as-root").env("RUST_LOG", "info");
    if attach != DEFAULT {
        command.args(["--attach", attach]);
    }
    command.arg("--").arg(&tools.fixture).args(words(storm, plan));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let begun = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let stdout = child.stdout.take().context("stdout is a pipe")?;
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        BufReader::new(stdout).read_to_end(&mut text).map(|_| String::from_utf8_lossy(&text).into_owned())
    });
    let mut said = String::new();
    let mut ready = None;
    for line in BufReader::new(child.stderr.take().context("stderr is a pipe")?).lines() {
        let line = line.context("cannot read the tracer's stderr")?;
        if ready.is_none() {
            ready = parse::attached(&line).map(|attached| (attached, begun.elapsed()));
        }
        said.push_str(&line);
        said.push('\n');
    }
    let status = child.wait().with_context(|| format!("cannot wait for {command:?}"))?;
    let output = reader.join().ok().context("the thread that reads stdout is gone")??;
    // 1 and 4 are verdicts on a run that took place.
    let Some(exit @ (0 | 1 | 4)) = status.code() else { bail!("{command:?} failed ({status}): {output}{said}") };
    let (attached, after) = ready.with_context(|| format!("{command:?} never said that it had attached: {said}"))?;
    let recorded = plan.record.then(|| read_back(tools, &file, seconds)).transpose();
    let _ = fs::remove_file(&file);
    Ok(Checked {
        recorded: recorded?,
        ns: ns_an_operation(&output, storm, plan.jobs).with_context(|| format!("{command:?} said: {said}"))?,
        programs: attached.programs,
        whole_ms: after.as_secs_f64() * 1e3,
        attaching_ms: f64::from(attached.ms),
        exit,
    })
}

/// Reads a recording, and says what it held and how fast it was read.
fn read_back(tools: &Tools, file: &Path, seconds: u32) -> Result<String> {
    let mut command = Command::new(&tools.pagetrace);
    command.arg("report").arg(file).stdin(Stdio::null());
    let begun = Instant::now();
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let took = begun.elapsed().as_secs_f64();
    parse::recording(&String::from_utf8_lossy(&output.stdout), took, seconds)
        .with_context(|| format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_tells_how_to_repeat_it() {
        let attach = vec!["kprobe".into(), "fentry".into()];
        let plan = Plan { attach, rounds: 3, seconds: 1, jobs: 1, record: false, options: vec!["--strict"] };
        let command = "cargo xtask bench --kernel 6.12 --attach kprobe --attach fentry --rounds 3 --seconds 1 --strict";
        assert_eq!(plan.command(Some("6.12")), command);
        assert_eq!(plan.runs(), 18);
        let plan = Plan { attach: Vec::new(), rounds: 7, seconds: 1, jobs: 2, record: true, options: Vec::new() };
        assert_eq!(plan.command(None), "cargo xtask bench --rounds 7 --seconds 1 --jobs 2 --record");
    }
}
