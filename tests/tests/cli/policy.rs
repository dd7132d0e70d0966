//! Policy: which findings count, what a baseline and suppressions excuse, and the codes that come of it.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::run::{Ran, Scratch, root, run};

fn recording(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("recordings").join(format!("{name}.ptrace"));
    path.to_string_lossy().into_owned()
}

fn judged(name: &str, args: &[&str]) -> Result<Ran> {
    run(&[&["report", "--format", "json", &recording(name)], args].concat())
}

fn write(scratch: &Scratch, name: &str, text: &str) -> Result<String> {
    let path = scratch.0.join(name);
    fs::write(&path, text)?;
    Ok(path.to_string_lossy().into_owned())
}

/// The fingerprint of the only finding of a recording.
fn fingerprint(name: &str) -> Result<String> {
    let report = judged(name, &[])?.exits(1)?.json()?;
    Ok(report["findings"][0]["fingerprint"].as_str().context("a fingerprint")?.to_owned())
}

#[test]
fn fail_on_chooses_what_counts() -> Result<()> {
    for (name, fail_on, code) in [
        ("read-own", &["any"][..], 1),
        ("read-own", &["fault-under-lock:recursive-read"], 1),
        ("read-own", &["fault-under-lock:deadlock"], 0),
        ("read-own", &["lock-leak"], 0),
        ("read-own", &["lock-leak", "fault-under-lock"], 1),
        ("nested-two", &["fault-under-lock:recursive-read"], 0),
        ("nested-two", &["any:cross-mm"], 1),
        ("true", &["any"], 0),
    ] {
        let args: Vec<&str> = fail_on.iter().flat_map(|one| ["--fail-on", one]).collect();
        let report = judged(name, &args)?.exits(code)?.json()?;
        let verdict = if name == "true" { "clean" } else { "findings" };
        ensure!(report["verdict"] == verdict, "the verdict is what was seen: {report:#}");
        ensure!(report["policy"]["result"] == if code == 0 { "pass" } else { "fail" }, "{:#}", report["policy"]);
    }
    Ok(())
}

#[test]
fn a_baseline_is_made_kept_and_used() -> Result<()> {
    let scratch = Scratch::new("baseline")?;
    for (file, form) in [("known.toml", "[[finding]]"), ("known.json", "\"finding\"")] {
        let path = scratch.0.join(file).to_string_lossy().into_owned();
        let json = scratch.0.join("report.json").to_string_lossy().into_owned();
        run(&["report", &recording("nested-two"), "--json", &json])?.exits(1)?;
        let made = run(&["baseline", "update", &path, &recording("read-own"), &json])?.exits(0)?;
        made.says("2 entries, 2 of them new")?.silent()?;
        // A person gives a reason and a day.
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains(form) && text.contains("fault-under-lock in ptf_"), "{text}");
        let (old, new) = if file.ends_with("json") {
            ("\"reason\": \"not looked at yet\"", "\"reason\": \"bug 7\", \"expires\": \"2999-01-01\"")
        } else {
            ("reason = \"not looked at yet\"", "reason = \"bug 7\"\nexpires = \"2999-01-01\"")
        };
        fs::write(&path, text.replacen(old, new, 1))?;
        run(&["baseline", "update", &path, &recording("read-own"), &recording("true")])?
            .exits(0)?
            .says("2 entries, 0 of them new")?;
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains("bug 7") && text.contains("2999-01-01"), "what a person wrote is gone: {text}");
        let report = judged("read-own", &["--baseline", &path])?.exits(0)?.json()?;
        ensure!(report["verdict"] == "findings" && report["findings"][0]["baselined"] == true, "{report:#}");
        let policy = &report["policy"];
        ensure!(policy["result"] == "pass" && policy["counted"] == 0 && policy["baselined"] == 1, "{policy:#}");
        ensure!(policy["unused"].as_array().is_some_and(|unused| unused.len() == 1), "{policy:#}");
        ensure!(report["findings"][0]["excused"]["reason"] == "bug 7", "{report:#}");
    }
    Ok(())
}

/// The locks of each edge that is said to be new.
fn new_edges(report: &Value) -> Vec<String> {
    let edges = report["order"]["edges"].as_array().into_iter().flatten();
    let new = edges.filter(|edge| edge["new"] == true);
    new.map(|edge| format!("{} -> {}", edge["held"]["text"], edge["wanted"]["text"])).collect()
}

