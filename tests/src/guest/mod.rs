//! The suite of a test VM: pagetrace must find every violating case, say the right thing about it, and find
//! nothing in the clean ones, by every attach type that the kernel has.
//!
//! What the kernel has is read from the kernel, not from pagetrace: a tool that is blind must not choose what
//! it is asked. Guests are slow, so one run of pagetrace covers all cases of a kind.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

pub mod before;
pub mod expect;
pub mod holds;
pub mod manners;
pub mod order;
pub mod pages;
pub mod provoke;
pub mod random;
pub mod record;
pub mod report;
pub mod strict;
pub mod swap;
pub mod symbols;
pub mod targets;
pub mod tool;
pub mod verify;

use std::{collections::HashSet, env, fs, path::Path, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};
use expect::{Expected, Hanging};
use memchr::memmem;
use serde_json::Value;
use tool::{Ended, Tool, tail};

use crate::fixture::{
    cases::{self, CASES, Kind},
    crowd,
    device::Device,
    module,
};

/// The suite; takes `--host` for a machine that is not a test VM.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let Some(asked) = Asked::parse(&arguments) else {
        eprintln!(
            "usage: pagetrace-guest-suite [--host] [--share kernel|rest] [--only kprobe|fentry|tracepoint|raw-tracepoint|before|random|strict|order|manners|targets|pages|provoke|verify|hang]"
        );
        return ExitCode::from(2);
    };
    let mut tally = Tally::default();
    if let Err(error) = run(&asked, &mut tally) {
        tally.case("suite", || Err(error));
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed == 0 && tally.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What shall be run, and where.
#[derive(Debug, Default)]
pub struct Asked<'a> {
    /// A machine that is not a test VM.
    pub host: bool,
    /// One part of the suite.
    only: Option<&'a str>,
    share: Option<Share>,
}

/// The suite in two: what every kernel has to be asked, and what the oldest and the newest are enough for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    /// Hooks, locks, faults, hanging tasks.
    Kernel,
    /// Exit codes, users, signals, most targets, provoking, crowds, `--verify`, and what recordings are made into.
    Rest,
}

impl<'a> Asked<'a> {
    fn parse(arguments: &'a [String]) -> Option<Self> {
        let mut asked = Self::default();
        let mut words = arguments.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match word {
                "--host" => asked.host = true,
                "--only" => asked.only = Some(words.next()?),
                "--share" => {
                    asked.share = Some(match words.next()? {
                        "kernel" => Share::Kernel,
                        "rest" => Share::Rest,
                        _ => return None,
                    });
                }
                _ => return None,
            }
        }
        Some(asked)
    }

    fn part(&self, name: &str) -> bool {
        self.only.is_none_or(|only| only == name)
    }

    /// What every kernel has to be asked is wanted.
    #[must_use]
    pub fn kernel(&self) -> bool {
        self.share != Some(Share::Rest)
    }

    /// What the outer kernels are enough for is wanted.
    #[must_use]
    pub fn rest(&self) -> bool {
        self.share != Some(Share::Kernel)
    }
}

/// Counts cases and prints a line about each.
#[derive(Debug, Default)]
pub struct Tally {
    passed: usize,
    failed: usize,
}

impl Tally {
    /// Runs a case.
    pub fn case(&mut self, name: &str, work: impl FnOnce() -> Result<()>) {
        let since = Instant::now();
        match work() {
            Ok(()) => {
                self.passed += 1;
                println!("case {name} ... ok");
            }
            Err(error) => {
                self.failed += 1;
                println!("case {name} ... FAILED: {}", format!("{error:#}").replace('\n', " | "));
            }
        }
        eprintln!("{name}: {:.1} s", since.elapsed().as_secs_f64());
    }

    /// Says that a case cannot be run here.
    pub fn skip(&self, name: &str, reason: &str) {
        println!("case {name} ... skipped: {reason}");
    }
}

/// Which fixtures this machine can run.
#[derive(Debug, Clone, Copy)]
pub struct Fixtures {
    module: bool,
    bpf: bool,
}

