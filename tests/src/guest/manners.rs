//! How pagetrace behaves towards its caller, its command and the kernel: exit codes, users, signals, loss.

use std::{
    collections::HashSet,
    os::unix::process::CommandExt as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Asked, Fixtures, Tally, report,
    tool::{self, Ended, LIMIT, Tool, tail},
};
use crate::fixture::cases;

/// The user whom sudo is said to have been called by, and who is not root.
pub const USER: u32 = 1000;

/// Runs these cases.
///
/// `casts`: the kernel gives programs types to read through (`bpf_rdonly_cast`).
pub fn run(tool: &Tool, asked: &Asked<'_>, fixtures: Fixtures, casts: bool, tally: &mut Tally) {
    if asked.kernel() {
        tally.case("command/shortcuts", || shortcuts(tool, casts));
        if fixtures.bpf {
            tally.case("finding/dated", || dated(tool, asked.host));
        }
    }
    if asked.rest() {
        towards_people(tool, asked.host, fixtures, tally);
        if fixtures.module {
            tally.case("trace/nested-faults", || nested_faults(tool));
        }
        if fixtures.bpf {
            tally.case("loss/storm", || storm(tool, if asked.host { 100_000 } else { 5_000 }));
        }
        if asked.host {
            // Other tracers come and go on an ordinary machine.
            tally.skip("kernel/sigkill", "only a test VM is quiet enough to say whose BPF programs are whose");
        } else {
            tally.case("kernel/sigkill", || sigkill(tool));
        }
    }
}

/// What no kernel has a say in.
fn towards_people(tool: &Tool, host: bool, fixtures: Fixtures, tally: &mut Tally) {
    tally.case("command/not-found", || not_found(tool));
    match for_a_user(tool) {
        Ok(ended) => {
            tally.case("command/exit-code", || exit_code(&ended));
            tally.case("command/sudo-user", || sudo_user(&ended));
        }
        Err(error) => tally.case("command/exit-code", || Err(error)),
    }
    match tool.run(tool.check(&[], &["each", "pagemap-read", "+", "abort"])) {
        Ok(ended) => {
            tally.case("command/signal", || signal(&ended));
            tally.case("command/pagemap-read", || ended.exercised("pagemap-read: ok"));
        }
        Err(error) => tally.case("command/signal", || Err(error)),
    }
    tally.case("command/fork-storm", || {
        // In a test VM there are few other tasks: what the first children leave has to serve the later ones.
        let room: &[&str] = if host { &[] } else { &["--max-tasks", "600"] };
        let ended = tool.run(tool.check(room, &["fork-storm", "1000"]))?;
        ended.exercised("fork-storm: ok")?;
        code(&ended, 0)?;
        report::is_clean(&report::parse(&ended.stdout)?)
    });
    tally.case("caller/no-such-pid", || no_such_pid(tool));
    tally.case("caller/not-root", || not_root(tool));
    tally.case("caller/sigint", || sigint(tool));
    tally.case("loss/tiny-ring", || tiny_ring(tool, fixtures));
    tally.case("loss/few-tasks", || few_tasks(tool));
}

/// Chains that were learnt instead of unwound name the very stacks that unwinding names, many thousand times.
fn shortcuts(tool: &Tool, casts: bool) -> Result<()> {
    for attach in [[].as_slice(), &["--attach", "tracepoint"]] {
        let args = [&["--verify-shortcuts"], attach].concat();
        let mut command = tool.check(&args, &["mmap-storm", "3000"]);
        command.env("RUST_LOG", "pagetrace=debug");
        let ended = tool.run(command)?;
        if !attach.is_empty() && ended.status.code() == Some(3) {
            continue;
        }
        ensure!(
            ended.stderr.contains("programs cast") == casts,
            "the kernel {} bpf_rdonly_cast: {}",
            if casts { "has" } else { "has no" },
            ended.stderr.lines().filter(|line| line.contains("cast")).collect::<Vec<_>>().join(" | ")
        );
        let report = report::parse(&ended.stdout)?;
        // A preemptible kernel may skip events, and says so.
        let skipped = report::loss(&report, "recursion_misses") > 0;
        code(&ended, if skipped { 4 } else { 0 })?;
        let (checked, wrong) = (report::loss(&report, "shortcut_checked"), report::loss(&report, "shortcut_wrong"));
        ensure!(wrong == 0, "{wrong} of {checked} shortcuts name another stack than unwinding; {}", report["loss"]);
        // What maps and unmaps takes the lock killably, and a return probe there hides the return address.
        let by = report::list(&report["coverage"]["events"]).iter().find(|event| event["event"] == "mmap-lock");
        let enough = if by.is_some_and(|event| event["attach"] == "kprobe") { 0 } else { 1500 };
        ensure!(checked >= enough, "only {checked} acquisitions were known by a shortcut");
    }
    Ok(())
}

