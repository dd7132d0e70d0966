//! Reads what the storms and the tracer print. Pure.

use anyhow::{Context as _, Result, ensure};

/// Iterations a second, from a storm's own line: `NAME: ok, N iterations in S s, R iterations/s`.
pub(super) fn rate(output: &str, storm: &str) -> Result<f64> {
    let rest = output.lines().find_map(|line| line.strip_prefix(storm)?.strip_prefix(": ok, "));
    let rate = rest.and_then(|rest| rest.strip_suffix(" iterations/s")?.rsplit(' ').next()?.parse().ok());
    let rate: f64 = rate.with_context(|| format!("{storm} printed no rate: {output:?}"))?;
    ensure!(rate > 0.0, "{storm} did nothing: {output:?}");
    Ok(rate)
}

/// What the tracer says when all is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attached {
    /// Programs.
    pub(super) programs: u32,
    /// Milliseconds from the start of the session, the kernel's description having been read.
    pub(super) ms: u32,
}

/// Reads `… attached N programs in M ms`.
pub(super) fn attached(line: &str) -> Option<Attached> {
    let (_, rest) = line.split_once("attached ")?;
    let (programs, rest) = rest.split_once(" programs in ")?;
    Some(Attached { programs: programs.parse().ok()?, ms: rest.trim_end().strip_suffix(" ms")?.parse().ok()? })
}

/// What the report of a recording tells of it: `recording: N records, M bytes; …`, and what was lost of it.
pub(super) fn recording(report: &str, took: f64, seconds: u32) -> Result<String> {
    let line = report.lines().find_map(|line| line.trim_start().strip_prefix("recording: "));
    let (records, rest) =
        line.and_then(|line| line.split_once(" records, ")).context("the report is of no recording")?;
    let records: f64 = records.parse().context("records are counted")?;
    let bytes = rest.split(' ').next().unwrap_or_default();
    let lost = report.split_once("stream_lost ").map_or("0", |(_, rest)| rest.split([',', '\n']).next().unwrap_or("?"));
    Ok(format!(
        "{records} records ({:.0}/s), {lost} lost, {bytes} bytes, read in {took:.2} s ({:.2} million/s)",
        records / f64::from(seconds),
        records / took.max(1e-9) / 1e6
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storms_rate() {
        let line = "mmap-storm: ok, 12345 iterations in 1.000 s, 12340 iterations/s\n";
        assert_eq!(rate(line, "mmap-storm").ok(), Some(12340.0));
        assert!(rate(line, "fault-storm").is_err());
        assert!(rate("mmap-storm: FAILED: why\n", "mmap-storm").is_err());
        assert!(rate("mmap-storm: ok, 0 iterations in 1.000 s, 0 iterations/s", "mmap-storm").is_err());
    }

    #[test]
    fn the_tracers_line() {
        let line = "[2026-01-01T00:00:00Z INFO  pagetrace::cli::check] attached 23 programs in 141 ms";
        assert_eq!(attached(line), Some(Attached { programs: 23, ms: 141 }));
        assert_eq!(attached("nothing attached in the sense of the word"), None);
    }

    #[test]
    fn a_recordings_report() {
        let text = "CLEAN\n  loss: ring_full 3, stream_lost 2\n  recording: 500 records, 900 bytes; violations told\n";
        let said = recording(text, 0.001, 2).unwrap_or_default();
        assert_eq!(said, "500 records (250/s), 2 lost, 900 bytes, read in 0.00 s (0.50 million/s)");
        assert!(recording("CLEAN\n", 1.0, 1).is_err());
    }
}