#[test]
fn edges_of_the_lock_order_are_new_or_known_by_a_baseline() -> Result<()> {
    let scratch = Scratch::new("edges")?;
    let path = |name: &str| scratch.0.join(name).to_string_lossy().into_owned();
    let [before, later] = ["mutex-fault", "mutex-mmap"].map(recording);
    for file in ["known.toml", "known.json"] {
        let known = path(file);
        let made = run(&["baseline", "update", &known, &before])?.exits(0)?;
        made.says("edges of the lock order")?.silent()?;
        let judged = |args: &[&str], code| -> Result<Value> {
            run(&[&["report", "--format", "json", "--baseline", &known], args].concat())?.exits(code)?.json()
        };
        let report = judged(&["--require-known-order", &before], 0)?;
        ensure!(report["policy"]["new_edges"] == 0 && new_edges(&report).is_empty(), "{:#}", report["policy"]);
        // The other run took a mutex that this one did not.
        let report = judged(&["--fail-on", "lock-leak", &later], 0)?;
        let new = new_edges(&report);
        ensure!(new.len() == 2 && new.iter().all(|edge| edge.contains("ptf_mutex_mmap_lock")), "{new:?}");
        ensure!(report["policy"]["new_edges"] == 2, "{:#}", report["policy"]);
        let report = judged(&["--fail-on", "lock-leak", "--require-known-order", &before, &later], 1)?;
        ensure!(report["policy"]["result"] == "fail", "{:#}", report["policy"]);
        ensure!(report["policy"]["because"].to_string().contains("baseline does not know"), "{:#}", report["policy"]);
        let text = run(&["report", "--baseline", &known, &later])?.exits(1)?;
        let line = "not in the baseline: mmap_lock (read) -> pagetrace_fixture:ptf_mutex_mmap_lock (write), by ptf-ord-mutex-m";
        ensure!(text.stdout.contains(line), "{text:#?}");
        let dot = run(&["report", "--format", "dot", "--baseline", &known, &before, &later])?.exits(1)?;
        ensure!(dot.stdout.contains("color=red") && dot.stdout.starts_with("digraph"), "{dot:#?}");
        // From a report as from a recording; then nothing is new.
        let json = path("report.json");
        run(&["report", "--json", &json, &later])?.exits(1)?;
        run(&["baseline", "update", &known, &json])?.exits(0)?.says("edges of the lock order, 2 of them new")?;
        judged(&["--require-known-order", &before, &later], 0)?;
    }
    // A baseline without an order cannot be asked for it, and says nothing about one.
    let without = path("without.toml");
    run(&["baseline", "update", &without, &recording("read-own")])?.exits(0)?;
    let report = run(&["report", "--format", "json", "--baseline", &without, &later])?.exits(1)?.json()?;
    ensure!(report["policy"].get("new_edges").is_none() && new_edges(&report).is_empty(), "{:#}", report["policy"]);
    let refused = run(&["report", "--baseline", &without, "--require-known-order", &later])?.exits(2)?;
    refused.says("has no lock order")?.says("--order")?.silent()?;
    run(&["report", "--require-known-order", &later])?.exits(2)?.says("--baseline")?.silent()?;
    Ok(())
}

#[test]
fn an_entry_that_has_expired_counts_again_and_says_so() -> Result<()> {
    let scratch = Scratch::new("expired")?;
    let text = format!(
        "version = 1\n[[finding]]\nfingerprint = \"{}\"\nreason = \"bug 7\"\nexpires = \"2020-02-29\"\n",
        fingerprint("read-own")?
    );
    let path = write(&scratch, "known.toml", &text)?;
    let report = judged("read-own", &["--baseline", &path])?.exits(1)?.json()?;
    ensure!(report["policy"]["expired"][0].as_str().is_some_and(|why| why.contains("expired on 2020-02-29: bug 7")));
    ensure!(report["findings"][0].get("baselined").is_none(), "{report:#}");
    let told = run(&["report", &recording("read-own"), "--baseline", &path])?.exits(1)?;
    ensure!(told.stdout.contains("policy: fail") && told.stdout.contains("expired on 2020-02-29"), "{told:#?}");
    Ok(())
}

#[test]
fn excused_findings_are_marked_in_every_output() -> Result<()> {
    let scratch = Scratch::new("excused")?;
    let rules =
        "# Ours, and known.\nversion = 1\n[[suppress]]\nmodule = \"pagetrace_fixture\"\nreason = \"a fixture\"\n";
    let rules = write(&scratch, "suppress.toml", rules)?;
    let path = |name: &str| scratch.0.join(name).to_string_lossy().into_owned();
    let (junit, sarif) = (path("a.xml"), path("a.sarif"));
    let args =
        ["report", &recording("read-own"), "--suppress", &rules, "--junit", &junit, "--sarif", &sarif, "--github"];
    let ran = run(&args)?.exits(0)?;
    ensure!(ran.stdout.contains("does not count, suppressed: a fixture"), "{ran:#?}");
    ensure!(ran.stderr.starts_with("::notice ") && !ran.stderr.contains("::error"), "{ran:#?}");
    let text = fs::read_to_string(&junit)?;
    let document = roxmltree::Document::parse(&text)?;
    let count = |tag: &str| document.descendants().filter(|node| node.has_tag_name(tag)).count();
    ensure!((count("skipped"), count("failure"), count("error")) == (1, 0, 0), "{text}");
    let log: Value = serde_json::from_str(&fs::read_to_string(&sarif)?)?;
    let suppression = &log["runs"][0]["results"][0]["suppressions"][0];
    ensure!(suppression["justification"] == "suppressed: a fixture", "{suppression:#}");
    Ok(())
}