/// A fault that is taken while another is handled is told, and so is the other, each with its own end.
fn nested_faults(tool: &Tool) -> Result<()> {
    const CASE: &str = "fault-fault";
    let mut command = tool.command(&["trace", "--format", "json", "--"]);
    command.arg(&tool.fixture).args(["kmod", CASE]);
    let ended = tool.run(command)?;
    ended.exercised(&format!("kmod {CASE}: ok"))?;
    let events: Vec<Value> = ended.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let page = format!("{:#x}", cases::page_of(CASE).context("every case has a page")? + cases::OFFSET);
    let of = |event: &&Value| {
        event["comm"] == cases::comm_of(CASE) && event["event"] == "fault" && event["mode"] == "kernel"
    };
    let user = events.iter().find(|event| event["event"] == "fault" && event["mode"] == "user" && event["held"] != 0);
    ensure!(user.is_none(), "no lock is held by anybody but the handler: {user:?}");
    let outer = events.iter().filter(of).find(|event| event["address"] != page);
    let outer = outer.with_context(|| format!("the first fault was not told: {}", tail(&ended.stderr)))?;
    ensure!(outer["held"] == 0, "the first fault is nobody's mistake: {outer}");
    let Some(inner) = events.iter().filter(of).find(|event| event["address"] == page) else {
        // Old kernels see as many returns of one function at a time as they have processors, and then it is counted.
        ensure!(ended.stderr.contains("fault_end_missed"), "no fault at {page} was told: {}", tail(&ended.stderr));
        return Ok(());
    };
    ensure!(inner["held"] == 1, "the lock of the first fault's handler is held: {inner}");
    let end = |event: &Value| event["time_ns"].as_u64();
    let begin = |event: &Value| Some(event["time_ns"].as_u64()?.saturating_sub(event["latency_ns"].as_u64()?));
    let around = begin(outer) < begin(inner) && end(inner) < end(outer);
    ensure!(around, "one is not around the other: {outer} and {inner}");
    Ok(())
}

fn code(ended: &Ended, expected: i32) -> Result<()> {
    let because = || match report::parse(&ended.stdout) {
        Ok(report) => report["coverage"]["incomplete_because"].to_string(),
        Err(_) => String::new(),
    };
    ensure!(
        ended.status.code() == Some(expected),
        "ended with {}, not {expected}: {} {}",
        ended.status,
        because(),
        tail(&ended.stderr)
    );
    Ok(())
}

fn not_found(tool: &Tool) -> Result<()> {
    const NAME: &str = "/no/such/program";
    let ended = tool.run(tool.command(&["check", "--format", "json", "--", NAME]))?;
    let code = ended.status.code();
    // Nothing was checked, so neither clean, nor findings, nor a run with gaps.
    ensure!(!matches!(code, None | Some(0 | 1 | 4)), "ended with {}: {}", ended.status, tail(&ended.stderr));
    ensure!(ended.stderr.contains(NAME), "the message does not name the program: {}", tail(&ended.stderr));
    Ok(())
}

/// A command that ends with a code of its own, for the user that sudo was called by.
fn for_a_user(tool: &Tool) -> Result<Ended> {
    let mut command = tool.check(&[], &["each", "whoami", "+", "exit", "7"]);
    command.env("SUDO_UID", USER.to_string()).env("SUDO_GID", USER.to_string()).env("SUDO_USER", "user");
    tool.run(command)
}

