//! What passes and what does not, from findings made by hand.

use super::{baseline::Entry, *};
use crate::output::{order_text, stacks::tests::finding};

const TODAY: &str = "2026-06-15";

fn today() -> NaiveDate {
    TODAY.parse().unwrap()
}

/// A report of these findings; `lost` is a reason why nothing can be called clean.
fn report(functions: &[&str], lost: Option<&str>) -> Report {
    let text = serde_json::json!({
        "schema": "pagetrace.report/1",
        "verdict": if !functions.is_empty() { "findings" } else if lost.is_some() { "incomplete" } else { "clean" },
        "kernel": { "release": "6.12.0", "machine": "x86_64" },
        "command": null, "duration_ms": 1, "findings": [], "loss": {}, "loss_by_cpu": {}, "skipped_by_program": {},
        "coverage": { "events": [], "not_seen": [], "incomplete_because": lost.iter().collect::<Vec<_>>() },
    });
    let mut report: Report = serde_json::from_value(text).unwrap();
    report.findings = functions.iter().map(|function| Found::Violation(Box::new(finding(function)))).collect();
    report
}

fn entry(function: &str, expires: Option<&str>) -> Entry {
    Entry {
        fingerprint: finding(function).marks.fingerprint,
        reason: "known".into(),
        expires: expires.map(|date| date.parse().unwrap()),
        about: String::new(),
    }
}

fn known(entries: Vec<Entry>) -> Policy {
    Policy { baseline: Some(Baseline { findings: entries, ..Baseline::default() }), ..Policy::default() }
}

fn judged(policy: &Policy, functions: &[&str], lost: Option<&str>) -> (Report, Outcome) {
    let mut report = report(functions, lost);
    let verdict = report.verdict;
    policy.apply(&mut report, today());
    assert_eq!(report.verdict, verdict, "a policy never changes what was seen");
    let outcome = report.policy.clone().unwrap();
    (report, outcome)
}

#[test]
fn without_a_policy_nothing_is_added() {
    let mut report = report(&["f"], None);
    Policy::default().apply(&mut report, today());
    assert!(report.policy.is_none() && report.findings[0].marks().excused.is_none());
    let text = serde_json::to_string(&report).unwrap();
    assert!(!text.contains("baselined") && !text.contains("excused") && !text.contains("policy"), "{text}");
}

#[test]
fn a_run_whose_findings_are_all_known_passes_and_says_so() {
    let (report, outcome) = judged(&known(vec![entry("f", None), entry("gone", None)]), &["f"], None);
    assert_eq!((outcome.result, outcome.counted, outcome.baselined), (Decision::Pass, 0, 1));
    assert!(report.findings[0].marks().baselined);
    assert_eq!(report.findings[0].marks().excused.as_ref().unwrap().reason, "known");
    assert_eq!(outcome.unused, [finding("gone").marks.fingerprint]);
}

#[test]
fn one_that_is_not_known_counts() {
    let (report, outcome) = judged(&known(vec![entry("f", None)]), &["f", "g"], None);
    assert_eq!((outcome.result, outcome.counted, outcome.baselined), (Decision::Fail, 1, 1));
    assert!(report.findings[0].marks().baselined && !report.findings[1].marks().baselined);
}

#[test]
fn an_entry_that_is_over_counts_again_and_says_so() {
    let (_, outcome) = judged(&known(vec![entry("f", Some("2026-06-14"))]), &["f"], None);
    assert_eq!((outcome.result, outcome.counted), (Decision::Fail, 1));
    assert!(outcome.expired[0].contains("expired on 2026-06-14: known"), "{outcome:?}");
    assert!(outcome.because.iter().any(|why| why.contains("expired")), "{outcome:?}");
    let (_, outcome) = judged(&known(vec![entry("f", Some(TODAY))]), &["f"], None);
    assert_eq!((outcome.result, outcome.expired.len()), (Decision::Pass, 0));
}

#[test]
fn what_was_lost_counts_when_nothing_was_found_or_coverage_is_required() {
    let policy = known(vec![entry("f", None)]);
    let strict = Policy { require_coverage: true, ..policy.clone() };
    for (policy, functions, lost, result) in [
        (&policy, &[][..], None, Decision::Pass),
        (&policy, &[], Some("lost"), Decision::Incomplete),
        (&policy, &["f"], Some("lost"), Decision::Pass),
        (&strict, &["f"], Some("lost"), Decision::Incomplete),
        (&strict, &["f"], None, Decision::Pass),
        (&strict, &["f", "g"], Some("lost"), Decision::Fail),
    ] {
        assert_eq!(judged(policy, functions, lost).1.result, result, "{functions:?} {lost:?}");
    }
    let (_, outcome) = judged(&policy, &["f"], Some("lost"));
    assert!(outcome.because.iter().any(|why| why.contains("--require-coverage")), "{outcome:?}");
}

