//! One report of several recordings of one kernel: findings told once, and the cycles that only all their lock orders together
//! make. Values in, values out.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

use super::{
    found::Found,
    order::{NamedBy, ReportedCycle, ReportedEdge, ReportedLock, ReportedOrder},
    report::{Recording, Report},
};
use crate::analysis::{
    LockMode, Verdict,
    order::{
        Shape,
        graph::{self, Arc, Holds, Wants},
    },
};

/// What cannot be merged, in a sentence.
#[derive(Debug, thiserror::Error)]
#[error("{one} is of kernel {first}, and {other} of {second}: lock orders of different kernels do not add up")]
pub struct Different {
    one: String,
    first: String,
    other: String,
    second: String,
}

/// Merges reports, each with what it is called.
///
/// # Errors
/// When they are of different kernels.
pub fn merge(mut reports: Vec<(String, Report)>) -> Result<Option<Report>, Different> {
    let Some((one, first)) = reports.first() else { return Ok(None) };
    let other = reports.iter().find(|(_, report)| report.kernel.release != first.kernel.release);
    if let Some((other, report)) = other {
        let (first, second) = (first.kernel.release.clone(), report.kernel.release.clone());
        return Err(Different { one: one.clone(), first, other: other.clone(), second });
    }
    if reports.len() == 1 {
        return Ok(reports.pop().map(|(_, report)| report));
    }
    let mut all: Option<Report> = None;
    for (index, (name, mut report)) in reports.into_iter().enumerate() {
        report.coverage.incomplete_because.iter_mut().for_each(|why| *why = format!("{name}: {why}"));
        if let Some(order) = &mut report.order {
            set_apart(order, &name, index);
        }
        match &mut all {
            None => all = Some(report),
            Some(all) => add(all, report),
        }
    }
    Ok(all.map(conclude))
}

/// A lock of which nothing but its address is known is no other recording's.
fn set_apart(order: &mut ReportedOrder, name: &str, index: usize) {
    for edge in &mut order.edges {
        for lock in [&mut edge.held, &mut edge.wanted] {
            if lock.name.by == NamedBy::Address && index > 0 {
                lock.name.text.push_str(&format!(" in {name}"));
            }
        }
    }
}

fn add(all: &mut Report, other: Report) {
    all.duration_ms = all.duration_ms.saturating_add(other.duration_ms);
    all.command = None;
    for finding in other.findings {
        add_finding(&mut all.findings, finding);
    }
    for (name, count) in other.loss {
        let sum = all.loss.entry(name).or_default();
        *sum = sum.saturating_add(count);
    }
    add_by_cpu(&mut all.loss_by_cpu, other.loss_by_cpu);
    for sentence in other.coverage.not_seen {
        if !all.coverage.not_seen.contains(&sentence) {
            all.coverage.not_seen.push(sentence);
        }
    }
    all.coverage.incomplete_because.extend(other.coverage.incomplete_because);
    match (&mut all.order, other.order) {
        (Some(order), Some(other)) => add_order(order, other),
        (order @ None, other) => *order = other,
        (Some(_), None) => {}
    }
    if let (Some(recording), Some(other)) = (&mut all.recording, other.recording) {
        add_recording(recording, other);
    }
}

fn add_by_cpu(all: &mut BTreeMap<Cow<'static, str>, Vec<u64>>, other: BTreeMap<Cow<'static, str>, Vec<u64>>) {
    for (name, by_cpu) in other {
        let sums = all.entry(name).or_default();
        sums.resize(sums.len().max(by_cpu.len()), 0);
        sums.iter_mut().zip(by_cpu).for_each(|(sum, count)| *sum = sum.saturating_add(count));
    }
}

fn add_recording(all: &mut Recording, other: Recording) {
    all.began_ns = all.began_ns.min(other.began_ns);
    for (sum, count) in [
        (&mut all.records, other.records),
        (&mut all.bytes, other.bytes),
        (&mut all.unknown_kinds, other.unknown_kinds),
        (&mut all.agreed, other.agreed),
        (&mut all.disagreed, other.disagreed),
    ] {
        *sum = sum.saturating_add(count);
    }
    all.damage = all.damage.take().or(other.damage);
}