impl Fixtures {
    /// The word for the fixture's `all-…` commands.
    fn word(self) -> Result<&'static [&'static str]> {
        match (self.module, self.bpf) {
            (true, true) => Ok(&[]),
            (true, false) => Ok(&["kmod"]),
            (false, true) => Ok(&["bpf"]),
            (false, false) => bail!("this kernel can run neither the module nor the BPF fixtures"),
        }
    }

    fn expected(self) -> impl Iterator<Item = &'static Expected> {
        let module = expect::MODULE.iter().filter(move |_| self.module);
        module.chain(expect::BPF.iter().filter(move |_| self.bpf))
    }

    /// What breaks the rule, and what takes a lock along for a while.
    fn violating(self) -> Result<Vec<&'static str>> {
        let leaking: &[&str] = if self.module { &["+", "all-leaking"] } else { &[] };
        Ok([&["each", "all-violating"], self.word()?, leaking].concat())
    }

    fn latent(self) -> bool {
        self.module
    }

    fn clean(self) -> Result<Vec<&'static str>> {
        Ok([&["each", "all-clean"], self.word()?].concat())
    }

    /// What is clean, and what only a strict check finds fault with.
    fn silent(self) -> Result<Vec<&'static str>> {
        let latent: &[&str] = if self.module { &["+", "all-latent"] } else { &[] };
        Ok([&self.clean()?, latent].concat())
    }

    /// All of these, in one run.
    fn both(self) -> Result<Vec<&'static str>> {
        let silent = self.silent()?;
        Ok([&self.violating()?[..], &silent[1..]].join(&"+"))
    }
}

fn run(asked: &Asked<'_>, tally: &mut Tally) -> Result<()> {
    let host = asked.host;
    let tool = Tool::find()?;
    if !host
        && !Device::exists()
        && let Some(path) = env::var_os(module::FILE)
    {
        module::load(Path::new(&path))?;
    }
    let btf = fs::read("/sys/kernel/btf/vmlinux").context("this kernel has no BTF")?;
    let knows = |name: &str| memmem::find(&btf, format!("\0{name}\0").as_bytes()).is_some();
    let fixtures =
        Fixtures { module: !host && Device::exists(), bpf: knows("bpf_iter_task_vma") && knows("bpf_find_vma") };
    if !fixtures.module {
        tally.skip("module", "no fixture module for this kernel");
    }
    if !fixtures.bpf {
        tally.skip("bpf", "this kernel has no sleepable iterator over mappings and no bpf_find_vma");
    }
    let tracepoints = knows("btf_trace_mmap_lock_released");
    let kprobes = Path::new("/sys/bus/event_source/devices/kprobe").exists();
    // On kernels as old as 5.10, told by what they lack, every trampoline attached costs many seconds in an emulated
    // guest: fentry is never chosen there by itself, and is not tested there. On somebody's own machine a policy may
    // close it, which only trying shows.
    let fentry = if host { tool.may_attach("fentry") } else { knows("lock_mm_and_find_vma") };
    let ways = [("kprobe", kprobes), ("fentry", fentry), ("tracepoint", tracepoints), ("raw-tracepoint", tracepoints)];
    // Raw tracepoints have the programs of the others, line by line (the kernel side's shims/tracepoint.rs).
    let distinct: Vec<&str> =
        ways.iter().filter(|(attach, has)| *has && *attach != "raw-tracepoint").map(|(attach, _)| *attach).collect();
    let wanted = |part: &str| asked.kernel() && asked.part(part);
    let rest = |part: &str| asked.rest() && asked.part(part);
    for (attach, has) in ways.into_iter().filter(|(attach, _)| wanted(attach)) {
        if has {
            let live = violating(&tool, attach, fixtures, tally);
            tally.case(&format!("{attach}/clean"), || clean(&tool, attach, fixtures));
            // Where nothing is emulated a recording of everything takes no time.
            if attach == "kprobe" || host && attach == "tracepoint" {
                // Without a live run, that one is the failure.
                if let Some(live) = live {
                    record::run(&tool, attach, fixtures, &live, tally);
                }
            } else if distinct.contains(&attach) {
                record::brief(&tool, attach, fixtures, tally);
            }
        } else {
            tally.skip(attach, "this kernel does not show the lock that way, or too slowly to test");
        }
    }
    if fixtures.module && wanted("before") {
        // By the fault handler's own way to the lock, and by the exception before it.
        let has: Vec<&str> = ["kprobe", "tracepoint"].into_iter().filter(|way| ways.contains(&(*way, true))).collect();
        before::run(&tool, &has, tally);
    }
    if fixtures.module && wanted("random") {
        random::run(&tool, &distinct, tally);
    }
    if asked.part("strict") {
        strict::run(&tool, asked, kprobes, fentry, fixtures, tally);
    }
    let holding: Vec<&str> =
        [("kprobe", kprobes), ("fentry", fentry)].into_iter().filter(|it| it.1).map(|it| it.0).collect();
    if asked.part("order") {
        order::run(&tool, asked, fixtures.module, if host { &[] } else { &holding }, tally);
    }
    if asked.part("manners") {
        manners::run(&tool, asked, fixtures, knows("bpf_rdonly_cast"), tally);
    }
    if host && rest("provoke") {
        tally.skip("provoke", "anonymous pages leave only for swap, and this machine's is not the suite's to set up");
    } else if rest("provoke") {
        provoke::run(&tool, fixtures, tally);
    }
    if fixtures.bpf && asked.part("targets") {
        targets::run(&tool, asked, tally);
    } else if asked.part("targets") {
        tally.skip("target", "what violates the rule there is a BPF fixture");
    }
    if asked.part("pages") {
        pages::run(&tool, asked, tally);
    }
    if rest("verify") {
        verify::run(&tool, tally);
    }
    // Last: on 5.10 nothing ends the task, and it stays until the machine goes down.
    if fixtures.bpf && !host && wanted("hang") {
        tally.case("hang/uprobe", || order::by_uprobe(&tool));
    }
    if fixtures.module && rest("hang") {
        // The newest kernel chooses kprobes by itself, and the oldest has nothing else.
        for attach in distinct.iter().filter(|attach| **attach != "kprobe") {
            for expected in expect::HANGING {
                let name = format!("{attach}/hang/{}", expected.case);
                tally.case(&name, || hang(&tool, &["--attach", attach], "0", expected).map(drop));
            }
        }
        // Whatever the attach type: what is looked at is what it found.
        if kprobes {
            tally.case("hang/order-crowd", || order::standing(&tool, &[], &["crowded-standing"]));
        }
        for expected in expect::HANGING {
            // What pushes pages out is at it by then and may get stuck with the task; the check must not.
            tally.case(&format!("provoke/hang/{}", expected.case), || {
                let report = hang(&tool, &["--provoke=5"], "2", expected)?;
                let rounds = report["provocation"]["rounds"].as_u64();
                ensure!(
                    rounds.is_some_and(|rounds| rounds > 0),
                    "nothing was pushed before: {}",
                    report["provocation"]
                );
                Ok(())
            });
        }
    }
    if fixtures.module && wanted("hang") {
        // The order is looked at by the first of these everywhere.
        if let Some(attach) = holding.last() {
            tally.case(&format!("{attach}/hang/order"), || {
                order::standing(&tool, &["--attach", attach], &["kmod", crowd::STANDING_CASE])
            });
        }
        for expected in expect::HANGING {
            tally.case(&format!("hang/{}", expected.case), || hang(&tool, &[], "0", expected).map(drop));
        }
    }
    Ok(())
}

