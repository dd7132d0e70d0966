//! The answer of `pagetrace verify`: shares, a table of explanations, and what has none; as text and as a document. Decides by what
//! the model counted, and nothing else.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use super::report::{Command, Kernel};
use crate::analysis::{
    Verdict,
    presence::{Class, Gone, Occasion, Tally, Unexplained},
};

/// Names the form of the document.
pub const SCHEMA: &str = "pagetrace.verify/1";

/// Entries of a list that the text shows.
const SHOWN: usize = 20;

/// What the answer is made of.
#[derive(Debug)]
pub struct Parts {
    /// The kernel.
    pub kernel: Kernel,
    /// The command and its end.
    pub command: Command,
    /// The sums.
    pub tally: Tally,
    /// From its release to its end.
    pub duration_ms: u64,
    /// How faults were seen.
    pub faults_by: Option<&'static str>,
    /// What stays unseen on this kernel.
    pub not_seen: Vec<String>,
    /// Counters that are not 0.
    pub loss: BTreeMap<String, u64>,
    /// Why not everything can have been seen.
    pub incomplete_because: Vec<String>,
    /// Tasks that the command left running.
    pub left_running: usize,
    /// Looks in between for which not all tasks stopped in time.
    pub looks_skipped: u64,
    /// Pages that the kernel maps around a read fault.
    pub around: u64,
    /// Faults that were kept from the model.
    pub withheld: u64,
    /// The least share that will do, percent.
    pub at_least: f64,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As much as was asked for is explained.
    Explained,
    /// Less.
    Unexplained,
    /// Something was lost, so neither can be said.
    Incomplete,
}

/// Pages present.
#[derive(Debug, Serialize)]
struct Present {
    pages: u64,
    explained: u64,
    percent: f64,
    by_explanation: BTreeMap<Class, u64>,
}

/// Pages faulted in.
#[derive(Debug, Serialize)]
struct Faulted {
    faults: u64,
    of_others: u64,
    pages: u64,
    there: u64,
    gone: BTreeMap<Gone, u64>,
    missing: u64,
    vanished: u64,
    percent: f64,
}

/// The document.
#[derive(Debug, Serialize)]
pub struct Document {
    schema: &'static str,
    /// What came of it.
    pub outcome: Outcome,
    at_least: f64,
    kernel: Kernel,
    command: Command,
    duration_ms: u64,
    faults_by: Option<&'static str>,
    present: Present,
    faulted: Faulted,
    looks: BTreeMap<Occasion, u64>,
    looks_skipped: u64,
    fault_around_pages: u64,
    unexplained: Vec<Unexplained>,
    missing: Vec<Unexplained>,
    unlisted: u64,
    left_running: usize,
    loss: BTreeMap<String, u64>,
    incomplete_because: Vec<String>,
    not_seen: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    withheld: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A share in percent; of nothing, all.
fn percent(part: u64, all: u64) -> f64 {
    if all == 0 { 100.0 } else { part as f64 * 100.0 / all as f64 }
}

impl Document {
    /// Judges.
    #[must_use]
    pub fn of(parts: Parts) -> Self {
        let Parts { tally, mut incomplete_because, at_least, .. } = parts;
        let pages = tally.pages();
        let explained = pages - tally.unexplained_pages();
        let absent = tally.missing.saturating_add(tally.vanished);
        let present = Present { pages, explained, percent: percent(explained, pages), by_explanation: tally.present };
        let faulted = Faulted {
            faults: tally.faults,
            of_others: tally.strangers,
            pages: tally.faulted,
            there: tally.there,
            gone: tally.gone,
            missing: tally.missing,
            vanished: tally.vanished,
            percent: percent(tally.faulted.saturating_sub(absent), tally.faulted),
        };
        if pages == 0 {
            incomplete_because.push("no pages were looked at".to_owned());
        }
        let outcome = match () {
            () if !incomplete_because.is_empty() => Outcome::Incomplete,
            () if present.percent < at_least || faulted.percent < at_least => Outcome::Unexplained,
            () => Outcome::Explained,
        };
        Self {
            schema: SCHEMA,
            outcome,
            at_least,
            kernel: parts.kernel,
            command: parts.command,
            duration_ms: parts.duration_ms,
            faults_by: parts.faults_by,
            present,
            faulted,
            looks: tally.looks,
            looks_skipped: parts.looks_skipped,
            fault_around_pages: parts.around,
            unexplained: tally.unexplained,
            missing: tally.missed,
            unlisted: tally.unlisted,
            left_running: parts.left_running,
            loss: parts.loss,
            incomplete_because,
            not_seen: parts.not_seen,
            withheld: parts.withheld,
        }
    }

