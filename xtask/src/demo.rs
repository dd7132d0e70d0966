//! `cargo xtask demo`: a real violation found on the newest stock kernel, and its clean twin passed; or a real deadlock.

use std::{ffi::OsString, io::IsTerminal as _, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    build, guest, setup,
    step::note,
    test::assets,
    vm::{self, Outcome, kernel},
};

/// What `cargo xtask demo` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A series such as 6.12, or the path of a kernel image; the newest obtainable by default.
    #[arg(long)]
    kernel: Option<String>,
    /// Show a deadlock that happens, and is reported while it stands.
    #[arg(long)]
    deadlock: bool,
    /// Only say what is missing.
    #[arg(long)]
    no_install: bool,
}

struct Run {
    heading: &'static str,
    fixture: &'static str,
    exit: i32,
    meaning: &'static str,
}

const DEADLOCK: [Run; 1] = [Run {
    heading: "A fault under mmap_lock beside a thread that maps and unmaps memory, until both wait for each other",
    fixture: "uprobe-deadlock",
    exit: 1,
    meaning: "found the violation, then the deadlock, and ended the tasks",
}];

const RUNS: [Run; 2] = [
    Run {
        heading: "A reader's memory is touched while another task's mmap_lock is held",
        fixture: "iter-fault",
        exit: 1,
        meaning: "found the violation",
    },
    Run {
        heading: "The same walk, with page faults disabled around the access",
        fixture: "iter-clean",
        exit: 0,
        meaning: "passed the clean twin",
    },
];

/// Runs the subcommand.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure(!options.no_install)?;
    let kernel = fetch(options.kernel.as_deref())?;
    let binaries = build::build_static()?;
    let mut as_expected = true;
    let runs: &[Run] = if options.deadlock { &DEADLOCK } else { &RUNS };
    for Run { heading, fixture, exit, meaning } in runs {
        println!("\n== {heading}\n== {}: pagetrace check -- pagetrace-fixture {fixture}\n", kernel.release);
        let mut spec = guest::base(&kernel.image, &binaries.pagetrace, &format!("demo-{fixture}"))?;
        assets(&mut spec, &binaries, None);
        spec.command = ["pagetrace", "check", "--", "pagetrace-fixture", *fixture].map(OsString::from).to_vec();
        spec.timeout = Duration::from_secs(180);
        if !std::io::stdout().is_terminal() {
            // The guest's console is a terminal; what it is copied to is not.
            spec.env.push(("NO_COLOR".into(), "1".into()));
        }
        note("booting");
        let result = vm::run(&spec, &mut |line| println!("{line}"))?;
        if result.outcome == (Outcome::Exited { code: *exit }) {
            println!("\n== pagetrace {meaning} ({}, {:.1} s).", result.outcome, result.duration.as_secs_f32());
        } else {
            as_expected = false;
            println!("\n== UNEXPECTED: {}, not {exit}; console: {}", result.outcome, result.console_log.display());
        }
    }
    println!(
        "\n{}",
        if as_expected {
            "It ended as it should: exit code 1 means findings, 0 means clean."
        } else {
            "A run did not end as it should; see above."
        }
    );
    Ok(if as_expected { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The wanted kernel; without a wish, the newest, or the next newest series that can be had.
fn fetch(wanted: Option<&str>) -> Result<kernel::Kernel> {
    if let Some(wanted) = wanted {
        return kernel::resolve(wanted, &note);
    }
    let mut last = None;
    for series in kernel::SERIES.iter().rev() {
        match kernel::resolve(series, &note) {
            Ok(kernel) => return Ok(kernel),
            Err(err) => {
                println!("Kernel {series} cannot be had ({err:#}); trying the next older one.");
                last = Some(err);
            }
        }
    }
    Err(last.context("no series is known")?.context("no stock kernel can be had"))
}
