//! The suites of this machine: format, lints, cargo's tests, the tracer on this host.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    parse::{self, GuestSuite},
    report::Suite,
    tidy,
};
use crate::{
    build::StaticBinaries,
    step::{self, Finished},
    workspace,
};

/// The host's suite gets no longer than this.
const HOST_LIMIT: Duration = Duration::from_secs(600);

/// `cargo fmt --check`.
pub(super) fn format() -> Suite {
    let mut suite = Suite::new("format");
    let done = step::capture("format", &mut cargo(&["fmt", "--all", "--check"]));
    single(&mut suite, "cargo fmt --check", done);
    suite
}

/// clippy and the rules about files.
pub(super) fn lints() -> Suite {
    let mut suite = Suite::new("lints");
    step::note("lints");
    let args = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    single(&mut suite, "cargo clippy", step::capture("lints", &mut cargo(&args)));
    let start = Instant::now();
    match tidy::check(&workspace::root()) {
        Ok(found) if found.is_empty() => suite.passed += 1,
        Ok(found) => suite.fail("tidy", found.join("\n")),
        Err(err) => suite.fail("tidy", format!("{err:#}")),
    }
    suite.took += start.elapsed();
    suite
}

/// `cargo test --workspace`. The command line tests run the program that is given to users, where there is one.
pub(super) fn cargo_test(pagetrace: Option<&Path>) -> Suite {
    let mut suite = Suite::new("unit");
    step::note("unit, property and command line tests");
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    command.envs(pagetrace.map(|program| ("PAGETRACE", program)));
    let finished = match step::capture("tests", &mut command) {
        Ok(finished) => finished,
        Err(err) => return Suite::broken("unit", &format!("{err:#}")),
    };
    parse::cargo_test(&finished.output, &mut suite);
    suite.took = finished.took;
    suite.log = keep("unit", &finished.output);
    if !finished.status.success() && suite.failures.is_empty() {
        suite.fail("cargo test", finished.tail());
    }
    suite
}

/// The suite of the guests, on this kernel.
pub(super) fn host(binaries: &StaticBinaries) -> Suite {
    let mut suite = Suite::new("host");
    if !rustix::process::geteuid().is_root() {
        suite.skipped.push("tracing this host needs root".into());
        return suite;
    }
    step::note("the tracer on this host");
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", &HOST_LIMIT.as_secs().to_string()])
        .arg(&binaries.guest_suite)
        .arg("--host")
        .env("PAGETRACE_BIN", &binaries.pagetrace)
        .env("PAGETRACE_FIXTURE_BIN", &binaries.fixture);
    let finished = match step::capture("host", &mut command) {
        Ok(finished) => finished,
        Err(err) => return Suite::broken("host", &format!("{err:#}")),
    };
    let mut parser = GuestSuite::default();
    for line in finished.output.lines() {
        parser.line(line, &mut suite);
    }
    parser.finish(&mut suite);
    if !finished.status.success() && suite.failures.is_empty() {
        suite.fail("exit code", format!("{} though no case failed", finished.status));
    }
    suite.took = finished.took;
    suite.log = keep("host", &finished.output);
    suite
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(workspace::cargo());
    command.args(args).current_dir(workspace::root()).env("CARGO_TERM_COLOR", "never");
    command
}

fn single(suite: &mut Suite, case: &str, done: Result<Finished>) {
    match done {
        Ok(finished) => {
            suite.took += finished.took;
            if finished.status.success() {
                suite.passed += 1;
            } else {
                suite.log = keep(&suite.name, &finished.output);
                suite.fail(case, finished.tail());
            }
        }
        Err(err) => suite.fail(case, format!("{err:#}")),
    }
}

/// Keeps a suite's output; where that fails, the report still has the failures.
fn keep(name: &str, output: &str) -> Option<PathBuf> {
    let dir = workspace::target().join("logs");
    fs::create_dir_all(&dir).ok()?;
    let path = dir.join(format!("{name}.log"));
    fs::write(&path, output).ok()?;
    Some(path)
}
