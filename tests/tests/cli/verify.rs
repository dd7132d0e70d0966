//! `verify`: the command behaves as without it, and what is said of its pages is whole.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::run::{Ran, Running, Scratch, is, pagetrace, root, run};

#[test]
fn wrong_arguments_are_told_before_anything_runs() -> Result<()> {
    let cases: [(&[&str], &str); 8] = [
        (&["verify"], "COMMAND"),
        (&["verify", "true"], "true"),
        (&["verify", "--at-least", "101", "--", "true"], "from 0 to 100"),
        (&["verify", "--at-least", "x", "--", "true"], "not a number"),
        (&["verify", "--ring-bytes", "5000", "--", "true"], "power of two"),
        (&["verify", "--every", "1", "--", "true"], "every"),
        (&["verify", "--withhold", "0", "--", "true"], "withhold"),
        (&["verify", "--attach", "uprobe", "--", "true"], "kprobe"),
    ];
    for (args, word) in cases {
        let ran = run(args)?.exits(2)?.silent()?;
        ensure!(ran.stderr.contains(word), "{args:?} does not say {word}: {ran:#?}");
    }
    let scratch = Scratch::new("verify-output")?;
    let mark = scratch.0.join("started");
    let ran = run(&["verify", "-o", "/nonexistent/answer", "--", "touch", &mark.to_string_lossy()])?;
    ran.exits(5)?.says("/nonexistent/answer")?.silent()?;
    ensure!(!mark.exists(), "the command was started");
    Ok(())
}

/// Runs a shell's command with the answer in a file; nothing is asked of the shares, so that the code is the command's.
fn shell(name: &str, script: &str) -> Result<(Ran, Value)> {
    let scratch = Scratch::new(name)?;
    let answer = scratch.0.join("answer");
    let options = ["verify", "--at-least", "0", "--format", "json", "-o", &answer.to_string_lossy()];
    let ran = run(&[&options[..], &["--", "sh", "-c", script]].concat())?;
    let text = std::fs::read_to_string(&answer).with_context(|| format!("no answer: {ran:#?}"))?;
    Ok((ran, serde_json::from_str(&text)?))
}

#[test]
fn the_command_behaves_as_without_it() -> Result<()> {
    if !root() {
        return Ok(());
    }
    for (script, code) in [
        ("exit 7", 7),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        ("trap 'exit 5' USR1; kill -USR1 $$; exit 6", 5),
        // Stopped by a signal it stays stopped, until another continues it.
        ("(sleep 0.2; kill -CONT $$) & kill -STOP $$; wait; exit 3", 3),
        ("sleep 0.1 & wait $! && (exit 2) | cat; /nonexistent; exit $?", 127),
    ] {
        let (ran, answer) = shell("verify-ends", script)?;
        let ran = ran.exits(code).with_context(|| format!("{script}: {answer}"))?;
        ensure!(answer["outcome"] == "explained", "{script}: {answer}");
        drop(ran);
    }
    run(&["verify", "--", "/nonexistent"])?.exits(127)?.silent()?;
    let ran = run(&["verify", "--format", "json", "--at-least", "0", "--", "sh", "-c", "echo out; echo err >&2"])?;
    let ran = ran.exits(0)?.says("out")?.says("err")?;
    ensure!(ran.json()?["schema"] == "pagetrace.verify/1", "{ran:#?}");
    Ok(())
}

#[test]
fn a_small_program_is_explained_whole() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let (_, answer) = shell("verify-whole", "ls / > /dev/null; (true; true) | cat")?;
    let (present, faulted) = (&answer["present"], &answer["faulted"]);
    let number = |of: &Value, name: &str| of[name].as_u64().with_context(|| format!("no {name} in {answer}"));
    ensure!(number(present, "pages")? > 400, "{answer}");
    for share in [present, faulted] {
        ensure!(share["percent"].as_f64().is_some_and(|percent| percent >= 99.0), "{answer}");
    }
    let sum = |of: &Value| of.as_object().into_iter().flatten().filter_map(|(_, pages)| pages.as_u64()).sum::<u64>();
    ensure!(sum(&present["by_explanation"]) == number(present, "pages")?, "{answer}");
    let accounted = number(faulted, "there")? + number(faulted, "missing")? + sum(&faulted["gone"]);
    ensure!(accounted == number(faulted, "pages")?, "{answer}");
    ensure!(number(&answer["looks"], "fork")? >= 2 && number(&answer["looks"], "exit")? >= 4, "{answer}");
    Ok(())
}

#[test]
fn what_the_command_leaves_behind_runs_on() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scratch = Scratch::new("verify-left")?;
    let file = scratch.0.join("pid");
    let script = format!("sleep 30 > /dev/null 2>&1 & echo $! > {}", file.display());
    let (ran, answer) = shell("verify-leaves", &script)?;
    ran.exits(0)?;
    let pid: u32 = std::fs::read_to_string(&file)?.trim().parse()?;
    let state = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let runs_on = is(pid, "sleep") && state.contains("TracerPid:\t0") && state.contains("State:\tS");
    let killed = std::process::Command::new("kill").arg(pid.to_string()).status()?;
    ensure!(runs_on && killed.success(), "{state}");
    ensure!(answer["left_running"] == 1, "{answer}");
    Ok(())
}

#[test]
fn a_signal_ends_the_command_and_the_answer_is_given() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let mut command = pagetrace(&["verify", "--at-least", "0", "--", "sh", "-c", "echo begun >&2; exec sleep 30"])?;
    let mut running = Running::start(&mut command)?;
    running.await_stderr("begun")?;
    running.signal("TERM")?;
    let ran = running.end()?.exits(143)?.says("stopped by SIGTERM")?;
    ensure!(ran.stdout.starts_with("EXPLAINED"), "{ran:#?}");
    Ok(())
}

#[test]
fn looks_in_between_change_nothing_for_the_command() -> Result<()> {
    if !root() {
        return Ok(());
    }
    // A loop, a wait for a child, and a stop by a signal, all of them interrupted.
    let script =
        "(sleep 0.3; kill -CONT $$) & kill -STOP $$; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; wait; exit 6";
    let ran = run(&["verify", "--at-least", "99.9", "--every", "50", "--format", "json", "--", "sh", "-c", script])?;
    let answer = ran.exits(6)?.json()?;
    ensure!(answer["outcome"] == "explained", "{answer}");
    ensure!(answer["looks"]["periodic"].as_u64().is_some_and(|looks| looks > 2), "{answer}");
    Ok(())
}
