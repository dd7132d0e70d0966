//! Suppressions: findings that are not wanted, by class, function or module, each with a reason.

use chrono::NaiveDate;
use serde::Deserialize;

use super::parse::{self, FileError};
use crate::{
    analysis::Class,
    output::{found::Found, stacks::function},
};

/// Version of the format.
pub const VERSION: i64 = 1;

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suppressions {
    /// [`VERSION`].
    pub version: i64,
    /// The rules.
    #[serde(default, rename = "suppress")]
    pub rules: Vec<Rule>,
}

/// One rule: all that it names must hold.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Findings of this class.
    #[serde(default)]
    pub class: Option<Class>,
    /// With this function in one of the stacks; a `*` at the end stands for anything.
    #[serde(default)]
    pub function: Option<String>,
    /// With a function of this module in one of the stacks.
    #[serde(default)]
    pub module: Option<String>,
    /// Why.
    pub reason: String,
    /// The last day on which it holds.
    #[serde(default, deserialize_with = "parse::date")]
    pub expires: Option<NaiveDate>,
}

impl Suppressions {
    /// Reads TOML.
    ///
    /// # Errors
    /// When it is malformed, of another version, or a rule is no good.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let read: Self = parse::toml(text, VERSION)?;
        for (index, rule) in read.rules.iter().enumerate() {
            let number = index + 1;
            if rule.reason.trim().is_empty() {
                return Err(FileError::Content(format!("rule {number} has no reason")));
            }
            if rule.class.is_none() && rule.function.is_none() && rule.module.is_none() {
                return Err(FileError::Content(format!(
                    "rule {number} would cover every finding: give it a class, a function or a module"
                )));
            }
        }
        Ok(read)
    }

    /// The first rule that covers a finding.
    pub fn find(&self, finding: &Found, today: NaiveDate) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.expires.is_none_or(|expires| today <= expires) && rule.covers(finding))
    }
}

impl Rule {
    fn covers(&self, finding: &Found) -> bool {
        let stacks = finding.stacks();
        let mut frames = stacks.iter().flat_map(|stack| stack.frames);
        self.class.is_none_or(|class| class == finding.class())
            && self.function.as_deref().is_none_or(|wanted| {
                frames.clone().any(|frame| match wanted.strip_suffix('*') {
                    Some(stem) => function(frame).starts_with(stem),
                    None => function(frame) == wanted,
                })
            })
            && self.module.as_deref().is_none_or(|wanted| frames.any(|frame| frame.module.as_deref() == Some(wanted)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, says) in [
            ("version = 2\n", "version 2"),
            ("version = 1\n# a comment\n[[suppres]]\n", "line 3, column 3: unknown field `suppres`"),
            ("version = 1\n[[suppress]]\nfunc = \"x\"\n", "line 3, column 1: unknown field `func`"),
            ("version = 1\n[[suppress]]\nclass = \"x\"\nreason = \"r\"\n", "line 3, column 9: unknown variant `x`"),
            ("version = 1\n[[suppress]]\nreason = \"r\"\n", "every finding"),
            ("version = 1\n[[suppress]]\nfunction = \"f\"\nreason = \"\"\n", "rule 1 has no reason"),
            ("version = 1\n[[suppress]]\nfunction = \"f\"\n", "missing field `reason`"),
        ] {
            let err = Suppressions::parse(text).unwrap_err().to_string();
            assert!(err.contains(says), "{text:?}: {err}");
        }
    }
}
