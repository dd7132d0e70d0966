//! The two files people write: TOML with a version, unknown keys refused, and every complaint with its line and column.

use std::ops::Range;

use chrono::NaiveDate;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// Not the format.
    #[error("line {line}, column {column}: {message}")]
    Syntax {
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// Another version of the format.
    #[error("it is of version {found}, and this program reads version {known}: {advice}")]
    Version {
        /// Its version.
        found: i64,
        /// The one that can be read.
        known: i64,
        /// What to do.
        advice: &'static str,
    },
    /// Well formed, and wrong.
    #[error("{0}")]
    Content(String),
}

/// The version comes first: a file of another version need not have the same keys.
#[derive(Deserialize)]
struct Versioned {
    version: i64,
}

fn check(found: i64, known: i64) -> Result<(), FileError> {
    let advice = if found > known { "use a newer pagetrace" } else { "write it anew" };
    if found == known { Ok(()) } else { Err(FileError::Version { found, known, advice }) }
}

/// Reads TOML.
pub(super) fn toml<T: DeserializeOwned>(text: &str, known: i64) -> Result<T, FileError> {
    let wrong = |err: &toml::de::Error| at(text, err.span(), err.message());
    let Versioned { version } = toml::from_str(text).map_err(|err| wrong(&err))?;
    check(version, known)?;
    toml::from_str(text).map_err(|err| wrong(&err))
}

/// Reads JSON.
pub(super) fn json<T: DeserializeOwned>(text: &str, known: i64) -> Result<T, FileError> {
    let wrong = |err: serde_json::Error| FileError::Syntax {
        line: err.line(),
        column: err.column(),
        // The error says the place itself, behind the message.
        message: err.to_string().split(" at line ").next().unwrap_or_default().to_owned(),
    };
    let Versioned { version } = serde_json::from_str(text).map_err(wrong)?;
    check(version, known)?;
    serde_json::from_str(text).map_err(wrong)
}

fn at(text: &str, span: Option<Range<usize>>, message: &str) -> FileError {
    let before = span.and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    FileError::Syntax {
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        message: message.trim().replace('\n', " "),
    }
}

/// A date, as `2026-12-31`.
pub(super) fn date<'de, D: Deserializer<'de>>(from: D) -> Result<Option<NaiveDate>, D::Error> {
    let text = String::deserialize(from)?;
    NaiveDate::parse_from_str(&text, "%Y-%m-%d")
        .map(Some)
        .map_err(|_| serde::de::Error::custom(format!("{text:?} is no date: write it as \"2026-12-31\"")))
}
