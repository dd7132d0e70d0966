//! Tasks chosen by id, name and control group: always ones that the test started.

use anyhow::{Context as _, Result, ensure};

use super::run::{Running, pagetrace, root, run};

/// Above the largest id that Linux gives out.
const NO_PROCESS: &str = "4194305";

#[test]
fn what_does_not_exist_is_named() -> Result<()> {
    if !root() {
        return Ok(());
    }
    for kind in ["check", "trace"] {
        run(&[kind, "-p", NO_PROCESS])?.exits(2)?.says(NO_PROCESS)?.silent()?;
        run(&[kind, "-t", NO_PROCESS])?.exits(2)?.says(NO_PROCESS)?.silent()?;
        run(&[kind, "-c", "", "--duration", "0.1"])?.exits(2)?.says("name")?.silent()?;
        run(&[kind, "--cgroup", "/no/such/group"])?.exits(2)?.silent()?;
    }
    Ok(())
}

#[test]
fn a_process_is_watched_for_as_long_as_asked() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let target = Running::sleeper()?;
    let pid = target.pid()?.to_string();
    let report = run(&["check", "--format", "json", "--duration", "1", "-p", &pid])?.exits(0)?.json()?;
    let watched = report["duration_ms"].as_u64().context("a number")?;
    ensure!((900..3000).contains(&watched), "watched for {watched} ms");
    ensure!(report["command"].is_null() && report["verdict"] == "clean", "{report:#}");
    ensure!(super::run::is(target.pid()?, "sleep"), "the target was ended");
    Ok(())
}

#[test]
fn a_run_ends_with_its_target() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let target = Running::sleeper()?;
    let pid = target.pid()?.to_string();
    let mut watching = Running::start(pagetrace(&["check", "-p", &pid])?.env("RUST_LOG", "pagetrace=info"))?;
    watching.await_stderr("attached ")?;
    target.signal("KILL")?;
    // Only a process that was waited for is gone.
    ensure!(target.end_of_itself()? == 128 + 9);
    watching.end()?.exits(0)?.says("the target has ended")?;
    Ok(())
}

#[test]
fn threads_and_names() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let target = Running::sleeper()?;
    run(&["check", "--duration", "0.2", "-t", &target.pid()?.to_string()])?.exits(0)?;
    run(&["check", "--duration", "0.2", "-c", "pagetrace-none"])?.exits(0)?;
    run(&["trace", "--duration", "0.2", "-p", &target.pid()?.to_string()])?.exits(0)?;
    Ok(())
}

#[test]
fn a_control_group_of_ones_own() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let Some(point) = mount.and_then(|line| line.split(' ').nth(1)) else {
        eprintln!("skipped: no cgroup2 is mounted");
        return Ok(());
    };
    let group = std::path::Path::new(point).join(format!("pagetrace-cli-{}", std::process::id()));
    if let Err(err) = std::fs::create_dir(&group) {
        eprintln!("skipped: cannot make {}: {err}", group.display());
        return Ok(());
    }
    let ran = run(&["check", "--duration", "0.2", "--cgroup", &group.to_string_lossy()]);
    std::fs::remove_dir(&group)?;
    ran?.exits(0)?;
    Ok(())
}
