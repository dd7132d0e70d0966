//! `pagetrace verify`: what was seen, held against what is in the page tables.

use std::{ffi::OsString, time::Duration};

use anyhow::{Context as _, Result};
use clap::Args as ClapArgs;

use super::{
    args::{Output, ring_bytes},
    check::{command, facts, put},
    exit::Exit,
    sink,
};
use crate::{
    kernel::threads,
    live::{
        loader::Sizes,
        session::CommandEnd,
        verify::{Verified, Wanted, run as verify},
    },
    output::{
        Format,
        report::Kernel,
        verify::{Document, Parts},
    },
    plan::{Attach, Event},
};

/// `verify`.
#[derive(Debug, ClapArgs)]
pub struct VerifyArgs {
    /// Run the command as root even if sudo was called by another user
    #[arg(long)]
    pub as_root: bool,
    /// Least share of pages and of faults that has to be explained, percent
    #[arg(long, value_name = "PERCENT", default_value_t = 100.0, value_parser = share)]
    pub at_least: f64,
    /// Also look every so many milliseconds in between. Every task is stopped for it, which some system calls answer with EINTR
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..=3_600_000))]
    pub every: Option<u64>,
    /// Use this attach type for every event that this kernel shows by it
    #[arg(long, value_enum, value_name = "TYPE")]
    pub attach: Option<Attach>,
    /// Size of the ring buffer: a power of two, at least 4096
    #[arg(long, value_name = "BYTES", default_value_t = Sizes::default().ring_bytes, value_parser = ring_bytes)]
    pub ring_bytes: u32,
    /// Where to.
    #[command(flatten)]
    pub output: Output,
    /// Keep every N-th fault from the comparison, which has to notice: a test of pagetrace itself
    #[arg(long, hide = true, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub withhold: Option<u64>,
    /// Command to run and follow, with its children
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub argv: Vec<OsString>,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=100.0).contains(&share) { Ok(share) } else { Err("must be from 0 to 100".to_owned()) }
}

/// Runs it.
pub(super) fn run(args: &VerifyArgs) -> Result<Exit> {
    let (mut out, _style) = sink::open(args.output.output.as_deref())?;
    let facts = facts()?;
    let json = args.output.format == Format::Json;
    let wanted = Wanted {
        argv: args.argv.clone(),
        as_root: args.as_root,
        stdout_is_ours: json && args.output.output.is_none(),
        attach: args.attach,
        sizes: Sizes { ring_bytes: args.ring_bytes, tasks: threads::room() },
        every: args.every.map(Duration::from_millis),
        withhold: args.withhold,
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let verified = runtime.block_on(verify(&facts, &wanted, &mut |sentence| eprintln!("pagetrace: {sentence}")))?;
    let code = verified.ended.code();
    let kernel = Kernel { release: facts.features.release.clone(), machine: facts.features.machine.clone() };
    let document = document(args, kernel, verified);
    let text = match args.output.format {
        Format::Text => document.text(),
        Format::Json => serde_json::to_string_pretty(&document).context("cannot encode the answer")? + "\n",
    };
    put(&text, &mut *out)?;
    Ok(Exit::of_verdict(document.verdict(), code))
}

fn document(args: &VerifyArgs, kernel: Kernel, verified: Verified) -> Document {
    let Verified { plan, tally, loss, mut incomplete_because, pid, ended, left, watched, around, withheld, skipped } =
        verified;
    let end = CommandEnd { pid, ended: Some(ended), hung: false, left_behind: false };
    let faults = plan.event(Event::PageFault);
    let faults_by = faults.and_then(|faults| faults.attach).map(Attach::name);
    if faults_by.is_none() {
        incomplete_because.push("this kernel does not show page faults".to_owned());
    }
    Document::of(Parts {
        kernel,
        command: command(&args.argv, end),
        tally,
        duration_ms: millis(watched),
        faults_by,
        // What else the plan does not see makes no difference to pages.
        not_seen: faults.map(|faults| faults.not_seen.clone()).unwrap_or_default(),
        loss,
        incomplete_because,
        left_running: left,
        looks_skipped: skipped,
        around,
        withheld,
        at_least: args.at_least,
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_percentage() {
        assert_eq!(share("99.9"), Ok(99.9));
        for bad in ["-1", "100.1", "NaN", "x", ""] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }
}
