//! One run as the outputs for machines see it: what came of it, on which kernel, and what it means for whoever waits for it.
//!
//! A `check` is one case; a run on several test kernels is one case each. A case whose machinery failed has no report.

use super::{found::Found, report::Report};
use crate::{analysis::Verdict, policy::Decision};

/// A run.
#[derive(Debug, Clone)]
pub struct Case<'a> {
    /// What tells it from the others of the same document: the kernel.
    pub name: String,
    /// The command's words; empty when none was run.
    pub command: Vec<String>,
    /// The report, where there is one.
    pub report: Option<&'a Report>,
    /// Why there is none, or why the run counts as failed whatever the report says.
    pub failure: Option<String>,
}

/// Makes a document of runs.
pub type Render = fn(&[Case<'_>]) -> anyhow::Result<String>;

/// What a case comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Nothing to complain of.
    Passed,
    /// Findings that count.
    Failed(String),
    /// Nothing can be said.
    Unknown(String),
}

impl<'a> Case<'a> {
    /// The case of a report.
    pub fn of(report: &'a Report) -> Self {
        Self {
            name: report.kernel.release.clone(),
            command: report.command.as_ref().map(|command| command.argv.clone()).unwrap_or_default(),
            report: Some(report),
            failure: None,
        }
    }

    /// The findings, where there is a report.
    pub fn findings(&self) -> &'a [Found] {
        self.report.map_or(&[], |report| &report.findings)
    }

    /// Why nothing can be called clean; empty otherwise.
    pub fn incomplete(&self) -> &'a [String] {
        self.report.map_or(&[], |report| &report.coverage.incomplete_because)
    }

    /// What it comes to.
    pub fn standing(&self) -> Standing {
        if let Some(failure) = &self.failure {
            return Standing::Unknown(failure.clone());
        }
        let Some(report) = self.report else { return Standing::Unknown("there is no report".to_owned()) };
        let incomplete = || format!("incomplete: {}", report.coverage.incomplete_because.join("; "));
        if let Some(policy) = &report.policy {
            return match policy.result {
                Decision::Pass => Standing::Passed,
                Decision::Fail => Standing::Failed(policy.because.join("; ")),
                Decision::Incomplete => Standing::Unknown(incomplete()),
            };
        }
        match report.verdict {
            Verdict::Clean => Standing::Passed,
            Verdict::Incomplete => Standing::Unknown(incomplete()),
            Verdict::Findings => match report.findings.len() {
                1 => Standing::Failed("one violation".to_owned()),
                count => Standing::Failed(format!("{count} distinct violations")),
            },
        }
    }
}