/// The same finding counts on, and is shown at its worst.
fn add_finding(all: &mut Vec<Found>, other: Found) {
    let known = all.iter_mut().find(|known| known.marks().fingerprint == other.marks().fingerprint);
    match (known, other) {
        (Some(Found::Violation(known)), Found::Violation(mut other)) => {
            let (count, tasks) = (known.count.saturating_add(other.count), known.tasks.saturating_add(other.tasks));
            if other.severity > known.severity {
                std::mem::swap(known, &mut other);
            }
            (known.count, known.tasks) = (count, tasks);
        }
        (Some(_), _) => {}
        (None, other) => all.push(other),
    }
}

fn add_order(all: &mut ReportedOrder, other: ReportedOrder) {
    let key = |edge: &ReportedEdge| {
        let lock = |lock: &ReportedLock| (lock.name.text.clone(), lock.mode);
        // Address spaces of one recording are not those of another.
        let both = is_mmap(&edge.held) && is_mmap(&edge.wanted);
        (!both).then(|| (lock(&edge.held), lock(&edge.wanted), edge.cause))
    };
    let mut places: HashMap<_, usize> =
        all.edges.iter().enumerate().filter_map(|(at, edge)| Some((key(edge)?, at))).collect();
    let mut moved = Vec::new();
    for edge in other.edges {
        let new = all.edges.len();
        let at = key(&edge).map_or(new, |key| *places.entry(key).or_insert(new));
        match all.edges.get_mut(at) {
            Some(known) => known.count = known.count.saturating_add(edge.count),
            None => all.edges.push(edge),
        }
        moved.push(at);
    }
    all.dropped = all.dropped.saturating_add(other.dropped);
    all.cycles.extend(other.cycles.into_iter().map(|cycle| ReportedCycle {
        shape: cycle.shape,
        edges: cycle.edges.iter().filter_map(|&at| moved.get(at).copied()).collect(),
    }));
}

fn is_mmap(lock: &ReportedLock) -> bool {
    lock.name.by == NamedBy::MmStruct
}

/// The cycles through classes are those of all edges together.
fn cycles(order: &mut ReportedOrder) {
    let usable = order.edges.iter().enumerate();
    let usable: Vec<(usize, &ReportedEdge)> =
        usable.filter(|(_, edge)| edge.known.is_none() && !(is_mmap(&edge.held) && is_mmap(&edge.wanted))).collect();
    fn arc<'a>(edge: &'a ReportedEdge) -> Arc<Node<'a>> {
        let read = |lock: &ReportedLock| lock.mode == LockMode::Read;
        Arc {
            from: node(&edge.held),
            to: node(&edge.wanted),
            holds: if read(&edge.held) { Holds::Shared } else { Holds::Exclusive },
            wants: if read(&edge.wanted) { Wants::Shared } else { Wants::Exclusive },
        }
    }
    let arcs: Vec<Arc<Node<'_>>> = usable.iter().map(|(_, edge)| arc(edge)).collect();
    let found = graph::through(&arcs, Node::Mmap).into_iter().map(|cycle| ReportedCycle {
        shape: Shape::Classes,
        edges: cycle.iter().filter_map(|&at| usable.get(at)).map(|(index, _)| *index).collect(),
    });
    let found: Vec<ReportedCycle> = found.collect();
    order.cycles.retain(|cycle| cycle.shape != Shape::Classes);
    order.cycles.extend(found);
}

/// A class, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Node<'a> {
    Mmap,
    Other(&'a str),
}

fn node(lock: &ReportedLock) -> Node<'_> {
    if is_mmap(lock) { Node::Mmap } else { Node::Other(&lock.name.text) }
}