#[test]
fn fail_on_takes_classes_and_severities_and_worse() {
    for (fail_on, result) in [
        ("any", Decision::Fail),
        ("fault-under-lock", Decision::Fail),
        ("fault-under-lock:cross-mm", Decision::Fail),
        ("fault-under-lock:recursive-read", Decision::Fail),
        ("fault-under-lock:deadlock", Decision::Pass),
        ("lock-leak", Decision::Pass),
        ("any:deadlock", Decision::Pass),
    ] {
        let policy = Policy { fail_on: vec![fail_on.parse().unwrap()], ..Policy::default() };
        assert_eq!(judged(&policy, &["f"], None).1.result, result, "{fail_on}");
    }
}

#[test]
fn suppressions_hold_by_function_module_and_class_until_their_day() {
    for (rule, result) in [
        ("function = \"f\"", Decision::Pass),
        ("function = \"f*\"", Decision::Pass),
        ("function = \"f_other\"", Decision::Fail),
        ("module = \"drv\"", Decision::Pass),
        ("module = \"other\"", Decision::Fail),
        ("class = \"fault-under-lock\"\nfunction = \"f\"", Decision::Pass),
        ("class = \"lock-leak\"\nfunction = \"f\"", Decision::Fail),
        ("function = \"f\"\nexpires = \"2026-06-15\"", Decision::Pass),
        ("function = \"f\"\nexpires = \"2026-06-14\"", Decision::Fail),
    ] {
        let text = format!("version = 1\n[[suppress]]\nreason = \"r\"\n{rule}\n");
        let policy = Policy { suppressions: Some(Suppressions::parse(&text).unwrap()), ..Policy::default() };
        let (report, outcome) = judged(&policy, &["f"], None);
        assert_eq!(outcome.result, result, "{rule}");
        assert!(!report.findings[0].marks().baselined);
    }
}

#[test]
fn edges_of_the_order_are_new_or_known() {
    let order = order_text::tests::example();
    let run = |baseline: Baseline, require_known_order| {
        let mut report = report(&[], None);
        report.order = Some(order.clone());
        Policy { baseline: Some(baseline), require_known_order, ..Policy::default() }.apply(&mut report, today());
        let new: Vec<_> = report.order.iter().flat_map(|order| &order.edges).map(|edge| edge.new).collect();
        (report.policy.unwrap(), new)
    };
    let known = |count: usize| {
        let mut baseline = Baseline::default();
        baseline.add_edges(order.edges.iter().take(count).map(|edge| (edge.fingerprint.as_str(), edge.title())));
        baseline
    };
    // A baseline that was made without an order says nothing about it.
    let (outcome, new) = run(Baseline::default(), true);
    assert_eq!((outcome.result, outcome.new_edges, new), (Decision::Pass, None, vec![None, None]));
    let (outcome, new) = run(known(1), false);
    assert_eq!((outcome.result, outcome.new_edges, new), (Decision::Pass, Some(1), vec![Some(false), Some(true)]));
    let (outcome, _) = run(known(1), true);
    assert_eq!(outcome.result, Decision::Fail);
    assert_eq!(outcome.because, ["edges of the lock order that the baseline does not know: 1"]);
    let (outcome, new) = run(known(2), true);
    assert_eq!((outcome.result, outcome.new_edges, new), (Decision::Pass, Some(0), vec![Some(false), Some(false)]));
    // An order that nobody watched is not known.
    let mut unwatched = report(&[], None);
    Policy { baseline: Some(known(1)), require_known_order: true, ..Policy::default() }.apply(&mut unwatched, today());
    assert_eq!(unwatched.policy.unwrap().result, Decision::Incomplete);
    // What the kernel is known to do rightly is not news.
    let mut legal = order.clone();
    legal.edges[1].known = Some("fork".into());
    let mut report = report(&[], None);
    report.order = Some(legal);
    Policy { baseline: Some(known(1)), require_known_order: true, ..Policy::default() }.apply(&mut report, today());
    assert_eq!(report.policy.unwrap().new_edges, Some(0));
}
