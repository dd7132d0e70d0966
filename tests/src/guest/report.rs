//! Holds a report of pagetrace against what is expected. Pure.

use std::collections::HashSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::expect::{Expected, Hanging};
use crate::fixture::cases::{self, CASES, Script};

/// The report in what a run wrote to its standard output.
///
/// # Errors
/// When there is none, or it is of another schema.
pub fn parse(stdout: &str) -> Result<Value> {
    let start = stdout.find('{').with_context(|| format!("no report on stdout: {stdout:?}"))?;
    let mut documents = serde_json::Deserializer::from_str(&stdout[start..]).into_iter::<Value>();
    let report = documents.next().context("no report on stdout")?.context("the report is not JSON")?;
    ensure!(text(&report["schema"]) == "pagetrace.report/1", "the schema is {}", report["schema"]);
    Ok(report)
}

/// The string, or nothing where it is none.
#[must_use]
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The elements, or none where it is no array.
#[must_use]
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The name of the task a finding is about.
#[must_use]
pub fn comm(finding: &Value) -> &str {
    text(&finding["task"]["comm"])
}

/// One counter.
pub fn loss(report: &Value, counter: &str) -> u64 {
    report["loss"][counter].as_u64().unwrap_or(0)
}

/// How much was lost, over all counters.
#[must_use]
pub fn lost(report: &Value) -> u64 {
    report["loss"].as_object().map_or(0, |counters| counters.values().filter_map(Value::as_u64).sum())
}

fn hex(value: &Value) -> Option<u64> {
    u64::from_str_radix(text(value).strip_prefix("0x")?, 16).ok()
}

/// Whether the report has what is expected of a case, and nothing else about it. `vma` says whether the attach type shows
/// the VMA of a fault.
///
/// # Errors
/// The first difference.
pub fn matches(report: &Value, expected: &Expected, vma: bool) -> Result<()> {
    let name = cases::comm_of(expected.case);
    let found: Vec<_> = list(&report["findings"]).iter().filter(|finding| comm(finding) == name).collect();
    ensure!(!found.is_empty(), "not found, but should be: {}; {}", expected.reason, report["loss"]);
    // A case of the module locks in one place and touches memory in one; the BPF iterator locks in several. Where nothing is mapped,
    // some kernels try what is left of a copy again byte by byte (arch/x86/lib/copy_user_64.S until 6.3).
    let several = cases::find(expected.case).is_none_or(|case| case.script == Script::Unmapped);
    ensure!(several || found.len() == 1, "one pair of stacks gave {} findings", found.len());
    found.into_iter().try_for_each(|finding| finding_matches(finding, expected, vma))
}

