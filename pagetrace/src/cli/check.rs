//! `pagetrace check`: a verdict.

use std::{io, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    args::CheckArgs,
    exit::{Exit, Unmet},
    sink,
};
use crate::{
    analysis::Inputs,
    kernel::{
        KernelFacts, Roots,
        features::charges_memlock,
        memlock::{self, Memlock},
        preflight, threads,
    },
    live::{
        prepare::Run,
        provoke::able::able,
        session::{self, CommandEnd, Observer, Outcomes, Spec},
        workload::Ended,
    },
    output::{
        Format,
        report::{self, Command, Kernel, Report, ReportedFinding},
        text,
    },
    plan::Plan,
    record::Record,
    symbolize::Symbolizer,
};

/// Looks at the kernel and stops with a sentence when it or the user cannot.
pub(super) fn facts() -> Result<KernelFacts> {
    let limit = memlock::lift();
    log::debug!("RLIMIT_MEMLOCK: {limit:?}");
    let facts = KernelFacts::gather(&Roots::default()).context("cannot look at this kernel")?;
    if facts.features.machine != "x86_64" {
        return Err(Unmet(format!("pagetrace reads x86-64 kernels, and this one is {}", facts.features.machine)).into());
    }
    let problems = preflight(&facts);
    for problem in problems.iter().filter(|problem| !problem.fatal) {
        log::info!("{}: {}: {}", problem.what, problem.why, problem.remedy);
    }
    let fatal: Vec<String> = problems
        .iter()
        .filter(|problem| problem.fatal)
        .map(|problem| format!("{}: {}; {}", problem.what, problem.why, problem.remedy))
        .collect();
    if !fatal.is_empty() {
        return Err(Unmet(fatal.join("\n  ")).into());
    }
    if let (Memlock::Limited(bytes, errno), Ok(btf)) = (limit, &facts.btf)
        && charges_memlock(btf)
    {
        return Err(Unmet(format!(
            "this kernel charges BPF maps to RLIMIT_MEMLOCK, which is {bytes} bytes and cannot be lifted ({errno}): \
             give CAP_SYS_RESOURCE, or raise the limit with `ulimit -l unlimited` before"
        ))
        .into());
    }
    Ok(facts)
}

/// Runs a session on a small runtime.
pub(super) fn drive(facts: &KernelFacts, spec: Spec, observer: &mut dyn Observer) -> Result<Outcomes> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(session::run(facts, spec, observer))
}

/// Says on stderr what a person wants to know meanwhile.
pub(super) struct Quiet;

impl Observer for Quiet {
    fn attached(&mut self, plan: &Plan, took: Duration) {
        log::info!("attached {} programs in {} ms", plan.probes().len(), took.as_millis());
    }
    fn event(&mut self, _record: &Record, _names: &Symbolizer, _stack: &[u64]) -> io::Result<()> {
        Ok(())
    }
    fn finding(&mut self, number: usize, finding: &ReportedFinding) -> io::Result<()> {
        eprintln!("pagetrace: finding #{number}, {}: {}", finding.severity.name(), finding.summary);
        Ok(())
    }
    fn note(&mut self, sentence: &str) {
        eprintln!("pagetrace: {sentence}");
    }
}

/// The report of what a run came to.
pub(super) fn report(facts: &KernelFacts, spec_argv: &[std::ffi::OsString], outcomes: Outcomes) -> Report {
    let command = outcomes.command.map(|end| command(spec_argv, end));
    Report::of(report::Run {
        kernel: Kernel { release: facts.features.release.clone(), machine: facts.features.machine.clone() },
        command,
        duration_ms: u64::try_from(outcomes.watched.as_millis()).unwrap_or(u64::MAX),
        findings: outcomes.findings,
        plan: outcomes.plan,
        inputs: Inputs {
            findings: 0,
            uncertain: outcomes.uncertain,
            unknown_records: outcomes.unknown_records,
            loss: outcomes.loss,
            reasons: outcomes.reasons,
        },
        loss_by_cpu: outcomes.by_cpu.into_iter().map(|(name, by_cpu)| (name.into(), by_cpu)).collect(),
        skipped_by_program: outcomes.skipped_by_program,
        recording: None,
        provocation: outcomes.provocation,
        order: outcomes.order,
        deadlocks: outcomes.deadlocks,
    })
}

pub(super) fn command(argv: &[std::ffi::OsString], end: CommandEnd) -> Command {
    let words = argv.iter().map(|word| word.to_string_lossy().escape_debug().to_string()).collect();
    let (exit_code, signal) = match end.ended {
        Some(Ended::Exited(code)) => (Some(code), None),
        Some(Ended::Signalled(signal)) => (None, Some(signal)),
        Some(Ended::Unknown) | None => (None, None),
    };
    Command { argv: words, pid: end.pid, exit_code, signal, hung: end.hung, left_behind: end.left_behind }
}

/// Runs the check.
pub(super) fn run(args: &CheckArgs) -> Result<Exit> {
    let provoke = args.provoke()?;
    let ready = args.ci.open(&[("--output", args.run.output.output.as_deref())])?;
    let (mut out, style) = sink::open(args.run.output.output.as_deref())?;
    let facts = facts()?;
    if provoke.is_some() {
        able()?;
    }
    let run = Run { strict: args.strict, order: args.order, ..Run::default() };
    let spec = Spec { provoke, ..args.run.spec(run, threads::room()) };
    let outcomes = drive(&facts, spec, &mut Quiet)?;
    let code = outcomes.command.and_then(|end| end.ended).and_then(Ended::code);
    let report = report(&facts, &args.run.target.argv, outcomes);
    ready.conclude(report, code, |report| print(report, args.run.output.format, &mut *out, style))
}

/// Writes a report.
pub(super) fn print(report: &Report, format: Format, out: &mut dyn io::Write, style: text::Style) -> Result<()> {
    let text = match format {
        Format::Text => text::render(report, style),
        Format::Json => serde_json::to_string_pretty(report).context("cannot encode the report")? + "\n",
    };
    put(&text, out)
}

/// Writes a text. That nobody reads it is no error.
pub(super) fn put(text: &str, out: &mut dyn io::Write) -> Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write the report"),
    }
}
