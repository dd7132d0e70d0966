//! What a report means for whoever waits for it: which findings count, and whether the run passes.
//!
//! Pure: a policy, a report and a date in, an outcome out. The report's verdict is never changed: it says what was seen, the
//! outcome says what follows.

pub mod baseline;
pub mod fail_on;
mod parse;
pub mod suppress;

use std::collections::BTreeSet;

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use crate::{
    analysis::Verdict,
    output::{found::Found, report::Report},
};
use baseline::Baseline;
use fail_on::FailOn;
use suppress::Suppressions;

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Findings that count; all when empty.
    pub fail_on: Vec<FailOn>,
    /// Findings known before.
    pub baseline: Option<Baseline>,
    /// Findings not wanted.
    pub suppressions: Option<Suppressions>,
    /// Whether what was lost counts even where every finding is excused.
    pub require_coverage: bool,
    /// Whether an edge of the lock order that the baseline does not know counts.
    pub require_known_order: bool,
}

/// Whether a run passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// Nothing counts.
    Pass,
    /// At least one finding counts, or a sign on the console.
    Fail,
    /// Nothing counts, but something was lost that could have hidden what does.
    Incomplete,
}

/// What came of a policy, as part of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Whether the run passes.
    pub result: Decision,
    /// Why, in sentences.
    pub because: Vec<String>,
    /// Findings that count.
    pub counted: usize,
    /// Findings that the baseline knows.
    pub baselined: usize,
    /// Findings that a suppression covers.
    pub suppressed: usize,
    /// Findings of classes or severities that `--fail-on` leaves out.
    pub below: usize,
    /// Entries of the baseline that are over, and whose findings count again.
    pub expired: Vec<String>,
    /// Entries of the baseline that nothing was found for.
    pub unused: Vec<String>,
    /// Edges of the lock order that the baseline does not know; absent where it has none, or no order was watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_edges: Option<usize>,
}

/// Why a finding does not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excuse {
    /// What excuses it.
    pub by: Excused,
    /// The reason given there.
    pub reason: String,
}

/// What excuses a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Excused {
    /// An entry of the baseline.
    Baseline,
    /// A suppression.
    Suppression,
    /// `--fail-on` is about others.
    FailOn,
}

impl Excuse {
    /// As a sentence.
    pub fn text(&self) -> String {
        match self.by {
            Excused::Baseline => format!("in the baseline: {}", self.reason),
            Excused::Suppression => format!("suppressed: {}", self.reason),
            Excused::FailOn => self.reason.clone(),
        }
    }
}

impl Decision {
    /// As reports spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Incomplete => "incomplete",
        }
    }
}

impl Policy {
    /// Whether anything was asked for.
    pub fn is_empty(&self) -> bool {
        self.fail_on.is_empty()
            && self.baseline.is_none()
            && self.suppressions.is_none()
            && !self.require_coverage
            && !self.require_known_order
    }

    /// Judges a report: marks the findings that do not count, and adds the outcome. Without a policy nothing changes.
    pub fn apply(&self, report: &mut Report, today: NaiveDate) {
        if self.is_empty() {
            return;
        }
        let mut expired = Vec::new();
        for finding in &mut report.findings {
            let excuse = self.excuse(finding, today, &mut expired);
            finding.marks_mut().baselined = matches!(&excuse, Some(Excuse { by: Excused::Baseline, .. }));
            finding.marks_mut().excused = excuse;
        }
        let new_edges = self.mark_edges(report);
        let outcome = self.outcome(report, expired, new_edges);
        report.policy = Some(outcome);
    }

    fn excuse(&self, finding: &Found, today: NaiveDate, expired: &mut Vec<String>) -> Option<Excuse> {
        if let Some(entry) = self.baseline.as_ref().and_then(|baseline| baseline.find(&finding.marks().fingerprint)) {
            match entry.over(today) {
                None => return Some(Excuse { by: Excused::Baseline, reason: entry.reason.clone() }),
                Some(date) => expired.push(format!("{}: expired on {date}: {}", entry.fingerprint, entry.reason)),
            }
        }
        if let Some(suppression) = self.suppressions.as_ref().and_then(|all| all.find(finding, today)) {
            return Some(Excuse { by: Excused::Suppression, reason: suppression.reason.clone() });
        }
        let counts = self.fail_on.is_empty() || self.fail_on.iter().any(|one| one.takes(finding));
        let reason = || "no --fail-on covers its class and severity".to_owned();
        (!counts).then(|| Excuse { by: Excused::FailOn, reason: reason() })
    }

    /// Says of each edge whether it is new, and how many classes of edges are. What is known to be right is not news.
    fn mark_edges(&self, report: &mut Report) -> Option<usize> {
        let baseline = self.baseline.as_ref().filter(|baseline| baseline.edges.is_some())?;
        let order = report.order.as_mut()?;
        let mut new = BTreeSet::new();
        for edge in &mut order.edges {
            let known = edge.known.is_some() || baseline.knows_edge(&edge.fingerprint) == Some(true);
            edge.new = Some(!known);
            if !known {
                new.insert(edge.fingerprint.as_str());
            }
        }
        Some(new.len())
    }

    fn outcome(&self, report: &Report, expired: Vec<String>, new_edges: Option<usize>) -> Outcome {
        let excused =
            |by| report.findings.iter().filter(|f| f.marks().excused.as_ref().is_some_and(|e| e.by == by)).count();
        let counted = report.findings.iter().filter(|finding| finding.marks().excused.is_none()).count();
        let (baselined, suppressed, below) =
            (excused(Excused::Baseline), excused(Excused::Suppression), excused(Excused::FailOn));
        let found: BTreeSet<&str> =
            report.findings.iter().map(|finding| finding.marks().fingerprint.as_str()).collect();
        let entries = self.baseline.iter().flat_map(|baseline| &baseline.findings);
        let unused = entries.map(|entry| entry.fingerprint.clone()).filter(|known| !found.contains(known.as_str()));
        let mut because = Vec::new();
        if counted != 0 {
            because.push(format!("{counted} of {} findings count", report.findings.len()));
        } else if !report.findings.is_empty() {
            because.push(format!(
                "no finding counts: {baselined} in the baseline, {suppressed} suppressed, {below} not covered by --fail-on"
            ));
        }
        let order_counts = self.require_known_order && new_edges.is_some_and(|new| new != 0);
        if order_counts {
            let new = new_edges.unwrap_or(0);
            because.push(format!("edges of the lock order that the baseline does not know: {new}"));
        }
        let blind = self.require_known_order && report.order.is_none();
        if blind {
            because.push("the lock order was not watched: --require-known-order needs a run with --order".to_owned());
        }
        because.extend(expired.iter().map(|entry| format!("the baseline's entry {entry}")));
        let lost = !report.coverage.incomplete_because.is_empty();
        let result = if counted != 0 || order_counts {
            Decision::Fail
        } else if lost && (self.require_coverage || report.verdict == Verdict::Incomplete) {
            because.push("something was lost that could have hidden findings that count".to_owned());
            Decision::Incomplete
        } else if blind {
            Decision::Incomplete
        } else {
            if lost {
                because.push(
                    "something was lost that could have hidden other findings; --require-coverage makes that a failure"
                        .to_owned(),
                );
            }
            Decision::Pass
        };
        Outcome { result, because, counted, baselined, suppressed, below, expired, unused: unused.collect(), new_edges }
    }
}

#[cfg(test)]
mod tests;
