//! Further outputs: what they hold, that other programs can read them, and what is refused before anything runs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;

use crate::run::{Scratch, root, run};

fn recordings() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("recordings")
}

const NAMES: [(&str, i32); 5] =
    [("true", 0), ("read-own", 1), ("nested-two", 1), ("mutex-fault", 1), ("mutex-mmap", 1)];

/// The outputs of a checked-in recording, and what was on stderr.
fn outputs(scratch: &Scratch, name: &str, code: i32) -> Result<String> {
    let path = |ending: &str| scratch.0.join(format!("{name}.{ending}")).to_string_lossy().into_owned();
    let file = recordings().join(format!("{name}.ptrace")).to_string_lossy().into_owned();
    let (junit, sarif, json) = (path("junit.xml"), path("sarif"), path("json"));
    let args = ["report", &file, "--junit", &junit, "--sarif", &sarif, "--json", &json, "--github"];
    let ran = run(&args)?.exits(code)?;
    fs::write(path("github"), &ran.stderr)?;
    Ok(ran.stdout)
}

/// The version of the program is no part of what is kept.
fn told(text: &str) -> String {
    text.replace(&format!("\"version\": \"{}\"", env!("CARGO_PKG_VERSION")), "\"version\": \"0\"")
}

/// `PAGETRACE_KEEP=1` writes what is there now, to be looked at as a change.
#[test]
fn outputs_of_recordings_are_those_beside_them() -> Result<()> {
    let scratch = Scratch::new("golden")?;
    for (name, code) in NAMES {
        outputs(&scratch, name, code)?;
        for ending in ["junit.xml", "sarif", "json", "github"] {
            let file = format!("{name}.{ending}");
            let mut now = fs::read_to_string(scratch.0.join(&file))?;
            if ending == "sarif" {
                now = told(&now);
            }
            let kept = recordings().join(&file);
            if std::env::var_os("PAGETRACE_KEEP").is_some() {
                fs::write(&kept, &now)?;
            }
            let kept = fs::read_to_string(&kept).with_context(|| format!("cannot read {}", kept.display()))?;
            ensure!(now == kept, "{file} is not the one in tests/recordings:\n{now}");
        }
    }
    Ok(())
}

#[test]
fn sarif_is_valid_against_its_schema() -> Result<()> {
    let schema = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas/sarif-2.1.0.json");
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    let index = compiler.compile(&schema.to_string_lossy(), &mut schemas).map_err(|err| anyhow!("{err:#}"))?;
    let scratch = Scratch::new("sarif")?;
    for (name, code) in NAMES {
        outputs(&scratch, name, code)?;
        let log: Value = serde_json::from_str(&fs::read_to_string(scratch.0.join(format!("{name}.sarif")))?)?;
        schemas.validate(&log, index).map_err(|err| anyhow!("{name}: {err:#}"))?;
        // The validator is one that can say no.
        let mut broken = log.clone();
        broken["runs"][0]["tool"]["driver"].as_object_mut().context("a driver")?.remove("name");
        ensure!(schemas.validate(&broken, index).is_err(), "a tool without a name is valid");
        let results = log["runs"][0]["results"].as_array().context("results")?;
        ensure!(results.is_empty() == (code == 0), "{name}: {results:#?}");
        for result in results {
            let rule = usize::try_from(result["ruleIndex"].as_u64().context("a rule")?)?;
            ensure!(log["runs"][0]["tool"]["driver"]["rules"][rule]["id"] == result["ruleId"], "{result:#}");
            let place = &result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"];
            ensure!(place.as_str().is_some_and(|name| name.starts_with("pagetrace_fixture!ptf_")), "{place}");
        }
    }
    Ok(())
}

#[test]
fn junit_is_xml_with_a_verdict_and_a_test_for_each_finding() -> Result<()> {
    let scratch = Scratch::new("junit")?;
    for (name, code) in NAMES {
        outputs(&scratch, name, code)?;
        let text = fs::read_to_string(scratch.0.join(format!("{name}.junit.xml")))?;
        let document = roxmltree::Document::parse(&text)?;
        let count = |tag: &str| document.descendants().filter(|node| node.has_tag_name(tag)).count();
        let suite = document.descendants().find(|node| node.has_tag_name("testsuite")).context("a suite")?;
        ensure!(suite.attribute("tests") == Some(count("testcase").to_string().as_str()), "{text}");
        ensure!(suite.attribute("failures") == Some(count("failure").to_string().as_str()), "{text}");
        ensure!(count("error") == 0 && (count("failure") == 0) == (code == 0), "{text}");
        ensure!(document.descendants().any(|node| node.attribute("name") == Some("command")), "no command in {text}");
        let verdict = document.descendants().find(|node| node.attribute("name") == Some("verdict"));
        ensure!(verdict.is_some(), "no verdict in {text}");
        for node in document.descendants().filter(|node| node.has_tag_name("testcase")) {
            let title = node.attribute("name").unwrap_or_default();
            ensure!(!title.contains("0x") && !title.contains("pid"), "a name that changes from run to run: {title}");
        }
    }
    Ok(())
}

