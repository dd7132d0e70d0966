//! What the commands that end with a report have in common: further outputs, and what the report means for whoever waits.
//!
//! The one place that knows today's date: the policy gets it as a value.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Result;
use chrono::{DateTime, NaiveDate, Utc};
use clap::Args as ClapArgs;

use super::{
    exit::{Exit, Refused},
    outputs::{Open, Outputs},
};
use crate::{
    output::{case::Case, report::Report},
    policy::{Decision, Policy, baseline::Baseline, fail_on::FailOn, suppress::Suppressions},
};

/// Further outputs and policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, ClapArgs)]
pub struct CiArgs {
    /// Where else the report goes.
    #[command(flatten)]
    pub outputs: Outputs,
    /// What counts.
    #[command(flatten)]
    pub policy: PolicyArgs,
}

/// Which findings count.
#[derive(Debug, Clone, Default, PartialEq, Eq, ClapArgs)]
#[command(next_help_heading = "Policy")]
pub struct PolicyArgs {
    /// Count only findings of this class, at least this severe; `any` is every class (repeatable)
    #[arg(long, value_name = "CLASS[:SEVERITY]")]
    pub fail_on: Vec<FailOn>,
    /// Do not count the findings that are known by this file, see `pagetrace baseline`
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// Do not count the findings that the rules in this file cover
    #[arg(long, value_name = "FILE")]
    pub suppress: Option<PathBuf>,
    /// Fail an incomplete run also where every finding is known or suppressed
    #[arg(long)]
    pub require_coverage: bool,
    /// Fail a run whose lock order (--order) has an edge that the baseline does not know
    #[arg(long, requires = "baseline")]
    pub require_known_order: bool,
}

/// Everything that was asked for, ready before anything runs.
pub(super) struct Ready {
    outputs: Open,
    policy: Policy,
    today: NaiveDate,
}

impl CiArgs {
    /// Whether nothing was asked for.
    pub(super) fn is_default(&self) -> bool {
        self == &Self::default()
    }

    /// Reads the policy and opens the outputs. `taken` are other files of the command, by the name of their option.
    pub(super) fn open(&self, taken: &[(&str, Option<&Path>)]) -> Result<Ready> {
        let policy = self.policy.read()?;
        let inputs = [("--baseline", &self.policy.baseline), ("--suppress", &self.policy.suppress)];
        let inputs = inputs.map(|(option, path)| (option, path.as_deref()));
        let outputs = self.outputs.open(&[taken, inputs.as_slice()].concat())?;
        Ok(Ready { outputs, policy, today: today() })
    }
}

impl PolicyArgs {
    fn read(&self) -> Result<Policy> {
        let Self { fail_on, baseline: path, suppress, require_coverage, require_known_order } = self;
        let baseline = path.as_deref().map(|path| read(path, "baseline", Baseline::parse)).transpose()?;
        if let (true, Some(path), Some(Baseline { edges: None, .. })) = (require_known_order, path, &baseline) {
            return Err(Refused(format!(
                "cannot use the baseline {} for --require-known-order: it has no lock order; add one with `pagetrace baseline update` \
                 and a report of a run with --order",
                path.display()
            ))
            .into());
        }
        let suppressions =
            suppress.as_deref().map(|path| read(path, "suppressions", Suppressions::parse)).transpose()?;
        Ok(Policy {
            fail_on: fail_on.clone(),
            baseline,
            suppressions,
            require_coverage: *require_coverage,
            require_known_order: *require_known_order,
        })
    }
}

/// Reads one of the files that people write. What is wrong with it is the caller's mistake.
pub(super) fn read<T, E: std::fmt::Display>(
    path: &Path,
    what: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T> {
    let shown = path.display();
    let text = fs::read_to_string(path).map_err(|err| Refused(format!("cannot read the {what} {shown}: {err}")))?;
    parse(&text).map_err(|err| Refused(format!("cannot use the {what} {shown}: {err}")).into())
}

/// Today, in UTC: the same on every machine of a fleet.
fn today() -> NaiveDate {
    DateTime::<Utc>::from(SystemTime::now()).date_naive()
}

impl Ready {
    /// Completes a report: source lines, and what counts.
    pub(super) fn complete(&self, report: &mut Report) {
        self.outputs.complete(report);
        self.policy.apply(report, self.today);
    }

    /// Writes the outputs.
    pub(super) fn write(self, cases: &[Case<'_>], json: &impl serde::Serialize) -> Result<()> {
        self.outputs.write(cases, json)
    }

    /// Completes a report, writes the outputs, lets `print` write the normal one, and says how to end.
    pub(super) fn conclude(
        self,
        mut report: Report,
        command: Option<u8>,
        print: impl FnOnce(&Report) -> Result<()>,
    ) -> Result<Exit> {
        self.complete(&mut report);
        // The report is printed whatever becomes of the other outputs.
        let written = self.write(&[Case::of(&report)], &report);
        print(&report)?;
        written?;
        Ok(exit(&report, command))
    }
}

/// How a report ends the program: by its policy, or by its verdict where there is none.
pub(super) fn exit(report: &Report, command: Option<u8>) -> Exit {
    match report.policy.as_ref().map(|policy| policy.result) {
        None => Exit::of_verdict(report.verdict, command),
        Some(Decision::Fail) => Exit::Findings,
        Some(Decision::Incomplete) => Exit::Incomplete,
        Some(Decision::Pass) => match command {
            None | Some(0) => Exit::Clean,
            Some(code) => Exit::Command(code),
        },
    }
}