#[test]
fn coverage_can_be_required() -> Result<()> {
    let scratch = Scratch::new("coverage")?;
    let sound = fs::read(PathBuf::from(recording("read-own")))?;
    let cut = scratch.0.join("cut.ptrace");
    fs::write(&cut, &sound[..sound.len() - 1])?;
    let cut = cut.to_string_lossy();
    let args = ["report", "--format", "json", &cut, "--fail-on", "lock-leak"];
    let report = run(&args)?.exits(0)?.json()?;
    ensure!(report["policy"]["because"].to_string().contains("--require-coverage"), "{:#}", report["policy"]);
    let report = run(&[args.as_slice(), &["--require-coverage"]].concat())?.exits(4)?.json()?;
    ensure!(report["policy"]["result"] == "incomplete", "{:#}", report["policy"]);
    run(&["report", &cut, "--require-coverage"])?.exits(1)?;
    Ok(())
}

#[test]
fn files_that_cannot_be_used_are_refused_before_anything_runs() -> Result<()> {
    let scratch = Scratch::new("policy-files")?;
    let newer = write(&scratch, "newer.toml", "version = 2\n")?;
    let typo = write(&scratch, "typo.toml", "version = 1\n# known\n[[finding]]\nfingerprnt = \"x\"\n")?;
    let all = write(&scratch, "all.toml", "version = 1\n[[suppress]]\nreason = \"r\"\n")?;
    let mark = scratch.0.join("started");
    let touch = mark.to_string_lossy();
    for (args, says) in [
        (["--baseline", &newer], "version 2, and this program reads version 1"),
        (["--baseline", &typo], "line 4, column 1: unknown field `fingerprnt`"),
        (["--baseline", "/no/such/file"], "/no/such/file"),
        (["--baseline", "/"], "cannot read the baseline /"),
        (["--suppress", &typo], "line 3, column 3: unknown field `finding`"),
        (["--suppress", &all], "every finding"),
        (["--fail-on", "nonsense"], "fault-under-lock"),
        (["--fail-on", "any:nonsense"], "recursive-read"),
    ] {
        let ran = run(&[&["check"], args.as_slice(), &["--", "touch", &touch]].concat())?.exits(2)?.silent()?;
        ensure!(ran.stderr.contains(says), "{args:?} does not say {says}: {ran:#?}");
        ensure!(!mark.exists(), "{args:?}: the command was started");
    }
    // An output must not destroy an input.
    let known = write(&scratch, "known.toml", "version = 1\n")?;
    let both = ["report", &recording("true"), "--baseline", &known, "--json", &known];
    run(&both)?.exits(2)?.says("--baseline and --json name the same file")?.silent()?;
    run(&["baseline", "update", &newer, &recording("true")])?.exits(2)?.says("version 2")?;
    ensure!(fs::read_to_string(&newer)? == "version = 2\n", "a baseline that was refused was written");
    let other = write(&scratch, "other.json", "{\"schema\": \"other/1\"}")?;
    let fresh = scratch.0.join("fresh.toml").to_string_lossy().into_owned();
    run(&["baseline", "update", &fresh, &other])?.exits(5)?.says("other/1")?;
    run(&["baseline", "update", &fresh, "/no/such/report"])?.exits(5)?.says("/no/such/report")?;
    ensure!(!scratch.0.join("fresh.toml").exists(), "a baseline was made of nothing");
    run(&["baseline", "update", &fresh])?.exits(2)?;
    Ok(())
}

#[test]
fn a_run_that_passes_ends_with_the_commands_code() -> Result<()> {
    if !root() {
        return Ok(());
    }
    run(&["check", "--fail-on", "any", "--", "sh", "-c", "exit 7"])?.exits(7)?;
    let report = run(&["check", "--format", "json", "--require-coverage", "--", "true"])?.exits(0)?.json()?;
    ensure!(report["policy"]["result"] == "pass" && report["verdict"] == "clean", "{report:#}");
    Ok(())
}
