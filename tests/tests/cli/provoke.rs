//! `check --provoke`: the target's pages leave and come back, and nothing stays behind.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use super::run::{Ran, Running, eventually, is, pagetrace, root, run};

const FIXTURE: &str = env!("CARGO_BIN_EXE_pagetrace-fixture");
/// What the kernel shows of the helper's name.
const HELPER: &str = "pagetrace-prov";
/// Pages of a file that the fixture keeps touching.
const PAGES: u64 = 64;

/// A file where the build is, which is a file system with a disk below it; gone with the value.
struct OnDisk(PathBuf);

impl OnDisk {
    fn new(name: &str) -> Self {
        Self(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id())))
    }

    fn path(&self) -> Result<&str> {
        self.0.to_str().context("the build's path is UTF-8")
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn pushed_and_back(ran: &Ran) -> Result<()> {
    let report = ran.json()?;
    let provocation = report.get("provocation").context("the report does not say what provoking came to")?;
    let count = |name: &str| provocation[name].as_u64().with_context(|| format!("no {name} in {provocation}"));
    ensure!(count("rounds")? > 0, "{provocation}");
    ensure!(count("pages_pushed")? >= PAGES && count("pages_back")? >= PAGES, "{provocation}");
    ensure!(count("pages_seen")? == count("pages_pushed")? + count("stayed")?, "{provocation}");
    let told = provocation["notes"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|note| note.as_str().is_some_and(|note| note.starts_with("no swap")));
    let swap = provocation["swap"].as_bool().context("it says whether there is swap")?;
    ensure!(swap != told, "swap: {swap}, but: {provocation}");
    Ok(())
}

#[test]
fn a_commands_pages_leave_and_come_back_unharmed() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let file = OnDisk::new("provoke-command");
    let args = ["check", "--provoke=10", "--format", "json", "--", FIXTURE, "keep-pages", file.path()?, "3"];
    let ran = run(&args)?.exits(0)?.says("keep-pages: ok")?;
    ensure!(ran.json()?["command"]["exit_code"] == 0, "{ran:#?}");
    pushed_and_back(&ran)
}

#[test]
fn so_do_those_of_a_process_that_runs_already() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let file = OnDisk::new("provoke-pid");
    let mut target = std::process::Command::new(FIXTURE);
    target.args(["keep-pages", file.path()?, "60"]).stdout(std::process::Stdio::null());
    let target = Running::start(&mut target)?;
    let pid = target.pid()?.to_string();
    let ran = run(&["check", "--provoke=10", "-p", &pid, "--duration", "3", "--format", "json"])?.exits(0)?;
    pushed_and_back(&ran)?;
    ensure!(is(target.pid()?, "pagetrace-fixtu"), "the target is gone");
    Ok(())
}

#[test]
fn the_text_says_what_came_of_it_and_without_it_nothing_is_said() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let with = run(&["check", "--provoke", "--", "sleep", "1"])?.exits(0)?;
    ensure!(with.stdout.contains("provoked: ") && with.stdout.contains("pages pushed out in"), "{with:#?}");
    let without = run(&["check", "--format", "json", "--", "true"])?.exits(0)?;
    ensure!(without.json()?.get("provocation").is_none(), "{without:#?}");
    Ok(())
}

#[test]
fn the_helper_ends_with_the_check_however_that_ends() -> Result<()> {
    if !root() {
        return Ok(());
    }
    for signal in ["INT", "KILL"] {
        let check = Running::start(&mut pagetrace(&["check", "--provoke", "--", "sleep", "30"])?)?;
        let command = check.child("sleep")?;
        let helper = check.child(HELPER)?;
        check.signal(signal)?;
        check.end_of_itself()?;
        eventually("the helper ends", || !is(helper, HELPER))?;
        // A command outlives a tracer that was killed.
        std::process::Command::new("kill").arg(command.to_string()).stderr(std::process::Stdio::null()).status()?;
    }
    Ok(())
}
