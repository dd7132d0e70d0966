//! Both verdicts side by side, and the differences that are known, with their reasons. Pure.

use std::fmt::Write as _;

use super::{judge::Judged, tracer::Traced};
use crate::cases::Kind;

/// Cases in which lockdep and pagetrace are known to differ, and why.
const DIFFERENCES: &[(&str, &str)] = &[
    ("atomic", ATOMIC),
    ("preempt-off", ATOMIC),
    ("crossed-released", ONE_CLASS),
    ("handed-over", HANDED),
    ("handed-read", HANDED),
    (
        "iter-clean",
        "bpf_iter_run_prog() says might_fault() before any sleepable program; this one copies without faulting",
    ),
];

const HANDED: &str = "up_read_non_owner() does not tell lockdep that the lock is released: to it the task still has it";

const ONE_CLASS: &str =
    "lockdep has one class for all mmap locks; pagetrace tells address spaces apart, and these are taken in one order";

const ATOMIC: &str = "might_fault() asks only whether page faults are disabled; in atomic context the fault handler gives up before it wants the lock";

/// A case with both verdicts.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// Its name.
    pub(super) name: String,
    /// What it is for.
    pub(super) kind: Kind,
    /// lockdep's.
    pub(super) judged: Judged,
    /// pagetrace's.
    pub(super) traced: Traced,
}

/// How a row is to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reading {
    /// Both found something, or neither did.
    Agree,
    /// They differ, for a known reason.
    Known(&'static str),
    /// They differ, and nobody knows why.
    Unexplained,
    /// There is a reason for a difference, and there is none.
    Outdated,
    /// The case did not take place, or silence is no verdict.
    Void(String),
}

impl Row {
    pub(super) fn reading(&self) -> Reading {
        let Self { name, kind, judged, traced } = self;
        let hangs = matches!(kind, Kind::Hanging | Kind::Standing);
        for (who, code) in [("lockdep", judged.code), ("pagetrace", traced.code)] {
            if code != 0 && !hangs {
                return Reading::Void(format!("with {who} the case ended with {code}"));
            }
        }
        if traced.found.is_empty() && !traced.incomplete.is_empty() {
            return Reading::Void(format!("pagetrace: incomplete: {}", traced.incomplete.join(", ")));
        }
        let known = DIFFERENCES.iter().find(|(of, _)| of == name).map(|(_, reason)| *reason);
        match (judged.said.is_empty() == traced.found.is_empty(), known) {
            (true, None) => Reading::Agree,
            (true, Some(_)) => Reading::Outdated,
            (false, Some(reason)) => Reading::Known(reason),
            (false, None) => Reading::Unexplained,
        }
    }
}

/// Whether a row is as it should be.
pub(super) const fn fine(reading: &Reading) -> bool {
    matches!(reading, Reading::Agree | Reading::Known(_))
}

/// The table, in the form that documents have.
pub(super) fn render(rows: &[Row]) -> String {
    let mut out = String::from("| case | made to be | lockdep | pagetrace | |\n|---|---|---|---|---|\n");
    let or_nothing = |words: &[String]| if words.is_empty() { "-".to_owned() } else { words.join(", ") };
    for row in rows {
        let reading = match row.reading() {
            Reading::Agree => "agree".to_owned(),
            Reading::Known(reason) => format!("differ: {reason}"),
            Reading::Unexplained => "DIFFER, and no reason is known".to_owned(),
            Reading::Outdated => "agree, THOUGH A REASON TO DIFFER IS LISTED".to_owned(),
            Reading::Void(why) => format!("NO VERDICT: {why}"),
        };
        let kind = format!("{:?}", row.kind).to_lowercase();
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| {} | {kind} | {} | {} | {reading} |",
            row.name,
            or_nothing(&row.judged.said),
            or_nothing(&row.traced.found)
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases;

    fn row(said: &[&str], found: &[&str]) -> Row {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Row {
            name: "a".into(),
            kind: Kind::Violating,
            judged: Judged { said: words(said), code: 0 },
            traced: Traced { found: words(found), ..Traced::default() },
        }
    }

    #[test]
    fn readings() {
        assert_eq!(row(&[], &[]).reading(), Reading::Agree);
        assert_eq!(row(&["x"], &["y"]).reading(), Reading::Agree);
        assert_eq!(row(&["x"], &[]).reading(), Reading::Unexplained);
        let mut late = row(&[], &[]);
        late.judged.code = 1;
        assert!(matches!(late.reading(), Reading::Void(_)));
        late.kind = Kind::Hanging;
        assert_eq!(late.reading(), Reading::Agree);
        late.traced.incomplete.push("lost".into());
        assert!(!fine(&late.reading()));
    }

    #[test]
    fn reasons_are_about_cases() {
        for (name, reason) in DIFFERENCES {
            assert!(cases::page_of(name).is_some(), "{name}");
            assert!(!reason.is_empty());
        }
        assert!(render(&[row(&[], &["b", "c"])]).contains("| a | violating | - | b, c | DIFFER"));
    }
}