fn finding_matches(finding: &Value, expected: &Expected, vma: bool) -> Result<()> {
    let class = text(&finding["class"]);
    ensure!(class == "fault-under-lock", "the class is {class}");
    let severity = text(&finding["severity"]);
    ensure!(severity == expected.severity, "the severity is {severity}, not {}", expected.severity);
    ensure!(finding["hung"] == false, "it is said to hang");
    ensure!(finding["count"].as_u64().is_some_and(|count| count > 0), "the count is {}", finding["count"]);
    ensure!(finding["tasks"] == 1, "one task does it, and the report says {}", finding["tasks"]);
    ensure!(!text(&finding["advice"]).is_empty(), "there is no advice");
    let locks = list(&finding["locks"]);
    ensure!(locks.len() == expected.locks, "{} locks are held, not {}", locks.len(), expected.locks);
    let mut owners = HashSet::new();
    for lock in locks {
        let (mode, relation) = (text(&lock["mode"]), text(&lock["relation"]));
        ensure!(mode == expected.mode, "the lock is held for {mode}, not {}", expected.mode);
        ensure!(relation == expected.relation, "the lock is {relation}, not {}", expected.relation);
        let same = lock["mm"] == finding["fault"]["mm"];
        ensure!(same == (relation == "own"), "the lock is {relation}, but its mm and the fault's say otherwise");
        owners.insert(owned(lock, finding, expected.case)?);
        symbolized(&lock["stack"]).context("the lock's stack")?;
        ensure!(lock["held_ns"].as_u64().is_some_and(|time| time > 0), "the lock is held for {}", lock["held_ns"]);
    }
    ensure!(owners.len() == locks.len(), "several locks are said to be of one process");
    let fault = &finding["fault"];
    let address = hex(&fault["address"]).with_context(|| format!("the address is {}", fault["address"]))?;
    ensure!(expected.touches(address), "the address is {address:#x}, which the case does not touch");
    ensure!(fault["write"] == expected.write, "the access is a write: {}", fault["write"]);
    let owner = text(&fault["owner"]["comm"]);
    ensure!(owner == cases::comm_of(expected.case), "the faulting mm is said to be {owner:?}'s");
    symbolized(&fault["stack"]).context("the fault's stack")?;
    let mapped = cases::find(expected.case).is_none_or(|case| case.script != Script::Unmapped);
    if vma && !mapped {
        ensure!(fault["vma"].is_null(), "nothing is mapped there, and the VMA is {}", fault["vma"]);
    } else if vma {
        let (start, end) = (hex(&fault["vma"]["start"]), hex(&fault["vma"]["end"]));
        let inside = start.zip(end).is_some_and(|(start, end)| (start..end).contains(&address));
        ensure!(inside, "the VMA is {}, and the address {address:#x}", fault["vma"]);
        ensure!(text(&fault["vma"]["perms"]) == "rw-p", "the VMA is {}", fault["vma"]);
    }
    Ok(())
}

/// Whether each fault of the fixtures has the page tables' word for what was done to its page before: nothing, but for the
/// one that was read, and is then written to.
///
/// # Errors
/// The first that has not.
pub fn pages_are_as_left(report: &Value) -> Result<()> {
    let faults: Vec<_> =
        list(&report["findings"]).iter().filter(|it| text(&it["class"]) == "fault-under-lock").collect();
    ensure!(!faults.is_empty(), "there are no faults");
    for fault in faults {
        let page = &fault["fault"]["page"];
        let only_read = CASES.iter().any(|it| it.script == Script::OnZeros && cases::comm_of(it.name) == comm(fault));
        let expected = if only_read { "read-only" } else { "not-mapped" };
        ensure!(text(&page["state"]) == expected, "{}: the page is {page}, not {expected}", comm(fault));
    }
    Ok(())
}

/// The process whose lock it is said to be, when that can be true.
fn owned(lock: &Value, finding: &Value, case: &str) -> Result<u64> {
    let owner = &lock["owner"];
    let (pid, comm) = (owner["pid"].as_u64(), text(&owner["comm"]));
    let pid = pid.filter(|pid| *pid > 0).with_context(|| format!("the owner is {owner}"))?;
    let own = lock["relation"] == "own";
    // The other processes are fixture programs that have not taken a case's name.
    let expected = if own { cases::comm_of(case) } else { "pagetrace-fixtu".to_owned() };
    ensure!(comm == expected, "the owner is called {comm:?}, not {expected:?}");
    // A kernel thread that uses an address space does not own it.
    let itself = own && finding["task"]["kernel_thread"] == false;
    let task = finding["task"]["pid"].as_u64();
    ensure!((task == Some(pid)) == itself, "the owner is process {pid}, and the task of {task:?}");
    Ok(pid)
}