/// One run over all violating cases; a line for each case, and one for what must not be there.
fn violating(tool: &Tool, attach: &str, fixtures: Fixtures, tally: &mut Tally) -> Option<Value> {
    let report = match violating_report(tool, attach, fixtures) {
        Ok(report) => report,
        Err(error) => {
            tally.case(&format!("{attach}/violating"), || Err(error));
            return None;
        }
    };
    // The handler's lock path returns it, and fault tracepoints do not carry it.
    let shows_vma = matches!(attach, "kprobe" | "fentry");
    let mut known = HashSet::new();
    for expected in fixtures.expected() {
        let name = format!("{attach}/{}", expected.case);
        if expected.visible_by(attach) {
            known.insert(cases::comm_of(expected.case));
            tally.case(&name, || report::matches(&report, expected, shows_vma));
        } else {
            tally.skip(&name, "the lock is taken past the wrappers, and so past these hooks");
        }
    }
    tally.case(&format!("{attach}/nothing-else"), || {
        let findings = report::list(&report["findings"]);
        let is_leak = |finding: &Value| report::text(&finding["class"]) == "lock-leak";
        let stranger = findings.iter().find(|finding| !is_leak(finding) && !known.contains(report::comm(finding)));
        stranger.map_or(Ok(()), |finding| {
            bail!("a finding about {}: {}", report::comm(finding), report::text(&finding["summary"]))
        })
    });
    if fixtures.module {
        tally.case(&format!("{attach}/leaks"), || strict::leaks(&report, false));
    }
    let name = format!("{attach}/pages");
    match symbols::shows_page_tables() {
        Ok(false) => tally.skip(&name, "this kernel does not tell where its direct map is"),
        shows => tally.case(&name, || shows.and_then(|_| report::pages_are_as_left(&report))),
    }
    Some(report)
}