#[test]
fn a_report_without_what_can_be_said_is_an_error_in_every_format() -> Result<()> {
    let scratch = Scratch::new("cut")?;
    let path = |name: &str| scratch.0.join(name).to_string_lossy().into_owned();
    let sound = fs::read(recordings().join("true.ptrace"))?;
    fs::write(path("a.ptrace"), &sound[..sound.len() - 1])?;
    let (junit, sarif) = (path("a.xml"), path("a.sarif"));
    let ran = run(&["report", &path("a.ptrace"), "--junit", &junit, "--sarif", &sarif, "--github"])?.exits(4)?;
    ensure!(ran.stderr.starts_with("::error title=pagetrace on "), "{ran:#?}");
    let text = fs::read_to_string(&junit)?;
    let document = roxmltree::Document::parse(&text)?;
    let errors: Vec<_> = document.descendants().filter(|node| node.has_tag_name("error")).collect();
    ensure!(errors.len() == 1 && errors[0].attribute("message").is_some_and(|why| why.contains("damaged")), "{text}");
    let log: Value = serde_json::from_str(&fs::read_to_string(&sarif)?)?;
    ensure!(log["runs"][0]["invocations"][0]["executionSuccessful"] == false, "{log:#}");
    Ok(())
}

#[test]
fn the_normal_output_is_what_it_is_without_further_ones() -> Result<()> {
    let scratch = Scratch::new("beside")?;
    let file = recordings().join("read-own.ptrace").to_string_lossy().into_owned();
    let alone = run(&["report", &file])?.exits(1)?;
    ensure!(outputs(&scratch, "read-own", 1)? == alone.stdout && alone.stderr.is_empty(), "{alone:#?}");
    let json = run(&["report", "--format", "json", &file])?.exits(1)?;
    ensure!(json.stdout == fs::read_to_string(scratch.0.join("read-own.json"))?, "--json differs from --format json");
    Ok(())
}

/// A module as the recording's, unlinked and with debug information, of the given release.
fn module(dir: &Path, release: &str) -> Result<()> {
    let source = dir.join("fixture.c");
    let text = format!(
        "__attribute__((section(\".modinfo\"), used)) static const char magic[] = \"vermagic={release} SMP\";\n\
         volatile int sink;\n#define FILL sink++; sink++; sink++; sink++; sink++; sink++; sink++; sink++;\n\
         int ptf_other(void)\n{{\n    FILL FILL FILL FILL\n    return 0;\n}}\n\
         int ptf_touch(void)\n{{\n    FILL FILL FILL FILL\n    return 0;\n}}\n"
    );
    fs::write(&source, text)?;
    let object = dir.join("pagetrace-fixture.ko");
    let mut cc = std::process::Command::new("cc");
    cc.args(["-g", "-O0", "-ffunction-sections", "-c", "-o"]).arg(&object).arg(&source).current_dir(dir);
    ensure!(cc.status()?.success(), "{cc:?} failed");
    Ok(())
}

#[test]
fn lines_come_from_the_modules_own_debug_information_and_no_other() -> Result<()> {
    let scratch = Scratch::new("lines")?;
    let path = |name: &str| scratch.0.join(name).to_string_lossy().into_owned();
    let recording = recordings().join("read-own.ptrace").to_string_lossy().into_owned();
    let (sarif, dir) = (path("a.sarif"), scratch.0.to_string_lossy().into_owned());
    let args = ["report", &recording, "--sarif", &sarif, "--github", "--debug-info", &dir];
    module(&scratch.0, "6.12.117+deb12-cloud-amd64")?;
    let ran = run(&args)?.exits(1)?;
    let log: Value = serde_json::from_str(&fs::read_to_string(&sarif)?)?;
    let place = &log["runs"][0]["results"][0]["locations"][0]["physicalLocation"];
    ensure!(place["artifactLocation"]["uri"] == "fixture.c", "{place:#}");
    ensure!(place["region"]["startLine"] == 11 || place["region"]["startLine"] == 10, "{place:#}");
    ensure!(ran.stderr.starts_with("::error file=fixture.c,line=1"), "{ran:#?}");
    module(&scratch.0, "6.12.118")?;
    let ran = run(&args)?.exits(1)?.says("it belongs to kernel 6.12.118")?;
    ensure!(!fs::read_to_string(&sarif)?.contains("physicalLocation"), "{ran:#?}");
    Ok(())
}

