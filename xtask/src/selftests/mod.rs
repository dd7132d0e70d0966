//! `cargo xtask selftests`: the kernel's own tests of its memory management as a load, each under `pagetrace check`.
//!
//! Whether the tests pass is not what this is about: they must not make pagetrace say what is not so.

mod build;
mod list;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    build as programs, guest, setup,
    step::note,
    vm::{self, Outcome, VmFile, VmResult, kernel},
};

/// So many tests share a guest.
const AT_A_TIME: usize = 8;
/// In the arguments: the words of one test each. The huge pages are what run_vmtests.sh asks for.
const SCRIPT: &str = r#"
echo 128 > /proc/sys/vm/nr_hugepages
cd /tests
for words; do
  name=${words%% *}
  pagetrace check --json "/out/$name.json" -o "/out/$name.txt" -- timeout -s KILL "$LIMIT" /tests/$words \
    > "/out/$name.log" 2>&1
  echo "$words: $?" >> /out/ended
done
"#;

/// What `cargo xtask selftests` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The series: of the tests' source, and of the stock kernel that they run on.
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Only these tests; may be repeated.
    #[arg(long)]
    test: Vec<String>,
    /// Seconds that a test may take.
    #[arg(long, default_value_t = 60)]
    limit: u64,
    /// Only say what is missing.
    #[arg(long)]
    no_install: bool,
}

/// A row of the table.
struct Row {
    words: String,
    result: String,
    verdict: String,
    code: String,
    /// What pagetrace said, where it was not clean.
    said: Option<String>,
}

/// Runs the subcommand; 1 when a test was not passed as clean.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure_for(setup::Purpose::Selftests, !options.no_install)?;
    let built = build::tests(&options.kernel)?;
    let kernel = kernel::resolve(&options.kernel, &note)?;
    let pagetrace = programs::build_pagetrace()?;
    for name in &options.test {
        ensure!(built.programs.iter().any(|(of, _)| of == name), "no test is called {name}");
    }
    let wanted = |name: &str| options.test.is_empty() || options.test.iter().any(|of| of == name);
    let tests: Vec<(String, PathBuf)> = built
        .programs
        .iter()
        .filter(|(name, _)| wanted(name))
        .filter_map(|(name, path)| Some((list::words(name)?, path.clone())))
        .collect();
    let mut rows = Vec::new();
    for group in tests.chunks(AT_A_TIME) {
        note(&format!("{} of {} tests are done; {} more in a guest", rows.len(), tests.len(), group.len()));
        let mut spec = guest::base(&kernel.image, &pagetrace, "selftests")?;
        spec.files
            .extend(group.iter().map(|(words, path)| VmFile::executable(format!("/tests/{}", name_of(words)), path)));
        spec.command = ["sh", "-c", SCRIPT, "sh"].map(Into::into).to_vec();
        spec.command.extend(group.iter().map(|(words, _)| words.into()));
        spec.env.push(("LIMIT".into(), options.limit.to_string().into()));
        spec.mem_mib = 2560;
        // Besides the limits of the tests: what pagetrace needs to start in an emulated guest.
        spec.timeout = Duration::from_secs((options.limit + 60) * AT_A_TIME as u64);
        // A test that harms the kernel is a result.
        spec.stop_on_complaint = false;
        let result = vm::run(&spec, &mut |_| {})?;
        if !matches!(result.outcome, Outcome::Exited { .. }) {
            note(&format!("the guest: {}; console: {}", result.outcome, result.console_log.display()));
        }
        rows.extend(group.iter().map(|(words, _)| row(words, &result)));
    }
    print(&built, &kernel.release, options.limit, &rows);
    let clean = rows.iter().all(|row| row.verdict == "clean");
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(built: &build::Built, release: &str, limit: u64, rows: &[Row]) {
    println!(
        "tools/testing/selftests/mm of Linux {}, each under pagetrace check on {release}, {limit} s each\n",
        built.version
    );
    println!("| test | its result | pagetrace | exit code |\n|---|---|---|---|");
    for Row { words, result, verdict, code, .. } in rows {
        println!("| {words} | {result} | {verdict} | {code} |");
    }
    println!();
    for name in &built.missing {
        println!("Not built: {name}: it does not compile; {} has why.", built.log.display());
    }
    for (name, why) in list::LEFT_OUT {
        println!("Not run: {name}: {why}.");
    }
    for Row { words, said, .. } in rows {
        if let Some(said) = said {
            println!("\n== {words}\n{said}");
        }
    }
    let count = |verdict: &str| rows.iter().filter(|row| row.verdict == verdict).count();
    let (clean, findings, incomplete) = (count("clean"), count("findings"), count("incomplete"));
    println!("\n{} tests: {clean} clean, {findings} with findings, {incomplete} incomplete", rows.len());
}

fn name_of(words: &str) -> &str {
    words.split(' ').next().unwrap_or(words)
}

fn row(words: &str, result: &VmResult) -> Row {
    let name = name_of(words);
    let file = |name: &str| result.out_text(name);
    let ended = file("ended").unwrap_or_default();
    let code = ended.lines().find_map(|line| line.strip_prefix(words)?.strip_prefix(": "));
    let code = code.unwrap_or("-").to_owned();
    let read = || -> Result<Value> {
        let text = file(&format!("{name}.json")).context("there is no report")?;
        serde_json::from_str(&text).context("the report is not JSON")
    };
    match read() {
        Ok(report) => {
            let verdict = report["verdict"].as_str().unwrap_or("none").to_owned();
            let command = &report["command"];
            let result = match (command["exit_code"].as_i64(), command["signal"].as_i64()) {
                (Some(code), _) => list::result(code),
                (None, Some(signal)) => list::result(128 + signal),
                (None, None) => "did not end".into(),
            };
            let said = (verdict != "clean").then(|| file(&format!("{name}.txt")).unwrap_or_default());
            Row { words: words.to_owned(), result, verdict, code, said }
        }
        Err(error) => {
            let log = file(&format!("{name}.log")).unwrap_or_default();
            let said = Some(format!("{error:#}; the guest: {}\n{log}", result.outcome));
            Row { words: words.to_owned(), result: "-".into(), verdict: "no report".into(), code, said }
        }
    }
}