fn exit_code(ended: &Ended) -> Result<()> {
    code(ended, 7)?;
    let report = report::parse(&ended.stdout)?;
    report::is_clean(&report)?;
    ensure!(report["command"]["exit_code"] == 7, "the report says {}", report["command"]);
    Ok(())
}

fn signal(ended: &Ended) -> Result<()> {
    code(ended, 128 + libc::SIGABRT)?;
    let report = report::parse(&ended.stdout)?;
    // Nothing is wrong with what it did before: a read of pagemap into memory that faults.
    report::is_clean(&report)?;
    ensure!(report["command"]["signal"] == libc::SIGABRT, "the report says {}", report["command"]);
    ensure!(report["command"]["exit_code"].is_null(), "the report says {}", report["command"]);
    Ok(())
}

fn sudo_user(ended: &Ended) -> Result<()> {
    let expected = format!("uid={USER} gid={USER}");
    ensure!(ended.log.contains(&expected), "the command ran as: {}", tail(&ended.log));
    Ok(())
}

fn no_such_pid(tool: &Tool) -> Result<()> {
    // Above the largest id that a kernel may give out.
    const PID: &str = "4194305";
    let ended = tool.run(tool.command(&["check", "--format", "json", "--pid", PID]))?;
    ensure!(matches!(ended.status.code(), Some(2 | 3)), "ended with {}: {}", ended.status, tail(&ended.stderr));
    ensure!(ended.stderr.contains(PID), "the message does not name the process: {}", tail(&ended.stderr));
    Ok(())
}

fn not_root(tool: &Tool) -> Result<()> {
    let mut command = tool.check(&[], &["exit", "0"]);
    command.uid(USER).gid(USER);
    let ended = tool.run(command)?;
    code(&ended, 3)?;
    let message = ended.stderr.to_lowercase();
    let says = ["root", "sudo", "cap_", "privilege", "permi"].iter().any(|word| message.contains(word));
    ensure!(says, "the message does not say what is missing: {}", tail(&ended.stderr));
    Ok(())
}

fn sigint(tool: &Tool) -> Result<()> {
    let child = tool.start(tool.check(&[], &["sleep", "600"]))?;
    let begun = tool::wait_for_child(child.id(), Duration::from_secs(60));
    thread::sleep(Duration::from_secs(1));
    tool::signal(&child, libc::SIGINT)?;
    let ended = tool.finish(child, Duration::from_secs(60));
    // Whether pagetrace ends its command too is its own affair; nothing of this suite stays.
    tool::end(begun?);
    let ended = ended?;
    let report = report::parse(&ended.stdout)?;
    let verdict = report::text(&report["verdict"]);
    ensure!(matches!(verdict, "clean" | "incomplete"), "the verdict is {verdict:?}");
    ensure!(ended.status.code().is_some(), "ended with {}, not in order", ended.status);
    Ok(())
}

fn tiny_ring(tool: &Tool, fixtures: Fixtures) -> Result<()> {
    let ended = tool.run(tool.check(&["--ring-bytes", "4096"], &fixtures.violating()?))?;
    let report = report::parse(&ended.stdout)?;
    let verdict = report::text(&report["verdict"]);
    let found: HashSet<_> = report::list(&report["findings"]).iter().map(report::comm).collect();
    let missing: Vec<_> =
        fixtures.expected().filter(|row| row.in_wrappers && !found.contains(&*cases::comm_of(row.case))).collect();
    match verdict {
        "incomplete" => {
            code(&ended, 4)?;
            ensure!(report::lost(&report) > 0, "incomplete, but no loss is counted: {}", report["loss"]);
        }
        "findings" => {
            code(&ended, 1)?;
            let names: Vec<_> = missing.iter().map(|row| row.case).collect();
            let counted = names.is_empty() || report::lost(&report) > 0;
            ensure!(counted, "no loss is counted, but these are missing: {}", names.join(", "));
        }
        other => anyhow::bail!("the verdict is {other:?}"),
    }
    Ok(())
}