fn refused(scratch: &Scratch, args: &[&str], code: i32, says: &str) -> Result<()> {
    let mark = scratch.0.join("started");
    let (touch, recording) = (mark.to_string_lossy(), scratch.0.join("r.ptrace").to_string_lossy().into_owned());
    for command in [&["check"][..], &["record", "-o", &recording]] {
        let all = [command, args, &["--", "touch", &touch]].concat();
        run(&all)?.exits(code)?.says(says)?.silent()?;
        ensure!(!mark.exists(), "{all:?}: the command was started");
    }
    Ok(())
}

#[test]
fn what_cannot_be_written_is_said_before_anything_runs() -> Result<()> {
    let scratch = Scratch::new("unwritable")?;
    for option in ["--junit", "--sarif", "--json"] {
        refused(&scratch, &[option, "/no/such/dir/a"], 5, "/no/such/dir/a")?;
        refused(&scratch, &[option, "/"], 5, option)?;
    }
    refused(&scratch, &["--debug-info", "/no/such/vmlinux"], 2, "/no/such/vmlinux")?;
    Ok(())
}

#[test]
fn two_formats_to_one_file_are_refused() -> Result<()> {
    let scratch = Scratch::new("twice")?;
    let file = scratch.0.join("a").to_string_lossy().into_owned();
    refused(&scratch, &["--junit", &file, "--sarif", &file], 2, "--junit and --sarif name the same file")?;
    let detour = format!("{}/./a", scratch.0.display());
    refused(&scratch, &["--junit", &file, "--json", &detour], 2, "--junit and --json name the same file")?;
    run(&["check", "-o", &file, "--json", &file, "--", "true"])?.exits(2)?.says("--output and --json")?.silent()?;
    ensure!(!Path::new(&file).exists() || fs::read(&file)?.is_empty(), "something was written");
    let recording = recordings().join("true.ptrace").to_string_lossy().into_owned();
    run(&["report", &recording, "--json", &recording])?.exits(2)?.says("the recording and --json")?.silent()?;
    Ok(())
}

#[test]
fn an_output_of_before_is_replaced_as_a_whole() -> Result<()> {
    let scratch = Scratch::new("replaced")?;
    let file = scratch.0.join("a.json");
    fs::write(&file, "x".repeat(1 << 20))?;
    let recording = recordings().join("true.ptrace").to_string_lossy().into_owned();
    run(&["report", &recording, "--json", &file.to_string_lossy()])?.exits(0)?;
    serde_json::from_str::<Value>(&fs::read_to_string(&file)?)?;
    // Arguments that are refused leave it alone; a run that fails does not leave what another said.
    let name = file.to_string_lossy().into_owned();
    run(&["report", &recording, "--json", &name, "--junit", &name])?.exits(2)?;
    serde_json::from_str::<Value>(&fs::read_to_string(&file)?)?;
    run(&["report", "/no/such/recording", "--json", &name])?.exits(5)?;
    ensure!(fs::read(&file)?.is_empty(), "what an earlier run said is still there");
    Ok(())
}

#[test]
fn a_live_check_writes_them_too() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scratch = Scratch::new("live-outputs")?;
    let path = |name: &str| scratch.0.join(name).to_string_lossy().into_owned();
    let (junit, sarif, json) = (path("a.xml"), path("a.sarif"), path("a.json"));
    let args = ["check", "--junit", &junit, "--sarif", &sarif, "--json", &json, "--github", "--", "sh", "-c", "exit 3"];
    let ran = run(&args)?.exits(3)?;
    ensure!(ran.stdout.starts_with("CLEAN") && ran.stderr.is_empty(), "{ran:#?}");
    let report: Value = serde_json::from_str(&fs::read_to_string(&json)?)?;
    ensure!(report["verdict"] == "clean" && report["command"]["exit_code"] == 3, "{report:#}");
    let junit = fs::read_to_string(&junit)?;
    // The verdict passes, and what the command did does not.
    ensure!(junit.contains("failures=\"1\"") && junit.contains("it exited with 3"), "{junit}");
    Ok(())
}
