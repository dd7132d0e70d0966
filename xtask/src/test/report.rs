//! What the suites gave.

use std::{fmt, path::PathBuf, time::Duration};

/// A case that failed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The case.
    pub(crate) case: String,
    /// The reason.
    pub(crate) reason: String,
}

/// The result of a suite.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Suite {
    /// Its name, with the kernel where it ran on one.
    pub(crate) name: String,
    /// How many cases passed.
    pub(crate) passed: usize,
    /// Those that failed.
    pub(crate) failures: Vec<Failure>,
    /// Why the suite, or cases of it, did not run.
    pub(crate) skipped: Vec<String>,
    /// How long it took.
    pub(crate) took: Duration,
    /// Where the whole output is.
    pub(crate) log: Option<PathBuf>,
}

impl Suite {
    /// An empty suite.
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// A suite that could not run though it should have: one failure.
    pub(crate) fn broken(name: impl Into<String>, reason: &str) -> Self {
        let mut suite = Self::new(name);
        suite.fail("start", reason);
        suite
    }

    /// Adds a failed case.
    pub(crate) fn fail(&mut self, case: impl Into<String>, reason: impl Into<String>) {
        self.failures.push(Failure { case: case.into(), reason: reason.into() });
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, passed, failures, skipped, took, log } = self;
        write!(f, "{name}: {passed} passed, {} failed, {:.1} s", failures.len(), took.as_secs_f32())?;
        for reason in skipped {
            write!(f, "\n  skipped: {reason}")?;
        }
        for Failure { case, reason } in failures {
            write!(f, "\n  FAILED {case}: {}", reason.trim_end().replace('\n', "\n    "))?;
        }
        match log {
            Some(log) if !failures.is_empty() => write!(f, "\n  log: {}", log.display()),
            _ => Ok(()),
        }
    }
}

/// All suites.
#[derive(Debug, Default)]
pub(crate) struct Report {
    suites: Vec<Suite>,
}

impl Report {
    /// Prints a suite and keeps it.
    pub(crate) fn add(&mut self, suite: Suite) {
        println!("{suite}");
        self.suites.push(suite);
    }

    /// How many cases failed.
    pub(crate) fn failed(&self) -> usize {
        self.suites.iter().map(|suite| suite.failures.len()).sum()
    }

    /// The sum.
    pub(crate) fn closing_line(&self) -> String {
        let passed: usize = self.suites.iter().map(|suite| suite.passed).sum();
        format!("{passed} passed, {} failed", self.failed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_is_one_line_unless_something_failed() {
        let mut suite = Suite { passed: 3, log: Some("/l".into()), ..Suite::new("vm 6.1") };
        assert_eq!(suite.to_string(), "vm 6.1: 3 passed, 0 failed, 0.0 s");
        suite.fail("a", "b\nc");
        assert_eq!(suite.to_string(), "vm 6.1: 3 passed, 1 failed, 0.0 s\n  FAILED a: b\n    c\n  log: /l");
        let report = Report { suites: vec![suite.clone(), suite] };
        assert_eq!(report.closing_line(), "6 passed, 2 failed");
    }
}
