//! Random schedules: as many violations are found as the module made, no more and no less, whatever the attach type. And
//! the same when the kernel has no room to see a lock function return.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Tally,
    report::{self, list, text},
    tool::{Tool, tail},
};
use crate::fixture::{cases, crowd, random::COMM};

/// Schedules in each process.
const CALLS: &str = "16";

/// Runs them by each attach type; `tracepoint`s sit in the wrappers.
pub fn run(tool: &Tool, ways: &[&str], tally: &mut Tally) {
    for attach in ways {
        tally.case(&format!("random/{attach}"), || random(tool, attach));
    }
    if ways.contains(&"kprobe") {
        match crowded(tool) {
            Ok(report) => {
                for case in crowd::CASES {
                    tally.case(&format!("random/crowded-{case}"), || in_crowd(&report, case));
                }
            }
            Err(error) => tally.case("random/crowded", || Err(error)),
        }
    }
}

fn random(tool: &Tool, attach: &str) -> Result<()> {
    let raw = if attach.ends_with("tracepoint") { "wrapped" } else { "raw" };
    let ended = tool.run(tool.check(&["--attach", attach], &["all-random", CALLS, raw]))?;
    ended.exercised("all-random: ok")?;
    let counts = ended.log.lines().filter(|line| line.starts_with("kmod-random"));
    let made: u64 =
        counts.map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<u64>()).sum::<Result<_, _>>()?;
    ensure!(made > 100, "only {made} violations were made");
    let report = report::parse(&ended.stdout)?;
    let findings = list(&report["findings"]);
    let stranger = findings.iter().find(|it| text(&it["class"]) != "fault-under-lock" || report::comm(it) != COMM);
    ensure!(stranger.is_none(), "a finding about something else: {stranger:?}");
    let found = findings.iter().map(|it| it["count"].as_u64().context("a count")).sum::<Result<u64>>()?;
    // What the kernel skipped, and what cannot be known, is told, and then fewer may be found, never more.
    let (skipped, unsure) = (report::loss(&report, "recursion_misses"), report::loss(&report, "uncertain_violation"));
    let told = match attach {
        "kprobe" => found + unsure == made && report::loss(&report, "return_missed") > 0,
        _ => skipped > 0 && found < made,
    };
    ensure!(found == made || told, "{made} violations were made, {found} found; {}", report["loss"]);
    Ok(())
}

/// How often each case is made in a crowd.
const TIMES: u64 = 3;

/// With no room left, a return is missed each time; a lock that can only be held by then counts as held.
fn crowded(tool: &Tool) -> Result<Value> {
    let times = TIMES.to_string();
    let commands = crowd::CASES.map(|case| ["crowded", case, &times]);
    let ended = tool.run(tool.check(&["--attach", "kprobe"], &[&["each"], &commands.join(&"+")[..]].concat()))?;
    let told = ended.log.matches("crowded: ok").count();
    ensure!(told == commands.len(), "not exercised: {}; {}", tail(&ended.log), tail(&ended.stderr));
    let report = report::parse(&ended.stdout)?;
    let settled = report::loss(&report, "return_settled");
    ensure!(settled >= TIMES * commands.len() as u64, "not every return was missed: {}", report["loss"]);
    ensure!(report::loss(&report, "return_missed") == 0, "locks are unsure: {}", report["loss"]);
    ensure!(ended.status.code() == Some(1), "ended with {}: {}", ended.status, tail(&ended.stderr));
    Ok(report)
}

fn in_crowd(report: &Value, case: &str) -> Result<()> {
    let comm = cases::comm_of(case);
    let found = list(&report["findings"]).iter().filter(|finding| report::comm(finding) == comm);
    let times: u64 = found.filter_map(|finding| finding["count"].as_u64()).sum();
    ensure!(times == TIMES, "it was found {times} times, not {TIMES}; {}", report["loss"]);
    Ok(())
}