fn conclude(mut all: Report) -> Report {
    if let Some(order) = &mut all.order {
        cycles(order);
        all.findings.retain(|found| !matches!(found, Found::Inversion(_)));
        all.findings.extend(order.inversions().map(|it| Found::Inversion(Box::new(it)).marked()));
    }
    all.verdict = match (all.findings.is_empty(), all.coverage.incomplete_because.is_empty()) {
        (false, _) => Verdict::Findings,
        (true, false) => Verdict::Incomplete,
        (true, true) => Verdict::Clean,
    };
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{order_text::tests::example, stacks::tests::finding};

    fn report(release: &str, order: Option<ReportedOrder>, functions: &[&str]) -> Report {
        let text = serde_json::json!({
            "schema": "pagetrace.report/1", "verdict": "clean", "kernel": { "release": release, "machine": "x86_64" },
            "command": null, "duration_ms": 5, "findings": [], "loss": { "ring_full": 1 },
            "loss_by_cpu": { "ring_full": [1] }, "skipped_by_program": {},
            "coverage": { "events": [], "not_seen": ["a"], "incomplete_because": [] },
        });
        let mut report: Report = serde_json::from_value(text).unwrap();
        report.order = order;
        report.findings = functions.iter().map(|function| Found::Violation(Box::new(finding(function)))).collect();
        report
    }

    /// One edge of the example, and what it says is a cycle left out.
    fn edge(index: usize) -> ReportedOrder {
        let order = example();
        ReportedOrder { cycles: Vec::new(), edges: vec![order.edges[index].clone()], dropped: 0 }
    }

    fn merged(reports: Vec<Report>) -> Report {
        let named = reports.into_iter().enumerate().map(|(index, report)| (format!("r{index}"), report));
        merge(named.collect()).unwrap().unwrap()
    }

    #[test]
    fn orders_that_are_right_alone_are_an_inversion_together() {
        for index in [0, 1] {
            assert_eq!(merged(vec![report("6", Some(edge(index)), &[])]).verdict, Verdict::Clean);
        }
        let both = merged(vec![report("6", Some(edge(0)), &[]), report("6", Some(edge(1)), &[])]);
        let [Found::Inversion(found)] = both.findings.as_slice() else { panic!("{:?}", both.findings) };
        assert_eq!((found.shape, found.cycle.len()), (Shape::Classes, 2));
        assert_eq!(both.verdict, Verdict::Findings);
        // The same as one recording would have said.
        let alone = Found::Inversion(Box::new(example().inversions().next().unwrap())).marked();
        assert_eq!(found.marks.fingerprint, alone.marks().fingerprint);
        assert_eq!((both.duration_ms, both.loss["ring_full"], &both.loss_by_cpu["ring_full"]), (10, 2, &vec![2]));
    }

    #[test]
    fn what_is_in_both_is_told_once_and_counted() {
        let all = merged(vec![report("6", Some(example()), &["f"]), report("6", Some(example()), &["f", "g"])]);
        let counts: Vec<u64> = all.findings.iter().map(Found::count).collect();
        assert_eq!(counts, [2, 1, 2], "f twice, g, and the inversion as often as its rarest edge");
        assert_eq!(all.order.unwrap().edges.len(), 2);
    }

    #[test]
    fn a_lock_without_a_name_is_no_other_recording_s() {
        let unnamed = |index| {
            let mut order = edge(index);
            let lock = if index == 0 { &mut order.edges[0].wanted } else { &mut order.edges[0].held };
            (lock.name.text, lock.name.by) = ("lock at 0x1".to_owned(), NamedBy::Address);
            order
        };
        let all = merged(vec![report("6", Some(unnamed(0)), &[]), report("6", Some(unnamed(1)), &[])]);
        assert!(all.findings.is_empty(), "{:?}", all.findings);
    }

    #[test]
    fn reasons_say_whose_they_are_and_kernels_are_not_mixed() {
        let mut lost = report("6", None, &[]);
        lost.coverage.incomplete_because.push("lost".to_owned());
        let all = merged(vec![report("6", None, &[]), lost]);
        assert_eq!((all.verdict, all.coverage.incomplete_because), (Verdict::Incomplete, vec!["r1: lost".to_owned()]));
        let named = [("a", "6"), ("b", "7")].map(|(name, release)| (name.to_owned(), report(release, None, &[])));
        assert!(merge(named.to_vec()).unwrap_err().to_string().contains("b of 7"));
    }
}
