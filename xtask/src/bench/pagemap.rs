//! `cargo xtask bench pagemap`: how fast pagemap is read, against a bare loop, the procfs crate and `PAGEMAP_SCAN`.

use std::{fs, process::Command, process::ExitCode};

use anyhow::{Context as _, Result, bail, ensure};

use super::stats::Sample;
use crate::{build, step::note};

/// GiB of the resident mapping, if there is room for it.
const GIBIBYTES: u64 = 4;
const BARE: &str = "bare pread loop";

/// What was measured of one way to read one mapping.
#[derive(Debug)]
struct Row {
    mapping: String,
    way: String,
    pages: f64,
    seconds: Vec<f64>,
    cpu: Vec<f64>,
}

/// Measures.
pub(super) fn run(rounds: u32) -> Result<ExitCode> {
    let (pagetrace, fixture) = build::build_release()?;
    let bench = build::build_pagemap_bench()?;
    let gibibytes = fitting(&fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?)?;
    if gibibytes != GIBIBYTES {
        println!("note: {gibibytes} GiB instead of {GIBIBYTES}: there is no more memory to spare");
    }
    note("measuring");
    let mut command = Command::new(&bench);
    command.arg("pagemap").arg(&fixture).arg(&pagetrace).args([gibibytes.to_string(), rounds.to_string()]);
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let rows = parse(&String::from_utf8_lossy(&output.stdout))?;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    println!("kernel {release}, {gibibytes} GiB resident and 1 TiB sparse, {rounds} rounds, medians\n");
    print!("{}", render(&rows));
    println!("\nreproduce: cargo xtask bench pagemap --rounds {rounds}");
    Ok(ExitCode::SUCCESS)
}

/// The mapping may take half of what is free.
fn fitting(meminfo: &str) -> Result<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    let half = kib.context("/proc/meminfo does not say what is available")? / 2 / (1 << 20);
    ensure!(half > 0, "less than 2 GiB of memory are available");
    Ok(half.min(GIBIBYTES))
}

fn parse(text: &str) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [mapping, way, pages, seconds, cpu] = fields.as_slice() else { bail!("the bench says {line:?}") };
        let (pages, seconds, cpu) = (pages.parse()?, seconds.parse()?, cpu.parse()?);
        match rows.iter_mut().find(|row| (row.mapping.as_str(), row.way.as_str()) == (*mapping, *way)) {
            Some(row) => {
                row.seconds.push(seconds);
                row.cpu.push(cpu);
            }
            None => {
                let (mapping, way) = ((*mapping).to_owned(), (*way).to_owned());
                rows.push(Row { mapping, way, pages, seconds: vec![seconds], cpu: vec![cpu] });
            }
        }
    }
    ensure!(!rows.is_empty(), "the bench has measured nothing");
    Ok(rows)
}

fn render(rows: &[Row]) -> String {
    let mut out = String::from(
        "| mapping | read by | ms, median (min-max) | CPU ms, median (min-max) | million entries/s of CPU | CPU, bare loop = 1 |\n\
         |---|---|---|---|---|---|\n",
    );
    let range =
        |Sample { median, min, max }: Sample| format!("{:.2} ({:.2}-{:.2})", median * 1e3, min * 1e3, max * 1e3);
    for row in rows {
        let (Some(seconds), Some(cpu)) = (Sample::of(&row.seconds), Sample::of(&row.cpu)) else { continue };
        let bare = rows.iter().find(|other| other.mapping == row.mapping && other.way == BARE);
        let bare = bare.and_then(|bare| Sample::of(&bare.cpu)).map_or(f64::NAN, |bare| bare.median);
        out.push_str(&format!(
            "| {} | {} | {} | {} | {:.1} | {:.2} |\n",
            row.mapping,
            row.way,
            range(seconds),
            range(cpu),
            row.pages / cpu.median / 1e6,
            cpu.median / bare
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_medians() {
        let line = |way: &str, ms: f64| format!("resident\t{way}\t1000000\t{}\t{}\n", ms / 1e3, ms / 2e3);
        let text = [line(BARE, 10.0), line("other", 20.0), line(BARE, 12.0), line(BARE, 8.0)].concat();
        let table = render(&parse(&text).unwrap_or_default());
        assert!(
            table.contains("| resident | bare pread loop | 10.00 (8.00-12.00) | 5.00 (4.00-6.00) | 200.0 | 1.00 |"),
            "{table}"
        );
        assert!(
            table.contains("| resident | other | 20.00 (20.00-20.00) | 10.00 (10.00-10.00) | 100.0 | 2.00 |"),
            "{table}"
        );
        assert!(parse("").is_err() && parse("x").is_err());
    }

    #[test]
    fn half_of_what_is_available_is_taken_at_most() {
        let available = |gib: u64| fitting(&format!("MemTotal: 1 kB\nMemAvailable: {} kB\n", gib << 20)).ok();
        assert_eq!((available(64), available(4), available(1)), (Some(4), Some(2), None));
    }
}
