//! `pagetrace record`: a check whose every event is kept, and judged from what was kept.

use std::{fs::File, io, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    args::RecordArgs,
    check::{Quiet, command, drive, facts, print},
    exit::Exit,
    report, sink,
};
use crate::{
    kernel::threads,
    live::{
        prepare::Run,
        session::{Observer, Tape},
        tape::{About, FileTape, stopped},
    },
    output::report::ReportedFinding,
    plan::Plan,
    record::{
        Record,
        header::Target,
        user::{CommandEnd, End},
        writer::{self, Stop},
    },
    symbolize::Symbolizer,
};

/// Says what a check says, and records.
struct Recorder {
    quiet: Quiet,
    tape: FileTape<File>,
}

impl Observer for Recorder {
    fn attached(&mut self, plan: &Plan, took: Duration) {
        self.quiet.attached(plan, took);
    }
    fn event(&mut self, record: &Record, names: &Symbolizer, stack: &[u64]) -> io::Result<()> {
        self.quiet.event(record, names, stack)
    }
    fn finding(&mut self, number: usize, finding: &ReportedFinding) -> io::Result<()> {
        self.quiet.finding(number, finding)
    }
    fn note(&mut self, sentence: &str) {
        self.quiet.note(sentence);
    }
    fn tape(&mut self) -> Option<&mut dyn Tape> {
        Some(&mut self.tape)
    }
}

/// Records.
pub(super) fn run(args: &RecordArgs) -> Result<Exit> {
    let ready = args.ci.open(&[("--output", Some(&args.output))])?;
    let file = writer::open(&args.output)?;
    let facts = facts()?;
    // A fraction of the ring: the reader has time until it is full, and is not woken for each record.
    let run = Run { trace: true, stream: Some(u64::from(args.tuning.ring_bytes / 8)), ..Run::default() };
    let run = Run { order: args.order, ..run };
    let spec = args.spec(run, threads::room());
    let argv = &args.target.argv;
    let words: Vec<String> = argv.iter().map(|word| word.to_string_lossy().escape_debug().to_string()).collect();
    let about = About {
        command: (!words.is_empty()).then_some(words),
        target: Target {
            pids: args.target.pid.clone(),
            tids: args.target.tid.clone(),
            comms: args.target.comm.iter().cloned().collect(),
            cgroup: args.target.cgroup.as_ref().map(|path| path.display().to_string()),
        },
        ring_bytes: args.tuning.ring_bytes,
        max_tasks: spec.sizes.tasks,
        order: args.order,
    };
    let tape = FileTape::new(&facts, about, file, args.max_bytes.unwrap_or(u64::MAX));
    let mut recorder = Recorder { quiet: Quiet, tape };
    let outcomes = drive(&facts, spec, &mut recorder)?;
    let end = End {
        command: outcomes.command.map(|end| {
            let end = command(argv, end);
            let (exit_code, signal) = (end.exit_code, end.signal);
            let (hung, left_behind) = (end.hung, end.left_behind);
            CommandEnd { argv: end.argv, pid: end.pid, exit_code, signal, hung, left_behind }
        }),
        watched_ns: u64::try_from(outcomes.watched.as_nanos()).unwrap_or(u64::MAX),
        reasons: outcomes.reasons,
        deadlocks: outcomes.deadlocks,
    };
    let written = recorder.tape.finish(&outcomes.by_cpu, end).context("nothing was recorded")?;
    if let Some(stop) = &written.stop {
        eprintln!(
            "pagetrace: {}: {} records are in {}, {} are not",
            stopped(stop),
            written.records,
            args.output.display(),
            written.lost
        );
    }
    let (mut out, style) = sink::open(None)?;
    let read = report::read(&args.output)?;
    let exit = ready.conclude(read.report, read.code, |report| print(report, args.format, &mut *out, style))?;
    if matches!(written.stop, Some(Stop::Failed(_))) {
        return Ok(Exit::Internal);
    }
    Ok(exit)
}