    /// As a verdict, for the exit code.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self.outcome {
            Outcome::Explained => Verdict::Clean,
            Outcome::Unexplained => Verdict::Findings,
            Outcome::Incomplete => Verdict::Incomplete,
        }
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Self { present, faulted, .. } = self;
        let head = match self.outcome {
            Outcome::Explained => "EXPLAINED",
            Outcome::Unexplained => "UNEXPLAINED",
            Outcome::Incomplete => "INCOMPLETE",
        };
        writeln!(
            out,
            "{head}: {} of {} pages present are explained ({} %); of {} pages faulted in, {} are missing ({} % accounted for)",
            present.explained,
            present.pages,
            down(present.percent),
            faulted.pages,
            faulted.missing + faulted.vanished,
            down(faulted.percent),
        )?;
        for reason in &self.incomplete_because {
            writeln!(out, "  incomplete: {reason}")?;
        }
        let looks: Vec<String> = self.looks.iter().map(|(why, count)| format!("{} {count}", occasion(*why))).collect();
        writeln!(out, "  looks: {}", if looks.is_empty() { "none".to_owned() } else { looks.join(", ") })?;
        writeln!(out, "\n  {:<16} {:>10} {:>8}  earned by", "present because", "pages", "%")?;
        for (class, pages) in &present.by_explanation {
            let (name, earned) = class.describe();
            writeln!(out, "  {name:<16} {pages:>10} {:>8}  {earned}", down(percent(*pages, present.pages)))?;
        }
        writeln!(out, "\n  {:<16} {:>10} {:>8}  earned by", "faulted in, and", "pages", "%")?;
        let there = [("there", "found at the next look", faulted.there)];
        let gone = faulted.gone.iter().map(|(why, pages)| (why.describe().0, why.describe().1, *pages));
        let missing = [("missing", "nothing: it should be there", faulted.missing)];
        for (name, earned, pages) in there.into_iter().chain(gone).chain(missing) {
            writeln!(out, "  {name:<16} {pages:>10} {:>8}  {earned}", down(percent(pages, faulted.pages)))?;
        }
        if faulted.vanished != 0 {
            writeln!(out, "  {:<16} {:>10} {:>8}  found once, and not again", "vanished", faulted.vanished, "")?;
        }
        for (what, list) in [("unexplained", &self.unexplained), ("missing", &self.missing)] {
            for it in list.iter().take(SHOWN) {
                let Unexplained { pid, occasion: why, address, pages, vma } = it;
                let plural = if *pages == 1 { "" } else { "s" };
                writeln!(
                    out,
                    "  {what}: {pages} page{plural} at {address:#x} of process {pid}, {}, in {vma}",
                    occasion(*why)
                )?;
            }
            if list.len() > SHOWN {
                writeln!(out, "  {what}: {} more places; --format json lists them", list.len() - SHOWN)?;
            }
        }
        if self.unlisted != 0 {
            writeln!(out, "  {} more places are counted and not listed", self.unlisted)?;
        }
        writeln!(
            out,
            "\n  kernel {} {}, watched for {:.1} s",
            self.kernel.release,
            self.kernel.machine,
            self.duration_ms as f64 / 1000.0
        )?;
        writeln!(
            out,
            "  {} faults seen by {}, {} of others; {} pages are mapped around a read fault",
            faulted.faults,
            self.faults_by.unwrap_or("nothing"),
            faulted.of_others,
            self.fault_around_pages
        )?;
        for sentence in &self.not_seen {
            writeln!(out, "  not seen: {sentence}")?;
        }
        let loss: Vec<String> = self.loss.iter().map(|(name, count)| format!("{name} {count}")).collect();
        writeln!(out, "  counters: {}", if loss.is_empty() { "none".to_owned() } else { loss.join(", ") })?;
        if self.withheld != 0 {
            writeln!(out, "  {} faults were kept from the model on purpose", self.withheld)?;
        }
        if self.looks_skipped != 0 {
            writeln!(out, "  {} times not all tasks stopped in time for a look in between", self.looks_skipped)?;
        }
        if self.left_running != 0 {
            writeln!(out, "  {} tasks of the command run on and were not followed to their end", self.left_running)?;
        }
        let Command { argv, exit_code, signal, .. } = &self.command;
        let end = match (exit_code, signal) {
            (Some(code), _) => format!("exited with {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended, its status is not known".to_owned(),
        };
        writeln!(out, "  command `{}` {end}", argv.join(" "))
    }
}