/// Makes the violations. A run in which the kernel skipped events is made anew: one of them may have been a violation. One in
/// which it did not has to find all, and so has the last.
fn violating_report(tool: &Tool, attach: &str, fixtures: Fixtures) -> Result<Value> {
    for _ in 0..2 {
        let report = violating_once(tool, attach, fixtures)?;
        if report::loss(&report, "recursion_misses") == 0 {
            return Ok(report);
        }
    }
    violating_once(tool, attach, fixtures)
}

fn violating_once(tool: &Tool, attach: &str, fixtures: Fixtures) -> Result<Value> {
    let ended = tool.run(tool.check(&["--attach", attach], &fixtures.violating()?))?;
    exercised(&ended, fixtures, Kind::Violating)?;
    exercised(&ended, fixtures, Kind::Leaking)?;
    ensure!(ended.status.code() == Some(1), "ended with {}, not 1: {}", ended.status, tail(&ended.stderr));
    let report = report::parse(&ended.stdout)?;
    ensure!(report::text(&report["verdict"]) == "findings", "the verdict is {}", report["verdict"]);
    ensure!(report["command"]["exit_code"] == 0, "the command's exit code is {}", report["command"]["exit_code"]);
    Ok(report)
}

fn clean(tool: &Tool, attach: &str, fixtures: Fixtures) -> Result<()> {
    let ended = tool.run(tool.check(&["--attach", attach], &fixtures.silent()?))?;
    exercised(&ended, fixtures, Kind::Clean)?;
    exercised(&ended, fixtures, Kind::Latent)?;
    let report = report::parse(&ended.stdout)?;
    // Skipped events must be told, and must not accuse anybody.
    if attach != "kprobe" && report::only_skipped(&report) {
        ensure!(ended.status.code() == Some(4), "ended with {}, not 4", ended.status);
        return Ok(());
    }
    report::is_clean(&report)?;
    ensure!(ended.status.code() == Some(0), "ended with {}, not 0: {}", ended.status, tail(&ended.stderr));
    Ok(())
}

/// A pattern that did not take place proves nothing, found or not.
fn exercised(ended: &Ended, fixtures: Fixtures, kind: Kind) -> Result<()> {
    let log = ended.log.as_str();
    let failed: Vec<_> = log.lines().filter(|line| line.contains(": FAILED: ")).collect();
    ensure!(failed.is_empty(), "not exercised: {}", failed.join(" | "));
    for case in CASES.iter().filter(|case| fixtures.module && case.kind == kind) {
        let line = format!("kmod {}: ok", case.name);
        ensure!(
            log.contains(&line),
            "case {} left no line; ended with {}; the log: {}; stderr: {}",
            case.name,
            ended.status,
            tail(log),
            tail(&ended.stderr)
        );
    }
    ensure!(!log.is_empty(), "the command did not run: {}", tail(&ended.stderr));
    Ok(())
}

/// A deadlock, so many seconds after the command's start: pagetrace must end by itself, say that the command hangs, and
/// say why.
fn hang(tool: &Tool, options: &[&str], after: &str, expected: &Hanging) -> Result<Value> {
    let ended = tool.run_hanging(|| tool.check(options, &["kmod", expected.case, after]))?;
    ensure!(ended.log.contains("hangs now"), "the case did not begin: {}", tail(&ended.log));
    ensure!(ended.status.code() == Some(1), "ended with {}, not 1: {}", ended.status, tail(&ended.stderr));
    // Before 5.11 a reader may steal the lock from a writer that has only queued (kernel/locking/rwsem.c,
    // `rwsem_optimistic_spin`): that one time nobody hangs, and the finding has to say so.
    let stole = expected.mode == "read" && ended.log.contains(&format!("kmod {}: ok", expected.case));
    let report = report::parse(&ended.stdout)?;
    report::hangs(&report, expected, !stole)?;
    if !stole {
        order::stands(&report, expected.case, expected.mode)?;
    }
    Ok(report)
}
