//! A finding of any class, as reports list them: what they have in common, whoever asks. Values in, values out.

use serde::{Deserialize, Serialize};

use super::{
    deadlock::ReportedDeadlock,
    fingerprint,
    order::ReportedInversion,
    report::ReportedFinding,
    stacks::{Stack, function},
};
use crate::{
    analysis::{Class, Severity},
    policy::Excuse,
    symbolize::Frame,
};

/// What tells a finding over time, and whether it counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// The same for the same class and functions, in every run: see `fingerprint.rs`.
    #[serde(default)]
    pub fingerprint: String,
    /// The baseline knows it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub baselined: bool,
    /// Why it does not count; absent when it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excused: Option<Excuse>,
}

/// A finding.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Found {
    /// One task that did what it must not do under a lock.
    Violation(Box<ReportedFinding>),
    /// Tasks that wait for each other.
    Deadlock(Box<ReportedDeadlock>),
    /// Locks that were taken in both orders.
    Inversion(Box<ReportedInversion>),
}

impl Found {
    /// Its class.
    pub fn class(&self) -> Class {
        match self {
            Self::Violation(it) => it.class,
            Self::Deadlock(it) => it.class,
            Self::Inversion(it) => it.class,
        }
    }

    /// Its severity.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Violation(it) => it.severity,
            Self::Deadlock(it) => it.severity,
            Self::Inversion(it) => it.severity,
        }
    }

    /// What tells it over time.
    pub fn marks(&self) -> &Marks {
        match self {
            Self::Violation(it) => &it.marks,
            Self::Deadlock(it) => &it.marks,
            Self::Inversion(it) => &it.marks,
        }
    }

    /// As [`Found::marks`], to change them.
    pub fn marks_mut(&mut self) -> &mut Marks {
        match self {
            Self::Violation(it) => &mut it.marks,
            Self::Deadlock(it) => &mut it.marks,
            Self::Inversion(it) => &mut it.marks,
        }
    }

    /// What happened, in a sentence.
    pub fn summary(&self) -> &str {
        match self {
            Self::Violation(it) => &it.summary,
            Self::Deadlock(it) => &it.summary,
            Self::Inversion(it) => &it.summary,
        }
    }

    /// What to do about it.
    pub fn advice(&self) -> &str {
        match self {
            Self::Violation(it) => &it.advice,
            Self::Deadlock(it) => &it.advice,
            Self::Inversion(it) => &it.advice,
        }
    }

    /// Times it was seen.
    pub fn count(&self) -> u64 {
        match self {
            Self::Violation(it) => it.count,
            Self::Deadlock(_) => 1,
            Self::Inversion(it) => it.count,
        }
    }

    /// Tasks that take part.
    pub fn tasks(&self) -> u64 {
        match self {
            Self::Violation(it) => it.tasks,
            Self::Deadlock(it) => it.tasks.len() as u64,
            Self::Inversion(it) => it.cycle.len() as u64,
        }
    }

    /// All its stacks, locks that are held before what is done under them.
    pub fn stacks(&self) -> Vec<Stack<'_>> {
        match self {
            Self::Violation(it) => it.stacks(),
            Self::Deadlock(it) => it.stacks(),
            Self::Inversion(it) => it.stacks(),
        }
    }

    /// The frame that a person would open first: the caller of the access, or of the lock function.
    pub fn site(&self) -> Option<&Frame> {
        match self {
            Self::Violation(it) => it.site(),
            _ => self.stacks().iter().find_map(|stack| stack.own().first()),
        }
    }

    /// A line that names it without anything that changes from run to run.
    pub fn title(&self) -> String {
        let name = |frame: &Frame| match &frame.module {
            Some(module) => format!("{} [{module}]", function(frame)),
            None => function(frame).to_owned(),
        };
        let site = self.site().map_or_else(|| "unknown code".to_owned(), name);
        format!("{} in {site}", self.class().name())
    }

    /// What the fingerprint is made from.
    fn identity(&self) -> String {
        match self {
            Self::Violation(it) => it.identity(),
            Self::Deadlock(it) => it.identity(),
            Self::Inversion(it) => it.identity(),
        }
    }

    /// With its fingerprint.
    #[must_use]
    pub fn marked(mut self) -> Self {
        self.marks_mut().fingerprint = fingerprint::hash(&self.identity());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        analysis::deadlock::Because,
        output::{
            deadlock::{StandingLock, StandingTask},
            order_text, stacks,
        },
    };

    fn waiting(tid: u32, function: &str) -> StandingTask {
        let frame = Frame {
            addr: "0x1".to_owned(),
            symbol: Some(function.to_owned()),
            offset: 1,
            module: Some("drv".to_owned()),
        };
        let lock = |stack| StandingLock {
            name: "mmap_lock".to_owned(),
            address: "0x1".to_owned(),
            mode: "write".to_owned(),
            stack,
        };
        StandingTask {
            pid: 1,
            tid,
            comm: "a".to_owned(),
            holds: vec![lock(vec![frame])],
            waits_for: lock(Vec::new()),
            because: Because::Holds,
            waits_at: Vec::new(),
        }
    }

    fn deadlock(tasks: Vec<StandingTask>) -> Found {
        Found::Deadlock(Box::new(ReportedDeadlock::of(tasks, Vec::new()))).marked()
    }

    #[test]
    fn each_kind_is_read_back_as_what_it_was() {
        let violation = Found::Violation(Box::new(stacks::tests::finding("f"))).marked();
        let order = order_text::tests::example();
        let inversions = order.inversions().map(|it| Found::Inversion(Box::new(it)).marked());
        let all = [violation, deadlock(vec![waiting(1, "f")])].into_iter().chain(inversions);
        let mut classes = Vec::new();
        for found in all {
            let json = serde_json::to_value(&found).unwrap();
            assert_eq!(json["class"], found.class().name());
            assert_eq!(json["severity"], found.severity().name());
            for key in ["summary", "advice", "fingerprint", "task"] {
                assert!(!json[key].is_null(), "{key} in {json}");
            }
            let read: Found = serde_json::from_value(json.clone()).unwrap();
            assert_eq!(serde_json::to_value(&read).unwrap(), json);
            assert_eq!(std::mem::discriminant(&read), std::mem::discriminant(&found));
            classes.push(found.class());
        }
        assert_eq!(classes, [Class::FaultUnderLock, Class::Deadlock, Class::LockOrder]);
    }

    #[test]
    fn where_a_cycle_begins_makes_no_other_fingerprint() {
        let one = deadlock(vec![waiting(1, "f"), waiting(2, "g")]);
        let turned = deadlock(vec![waiting(7, "g"), waiting(3, "f")]);
        assert_eq!(one.marks().fingerprint, turned.marks().fingerprint);
        let other = deadlock(vec![waiting(1, "f"), waiting(2, "h")]);
        assert_ne!(one.marks().fingerprint, other.marks().fingerprint);
        let fingerprint = |turn| {
            let order = order_text::tests::example();
            let mut inversion = order.inversions().next().unwrap();
            inversion.cycle.rotate_left(turn);
            Found::Inversion(Box::new(inversion)).marked().marks().fingerprint.clone()
        };
        assert_eq!(fingerprint(0), fingerprint(1));
        assert_eq!(one.title(), "deadlock in f [drv]");
    }
}
