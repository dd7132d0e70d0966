//! A baseline: findings that are known, by fingerprint, each with a reason and perhaps a day on which it counts again; and edges of
//! the lock order that are known.

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use super::parse::{self, FileError};
use crate::output::fingerprint;

/// Version of the format.
pub const VERSION: i64 = 1;
/// The reason of an entry nobody has given one for yet.
pub const NO_REASON: &str = "not looked at yet";

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// [`VERSION`].
    pub version: i64,
    /// The findings.
    #[serde(default, rename = "finding")]
    pub findings: Vec<Entry>,
    /// Edges of the lock order, once a report had any; they are no faults, and need no reason.
    #[serde(default, rename = "edge", skip_serializing_if = "Option::is_none")]
    pub edges: Option<Vec<KnownEdge>>,
}

/// An edge of the lock order that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownEdge {
    /// Its fingerprint.
    pub fingerprint: String,
    /// For people: the locks, held and wanted. Not looked at.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
}

/// A finding that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its fingerprint.
    pub fingerprint: String,
    /// Why it is accepted.
    pub reason: String,
    /// The last day on which it is.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "parse::date")]
    pub expires: Option<NaiveDate>,
    /// For people: what it is about. Not looked at.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
}

impl Entry {
    /// The day it expired on, if it has.
    pub fn over(&self, today: NaiveDate) -> Option<NaiveDate> {
        self.expires.filter(|expires| *expires < today)
    }
}

impl Default for Baseline {
    fn default() -> Self {
        Self { version: VERSION, findings: Vec::new(), edges: None }
    }
}

impl Baseline {
    /// Reads one: JSON if it begins like it, TOML otherwise.
    ///
    /// # Errors
    /// When it is neither, of another version, or an entry is no good.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let read: Self = if is_json(text) { parse::json(text, VERSION)? } else { parse::toml(text, VERSION)? };
        for (index, entry) in read.findings.iter().enumerate() {
            let Entry { fingerprint, reason, .. } = entry;
            check(fingerprint)?;
            if reason.trim().is_empty() {
                return Err(FileError::Content(format!(
                    "the entry {fingerprint} has no reason: say why it is accepted"
                )));
            }
            if read.findings[..index].iter().any(|other| other.fingerprint == *fingerprint) {
                return Err(FileError::Content(format!("{fingerprint} is there twice")));
            }
        }
        for edge in read.edges.iter().flatten() {
            check(&edge.fingerprint)?;
        }
        Ok(read)
    }

    /// Whether an edge is known; `None` where the baseline knows of none at all, since it was made without them.
    pub fn knows_edge(&self, fingerprint: &str) -> Option<bool> {
        self.edges.as_ref().map(|edges| edges.iter().any(|edge| edge.fingerprint == fingerprint))
    }

    /// Adds edges, each by fingerprint and what it is about. Returns how many are new.
    pub fn add_edges<'a>(&mut self, found: impl IntoIterator<Item = (&'a str, String)>) -> usize {
        let edges = self.edges.get_or_insert_default();
        let before = edges.len();
        for (fingerprint, about) in found {
            if !edges.iter().any(|edge| edge.fingerprint == fingerprint) {
                edges.push(KnownEdge { fingerprint: fingerprint.to_owned(), about });
            }
        }
        edges.len() - before
    }

    /// The entry of a finding.
    pub fn find(&self, fingerprint: &str) -> Option<&Entry> {
        self.findings.iter().find(|entry| entry.fingerprint == fingerprint)
    }

    /// Adds findings, each by fingerprint and what it is about. Entries there are keep their reasons and dates. Returns how many
    /// are new.
    pub fn update<'a>(&mut self, found: impl IntoIterator<Item = (&'a str, String)>) -> usize {
        let before = self.findings.len();
        for (fingerprint, about) in found {
            if let Some(entry) = self.findings.iter_mut().find(|entry| entry.fingerprint == fingerprint) {
                entry.about = about;
            } else {
                let (fingerprint, reason) = (fingerprint.to_owned(), NO_REASON.to_owned());
                self.findings.push(Entry { fingerprint, reason, expires: None, about });
            }
        }
        self.findings.len() - before
    }

    /// As a file: JSON or TOML.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn encode(&self, json: bool) -> anyhow::Result<String> {
        if json {
            return Ok(serde_json::to_string_pretty(self)? + "\n");
        }
        let head = "# Findings that are known, for `pagetrace check --baseline`. Give each a reason; with expires = \"2026-12-31\"\n\
                    # it counts again from the day after. `pagetrace baseline update` adds to this file and keeps both.\n";
        Ok(head.to_owned() + &toml::to_string(self)?)
    }
}

