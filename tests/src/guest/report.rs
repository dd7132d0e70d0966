//! Holds a report of pagetrace against what is expected. Pure.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::expect::Expected;
use crate::fixture::cases;

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

/// How much was lost, over all counters.
#[must_use]
pub fn lost(report: &Value) -> u64 {
    report["loss"].as_object().map_or(0, |counters| counters.values().filter_map(Value::as_u64).sum())
}

fn hex(value: &Value) -> Option<u64> {
    u64::from_str_radix(text(value).strip_prefix("0x")?, 16).ok()
}

/// Whether the report has what is expected of a case, and nothing else about it.
///
/// # Errors
/// The first difference.
pub fn matches(report: &Value, expected: &Expected) -> Result<()> {
    let name = cases::comm_of(expected.case);
    let found: Vec<_> = list(&report["findings"]).iter().filter(|finding| comm(finding) == name).collect();
    ensure!(!found.is_empty(), "not found, but should be: {}", expected.reason);
    found.into_iter().try_for_each(|finding| finding_matches(finding, expected))
}

fn finding_matches(finding: &Value, expected: &Expected) -> Result<()> {
    let class = text(&finding["class"]);
    ensure!(class == "fault-under-lock", "the class is {class}");
    let severity = text(&finding["severity"]);
    ensure!(severity == expected.severity, "the severity is {severity}, not {}", expected.severity);
    ensure!(finding["hung"] == false, "it is said to hang");
    ensure!(finding["count"].as_u64().is_some_and(|count| count > 0), "the count is {}", finding["count"]);
    let locks = list(&finding["locks"]);
    ensure!(locks.len() == expected.locks, "{} locks are held, not {}", locks.len(), expected.locks);
    for lock in locks {
        let (mode, relation) = (text(&lock["mode"]), text(&lock["relation"]));
        ensure!(mode == expected.mode, "the lock is held for {mode}, not {}", expected.mode);
        ensure!(relation == expected.relation, "the lock is {relation}, not {}", expected.relation);
        let same = lock["mm"] == finding["fault"]["mm"];
        ensure!(same == (relation == "own"), "the lock is {relation}, but its mm and the fault's say otherwise");
        symbolized(&lock["stack"]).context("the lock's stack")?;
    }
    let fault = &finding["fault"];
    let address = hex(&fault["address"]).with_context(|| format!("the address is {}", fault["address"]))?;
    ensure!(expected.touches(address), "the address is {address:#x}, which the case does not touch");
    ensure!(fault["write"] == expected.write, "the access is a write: {}", fault["write"]);
    symbolized(&fault["stack"]).context("the fault's stack")?;
    Ok(())
}

fn symbolized(stack: &Value) -> Result<()> {
    let named = list(stack).iter().filter(|frame| !text(&frame["symbol"]).is_empty()).count();
    ensure!(named > 0, "no frame of {} has a symbol", list(stack).len());
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::guest::expect::MODULE;

    fn read_own() -> Value {
        let address = cases::page_of("read-own").unwrap_or_default() + cases::OFFSET;
        let stack = json!([{"addr": "0x1", "symbol": "ptf_read_own", "offset": 1, "module": "pagetrace_fixture"}]);
        json!({"schema": "pagetrace.report/1", "verdict": "findings", "findings": [{
            "class": "fault-under-lock", "severity": "recursive-read", "count": 1, "hung": false,
            "task": {"pid": 1, "tid": 1, "comm": "ptf-read-own"},
            "locks": [{"mm": "0x10", "relation": "own", "mode": "read", "stack": stack}],
            "fault": {"address": format!("{address:#x}"), "write": false, "mm": "0x10", "stack": stack}}]})
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
        assert!(matches(&read_own(), &MODULE[0]).is_ok());
        assert!(matches(&read_own(), &MODULE[1]).is_err());
        for (pointer, wrong) in [
            ("/findings/0/severity", json!("cross-mm")),
            ("/findings/0/locks/0/mode", json!("write")),
            ("/findings/0/locks/0/mm", json!("0x11")),
            ("/findings/0/fault/address", json!("0x1a0000000000")),
            ("/findings/0/fault/stack", json!([])),
            ("/findings/0/locks/0/stack/0/symbol", json!(null)),
        ] {
            let mut report = read_own();
            *report.pointer_mut(pointer).expect("the field is there") = wrong;
            assert!(matches(&report, &MODULE[0]).is_err(), "{pointer}");
        }
    }

    #[test]
    fn clean_needs_the_verdict() {
        assert!(is_clean(&json!({"verdict": "clean", "findings": []})).is_ok());
        assert!(is_clean(&json!({"verdict": "incomplete", "findings": []})).is_err());
        assert!(is_clean(&read_own()).is_err());
    }
}
