//! The files in docs/examples: each is read as what it is, and every pagetrace command in them is one that the program takes.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use serde_json::Value;

fn example(name: &str) -> Result<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/examples").join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn yaml(name: &str) -> Result<Value> {
    serde_saphyr::from_str(&example(name)?).with_context(|| format!("{name} is no YAML"))
}

/// Every text of a document.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(items) => items.values().for_each(|item| texts(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The lines of a script that call pagetrace.
fn commands(script: &str) -> Vec<String> {
    let calls = |line: &&str| line.starts_with("pagetrace ");
    script.lines().map(str::trim).filter(calls).map(str::to_owned).collect()
}

/// Holds commands against the command line's definition, and for `vm` also what runs in the guest.
fn sound(name: &str, commands: &[String]) -> Result<()> {
    ensure!(!commands.is_empty(), "{name} calls pagetrace nowhere");
    for command in commands {
        let command = command.replace("$(KERNEL)", "6.12");
        let words: Vec<&str> = command.split_whitespace().collect();
        pagetrace::cli::Args::try_parse_from(&words).with_context(|| format!("{name}: {command}"))?;
        if words.get(1) == Some(&"vm") {
            let cut = words.iter().position(|word| *word == "--").context("a vm command has an inner one")?;
            let inner = std::iter::once("pagetrace").chain(words[cut + 1..].iter().copied());
            pagetrace::cli::Args::try_parse_from(inner).with_context(|| format!("{name}: behind `--` of {command}"))?;
        }
    }
    Ok(())
}

#[test]
fn the_github_workflow_is_one() -> Result<()> {
    let workflow = yaml("github.yml")?;
    ensure!(workflow["on"].is_array() && workflow["jobs"].is_object(), "{workflow:#}");
    let mut scripts = Vec::new();
    for job in workflow["jobs"].as_object().context("jobs")?.values() {
        ensure!(job["runs-on"].is_string(), "{job:#}");
        for step in job["steps"].as_array().context("steps")? {
            ensure!(step["run"].is_string() != step["uses"].is_string(), "a step runs or uses: {step:#}");
            scripts.extend(step["run"].as_str().map(str::to_owned));
        }
    }
    let calls: Vec<String> = scripts.iter().flat_map(|script| commands(script)).collect();
    sound("github.yml", &calls)?;
    // What is uploaded is what was written.
    let mut all = Vec::new();
    texts(&workflow, &mut all);
    for file in ["pagetrace.sarif", "pagetrace.xml"] {
        ensure!(calls.iter().any(|call| call.contains(file)), "nobody writes {file}");
        ensure!(all.iter().filter(|text| text.contains(file)).count() >= 2, "nobody takes {file}");
    }
    Ok(())
}

#[test]
fn the_gitlab_job_is_one() -> Result<()> {
    let pipeline = yaml("gitlab.yml")?;
    let job = &pipeline["mmap-lock"];
    let script: Vec<String> =
        job["script"].as_array().context("a script")?.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    sound("gitlab.yml", &script.iter().flat_map(|line| commands(line)).collect::<Vec<_>>())?;
    let junit = job["artifacts"]["reports"]["junit"].as_str().context("a JUnit report")?;
    ensure!(script.iter().any(|line| line.contains(&format!("--junit {junit} "))), "nobody writes {junit}");
    Ok(())
}

#[test]
fn the_other_examples_call_what_there_is() -> Result<()> {
    sound("Makefile", &commands(&example("Makefile")?))?;
    let script = example("virtme-ng.sh")?;
    let call =
        script.split("--exec \"").nth(1).and_then(|rest| rest.split('"').next()).context("a command in quotes")?;
    sound("virtme-ng.sh", &[call.to_owned()])?;
    let text = example("vmtest.toml")?;
    let call = text.split("command = \"").nth(1).and_then(|rest| rest.split('"').next()).context("a command")?;
    sound("vmtest.toml", &[call.to_owned()])?;
    Ok(())
}

#[test]
fn the_baseline_and_the_suppressions_in_the_docs_are_read() -> Result<()> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/ci.md");
    let text = fs::read_to_string(path)?;
    let block = |heading: &str| -> Result<String> {
        let section = text.split(heading).nth(1).with_context(|| format!("no section {heading}"))?;
        let lines = section.lines().skip_while(|line| *line != "    version = 1");
        Ok(lines
            .take_while(|line| line.is_empty() || line.starts_with("    "))
            .map(|line| format!("{line}\n"))
            .collect())
    };
    let baseline = pagetrace::policy::baseline::Baseline::parse(&block("## A baseline")?)?;
    ensure!(baseline.findings.len() == 1 && baseline.findings[0].expires.is_some(), "{baseline:?}");
    let suppressions = pagetrace::policy::suppress::Suppressions::parse(&block("## Suppressions")?)?;
    ensure!(suppressions.rules.len() == 1, "{suppressions:?}");
    Ok(())
}