/// Whether the report says what a hanging case is: that the command hung, and in what.
///
/// # Errors
/// The first difference.
pub fn hangs(report: &Value, expected: &Hanging, hung: bool) -> Result<()> {
    ensure!(report["command"]["hung"] == hung, "whether the command hangs is told wrong: {}", report["command"]);
    let name = cases::comm_of(expected.case);
    let finding = list(&report["findings"]).iter().find(|finding| comm(finding) == name).context("not found")?;
    let severity = text(&finding["severity"]);
    ensure!(severity == expected.severity, "the severity is {severity}, not {}", expected.severity);
    ensure!(finding["hung"] == hung, "whether the finding hangs is told wrong: {}", finding["hung"]);
    let (stuck, tid) = (list(&finding["stuck_tids"]), &finding["task"]["tid"]);
    ensure!(stuck.contains(tid) == hung, "the stuck tasks are {stuck:?}, and the finding's is {tid}");
    ensure!(!text(&finding["advice"]).is_empty(), "there is no advice");
    let lock = &finding["locks"][0];
    ensure!(lock["mode"] == expected.mode, "the lock is held for {}", lock["mode"]);
    ensure!(lock["relation"] == "own", "the lock is {}", lock["relation"]);
    ensure!(lock["held_ns"].as_u64().is_some_and(|time| time > 0), "the lock is held for {}", lock["held_ns"]);
    let queued = lock["writer_queued"].as_bool();
    ensure!(queued == expected.writer_queued, "a writer is queued: {}", lock["writer_queued"]);
    owned(lock, finding, expected.case)?;
    Ok(())
}

fn symbolized(stack: &Value) -> Result<()> {
    let named = list(stack).iter().filter(|frame| !text(&frame["symbol"]).is_empty()).count();
    ensure!(named > 0, "no frame of {} has a symbol", list(stack).len());
    // The tracer's own programs that walked tasks are gone, and what lies there now has another name.
    let gone = list(stack)
        .iter()
        .find(|frame| ["_it_locked", "_it_task"].iter().any(|it| text(&frame["symbol"]).ends_with(it)));
    ensure!(gone.is_none(), "a frame has the name of a program that is gone: {gone:?}");
    Ok(())
}

/// Whether the report says that all is well, and that it looked.
///
/// # Errors
/// The first finding or reason to doubt.
pub fn is_clean(report: &Value) -> Result<()> {
    if let Some(finding) = list(&report["findings"]).first() {
        anyhow::bail!("a finding about {}: {}", comm(finding), text(&finding["summary"]));
    }
    let verdict = text(&report["verdict"]);
    let because = &report["coverage"]["incomplete_because"];
    ensure!(verdict == "clean", "the verdict is {verdict}: {because}");
    Ok(())
}

