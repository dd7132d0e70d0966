//! The strict check: user accesses under a lock that do not fault. It must find them, only it may, and whatever cannot
//! sleep, or is no user access, must stay silent.

use std::collections::HashSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Asked, Fixtures, Tally, exercised, order,
    report::{self, comm, list, text},
    symbols,
    tool::{Ended, Tool, tail},
};
use crate::fixture::cases::{self, CASES, Kind, OFFSET};

/// How a latent case must be told: name, whether the access is a write, whose lock, how it is held.
const LATENT: &[(&str, bool, &str, &str)] = &[
    ("resident", false, "own", "read"),
    ("pinned", false, "own", "read"),
    ("latent-get", false, "own", "read"),
    ("latent-put", true, "foreign", "read"),
    ("latent-iter", true, "foreign", "write"),
    ("latent-mmap", false, "own", "write"),
];

/// Runs these cases.
pub fn run(tool: &Tool, asked: &Asked<'_>, kprobes: bool, fentry: bool, fixtures: Fixtures, tally: &mut Tally) {
    if !kprobes {
        return tally.case("strict/cannot", || cannot(tool));
    }
    if asked.rest() {
        tally.case("strict/probes", || probes(tool));
    }
    if !asked.kernel() {
        return;
    }
    if fixtures.latent() {
        match everything(tool, fixtures) {
            Ok(report) => {
                latent("kprobe", &report, tally);
                tally.case("strict/leaks", || leaks(&report, true));
                tally.case("strict/order", || order::by_access(&report));
                tally.case("strict/faults-are-faults", || faults(&report, fixtures));
                tally.case("strict/nothing-else", || nothing_else(&report, fixtures));
            }
            Err(error) => tally.case("strict/kprobe", || Err(error)),
        }
    } else {
        tally.case("strict/faults-are-faults", || faults(&violating(tool, fixtures)?, fixtures));
    }
    if fixtures.latent() && fentry {
        match by_fentry(tool, fixtures) {
            Ok(report) => latent("fentry", &report, tally),
            Err(error) => tally.case("strict/fentry", || Err(error)),
        }
    }
    tally.case("strict/clean", || clean(tool, fixtures));
}

/// Without kprobes nothing shows user accesses, and that must be said.
fn cannot(tool: &Tool) -> Result<()> {
    let ended = tool.run(tool.check(&["--strict"], &["exit", "0"]))?;
    ensure!(ended.status.code() == Some(3), "ended with {}, not 3: {}", ended.status, tail(&ended.stderr));
    ensure!(ended.stderr.contains("user-access"), "the message does not say what is missing: {}", tail(&ended.stderr));
    Ok(())
}

fn probes(tool: &Tool) -> Result<()> {
    let output =
        tool.command(&["probes", "--strict", "--format", "json"]).output().context("cannot start pagetrace")?;
    let plan: Value = serde_json::from_slice(&output.stdout).context("the plan is not JSON")?;
    let event = list(&plan["events"]).iter().find(|event| text(&event["event"]) == "user-access");
    let event = event.context("the plan has no user-access")?;
    let targets: Vec<_> = list(&event["probes"]).iter().map(|probe| text(&probe["target"])).collect();
    // A loop that carries all copies, or the functions around it.
    let bulk =
        |name: &&str| name.starts_with("copy_user_") || name.starts_with("_copy_") || *name == "rep_movs_alternative";
    ensure!(targets.iter().any(bulk), "no copies are seen: {targets:?}");
    ensure!(plan["not_seen"].to_string().contains("unsafe_get_user"), "not_seen is {}", plan["not_seen"]);
    Ok(())
}

/// A line for each latent case.
fn latent(attach: &str, report: &Value, tally: &mut Tally) {
    for row in LATENT {
        tally.case(&format!("strict/{attach}/{}", row.0), || matches(report, row));
    }
}

/// Every case that is wrong in some way, in one run, and what is so only in the order of its locks.
fn everything(tool: &Tool, fixtures: Fixtures) -> Result<Value> {
    let words = [fixtures.violating()?, vec!["+", "all-latent", "+", "kmod", order::BY_ACCESS]].concat();
    let ended = tool.run(tool.check(&["--strict", "--order", "--attach", "kprobe"], &words))?;
    for kind in [Kind::Latent, Kind::Leaking, Kind::Violating] {
        exercised(&ended, fixtures, kind)?;
    }
    ended.exercised(&format!("kmod {}: ok", order::BY_ACCESS))?;
    judged(&ended)
}

fn by_fentry(tool: &Tool, fixtures: Fixtures) -> Result<Value> {
    let ended = tool.run(tool.check(&["--strict", "--attach", "fentry"], &["all-latent"]))?;
    exercised(&ended, fixtures, Kind::Latent)?;
    let report = judged(&ended)?;
    nothing_else(&report, fixtures)?;
    Ok(report)
}

fn judged(ended: &Ended) -> Result<Value> {
    let report = report::parse(&ended.stdout)?;
    let loss = &report["loss"];
    ensure!(ended.status.code() == Some(1), "ended with {}, not 1: {loss}: {}", ended.status, tail(&ended.stderr));
    ensure!(loss["access_unknown"] == 0, "some could not be judged: {loss}");
    Ok(report)
}

