//! `record` and `report`: one verdict, whoever reads it, and a sentence where there is none.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::run::{Ran, Running, Scratch, pagetrace, root, run};

/// The checked-in recordings.
fn recordings() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("recordings")
}

fn report(path: &str) -> Result<Ran> {
    run(&["report", "--format", "json", path])
}

/// What `report` says of each checked-in recording is what is checked in beside it.
#[test]
fn recordings_of_real_runs_keep_their_reports() -> Result<()> {
    for (name, code) in [("true", 0), ("read-own", 1), ("nested-two", 1)] {
        let file = recordings().join(format!("{name}.ptrace"));
        let told = report(&file.to_string_lossy())?.exits(code)?.json()?;
        let expected = recordings().join(format!("{name}.json"));
        let text = fs::read_to_string(&expected).with_context(|| format!("cannot read {}", expected.display()))?;
        let expected: serde_json::Value = serde_json::from_str(&text)?;
        ensure!(told == expected, "{name}: the report is not the one beside it: {told:#}");
    }
    Ok(())
}

#[test]
fn several_recordings_are_judged_together() -> Result<()> {
    let path = |name: &str| recordings().join(format!("{name}.ptrace")).to_string_lossy().into_owned();
    let [clean, one, other] = ["true", "read-own", "nested-two"].map(path);
    let told = run(&["report", "--format", "json", &clean, &one, &other, &one])?.exits(1)?.json()?;
    let alone = report(&one)?.exits(1)?.json()?;
    let findings = told["findings"].as_array().context("findings")?;
    ensure!(findings.len() == 2, "{told:#}");
    let times = |report: &serde_json::Value| report["findings"][0]["count"].as_u64();
    ensure!(times(&told) == times(&alone).map(|count| count * 2), "{told:#}");
    ensure!(findings[0]["fingerprint"] == alone["findings"][0]["fingerprint"], "{told:#}");
    run(&["report", &clean, &clean])?.exits(0)?;
    let scratch = Scratch::new("merged")?;
    let cut = scratch.0.join("cut.ptrace");
    let sound = fs::read(&clean)?;
    fs::write(&cut, &sound[..sound.len() - 1])?;
    let cut = cut.to_string_lossy().into_owned();
    let because = run(&["report", "--format", "json", &clean, &cut])?.exits(4)?.json()?["coverage"].to_string();
    ensure!(because.contains("cut.ptrace: the recording is damaged"), "{because}");
    run(&["report", &clean, "/no/such/recording"])?.exits(5)?.says("/no/such/recording")?.silent()?;
    run(&["report", "--format", "dot", &clean, &one])?.exits(2)?.says("--order")?.silent()?;
    Ok(())
}

#[test]
fn a_damaged_recording_is_read_up_to_its_damage_and_never_clean() -> Result<()> {
    let scratch = Scratch::new("damaged")?;
    let path = scratch.0.join("a.ptrace");
    let name = path.to_string_lossy().into_owned();
    let sound = fs::read(recordings().join("true.ptrace"))?;
    fs::write(&path, &sound[..sound.len() - 1])?;
    let told = report(&name)?.exits(4)?.json()?;
    ensure!(told["recording"]["damage"]["offset"].as_u64().is_some_and(|at| at > 0), "{told:#}");
    let mut flipped = sound.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    fs::write(&path, &flipped)?;
    let because = report(&name)?.exits(4)?.json()?["coverage"]["incomplete_because"].to_string();
    ensure!(because.contains("damaged at byte"), "{because}");
    for (bytes, says) in [
        (&sound[..0], "empty"),
        (&sound[..20], "ends after 20 bytes"),
        (b"no recording at all" as &[u8], "no recording"),
    ] {
        fs::write(&path, bytes)?;
        run(&["report", &name])?.exits(5)?.says(says)?.says(&name)?.silent()?;
    }
    let mut newer = sound;
    newer[12] = 9;
    fs::write(&path, &newer)?;
    run(&["report", &name])?.exits(5)?.says("use a newer pagetrace")?.silent()?;
    run(&["report", "/no/such/recording"])?.exits(5)?.says("/no/such/recording")?.silent()?;
    Ok(())
}

#[test]
fn what_cannot_be_recorded_to_is_refused_before_anything_runs() -> Result<()> {
    let scratch = Scratch::new("refused")?;
    run(&["record", "-o", "/dev/null", "--", "true"])?.exits(5)?.says("not a regular file")?.silent()?;
    run(&["record", "-o", "/no/such/dir/a", "--", "true"])?.exits(5)?.says("/no/such/dir/a")?.silent()?;
    run(&["record", "--", "true"])?.exits(2)?.silent()?;
    let path = scratch.0.join("a").to_string_lossy().into_owned();
    run(&["record", "-o", &path, "--max-bytes", "4096", "--", "true"])?.exits(2)?.silent()?;
    Ok(())
}

#[test]
fn a_recording_tells_what_the_run_told() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scratch = Scratch::new("record")?;
    let path = scratch.0.join("a.ptrace").to_string_lossy().into_owned();
    let made = run(&["record", "--format", "json", "-o", &path, "--", "sh", "-c", "exit 7"])?.exits(7)?.json()?;
    let read = report(&path)?.exits(7)?.json()?;
    ensure!(made == read, "record said {made:#}, report says {read:#}");
    ensure!(read["recording"]["disagreed"] == 0 && read["recording"]["damage"].is_null(), "{read:#}");
    ensure!(read["command"]["exit_code"] == 7, "{read:#}");
    Ok(())
}

#[test]
fn a_second_recorder_is_refused_and_one_that_is_killed_leaves_an_unfinished_file() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scratch = Scratch::new("second")?;
    let path = scratch.0.join("a.ptrace").to_string_lossy().into_owned();
    let first = Running::start(&mut pagetrace(&["record", "-o", &path, "--", "sleep", "60"])?)?;
    let command = first.child("sleep")?;
    let second = run(&["record", "-o", &path, "--", "true"])?;
    first.signal("KILL")?;
    let _ = std::process::Command::new("kill").arg(command.to_string()).status()?;
    first.end_of_itself()?;
    second.exits(5)?.says("another pagetrace is recording to it")?;
    let told = report(&path)?.exits(4)?.json()?;
    let because = told["coverage"]["incomplete_because"].to_string();
    ensure!(because.contains("not finished by its recorder"), "{because}");
    Ok(())
}

#[test]
fn a_recording_stops_at_its_limit() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scratch = Scratch::new("limit")?;
    let path = scratch.0.join("a.ptrace");
    let name = path.to_string_lossy().into_owned();
    let storm = ["sh", "-c", "while :; do /bin/true; done"];
    let made = run(&[&["record", "--max-bytes", "1048576", "-o", &name, "--"], storm.as_slice()].concat())?;
    made.exits(4)?.says("reached --max-bytes 1048576")?;
    ensure!(fs::metadata(&path)?.len() <= 1_048_576, "{} bytes", fs::metadata(&path)?.len());
    let told = report(&name)?.exits(4)?.json()?;
    ensure!(told["recording"]["damage"].is_null(), "{told:#}");
    Ok(())
}