fn check(fingerprint: &str) -> Result<(), FileError> {
    if fingerprint::is_one(fingerprint) {
        return Ok(());
    }
    Err(FileError::Content(format!(
        "{fingerprint:?} is no fingerprint: those have 16 hexadecimal digits, as \"fingerprint\" in a JSON report"
    )))
}

/// Whether a text is meant to be JSON.
pub fn is_json(text: &str) -> bool {
    text.trim_start().starts_with('{')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "version = 1 # comment\n[[finding]]\nfingerprint = \"0123456789abcdef\"\nreason = \"r\"\n";

    #[test]
    fn what_is_written_is_read_in_both_forms() {
        let mut baseline = Baseline::parse(&format!("{ONE}expires = \"2026-12-31\"\n")).unwrap();
        assert_eq!(baseline.update([("0123456789abcdef", "x".into()), ("00000000000000ff", "y \"z\"".into())]), 1);
        for json in [false, true] {
            let text = baseline.encode(json).unwrap();
            assert_eq!(Baseline::parse(&text).as_ref(), Ok(&baseline), "{text}");
        }
        assert_eq!(baseline.findings[0].reason, "r");
        assert_eq!(baseline.findings[0].expires.unwrap().to_string(), "2026-12-31");
        assert_eq!(baseline.findings[1].reason, NO_REASON);
    }

    #[test]
    fn edges_are_known_once_there_were_any() {
        let mut baseline = Baseline::parse(ONE).unwrap();
        assert_eq!(baseline.knows_edge("00000000000000aa"), None);
        let edge = |print| (print, "mmap_lock (write) -> \"x\"".to_owned());
        assert_eq!(baseline.add_edges([edge("00000000000000aa"), edge("00000000000000aa")]), 1);
        assert_eq!(baseline.add_edges([edge("00000000000000aa"), edge("00000000000000bb")]), 1);
        for json in [false, true] {
            let text = baseline.encode(json).unwrap();
            let read = Baseline::parse(&text).unwrap();
            assert_eq!(read, baseline, "{text}");
            let known = ["00000000000000aa", "00000000000000bb", "00000000000000cc"].map(|it| read.knows_edge(it));
            assert_eq!(known, [Some(true), Some(true), Some(false)]);
        }
        // An order without any edge is an order, too.
        let mut none = Baseline::default();
        none.add_edges([]);
        assert_eq!(Baseline::parse(&none.encode(false).unwrap()).unwrap().knows_edge("00000000000000aa"), Some(false));
    }

    #[test]
    fn an_entry_counts_to_the_end_of_its_last_day() {
        let baseline = Baseline::parse(&format!("{ONE}expires = \"2026-12-31\"\n")).unwrap();
        let day = |text: &str| text.parse().unwrap();
        let entry = baseline.find("0123456789abcdef").unwrap();
        assert_eq!(entry.over(day("2026-12-31")), None);
        assert_eq!(entry.over(day("2027-01-01")), Some(day("2026-12-31")));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let twice = format!("{ONE}[[finding]]\nfingerprint = \"0123456789abcdef\"\nreason = \"r\"\n");
        for (text, says) in [
            ("", "version"),
            ("version = 2\nanything = 1\n", "version 2, and this program reads version 1: use a newer pagetrace"),
            ("version = 0\n", "write it anew"),
            ("version = 1\nnosuch = 1\n", "line 2, column 1: unknown field `nosuch`"),
            ("version = 1\n[[finding]]\nfingerprnt = \"x\"\n", "line 3, column 1: unknown field `fingerprnt`"),
            ("version = 1\n[[finding]]\nfingerprint = \"x\"\nreason = \"r\"\n", "\"x\" is no fingerprint"),
            ("version = 1\n[[finding]]\nfingerprint = \"0123456789abcdef\"\nreason = \" \"\n", "has no reason"),
            ("version = 1\n[[finding]]\nfingerprint = \"0123456789abcdef\"\n", "missing field `reason`"),
            ("version = 1\n[[edge]]\nfingerprint = \"y\"\n", "\"y\" is no fingerprint"),
            ("version = 1\n[[edge]]\nfingerprint = \"0123456789abcdef\"\nreason = \"r\"\n", "unknown field `reason`"),
            (&format!("{ONE}expires = \"soon\"\n"), "line 5, column 11: \"soon\" is no date"),
            (&twice, "there twice"),
            ("version = 1\nb\u{e4}d = = 2\n", "line 2, column"),
            ("{\"version\": 1, \"x\": 2}", "line 1, column 18: unknown field `x`"),
            ("{\"version\": 3}", "version 3"),
        ] {
            let err = Baseline::parse(text).unwrap_err().to_string();
            assert!(err.contains(says), "{text:?}: {err}");
        }
    }
}