/// An access is told of the cases that make one, a leak of those that leave a lock, a fault of those that take one. Which orders there are
/// is asked elsewhere.
fn nothing_else(report: &Value, fixtures: Fixtures) -> Result<()> {
    let of = |kind| CASES.iter().filter(move |case| case.kind == kind).map(|case| cases::comm_of(case.name));
    let (leaking, faulting) = (of(Kind::Leaking), fixtures.expected().map(|row| cases::comm_of(row.case)));
    let known: HashSet<_> = of(Kind::Latent).chain(leaking).chain(faulting).collect();
    let mut findings = list(&report["findings"]).iter().filter(|it| text(&it["class"]) != "lock-order");
    let stranger = findings.find(|it| !known.contains(comm(it)));
    ensure!(stranger.is_none(), "a finding that no case made: {}", stranger.map_or(&Value::Null, |it| &it["summary"]));
    Ok(())
}

fn matches(report: &Value, (case, write, relation, mode): &(&str, bool, &str, &str)) -> Result<()> {
    let found: Vec<_> = list(&report["findings"]).iter().filter(|it| comm(it) == cases::comm_of(case)).collect();
    let [finding] = found.as_slice() else { anyhow::bail!("{} findings", found.len()) };
    ensure!(text(&finding["class"]) == "uaccess-under-lock", "the class is {}", finding["class"]);
    ensure!(text(&finding["severity"]) == "latent", "the severity is {}", finding["severity"]);
    ensure!(finding["count"] == 1, "one access was made, {} were counted", finding["count"]);
    let (lock, access) = (&finding["locks"][0], &finding["fault"]);
    ensure!(text(&lock["relation"]) == *relation, "the lock is {}", lock["relation"]);
    ensure!(text(&lock["mode"]) == *mode, "the lock is held for {}", lock["mode"]);
    ensure!(access["write"] == *write, "the access is a write: {}", access["write"]);
    if symbols::shows_page_tables()? {
        let state = text(&access["page"]["state"]);
        ensure!(matches!(state, "read-only" | "writable"), "the page is {}", access["page"]);
    }
    let page = cases::page_of(case).context("every case has a page")?;
    ensure!(text(&access["address"]) == format!("{:#x}", page + OFFSET), "the address is {}", access["address"]);
    let named = |stack: &Value| list(stack).iter().any(|frame| text(&frame["symbol"]).starts_with("ptf_"));
    ensure!(named(&access["stack"]), "the access's stack does not name the case: {}", access["stack"]);
    ensure!(named(&lock["stack"]), "the lock's stack does not name the case: {}", lock["stack"]);
    ensure!(!text(&finding["advice"]).is_empty(), "there is no advice");
    Ok(())
}

/// With kprobes hardly anything is skipped, so a run in which nothing was must come soon.
fn clean(tool: &Tool, fixtures: Fixtures) -> Result<()> {
    let mut report = Value::Null;
    for _ in 0..3 {
        let ended = tool.run(tool.check(&["--strict", "--attach", "kprobe"], &fixtures.clean()?))?;
        exercised(&ended, fixtures, Kind::Clean)?;
        report = report::parse(&ended.stdout)?;
        if !report::only_skipped(&report) {
            break;
        }
    }
    report::is_clean(&report)
}

fn violating(tool: &Tool, fixtures: Fixtures) -> Result<Value> {
    let ended = tool.run(tool.check(&["--strict", "--attach", "kprobe"], &fixtures.violating()?))?;
    exercised(&ended, fixtures, Kind::Violating)?;
    report::parse(&ended.stdout)
}

/// An access that faulted is told once, by its fault.
fn faults(report: &Value, fixtures: Fixtures) -> Result<()> {
    // A case that goes back to user space with the lock is told for that as well.
    let is_fault = |finding: &Value| text(&finding["class"]) == "fault-under-lock";
    let report = serde_json::json!({
        "findings": list(&report["findings"]).iter().filter(|it| is_fault(it)).collect::<Vec<_>>()
    });
    for expected in fixtures.expected() {
        report::matches(&report, expected, true).with_context(|| expected.case)?;
    }
    Ok(())
}

/// A lock left behind at the end of a task is found always; one taken to user mode, by a strict check.
///
/// # Errors
/// The first difference.
pub fn leaks(report: &Value, strict: bool) -> Result<()> {
    let expected: &[&str] = if strict { &["leak-exit", "leak-return"] } else { &["leak-exit"] };
    let leaking: Vec<_> =
        CASES.iter().filter(|case| case.kind == Kind::Leaking).map(|case| cases::comm_of(case.name)).collect();
    let theirs = |class: &str| {
        let of = |it: &&Value| text(&it["class"]) == class && leaking.iter().any(|case| case == comm(it));
        list(&report["findings"]).iter().filter(of).collect::<Vec<_>>()
    };
    let findings = theirs("lock-leak");
    for case in expected {
        let found: Vec<_> = findings.iter().filter(|it| comm(it) == cases::comm_of(case)).collect();
        let [finding] = found.as_slice() else { anyhow::bail!("{case}: {} findings: {}", found.len(), report["loss"]) };
        ensure!(text(&finding["severity"]) == "leak", "{case}: the severity is {}", finding["severity"]);
        let lock = &finding["locks"][0];
        ensure!(text(&lock["owner"]["comm"]) == "pagetrace-fixtu", "{case}: the lock is of {}", lock["owner"]);
        let named = list(&lock["stack"]).iter().any(|frame| text(&frame["symbol"]).starts_with("ptf_leak"));
        ensure!(named, "{case}: the lock's stack does not name it: {}", lock["stack"]);
    }
    ensure!(findings.len() == expected.len(), "{} findings, {} expected", findings.len(), expected.len());
    // Whatever the task does until it gives the lock back, it does under the lock, and a strict check says so.
    let latent = theirs("uaccess-under-lock");
    let own = latent.iter().filter(|it| comm(it) == cases::comm_of("leak-return")).count();
    ensure!(latent.len() == own && (strict || own == 0), "{} accesses, {own} with the lock taken along", latent.len());
    Ok(())
}
