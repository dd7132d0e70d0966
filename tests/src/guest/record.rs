//! Recordings: what is kept must tell what the live run told, to anybody, and must agree with itself.

use std::{collections::BTreeSet, os::unix::process::CommandExt as _};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{
    Fixtures, Tally, exercised,
    manners::USER,
    report::{self, list, text},
    tool::{Ended, Tool, tail},
};
use crate::fixture::cases::{self, Kind};

/// Records the violating and the clean cases by this attach type. `live` is the report of a live run over the
/// violating ones: the recording must say that, and nothing about the others.
pub fn run(tool: &Tool, attach: &str, fixtures: Fixtures, live: &Value, tally: &mut Tally) {
    tally.case(&format!("{attach}/recorded"), || both(tool, attach, fixtures, live));
}

/// Records one violating case by this attach type: the verifier has to take these programs too.
pub fn brief(tool: &Tool, attach: &str, fixtures: Fixtures, tally: &mut Tally) {
    let words: &[&str] = if fixtures.module { &["kmod", "read-other"] } else { &["uprobe-fault"] };
    tally.case(&format!("{attach}/recorded"), || {
        let (made, report) = recorded(tool, attach, words)?;
        made.exercised(&format!("{}: ok", words.join(" ")))?;
        let comm = words.last().map(|case| cases::comm_of(case));
        let found = list(&report["findings"]).iter().any(|it| Some(report::comm(it)) == comm.as_deref());
        ensure!(found && made.status.code() == Some(1), "ended with {}: {}", made.status, report["loss"]);
        Ok(())
    });
}

/// A run that is recorded, and the report of the recording as another user gets it.
fn recorded(tool: &Tool, attach: &str, words: &[&str]) -> Result<(Ended, Value)> {
    let file = tool.path("recording");
    let file = file.to_string_lossy();
    let mut record = tool.command(&["record", "--format", "json", "--output", &file, "--attach", attach, "--"]);
    record.arg(&tool.fixture).args(words);
    let made = tool.run(record)?;
    let told = report::parse(&made.stdout)?;
    let mut read = tool.command(&["report", "--format", "json", &file]);
    read.uid(USER).gid(USER);
    let read = tool.run(read)?;
    ensure!(
        read.status.code() == made.status.code(),
        "report ended with {}, record with {}: {}",
        read.status,
        made.status,
        tail(&read.stderr)
    );
    let report = report::parse(&read.stdout)?;
    ensure!(report == told, "the recorder's report is not that of its recording");
    let recording = &report["recording"];
    ensure!(recording["damage"].is_null(), "the recording is damaged: {}", recording["damage"]);
    ensure!(recording["unknown_kinds"] == 0, "there are unknown kinds: {recording}");
    let because = &report["coverage"]["incomplete_because"];
    ensure!(
        recording["disagreed"] == 0,
        "the recording disagrees with itself: {recording}, {because}, {}",
        report["loss"]
    );
    Ok((made, report))
}

fn both(tool: &Tool, attach: &str, fixtures: Fixtures, live: &Value) -> Result<()> {
    let (made, report) = recorded(tool, attach, &fixtures.both()?)?;
    let recording = &report["recording"];
    ensure!(recording["records"].as_u64().is_some_and(|count| count > 100), "hardly anything: {recording}");
    exercised(&made, fixtures, Kind::Violating)?;
    exercised(&made, fixtures, Kind::Clean)?;
    ensure!(made.status.code() == Some(1), "ended with {}, not 1: {}", made.status, tail(&made.stderr));
    let (kept, seen) = (findings(&report), findings(live));
    let missing: Vec<_> = seen.difference(&kept).collect();
    let more: Vec<_> = kept.difference(&seen).collect();
    ensure!(
        missing.is_empty() && more.is_empty(),
        "live but not recorded: {missing:?}; recorded but not live: {more:?}; {}, {}",
        report["coverage"]["incomplete_because"],
        report["loss"]
    );
    let agreed = report["recording"]["agreed"].as_u64().unwrap_or(0);
    let told: u64 = list(&report["findings"]).iter().filter_map(|finding| finding["count"].as_u64()).sum();
    ensure!(agreed >= told, "{told} violations were found, and only {agreed} of them derived");
    Ok(())
}

/// What of each finding is the same in every run.
fn findings(report: &Value) -> BTreeSet<String> {
    let of = |finding: &Value| {
        let locks: Vec<_> =
            list(&finding["locks"]).iter().map(|lock| (text(&lock["mode"]), text(&lock["relation"]))).collect();
        let (severity, address) = (text(&finding["severity"]), text(&finding["fault"]["address"]));
        format!("{} {severity} {locks:?} {address} {}", report::comm(finding), finding["fault"]["write"])
    };
    list(&report["findings"]).iter().map(of).collect()
}
