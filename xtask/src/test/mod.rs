//! `cargo xtask test`: every suite, a line for each, and the sum.

mod command;
mod jobs;
mod local;
mod parse;
mod report;
mod tidy;

use std::{process::ExitCode, sync::mpsc::channel, thread};

use anyhow::{Result, anyhow};

pub(crate) use self::jobs::{assets, carry};
use self::report::{Report, Suite};
use crate::{
    build, setup,
    step::note,
    vm::kernel::{self, Kernel},
};

/// What `cargo xtask test` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A series or a path of a kernel image; may be repeated. All series by default.
    #[arg(long)]
    kernel: Vec<String>,
    /// Leaves the test kernels out.
    #[arg(long)]
    skip_vm: bool,
}

/// A wanted kernel, and the image or why there is none.
type Fetched = (String, Result<Kernel>);

/// Runs the subcommand.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure(true)?;
    let wanted: Vec<String> = match (options.skip_vm, options.kernel.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => kernel::SERIES.map(str::to_owned).to_vec(),
        (false, false) => options.kernel.clone(),
    };
    // The network is idle while the compiler runs, and the other way round.
    let fetching = thread::spawn(move || -> Vec<Fetched> {
        wanted.into_iter().map(|wanted| (wanted.clone(), kernel::resolve(&wanted, &note))).collect()
    });
    // The two builds share no directory, and each has stretches that keep only one processor busy.
    let building = thread::spawn(build::build_static);
    let mut report = Report::default();
    report.add(local::format());
    report.add(local::lints());
    let binaries = building.join().unwrap_or_else(|_| Err(anyhow!("the build ended in a panic")));
    if let Err(err) = &binaries {
        report.add(Suite::broken("host", &format!("{err:#}")));
    }
    let fetched = fetching.join().unwrap_or_default();
    let binaries = binaries.ok();
    let (sender, suites) = channel();
    thread::scope(|scope| {
        let (everything, binaries) = (!options.skip_vm && options.kernel.is_empty(), binaries.as_ref());
        scope.spawn(move || jobs::all(fetched, everything, binaries, &sender));
        for suite in suites {
            report.add(suite);
        }
    });
    println!("{}", report.closing_line());
    Ok(if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