/// Whether nothing was found, and all that stands against a clean verdict is that the kernel skipped events, which one
/// that preempts programs does. A release whose acquisition was skipped looks like that of a lock older than the tracing.
pub fn only_skipped(report: &Value) -> bool {
    let reasons = list(&report["coverage"]["incomplete_because"]);
    let of = |reason: &Value, counter: &str| text(reason).starts_with(counter);
    list(&report["findings"]).is_empty()
        && reasons.iter().any(|reason| of(reason, "recursion_misses"))
        && reasons.iter().all(|reason| of(reason, "recursion_misses") || of(reason, "fault_before_known"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::guest::expect::{HANGING, MODULE};

    fn read_own() -> Value {
        let address = cases::page_of("read-own").unwrap_or_default() + cases::OFFSET;
        let stack = json!([{"addr": "0x1", "symbol": "ptf_read_own", "offset": 1, "module": "pagetrace_fixture"}]);
        let owner = json!({"pid": 1, "comm": "ptf-read-own"});
        json!({"schema": "pagetrace.report/1", "verdict": "findings", "findings": [{
            "class": "fault-under-lock", "severity": "recursive-read", "count": 1, "tasks": 1, "hung": false,
            "advice": "Do not.",
            "task": {"pid": 1, "tid": 1, "comm": "ptf-read-own", "kernel_thread": false},
            "locks": [{"mm": "0x10", "relation": "own", "owner": owner, "mode": "read", "held_ns": 1, "stack": stack}],
            "fault": {"address": format!("{address:#x}"), "write": false, "mm": "0x10", "owner": owner, "stack": stack,
                "vma": {"start": format!("{:#x}", address & !0xfff), "end": format!("{:#x}", (address | 0xfff) + 1),
                    "perms": "rw-p"}}}]})
    }

    fn write_own() -> Value {
        json!({"command": {"hung": true}, "findings": [{
            "severity": "deadlock", "hung": true, "stuck_tids": [1], "advice": "Do not.",
            "task": {"pid": 1, "tid": 1, "comm": "ptf-write-own", "kernel_thread": false},
            "locks": [{"relation": "own", "owner": {"pid": 1, "comm": "ptf-write-own"}, "mode": "write", "held_ns": 1,
                "writer_queued": null}]}]})
    }

    #[test]
    fn a_report_is_found_behind_other_output() {
        let text = format!("noise\n{}\n", read_own());
        assert!(parse(&text).is_ok());
        assert!(parse("noise").is_err());
        assert!(parse("{\"schema\": \"other\"}").is_err());
    }

    #[test]
    fn every_field_counts() {
        assert!(matches(&read_own(), &MODULE[0], true).is_ok());
        assert!(matches(&read_own(), &MODULE[1], true).is_err());
        for (pointer, wrong) in [
            ("/findings/0/severity", json!("cross-mm")),
            ("/findings/0/locks/0/mode", json!("write")),
            ("/findings/0/locks/0/mm", json!("0x11")),
            ("/findings/0/fault/address", json!("0x1a0000000000")),
            ("/findings/0/fault/stack", json!([])),
            ("/findings/0/fault/owner", json!(null)),
            ("/findings/0/tasks", json!(2)),
            ("/findings/0/advice", json!("")),
            ("/findings/0/locks/0/held_ns", json!(0)),
            ("/findings/0/locks/0/owner/pid", json!(2)),
            ("/findings/0/locks/0/owner/comm", json!("init")),
            ("/findings/0/locks/0/stack/0/symbol", json!(null)),
        ] {
            let mut report = read_own();
            *report.pointer_mut(pointer).expect("the field is there") = wrong;
            assert!(matches(&report, &MODULE[0], true).is_err(), "{pointer}");
        }
        let mut twice = read_own();
        twice["findings"] = json!([twice["findings"][0], twice["findings"][0]]);
        assert!(matches(&twice, &MODULE[0], true).is_err(), "two findings of one pair of stacks");
    }

    #[test]
    fn the_vma_counts_where_it_is_shown() {
        for wrong in [json!(null), json!({"start": "0x1000", "end": "0x2000", "perms": "rw-p"})] {
            let mut report = read_own();
            report["findings"][0]["fault"]["vma"] = wrong;
            assert!(matches(&report, &MODULE[0], true).is_err());
            assert!(matches(&report, &MODULE[0], false).is_ok());
        }
    }

    #[test]
    fn a_hang_is_told_with_its_reason() {
        assert!(hangs(&write_own(), &HANGING[0], true).is_ok());
        assert!(hangs(&write_own(), &HANGING[1], true).is_err());
        assert!(hangs(&write_own(), &HANGING[0], false).is_err());
        for (pointer, wrong) in [
            ("/command/hung", json!(false)),
            ("/findings/0/hung", json!(false)),
            ("/findings/0/stuck_tids", json!([2])),
            ("/findings/0/advice", json!("")),
            ("/findings/0/locks/0/mode", json!("read")),
            ("/findings/0/locks/0/writer_queued", json!(true)),
            ("/findings/0/locks/0/held_ns", json!(0)),
            ("/findings/0/locks/0/owner/pid", json!(2)),
        ] {
            let mut report = write_own();
            *report.pointer_mut(pointer).expect("the field is there") = wrong;
            assert!(hangs(&report, &HANGING[0], true).is_err(), "{pointer}");
        }
    }

    #[test]
    fn clean_needs_the_verdict() {
        assert!(is_clean(&json!({"verdict": "clean", "findings": []})).is_ok());
        assert!(is_clean(&json!({"verdict": "incomplete", "findings": []})).is_err());
        assert!(is_clean(&read_own()).is_err());
    }
}
