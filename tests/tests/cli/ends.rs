//! Ends that come from outside: signals, and readers that go away.

use std::{
    io::{BufRead as _, BufReader},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::run::{Running, eventually, is, pagetrace, root, run};

#[test]
fn an_interrupted_check_reports_and_ends_its_command() -> Result<()> {
    if !root() {
        return Ok(());
    }
    for signal in ["INT", "TERM"] {
        let running = Running::start(&mut pagetrace(&["check", "--", "sleep", "60"])?)?;
        let command = running.child("sleep")?;
        let begun = Instant::now();
        running.signal(signal)?;
        let ran = running.end()?;
        ensure!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
        let ran = ran.says(&format!("stopped by SIG{signal}"))?;
        ensure!(ran.stdout.contains("CLEAN"), "no report: {ran:#?}");
        ensure!(!is(command, "sleep"), "the command is still there");
        // The command was ended by SIGTERM, whichever signal asked for it.
        ran.exits(128 + 15)?;
    }
    Ok(())
}

#[test]
fn an_interrupt_while_watching_a_process_leaves_it_alone() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let target = Running::sleeper()?;
    let mut command = pagetrace(&["check", "-p", &target.pid()?.to_string()])?;
    let mut running = Running::start(command.env("RUST_LOG", "info"))?;
    running.await_stderr("attached ")?;
    running.signal("INT")?;
    let ran = running.end()?.exits(0)?;
    ensure!(ran.stdout.contains("CLEAN"), "{ran:#?}");
    ensure!(is(target.pid()?, "sleep"), "the target was ended");
    Ok(())
}

#[test]
fn a_killed_tracer_leaves_nothing_in_the_way() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let running = Running::start(&mut pagetrace(&["check", "--", "sleep", "3"])?)?;
    let command = running.child("sleep")?;
    let held = programs_of(running.pid()?);
    ensure!(held != 0, "no BPF program is attached");
    running.signal("KILL")?;
    ensure!(running.end_of_itself()? == 128 + 9);
    // Descriptors are what keeps programs loaded: pinned nowhere, and the command got none of them.
    ensure!(programs_of(command) == 0, "the command holds BPF programs");
    run(&["probes"])?.exits(0)?;
    run(&["check", "--", "true"])?.exits(0)?;
    Ok(())
}

/// Descriptors of a process that keep BPF programs or their attachments.
fn programs_of(pid: u32) -> usize {
    let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return 0 };
    let texts = files.flatten().filter_map(|file| std::fs::read_to_string(file.path()).ok());
    texts.filter(|text| text.contains("prog_id:") || text.contains("link_id:")).count()
}

#[test]
fn a_reader_that_goes_away_is_no_error() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let script = "while :; do (:); done";
    let mut running = Running::start(&mut pagetrace(&["trace", "--", "sh", "-c", script])?)?;
    let command = running.child("sh")?;
    let mut line = String::new();
    BufReader::new(running.stdout()?).read_line(&mut line)?;
    ensure!(!line.is_empty(), "no event came");
    running.end()?.exits(0)?;
    eventually("the endless command is ended", || !is(command, "sh")).context("after the reader went away")?;
    Ok(())
}

#[test]
fn nobody_reads_the_report() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let mut running = Running::start(&mut pagetrace(&["check", "--", "sleep", "0.1"])?)?;
    drop(running.stdout()?);
    running.end()?.exits(0)?;
    let mut running = Running::start(&mut pagetrace(&["probes"])?)?;
    drop(running.stdout()?);
    running.end()?.exits(0)?;
    Ok(())
}
