//! Arguments: syntax only. Nothing here looks at the machine.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand};

use super::{baseline::BaselineArgs, ci::CiArgs, exit::Misuse, pagemap::PagemapArgs, verify::VerifyArgs, vm::VmArgs};
use crate::{
    live::{loader::Sizes, prepare::Run, provoke, session::Spec, workload::targets::Selection},
    output::{Format, ReportFormat},
    plan::Attach,
    record::writer::MIN_LIMIT,
};

/// Tells, on the kernel you are running, who touched user memory while holding mmap_lock.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 clean, 1 findings, 2 usage, 3 this kernel or user cannot, 4 incomplete, 5 internal error, 69 test machine failed (vm); \
a clean run of a command ends with the command's own code (128+n for a signal)."
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command, or watch tasks, and give a verdict: page faults taken under an mmap lock
    Check(CheckArgs),
    /// Stream page faults, page walks, and long waits for and holds of mmap locks
    Trace(TraceArgs),
    /// As check, and keep everything that was seen in a file, for `report`
    Record(RecordArgs),
    /// Give the verdict of a recording; needs no root, and works on any machine
    Report(ReportArgs),
    /// Run check, trace or record on test kernels, with the command and its libraries, and bring back what came of it
    Vm(Box<VmArgs>),
    /// Keep a file of findings that are known
    Baseline(BaselineArgs),
    /// Show what would be attached on this kernel, what was passed over and why, and what stays unseen
    Probes(ProbesArgs),
    /// Read what a process has in memory: /proc/PID/pagemap, every bit of it
    Pagemap(PagemapArgs),
    /// Run a command, and hold every page it has in memory against the faults that were seen: how much of it is explained
    Verify(VerifyArgs),
}

/// Whom to watch.
#[derive(Debug, ClapArgs)]
pub struct Target {
    /// Watch this process, its children, and whoever locks its mm or faults in it (repeatable)
    #[arg(short, long, value_name = "PID")]
    pub pid: Vec<u32>,
    /// Watch this thread (repeatable)
    #[arg(short, long, value_name = "TID")]
    pub tid: Vec<u32>,
    /// Watch tasks of this name
    #[arg(short, long, value_name = "NAME")]
    pub comm: Option<String>,
    /// Watch the tasks of this cgroup (version 2) and of those below it
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Run the command as root even if sudo was called by another user
    #[arg(long)]
    pub as_root: bool,
    /// Stop after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub duration: Option<Duration>,
    /// Command to run and watch, with its children
    #[arg(last = true, value_name = "COMMAND")]
    pub argv: Vec<OsString>,
}

/// How to watch.
#[derive(Debug, ClapArgs)]
pub struct Tuning {
    /// Use this attach type for every event that this kernel shows by it
    #[arg(long, value_enum, value_name = "TYPE")]
    pub attach: Option<Attach>,
    /// Size of the ring buffer: a power of two, at least 4096
    #[arg(long, value_name = "BYTES", default_value_t = Sizes::default().ring_bytes, value_parser = ring_bytes)]
    pub ring_bytes: u32,
    /// Tasks that can be tracked at once [default: twice those that exist now, and 4096 besides]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..=4_194_304))]
    pub max_tasks: Option<u32>,
    /// Do not keep the stack of each lock acquisition: a good part of the cost, but findings do not say where the lock was taken
    #[arg(long)]
    pub no_lock_stacks: bool,
    /// Unwind every acquisition and count where a learnt shortcut says something else: a test of pagetrace itself
    #[arg(long, hide = true, conflicts_with = "no_lock_stacks")]
    pub verify_shortcuts: bool,
}

/// Where what is seen goes.
#[derive(Debug, ClapArgs)]
pub struct Output {
    /// Form of the output
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Write to this file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// What `check` and `trace` have in common.
#[derive(Debug, ClapArgs)]
pub struct RunArgs {
    /// Whom.
    #[command(flatten)]
    pub target: Target,
    /// How.
    #[command(flatten)]
    pub tuning: Tuning,
    /// Where to.
    #[command(flatten)]
    pub output: Output,
}

/// `check`.
#[derive(Debug, ClapArgs)]
pub struct CheckArgs {
    /// The run.
    #[command(flatten)]
    pub run: RunArgs,
    /// Push the target's resident pages out again and again, so that rare faults become common: those of the command, or of -p,
    /// and their children. No contents change. The number is the pause between rounds in milliseconds, 50 if none is given
    #[arg(long, value_name = "MS", num_args = 0..=1, require_equals = true, default_missing_value = "50", value_parser = milliseconds)]
    pub provoke: Option<Duration>,
    /// Also find user accesses under a lock that do not fault: each may fault another time
    #[arg(long)]
    pub strict: bool,
    /// Also find sleeping locks that are taken under mmap_lock in one place and around it in another: inversions that can
    /// deadlock, without a deadlock
    #[arg(long)]
    pub order: bool,
    /// What it means elsewhere.
    #[command(flatten)]
    pub ci: CiArgs,
}

/// `trace`.
#[derive(Debug, ClapArgs)]
pub struct TraceArgs {
    /// The run.
    #[command(flatten)]
    pub run: RunArgs,
    /// Shortest wait for or hold of an mmap lock to show, microseconds
    #[arg(long, value_name = "US", default_value_t = 100)]
    pub min_us: u64,
    /// Shortest page fault to show, microseconds
    #[arg(long, value_name = "US", default_value_t = 0)]
    pub min_fault_us: u64,
}

/// `record`.
#[derive(Debug, ClapArgs)]
pub struct RecordArgs {
    /// Whom.
    #[command(flatten)]
    pub target: Target,
    /// How.
    #[command(flatten)]
    pub tuning: Tuning,
    /// Record to this file
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Stop when the file would get longer than this
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(MIN_LIMIT..))]
    pub max_bytes: Option<u64>,
    /// Also record the order in which sleeping locks are taken, as `check --order` finds it
    #[arg(long)]
    pub order: bool,
    /// Form of the report, which goes to stdout
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// What it means elsewhere.
    #[command(flatten)]
    pub ci: CiArgs,
}

