//! `cargo xtask bench`: what watching costs. Two storms that do nothing but what pagetrace watches, each plain and
//! under `pagetrace check`, in turns, so that what else the machine does falls on both alike.

mod guest;
mod measure;
mod pagemap;
mod parse;
mod stats;
mod table;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};

use self::measure::{Plan, Tools};
use crate::build;

/// What `cargo xtask bench` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// `pagemap`: how fast pagemap is read, instead of what watching costs.
    #[arg(value_parser = ["pagemap"], conflicts_with_all = ["kernel", "attach", "record", "strict", "order"])]
    what: Option<String>,
    /// A series such as 6.12, or the path of a kernel image, for a test machine; this machine's own kernel by default.
    #[arg(long)]
    kernel: Option<String>,
    /// An attach type; may be repeated. Pagetrace's own choice by default.
    #[arg(long, value_name = "TYPE", value_parser = ["kprobe", "fentry", "tracepoint", "raw-tracepoint"])]
    attach: Vec<String>,
    /// How often each storm runs each way.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds a storm lasts.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Storms at once, each a process.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: u32,
    /// Under `pagetrace record` instead of `pagetrace check`.
    #[arg(long)]
    record: bool,
    /// Under `pagetrace check --strict`.
    #[arg(long, conflicts_with = "record")]
    strict: bool,
    /// Under `pagetrace check --order`.
    #[arg(long)]
    order: bool,
    /// The directory with ready binaries; how the bench is called within a test machine.
    #[arg(long, hide = true, conflicts_with = "kernel")]
    tools: Option<PathBuf>,
}

/// Runs the subcommand.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let Options { what, kernel, attach, rounds, seconds, jobs, record, strict, order, tools } = options;
    if what.is_some() {
        return pagemap::run(*rounds);
    }
    let options = [(*strict, "--strict"), (*order, "--order")];
    let options: Vec<&str> = options.into_iter().filter(|(wanted, _)| *wanted).map(|(_, option)| option).collect();
    let plan =
        Plan { attach: attach.clone(), rounds: *rounds, seconds: *seconds, jobs: *jobs, record: *record, options };
    if let Some(kernel) = kernel {
        return guest::run(kernel, &plan);
    }
    ensure!(rustix::process::geteuid().is_root(), "measuring what tracing costs needs root: run this command as root");
    let within = tools.is_some();
    let tools = match tools {
        Some(dir) => Tools { pagetrace: dir.join("pagetrace"), fixture: dir.join("pagetrace-fixture") },
        None => {
            let (pagetrace, fixture) = build::build_release()?;
            Tools { pagetrace, fixture }
        }
    };
    let measured = measure::all(&tools, &plan)?;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    print!("{}", table::render(&release, &measured));
    if !within {
        println!("\nreproduce: {}", plan.command(None));
    }
    Ok(ExitCode::SUCCESS)
}
