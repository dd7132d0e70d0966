//! The verdict: what a run may claim, given what it found and what it could not see.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// What a run comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing found, and nothing that could have hidden a violation.
    Clean,
    /// Violations found.
    Findings,
    /// Nothing found, but something was lost that could have hidden a violation.
    Incomplete,
}

impl Verdict {
    /// As reports spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Findings => "findings",
            Self::Incomplete => "incomplete",
        }
    }
}

/// Named counters. A recording may hold some that this program does not know.
pub type Loss = Vec<(Cow<'static, str>, u64)>;

/// What the verdict is made from.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Findings there are.
    pub findings: usize,
    /// Violations that cannot be told from something benign.
    pub uncertain: u64,
    /// Records that could not be decoded.
    pub unknown_records: u64,
    /// Counters of the BPF object.
    pub loss: Loss,
    /// Reasons the run itself gives, e.g. that it was cut short.
    pub reasons: Vec<String>,
}

/// Counters that can hide a violation, and how a person would say it. The others are told, but hide nothing: a
/// full ring counts here only through the violations it swallowed, an unreadable stack leaves its finding standing,
/// and a hold found stale was found.
const HIDES: [(&str, &str); 17] = [
    ("violation_lost", "violations found no room in the ring buffer: give it more with --ring-bytes"),
    ("task_map_full", "tasks could not be tracked, their map was full: give it more with --max-tasks"),
    (
        "fault_before_known",
        "tasks older than the tracing took a kernel-mode fault while a lock from before it was held, perhaps by them",
    ),
    ("return_missed", "returns of lock functions were missed, so whether a lock was taken is unknown"),
    ("orphan_map_full", "releases by tasks that did not hold the lock could not be remembered"),
    ("target_map_full", "children of the target could not be followed, their map was full"),
    ("kernel_read_failed", "kernel structures could not be read"),
    (
        "handover_failed",
        "programs did not find the one that does the rest of their work, and what they saw was not told",
    ),
    (
        "access_unknown",
        "copies under a lock could not be told from copies within the kernel, or from ones that cannot sleep",
    ),
    ("order_task_map_full", "tasks whose locks were to be followed found no room: give it more with --max-tasks"),
    ("order_held_overflow", "tasks held more sleeping locks than are followed"),
    ("order_edge_map_full", "edges of the lock order found no room and were not told"),
    ("order_edge_lost", "edges of the lock order found no room in the ring buffer: give it more with --ring-bytes"),
    ("order_edge_dropped", "more edges of the lock order were told than are kept"),
    (
        "order_edge_unproven",
        "edges of the lock order were left out: their stacks could not be read, or an interrupt had taken the lock that was held",
    ),
    ("order_return_missed", "returns of lock functions were missed, so locks were not followed"),
    ("recursion_misses", "the kernel skipped events because a program of this tracer was already running on that CPU"),
];

/// The verdict and why a clean one is impossible, one sentence each.
pub fn judge(inputs: &Inputs) -> (Verdict, Vec<String>) {
    let mut because = inputs.reasons.clone();
    for (name, text) in HIDES {
        let count: u64 = inputs.loss.iter().filter(|(known, _)| *known == name).map(|(_, count)| count).sum();
        if count != 0 {
            because.push(format!("{name} = {count}: {text}"));
        }
    }
    if inputs.uncertain != 0 {
        because.push(format!(
            "{} faults were taken by tasks whose lock may have been handed to another task before: they can be violations",
            inputs.uncertain
        ));
    }
    if inputs.unknown_records != 0 {
        because.push(format!("{} records could not be decoded", inputs.unknown_records));
    }
    let verdict = match (inputs.findings, because.is_empty()) {
        (0, true) => Verdict::Clean,
        (0, false) => Verdict::Incomplete,
        _ => Verdict::Findings,
    };
    (verdict, because)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::order::Orders;

    #[test]
    fn clean_needs_that_nothing_could_have_hidden_a_violation() {
        assert_eq!(judge(&Inputs::default()).0, Verdict::Clean);
        for (name, _) in HIDES {
            let (verdict, because) = judge(&Inputs { loss: vec![(name.into(), 1)], ..Inputs::default() });
            assert_eq!(verdict, Verdict::Incomplete, "{name}");
            assert!(because.iter().any(|reason| reason.contains(name)), "{name}");
        }
        let told_only = vec![("unmatched_release".into(), 9), ("ring_full".into(), 3), ("stale_hold".into(), 2)];
        assert_eq!(judge(&Inputs { loss: told_only, ..Inputs::default() }).0, Verdict::Clean);
    }

    #[test]
    fn a_finding_stands_whatever_was_lost() {
        let inputs = Inputs { findings: 1, loss: vec![("violation_lost".into(), 5)], ..Inputs::default() };
        let (verdict, because) = judge(&inputs);
        assert_eq!(verdict, Verdict::Findings);
        assert_eq!(because.len(), 1, "the loss is still told");
    }

    #[test]
    fn every_counter_that_hides_exists() {
        // What the kernel counts, and what is found out on this side.
        let elsewhere: Vec<&str> =
            Orders::default().left_out().map(|(name, _)| name).into_iter().chain(["recursion_misses"]).collect();
        for (name, _) in HIDES {
            assert!(elsewhere.contains(&name) || pagetrace_ebpf::wire::counter::NAMES.contains(&name), "{name}");
        }
        for name in elsewhere {
            assert!(HIDES.iter().any(|(hides, _)| *hides == name), "{name}");
        }
    }
}
