//! Commands run under `check`: codes handed on, reports that can be read.

use std::{path::Path, process::Command};

use anyhow::{Result, ensure};
use serde_json::json;

use super::run::{Running, Scratch, binary, pagetrace, prepared, root, run};

#[test]
fn a_clean_run_ends_with_the_commands_own_code() -> Result<()> {
    if !root() {
        return Ok(());
    }
    run(&["check", "--", "true"])?.exits(0)?;
    let ran = run(&["check", "--", "sh", "-c", "exit 7"])?.exits(7)?;
    ensure!(ran.stdout.contains("CLEAN") && ran.stdout.contains("exited with 7"), "{ran:#?}");
    let ran = run(&["check", "--", "sh", "-c", "kill -USR1 $$"])?.exits(128 + 10)?;
    ensure!(ran.stdout.contains("CLEAN") && ran.stdout.contains("signal 10"), "{ran:#?}");
    run(&["check", "--", "sh", "-c", "kill -KILL $$"])?.exits(128 + 9)?;
    Ok(())
}

#[test]
fn a_command_that_cannot_be_run_ends_as_in_a_shell() -> Result<()> {
    if !root() {
        return Ok(());
    }
    for kind in ["check", "trace"] {
        run(&[kind, "--", "/nonexistent"])?.exits(127)?.says("/nonexistent")?.silent()?;
        run(&[kind, "--", "no-such-command-anywhere"])?.exits(127)?.says("does not exist")?.silent()?;
        run(&[kind, "--", "/etc/passwd"])?.exits(126)?.says("/etc/passwd")?.silent()?;
        run(&[kind, "--", "/"])?.exits(126)?.silent()?;
    }
    Ok(())
}

#[test]
fn a_starter_that_ignores_ends_of_children_changes_nothing() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let ignoring = |args: &[&str]| {
        let mut command = Command::new("env");
        command.arg("--ignore-signal=CHLD").arg(binary()?);
        Running::start(&mut prepared(command, args))?.end()
    };
    ignoring(&["check", "--", "/nonexistent"])?.exits(127)?.says("/nonexistent")?.silent()?;
    ignoring(&["check", "--", "sh", "-c", "exit 7"])?.exits(7)?;
    // The command is given what the starter gave: signal 17 is bit 16.
    let ran = ignoring(&["check", "--", "grep", "SigIgn", "/proc/self/status"])?.exits(0)?;
    let mask = ran.stdout.lines().chain(ran.stderr.lines()).find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ensure!(mask.is_some_and(|mask| mask & 1 << 16 != 0), "{ran:#?}");
    Ok(())
}

#[test]
fn the_commands_streams_are_its_own() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scratch = Scratch::new("streams")?;
    let file = scratch.0.join("report");
    let ran = run(&["check", "-o", &file.to_string_lossy(), "--", "sh", "-c", "echo out; echo err >&2"])?.exits(0)?;
    ensure!(ran.stdout == "out\n" && ran.stderr == "err\n", "{ran:#?}");
    let report = std::fs::read_to_string(&file)?;
    ensure!(report.starts_with("CLEAN"), "{report}");
    Ok(())
}

#[test]
fn a_clean_report_as_json() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let report = run(&["check", "--format", "json", "--", "sh", "-c", "exit 3"])?.exits(3)?.json()?;
    ensure!(report["schema"] == "pagetrace.report/1" && report["verdict"] == "clean", "{report:#}");
    ensure!(report["command"]["exit_code"] == 3 && report["command"]["argv"] == json!(["sh", "-c", "exit 3"]));
    ensure!(report["findings"] == json!([]) && report["coverage"]["incomplete_because"] == json!([]), "{report:#}");
    Ok(())
}

#[test]
fn probes_as_json() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let plan = run(&["probes", "--format", "json"])?.exits(0)?.json()?;
    ensure!(plan["schema"] == "pagetrace.probes/1" && plan["events"].is_array(), "{plan:#}");
    Ok(())
}

#[test]
fn many_children_are_clean() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let script = "i=0; while [ $i -lt 200 ]; do (:) & i=$((i+1)); done; wait";
    let report = run(&["check", "--format", "json", "--", "sh", "-c", script])?.exits(0)?.json()?;
    ensure!(report["verdict"] == "clean", "{report:#}");
    Ok(())
}

#[test]
fn control_characters_of_a_name_are_escaped() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scratch = Scratch::new("names")?;
    // A program's name becomes the task's.
    let program = scratch.program(Path::new("/bin/sh"), "a\x1b[31mb")?;
    let program = program.to_string_lossy();
    let ran = run(&["trace", "--", &program, "-c", ":"])?.exits(0)?;
    ensure!(ran.stdout.contains("a\\u{1b}[31mb"), "no event of the command: {ran:#?}");
    let text = run(&["check", "--", &program, "-c", ":"])?.exits(0)?;
    let json = run(&["trace", "--format", "json", "--", &program, "-c", ":"])?.exits(0)?;
    for ran in [ran, text, json] {
        let bad = |text: &str| text.chars().any(|c| c.is_control() && c != '\n');
        ensure!(!bad(&ran.stdout) && !bad(&ran.stderr), "{ran:#?}");
    }
    Ok(())
}

#[test]
fn a_command_without_a_terminal_is_reported_without_colours() -> Result<()> {
    if !root() {
        return Ok(());
    }
    for (name, value) in [("TERM", "xterm-256color"), ("NO_COLOR", "1"), ("CLICOLOR_FORCE", "0")] {
        for kind in ["check", "trace"] {
            let mut command = pagetrace(&[kind, "--", "true"])?;
            let ran = Running::start(command.env(name, value))?.end()?.exits(0)?;
            ensure!(!ran.stdout.contains('\x1b') && !ran.stderr.contains('\x1b'), "{ran:#?}");
        }
    }
    Ok(())
}