/// More tasks at once than there is room for: those that find none are counted, and then nothing is clean.
fn few_tasks(tool: &Tool) -> Result<()> {
    let ended = tool.run(tool.check(&["--max-tasks", "16"], &["at-once", "24", "mmap-storm", "1s"]))?;
    ended.exercised("mmap-storm: ok")?;
    code(&ended, 4)?;
    let report = report::parse(&ended.stdout)?;
    ensure!(report::loss(&report, "task_map_full") > 0, "no task was without room: {}", report["loss"]);
    Ok(())
}

/// A hold is dated by itself, except in a timer tick in which the lock was taken very often: then it is said to have been held for
/// that long at most, and a tick is no more than that off.
fn dated(tool: &Tool, host: bool) -> Result<()> {
    /// Nanoseconds of the longest timer tick there is, and what an access may take on a slow machine.
    const MOST: u64 = 10_000_000 + 20_000_000;
    // A hundred locks and a probe do not fit into a timer tick of an emulated machine.
    let runs: &[&[&str]] = &[&["uprobe-dated", "rested"], &["uprobe-dated"]];
    for words in runs.iter().take(if host { 2 } else { 1 }) {
        let mut tries = 0;
        let ended = loop {
            let ended = tool.run(tool.check(&["--attach", "raw-tracepoint"], words))?;
            tries += 1;
            if tries == 5 || !ended.log.contains("a timer tick came in between") {
                break ended;
            }
        };
        ended.exercised("uprobe-dated: ok")?;
        let report = report::parse(&ended.stdout)?;
        let lock = &report["findings"][0]["locks"][0];
        let most = if words.len() == 1 { Value::Bool(true) } else { Value::Null };
        ensure!(lock["held_ns_at_most"] == most, "{}: the lock: {lock}; {}", words.join(" "), report["loss"]);
        let held = lock["held_ns"].as_u64();
        ensure!(held.is_some_and(|held| held > 0 && held < MOST), "{}: held for {held:?}", words.join(" "));
    }
    Ok(())
}

fn programs() -> Result<HashSet<u32>> {
    aya::programs::loaded_programs()
        .map(|program| Ok(program.context("cannot list BPF programs")?.id()))
        .collect::<Result<_>>()
}

/// Nothing may stay in the kernel when pagetrace is killed without a chance to clean up.
fn sigkill(tool: &Tool) -> Result<()> {
    let before = programs()?;
    let child = tool.start(tool.check(&[], &["sleep", "5"]))?;
    let begun = tool::wait_for_child(child.id(), Duration::from_secs(60));
    let during = programs()?;
    tool::signal(&child, libc::SIGKILL)?;
    tool.finish(child, LIMIT)?;
    begun?;
    ensure!(during.difference(&before).next().is_some(), "no BPF program was loaded while the command ran");
    let since = Instant::now();
    loop {
        let left: Vec<_> = programs()?.difference(&before).copied().collect();
        if left.is_empty() {
            return Ok(());
        }
        // The kernel frees programs a little later.
        ensure!(since.elapsed() < Duration::from_secs(20), "BPF programs {left:?} are still loaded");
        thread::sleep(Duration::from_millis(200));
    }
}

/// The same violation very often, and a ring with room for two records: one finding that has counted every one.
fn storm(tool: &Tool, count: u64) -> Result<()> {
    let ended = tool.run(tool.check(&["--ring-bytes", "4096"], &["uprobe-storm", &count.to_string()]))?;
    ended.exercised("uprobe-storm: ok")?;
    code(&ended, 1)?;
    let report = report::parse(&ended.stdout)?;
    let findings = report::list(&report["findings"]);
    ensure!(findings.len() == 1, "{} findings", findings.len());
    ensure!(
        findings[0]["count"] == count,
        "it was seen {} times, not {count}; {}",
        findings[0]["count"],
        report["loss"]
    );
    let (first, last) = (findings[0]["first_seen_ns"].as_u64(), findings[0]["last_seen_ns"].as_u64());
    ensure!(first < last, "first seen at {first:?}, last at {last:?}");
    for name in ["ring_full", "violation_lost", "seen_map_full"] {
        ensure!(report["loss"][name] == 0, "{name} is {}", report["loss"][name]);
    }
    Ok(())
}