/// `report`.
#[derive(Debug, ClapArgs)]
pub struct ReportArgs {
    /// The recording; several of one kernel are judged together, their lock orders as one
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
    /// Write to this file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What it means elsewhere.
    #[command(flatten)]
    pub ci: CiArgs,
}

/// `probes`.
#[derive(Debug, ClapArgs)]
pub struct ProbesArgs {
    /// Use this attach type for every event that this kernel shows by it
    #[arg(long, value_enum, value_name = "TYPE")]
    pub attach: Option<Attach>,
    /// Include what `check --strict` attaches
    #[arg(long)]
    pub strict: bool,
    /// Include what `check --order` attaches
    #[arg(long)]
    pub order: bool,
    /// Form of the plan
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Do not try to attach; only say what the kernel's own tables promise
    #[arg(long)]
    pub dry: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|err| err.to_string())
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let interval = text.parse().map(Duration::from_millis).map_err(|_| "not a number of milliseconds".to_owned())?;
    if !(provoke::SHORTEST..=provoke::LONGEST).contains(&interval) {
        let [from, to] = [provoke::SHORTEST, provoke::LONGEST].map(|limit| limit.as_millis());
        return Err(format!("must be from {from} to {to}"));
    }
    Ok(interval)
}

pub(super) fn ring_bytes(text: &str) -> Result<u32, String> {
    let bytes: u32 = text.parse().map_err(|_| "not a number of bytes".to_owned())?;
    if bytes < 4096 || !bytes.is_power_of_two() || bytes > 1 << 30 {
        return Err("must be a power of two from 4096 to 1073741824".to_owned());
    }
    Ok(bytes)
}

impl Target {
    /// The run these arguments ask for, with room for so many tasks where they do not say.
    fn spec(&self, tuning: &Tuning, mut run: Run, room: u32, stdout_is_ours: bool) -> Spec {
        run.no_lock_stacks = tuning.no_lock_stacks;
        run.verify_shortcuts = tuning.verify_shortcuts;
        Spec {
            attach: tuning.attach,
            selection: Selection {
                pids: self.pid.clone(),
                tids: self.tid.clone(),
                comms: self.comm.iter().cloned().collect(),
                cgroup: self.cgroup.clone(),
            },
            argv: self.argv.clone(),
            as_root: self.as_root,
            stdout_is_ours,
            duration: self.duration,
            provoke: None,
            run,
            sizes: Sizes { ring_bytes: tuning.ring_bytes, tasks: tuning.max_tasks.unwrap_or(room) },
        }
    }
}

impl CheckArgs {
    /// The pause between rounds of provoking, if it was asked for and there is something to provoke.
    pub(super) fn provoke(&self) -> Result<Option<Duration>, Misuse> {
        let Target { pid, tid, comm, cgroup, argv, .. } = &self.run.target;
        if self.provoke.is_none() || !pid.is_empty() || !argv.is_empty() {
            return Ok(self.provoke);
        }
        Err(Misuse(if tid.is_empty() && comm.is_none() && cgroup.is_none() {
            "--provoke pushes out the pages of a target: give a command after `--`, or -p PID"
        } else {
            "--provoke pushes out the pages of whole processes: -t, -c and --cgroup choose tasks, which may share memory \
             with others; give a command after `--`, or -p PID"
        }))
    }
}

impl RunArgs {
    /// The run these arguments ask for, with room for so many tasks where they do not say.
    pub(super) fn spec(&self, run: Run, room: u32) -> Spec {
        let Self { target, tuning, output } = self;
        target.spec(tuning, run, room, output.format == Format::Json && output.output.is_none())
    }
}

impl RecordArgs {
    /// As [`RunArgs::spec`]; the report always goes to stdout.
    pub(super) fn spec(&self, run: Run, room: u32) -> Spec {
        self.target.spec(&self.tuning, run, room, self.format == Format::Json)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn provoking_has_a_usual_pace_and_limits() {
        let parse = |words: &[&str]| {
            let words = ["pagetrace", "check"].iter().chain(words);
            match Args::try_parse_from(words).map(|args| args.command) {
                Ok(Command::Check(args)) => args.provoke().ok(),
                _ => None,
            }
        };
        assert_eq!(parse(&["--provoke", "--", "true"]), Some(Some(provoke::USUAL)));
        assert_eq!(parse(&["--provoke=200", "-p", "1"]), Some(Some(Duration::from_millis(200))));
        assert_eq!(parse(&["--", "true"]), Some(None));
        for bad in
            [&["--provoke"][..], &["--provoke", "-t", "1"], &["--provoke", "-c", "x"], &["--provoke=0", "-p", "1"]]
        {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_ring_is_a_power_of_two_of_at_least_a_page() {
        assert_eq!(ring_bytes("4096"), Ok(4096));
        for bad in ["0", "2048", "5000", "x", "4294967296"] {
            assert!(ring_bytes(bad).is_err(), "{bad}");
        }
    }
}
