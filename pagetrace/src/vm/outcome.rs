//! How a run ended.

use std::{fmt, time::Duration};

/// How a run ended. Exactly one of these holds for every run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The command exited.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// A signal ended the command.
    Signaled {
        /// The signal's number.
        signal: i32,
    },
    /// The kernel panicked while the command ran.
    Panic {
        /// The kernel's line.
        line: String,
    },
    /// The kernel complained (oops, soft lockup, RCU stall), or the guest fell silent.
    Hung {
        /// The kernel's line, or what was waited for.
        line: String,
    },
    /// The command did not end in time.
    Timeout {
        /// The limit.
        after: Duration,
    },
    /// The kernel did not reach the guest's init.
    NoBoot {
        /// What was seen instead.
        reason: String,
    },
    /// The machinery failed, inside or outside the guest.
    InfraError {
        /// What failed.
        reason: String,
    },
}

impl Outcome {
    /// Whether the command ran and exited with 0.
    #[must_use]
    pub const fn success(&self) -> bool {
        matches!(self, Self::Exited { code: 0 })
    }

    /// Whether this says nothing about the command, because it never got a fair chance to run.
    #[must_use]
    pub const fn infrastructure(&self) -> bool {
        matches!(self, Self::NoBoot { .. } | Self::InfraError { .. })
    }

    /// The exit code for a wrapper: the command's own, 128+n for a signal, 124 for a timeout (as
    /// `timeout(1)` has it), 125 for a kernel that panicked or hung, 69 (`EX_UNAVAILABLE`) when
    /// the machinery failed.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Exited { code } => u8::try_from(*code).unwrap_or(255),
            Self::Signaled { signal } => u8::try_from(128 + signal).unwrap_or(255),
            Self::Timeout { .. } => 124,
            Self::Panic { .. } | Self::Hung { .. } => 125,
            Self::NoBoot { .. } | Self::InfraError { .. } => 69,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "exited with {code}"),
            Self::Signaled { signal } => write!(f, "ended by signal {signal}"),
            Self::Panic { line } => write!(f, "the kernel panicked: {line}"),
            Self::Hung { line } => write!(f, "the kernel hung: {line}"),
            Self::Timeout { after } => write!(f, "not finished after {} s", after.as_secs()),
            Self::NoBoot { reason } => write!(f, "the kernel did not boot: {reason}"),
            Self::InfraError { reason } => write!(f, "the test machine failed: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infrastructure_is_never_a_test_failure() {
        let infra = Outcome::NoBoot { reason: String::new() };
        assert!(infra.infrastructure() && !infra.success());
        assert_eq!(infra.exit_code(), 69);
        assert!(!Outcome::Exited { code: 69 }.infrastructure());
    }

    #[test]
    fn exit_codes() {
        assert_eq!(Outcome::Exited { code: 7 }.exit_code(), 7);
        assert_eq!(Outcome::Signaled { signal: 9 }.exit_code(), 137);
        assert_eq!(Outcome::Timeout { after: Duration::from_secs(1) }.exit_code(), 124);
    }
}
