//! `--fail-on CLASS[:SEVERITY]`: which findings count.

use std::str::FromStr;

use serde::de::{DeserializeOwned, IntoDeserializer as _, value::StrDeserializer};

use crate::{
    analysis::{Class, Severity},
    output::found::Found,
};

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailOn {
    /// The class; `None` for any.
    pub class: Option<Class>,
    /// The mildest severity that counts; `None` for all.
    pub severity: Option<Severity>,
}

impl FailOn {
    /// Whether a finding counts by it.
    pub fn takes(&self, finding: &Found) -> bool {
        self.class.is_none_or(|class| class == finding.class())
            && self.severity.is_none_or(|severity| finding.severity() >= severity)
    }
}

/// A name as reports spell it. The types' own list is the one that counts: it has every class there is.
fn named<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let text: StrDeserializer<'_, serde::de::value::Error> = text.into_deserializer();
    T::deserialize(text).map_err(|err| err.to_string())
}

impl FromStr for FailOn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (class, severity) = text.split_once(':').map_or((text, None), |(class, severity)| (class, Some(severity)));
        let class = if class == "any" {
            None
        } else {
            Some(named(class).map_err(|err| format!("{err}, or `any` for every class"))?)
        };
        Ok(Self { class, severity: severity.map(named).transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_reports() {
        let parsed: FailOn = "fault-under-lock:recursive-read".parse().unwrap();
        assert_eq!(parsed.class, Some(Class::FaultUnderLock));
        assert_eq!(parsed.severity, Some(Severity::RecursiveRead));
        assert_eq!("any".parse(), Ok(FailOn { class: None, severity: None }));
        assert_eq!("any:deadlock".parse(), Ok(FailOn { class: None, severity: Some(Severity::Deadlock) }));
        for (bad, says) in [
            ("faults", "fault-under-lock"),
            ("", "lock-leak"),
            ("any:", "cross-mm"),
            ("any:bad", "recursive-read"),
            ("lock-leak:leak:x", "leak:x"),
        ] {
            let err = bad.parse::<FailOn>().unwrap_err();
            assert!(err.contains(says), "{bad}: {err}");
        }
    }
}
