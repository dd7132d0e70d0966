//! `pagetrace trace`: a live stream, and the check's verdict at its end on stderr.

use std::{
    io::{self, Write},
    time::Duration,
};

use anyhow::Result;

use super::{
    args::TraceArgs,
    check::{drive, facts, report},
    exit::Exit,
    sink,
};
use crate::{
    kernel::threads,
    live::{prepare::Run, session::Observer, workload::Ended},
    output::{
        Format,
        event::Event,
        report::ReportedFinding,
        text::{self, Style},
    },
    plan::Plan,
    record::Record,
    symbolize::Symbolizer,
};

struct Stream {
    out: Box<dyn Write>,
    format: Format,
    style: Style,
}

impl Observer for Stream {
    fn attached(&mut self, plan: &Plan, took: Duration) {
        eprintln!("pagetrace: attached {} programs in {} ms", plan.probes().len(), took.as_millis());
        for sentence in plan.not_seen() {
            eprintln!("pagetrace: not seen: {sentence}");
        }
    }

    fn event(&mut self, record: &Record, names: &Symbolizer, stack: &[u64]) -> io::Result<()> {
        let Some(event) = Event::of(record, names, stack) else { return Ok(()) };
        match self.format {
            Format::Text => writeln!(self.out, "{}", event.text()),
            Format::Json => {
                serde_json::to_writer(&mut self.out, &event)?;
                writeln!(self.out)
            }
        }
    }

    fn finding(&mut self, number: usize, finding: &ReportedFinding) -> io::Result<()> {
        match self.format {
            Format::Text => write!(self.out, "{}", text::violation(number, finding, self.style)),
            Format::Json => {
                let line = serde_json::json!({
                    "schema": crate::output::event::SCHEMA,
                    "event": "finding",
                    "time_ns": finding.first_seen_ns,
                    "pid": finding.task.pid,
                    "tid": finding.task.tid,
                    "comm": finding.task.comm,
                    "finding": finding,
                });
                writeln!(self.out, "{line}")
            }
        }
    }

    fn note(&mut self, sentence: &str) {
        eprintln!("pagetrace: {sentence}");
    }
}

/// Runs the trace.
pub(super) fn run(args: &TraceArgs) -> Result<Exit> {
    let (out, style) = sink::open(args.run.output.output.as_deref())?;
    // A line buffer would cost a system call an event; the session's pace flushes often enough.
    let mut stream = Stream { out: Box::new(io::LineWriter::new(out)), format: args.run.output.format, style };
    let facts = facts()?;
    let run = Run {
        trace: true,
        min_lock_ns: args.min_us.saturating_mul(1000),
        min_fault_ns: args.min_fault_us.saturating_mul(1000),
        ..Run::default()
    };
    let spec = args.run.spec(run, threads::room());
    let outcomes = drive(&facts, spec, &mut stream)?;
    let code = outcomes.command.and_then(|end| end.ended).and_then(Ended::code);
    let report = report(&facts, &args.run.target.argv, outcomes);
    let lost: Vec<String> =
        report.loss.iter().filter(|(_, count)| **count != 0).map(|(name, count)| format!("{name} {count}")).collect();
    eprintln!(
        "pagetrace: {}; loss: {}",
        report.verdict.name(),
        if lost.is_empty() { "none".to_owned() } else { lost.join(", ") }
    );
    Ok(Exit::of_verdict(report.verdict, code))
}
