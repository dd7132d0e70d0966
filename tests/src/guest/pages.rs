//! `pagetrace pagemap` of a process whose pages are in every state on purpose: each bit must say what is so, and both ways to read
//! must say the same. What a kernel does not have is read from the kernel, and not from pagetrace.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Asked, Tally, holds, report, swap::Swap, symbols, tool::Tool};
use crate::fixture::states;

/// What has to be said of each page of a state.
struct Row {
    state: &'static str,
    /// What holds.
    is: &'static [&'static str],
    /// What does not.
    not: &'static [&'static str],
}

const fn row(state: &'static str, is: &'static [&'static str], not: &'static [&'static str]) -> Row {
    Row { state, is, not }
}

/// A state of which nothing may be said has an empty list; there may be no entry then.
const ROWS: [Row; 17] = [
    row("untouched", &[], &[]),
    row("written", &["present", "exclusive"], &["swapped", "file", "uffd_wp", "guard", "huge", "zero"]),
    row("zero", &["present", "zero"], &["swapped", "file", "exclusive", "huge"]),
    row("file", &["present", "file"], &["swapped", "huge", "zero", "guard"]),
    row("private-file", &["present", "exclusive"], &["file", "swapped", "zero"]),
    row("shared", &["present", "file"], &["swapped", "huge", "zero"]),
    row("discarded", &[], &[]),
    row("locked", &["present", "exclusive"], &["file", "swapped", "zero"]),
    row("swapped", &["swapped"], &["present", "file", "guard", "uffd_wp", "exclusive", "zero"]),
    row("thp", &["present", "huge", "exclusive"], &["file", "swapped", "zero"]),
    row("hugetlb", &["present", "huge"], &["file", "swapped", "zero"]),
    // Page walks leave out what a driver maps without `struct page` (`walk_page_test` in mm/pagewalk.c): it looks empty.
    row("pfnmap", &[], &[]),
    row("guard", &["swapped", "guard"], &["present", "file"]),
    row("uffd-wp", &["present", "uffd_wp", "exclusive"], &["swapped", "file", "guard"]),
    row("forked", &["present"], &["exclusive", "file", "swapped", "zero"]),
    row("clean", &["present"], &["soft_dirty", "swapped"]),
    row("dirty", &["present", "soft_dirty"], &["swapped"]),
];

/// Conditions that both ways to read must answer alike.
const CONDITIONS: [&str; 5] = ["present & file & !huge", "huge | swapped", "!present", "guard | uffd_wp", "zero"];

/// The fixture, holding its pages.
struct Held {
    child: Child,
    places: Vec<(String, u64, u64)>,
    skipped: Vec<(String, String)>,
}

impl Held {
    fn start(tool: &Tool, swap: bool) -> Result<Self> {
        let mut command = Command::new(&tool.fixture);
        command.arg("page-states").arg(tool.path("pages")).args(swap.then_some("swap"));
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the fixture")?;
        let mut held = Self { child, places: Vec::new(), skipped: Vec::new() };
        let out = BufReader::new(held.child.stdout.take().context("stdout is a pipe")?);
        for line in out.lines() {
            let line = line?;
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["ready"] => return Ok(held),
                ["state", name, start, pages] => {
                    held.places.push(((*name).to_owned(), start.parse()?, pages.parse()?));
                }
                _ => {
                    let said = line.strip_prefix("skipped ").and_then(|said| said.split_once(": "));
                    let (name, why) = said.with_context(|| format!("the fixture says: {line}"))?;
                    held.skipped.push((name.to_owned(), why.to_owned()));
                }
            }
        }
        bail!("the fixture ended before it was ready")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Runs the part. On somebody's own machine nothing is set up: no swap, no hugetlb.
pub fn run(tool: &Tool, asked: &Asked<'_>, tally: &mut Tally) {
    if asked.rest() {
        tally.case("pages/own-holds", || holds::measured(tool));
    }
    if asked.kernel() {
        every_state(tool, asked.host, tally);
    }
}

fn every_state(tool: &Tool, host: bool, tally: &mut Tally) {
    let swap = if host { None } else { Swap::on().ok() };
    if !host && let Err(err) = states::reserve_hugetlb(4) {
        eprintln!("hugetlb: {err:#}");
    }
    let held = match Held::start(tool, swap.is_some()) {
        Ok(held) => held,
        Err(err) => return tally.case("pages", || Err(err)),
    };
    for (name, why) in &held.skipped {
        tally.skip(&format!("pages/{name}"), why);
    }
    let document = match document(tool, &held, &["--view", "entries", "--flags"]) {
        Ok(document) => document,
        Err(err) => return tally.case("pages", || Err(err)),
    };
    for (name, start, pages) in &held.places {
        tally.case(&format!("pages/{name}"), || state(&document, name, *start, *pages));
    }
    tally.case("pages/nothing-else", || nothing_else(&document, &held));
    tally.case("pages/both-ways", || both_ways(tool, &held));
    // The pages come back before their swap goes.
    drop(held);
    drop(swap);
}

/// What pagetrace says of the window.
fn document(tool: &Tool, held: &Held, options: &[&str]) -> Result<Value> {
    let window = states::window();
    let range = format!("{:x}-{:x}", window.start, window.end);
    let pid = held.child.id().to_string();
    let ended =
        tool.run(tool.command(&[&["pagemap", &pid, "--range", &range, "--format", "json"], options].concat()))?;
    ensure!(ended.status.success(), "{options:?} ended with {}: {}", ended.status, ended.stderr);
    let document: Value = serde_json::from_str(&ended.stdout).context("the answer is no JSON")?;
    ensure!(report::text(&document["schema"]) == "pagetrace.pagemap/1", "the schema is {}", document["schema"]);
    Ok(document)
}

/// Every page that the document speaks of: address and what is said.
fn pages(document: &Value) -> impl Iterator<Item = (u64, &Value)> {
    let mappings = report::list(&document["mappings"]).iter();
    let lines = mappings.flat_map(|mapping| report::list(&mapping["pages"]));
    lines.filter_map(|line| Some((line["address"].as_u64()?, line)))
}

fn state(document: &Value, name: &str, start: u64, count: u64) -> Result<()> {
    let row = ROWS.iter().find(|row| row.state == name).with_context(|| format!("no row for {name}"))?;
    let within = start..start + count * 4096;
    let found: Vec<_> = pages(document).filter(|(address, _)| within.contains(address)).collect();
    let expected = if row.is.is_empty() { 0 } else { count };
    ensure!(found.len() as u64 == expected, "{} pages are told of, not {expected}", found.len());
    let mut kept_back = BTreeSet::new();
    for (address, page) in found {
        let list = |key: &str| report::list(&page[key]).iter().filter_map(Value::as_str).collect::<Vec<_>>();
        let (is, untold) = (list("is"), list("not_told"));
        for fact in row.is.iter().filter(|fact| !untold.contains(fact)) {
            ensure!(is.contains(fact), "{address:#x} is not {fact}: {page}");
        }
        for fact in row.not {
            ensure!(!is.contains(fact), "{address:#x} is {fact}: {page}");
        }
        kept_back.extend(untold);
        let numbers = match name {
            "swapped" => page["swap"]["offset"].as_u64().is_some_and(|slot| slot > 0),
            "guard" => true,
            _ => page["pfn"].as_u64().is_some_and(|pfn| pfn > 0),
        };
        ensure!(numbers, "{address:#x} has not the frame or slot it should: {page}");
        let flag = match name {
            "written" | "thp" | "forked" => Some("anon"),
            "zero" => Some("zero_page"),
            "hugetlb" => Some("huge"),
            "locked" => Some("unevictable"),
            _ => None,
        };
        let flags: Vec<&str> = report::list(&page["frame"]["flags"]).iter().filter_map(Value::as_str).collect();
        // Pages reach the list of unevictable ones in their own time, but are marked as locked at once.
        ensure!(
            flag.is_none_or(|flag| flags.contains(&flag) || (name == "locked" && flags.contains(&"mlocked"))),
            "{address:#x}'s frame is not {flag:?}: {page}"
        );
    }
    // Whether the kernel keeps something back, its own files say.
    for fact in kept_back {
        ensure!(may_be_untold(fact)?, "{fact} is not told, and this kernel does tell it");
    }
    Ok(())
}

/// Whether this kernel may fail to tell a fact: told from what it is made of, not from pagetrace.
fn may_be_untold(fact: &str) -> Result<bool> {
    Ok(match fact {
        "soft_dirty" => config("CONFIG_MEM_SOFT_DIRTY").is_some_and(|value| value != "y"),
        // The bit came with UFFDIO_CONTINUE, in 5.13; the protection is older.
        "uffd_wp" => !symbols::has("mcopy_continue")? && !symbols::has("mfill_atomic_continue")?,
        _ => false,
    })
}

/// What the running kernel's configuration says of an option, where it can be read: `n` if it is not set.
fn config(option: &str) -> Option<String> {
    let output = Command::new("zcat").arg("/proc/config.gz").output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = text.lines().find_map(|line| line.strip_prefix(option)?.strip_prefix('='));
    Some(value.unwrap_or("n").to_owned())
}

fn nothing_else(document: &Value, held: &Held) -> Result<()> {
    let known =
        |address: u64| held.places.iter().any(|(_, start, pages)| (*start..start + pages * 4096).contains(&address));
    match pages(document).find(|(address, _)| !known(*address)) {
        Some((address, page)) => bail!("something is told of {address:#x}, where nothing is: {page}"),
        None => Ok(()),
    }
}

/// With and without `PAGEMAP_SCAN`, and by pages or by runs: one answer.
fn both_ways(tool: &Tool, held: &Held) -> Result<()> {
    let answer = |options: &[&str]| document(tool, held, options).map(|mut document| document["mappings"].take());
    let view = ["--view", "runs", "--scan"];
    let has_scan = !document(tool, held, &[])?["kernel"]["bits"]["scan"].is_null();
    ensure!(
        has_scan == symbols::has("do_pagemap_scan")?,
        "pagetrace says of PAGEMAP_SCAN that it is there: {has_scan}"
    );
    let ways: &[&str] = if has_scan { &["auto", "always", "never"] } else { &["auto", "never"] };
    for condition in CONDITIONS {
        let mut answers = Vec::new();
        for way in ways {
            let options = [&view[..], &[way, "--where", condition]].concat();
            // Where it cannot be told, it can be told by neither.
            answers.push(answer(&options).map_err(|err| err.to_string()));
        }
        let first = answers.first().context("there is a way")?;
        for (way, other) in ways.iter().zip(&answers) {
            let refused = first.is_err() && other.is_err();
            ensure!(refused || first == other, "{condition}: auto says {first:?}, {way} {other:?}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_a_row() {
        assert_eq!(ROWS.map(|row| row.state), states::STATES);
    }
}
