//! Random schedules: as many violations are found as the module made, no more and no less, whatever the attach type.

use anyhow::{Context as _, Result, ensure};

use super::{
    Tally,
    report::{self, list, text},
    tool::{Tool, tail},
};
use crate::fixture::random::COMM;

/// Schedules in each process.
const CALLS: &str = "40";

/// Runs them by each attach type; `tracepoint`s sit in the wrappers.
pub fn run(tool: &Tool, ways: &[&str], tally: &mut Tally) {
    for attach in ways {
        tally.case(&format!("random/{attach}"), || random(tool, attach));
    }
}

fn random(tool: &Tool, attach: &str) -> Result<()> {
    let raw = if attach.ends_with("tracepoint") { "wrapped" } else { "raw" };
    let ended = tool.run(tool.check(&["--attach", attach], &["all-random", CALLS, raw]))?;
    ensure!(ended.log.contains("all-random: ok"), "not exercised: {}", tail(&ended.log));
    let counts = ended.log.lines().filter(|line| line.starts_with("kmod-random"));
    let made: u64 =
        counts.map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<u64>()).sum::<Result<_, _>>()?;
    ensure!(made > 100, "only {made} violations were made");
    let report = report::parse(&ended.stdout)?;
    let findings = list(&report["findings"]);
    let stranger = findings.iter().find(|it| text(&it["class"]) != "fault-under-lock" || report::comm(it) != COMM);
    ensure!(stranger.is_none(), "a finding about something else: {stranger:?}");
    let found = findings.iter().map(|it| it["count"].as_u64().context("a count")).sum::<Result<u64>>()?;
    let skipped = report::loss(&report, "recursion_misses");
    // What the kernel skipped on a preemptible kernel is told, and then fewer may be found, never more.
    ensure!(
        found == made || (attach != "kprobe" && skipped > 0 && found < made),
        "{made} violations were made, {found} found; {}",
        report["loss"]
    );
    Ok(())
}