/// Two digits, rounded down: less than all must not look like all.
fn down(percent: f64) -> String {
    format!("{:.2}", (percent * 100.0).floor() / 100.0)
}

const fn occasion(occasion: Occasion) -> &'static str {
    match occasion {
        Occasion::Exec => "after exec",
        Occasion::Fork => "after fork",
        Occasion::BeforeExec => "before exec",
        Occasion::Exit => "at exit",
        Occasion::Periodic => "periodic",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(unexplained: u64, missing: u64) -> Parts {
        let present = BTreeMap::from([(Class::Fault, 1000 - unexplained), (Class::Unexplained, unexplained)]);
        let tally = Tally { present, faulted: 1000, missing, there: 1000 - missing, ..Tally::default() };
        Parts {
            kernel: Kernel { release: "6.1".to_owned(), machine: "x86_64".to_owned() },
            command: Command {
                argv: vec!["true".to_owned()],
                pid: 5,
                exit_code: Some(0),
                signal: None,
                hung: false,
                left_behind: false,
            },
            tally,
            duration_ms: 5,
            faults_by: Some("kprobe"),
            not_seen: Vec::new(),
            loss: BTreeMap::new(),
            incomplete_because: Vec::new(),
            left_running: 0,
            looks_skipped: 0,
            around: 16,
            withheld: 0,
            at_least: 99.9,
        }
    }

    #[test]
    fn a_loss_outranks_what_is_unexplained_and_a_share_decides_the_rest() {
        let outcome = |parts| Document::of(parts).outcome;
        assert_eq!(outcome(parts(0, 0)), Outcome::Explained);
        assert_eq!(outcome(parts(1, 0)), Outcome::Explained);
        assert_eq!(outcome(parts(2, 0)), Outcome::Unexplained);
        assert_eq!(outcome(parts(0, 2)), Outcome::Unexplained);
        assert_eq!(outcome(Parts { at_least: 100.0, ..parts(1, 0) }), Outcome::Unexplained);
        let lost = || vec!["ring_full is 1".to_owned()];
        assert_eq!(outcome(Parts { incomplete_because: lost(), ..parts(9, 0) }), Outcome::Incomplete);
        assert_eq!(outcome(Parts { incomplete_because: lost(), ..parts(0, 0) }), Outcome::Incomplete);
        assert_eq!(
            outcome(Parts { tally: Tally::default(), ..parts(0, 0) }),
            Outcome::Incomplete,
            "nothing was looked at"
        );
    }

    #[test]
    fn less_than_all_does_not_look_like_all() {
        assert_eq!(down(percent(999_999, 1_000_000)), "99.99");
        assert_eq!(down(percent(5, 5)), "100.00");
        assert_eq!(down(percent(0, 0)), "100.00");
        let text = Document::of(parts(1, 0)).text();
        assert!(text.starts_with("EXPLAINED: 999 of 1000 pages present are explained (99.90 %)"), "{text}");
    }
}
