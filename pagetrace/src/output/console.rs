//! What a test kernel said about its own health, as part of a report.

use serde::{Deserialize, Serialize};

use super::report::Report;
use crate::{analysis::Verdict, vm::trouble::Trouble};

/// A sign of trouble.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sign {
    /// `panic`, `bug`, `stall`, `lockdep`, `hung-task`, `out-of-memory`, `warning`.
    pub kind: String,
    /// The kernel's line.
    pub message: String,
    /// The lines behind it, a few.
    pub more: Vec<String>,
}

impl From<Trouble> for Sign {
    fn from(trouble: Trouble) -> Self {
        let Trouble { kind, message, more } = trouble;
        Self { kind: kind.name().to_owned(), message, more }
    }
}

impl Report {
    /// Adds what the console showed. A kernel that complains of itself cannot be called clean: what it did from there on, and what
    /// a tracer saw of it, cannot be trusted.
    pub fn add_console(&mut self, signs: Vec<Sign>) {
        for sign in &signs {
            self.coverage.incomplete_because.push(format!("the kernel complained ({}): {}", sign.kind, sign.message));
        }
        if !signs.is_empty() && self.verdict == Verdict::Clean {
            self.verdict = Verdict::Incomplete;
        }
        self.console.extend(signs);
    }
}
