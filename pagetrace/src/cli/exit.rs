//! Exit codes: documented, distinct, in one place.

use std::process::ExitCode;

use crate::{
    analysis::Verdict,
    kernel::offsets::MissingMember,
    live::{
        loader::AttachError,
        provoke::able::Unable,
        workload::{
            StartError,
            targets::{CgroupError, TargetError},
            user::UserError,
        },
    },
    plan::PlanError,
};

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: clean.
    Clean,
    /// 1: findings.
    Findings,
    /// 2: the arguments are wrong, or name something that does not exist.
    Usage,
    /// 3: this kernel or this user cannot.
    Cannot,
    /// 4: something was lost or not attached, so clean cannot be said.
    Incomplete,
    /// 5: an internal or I/O error.
    Internal,
    /// 69: a test machine failed, which says nothing about what was to be checked on it.
    Machine,
    /// The traced command's own code.
    Command(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::Findings => 1,
            Self::Usage => 2,
            Self::Cannot => 3,
            Self::Incomplete => 4,
            Self::Internal => 5,
            Self::Machine => 69,
            Self::Command(code) => code,
        }
    }
}

/// A precondition that is not met; the text has been made for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unmet(pub(super) String);

/// Arguments that are well formed but do not go together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Misuse(pub(super) &'static str);

/// Arguments that are well formed but name what cannot be used, said with what they name.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refused(pub(super) String);

impl Exit {
    /// The code a verdict ends with; a clean run hands on the command's own.
    pub fn of_verdict(verdict: Verdict, command: Option<u8>) -> Self {
        match (verdict, command) {
            (Verdict::Findings, _) => Self::Findings,
            (Verdict::Incomplete, _) => Self::Incomplete,
            (Verdict::Clean, None | Some(0)) => Self::Clean,
            (Verdict::Clean, Some(code)) => Self::Command(code),
        }
    }

    /// The code an error ends with.
    pub fn of_error(err: &anyhow::Error) -> Self {
        for cause in err.chain() {
            if let Some(code) = super::pagemap::exit(cause) {
                return code;
            }
            if let Some(start) = cause.downcast_ref::<StartError>() {
                return start.shell_code().map_or(Self::Internal, Self::Command);
            }
            if cause.is::<Refused>() {
                return Self::Usage;
            }
            if cause.is::<TargetError>() || cause.is::<CgroupError>() || cause.is::<UserError>() || cause.is::<Misuse>()
            {
                return Self::Usage;
            }
            if cause.is::<PlanError>()
                || cause.is::<AttachError>()
                || cause.is::<Unmet>()
                || cause.is::<Unable>()
                || cause.is::<MissingMember>()
            {
                return Self::Cannot;
            }
        }
        Self::Internal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_outranks_the_commands_own_code() {
        assert_eq!(Exit::of_verdict(Verdict::Findings, Some(9)), Exit::Findings);
        assert_eq!(Exit::of_verdict(Verdict::Incomplete, Some(9)), Exit::Incomplete);
        assert_eq!(Exit::of_verdict(Verdict::Clean, Some(9)), Exit::Command(9));
        assert_eq!(Exit::of_verdict(Verdict::Clean, Some(0)), Exit::Clean);
    }

    #[test]
    fn what_does_not_exist_is_the_callers_mistake() {
        let err = anyhow::Error::from(TargetError::NoProcess(7)).context("outer");
        assert_eq!(Exit::of_error(&err), Exit::Usage);
        assert_eq!(Exit::of_error(&Misuse("no").into()), Exit::Usage);
        assert_eq!(Exit::of_error(&anyhow::anyhow!("other")), Exit::Internal);
        assert_eq!(Exit::of_error(&Unmet("no".to_owned()).into()), Exit::Cannot);
    }
}
