//! One run of `pagetrace verify`: the faults from the same hooks as `trace` has, changes of maps from ptrace, and looks at page
//! tables while the command stands still, all given to the model in the order of their times.
//!
//! What is explained is the model's affair (`analysis::presence`); here it is only made sure that what it is told is whole, or said
//! that it is not.

mod ptrace;
mod snapshot;
mod standstill;
mod syscalls;
#[cfg(test)]
mod tests;
mod tracer;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use pagetrace_ebpf::wire;
use rustix::process::Signal;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{
    loader::{Attached, Sizes},
    prepare::{self, Run},
    session::{self, Spec},
    workload::{Ended, RunAs, Workload},
};
use crate::{
    analysis::presence::{Fault, Mode, Occasion, Outcome, SpaceId, Tally, World},
    clock::monotonic_ns,
    kernel::KernelFacts,
    plan::{Attach, Plan},
    record::Record,
};
use snapshot::Reader;
use tracer::{FIRST, Notice, Point};

/// Notices that the follower may be ahead.
const AHEAD: usize = 1024;
/// A record that another CPU is writing keeps those behind it back; it takes no longer.
const WRITING: Duration = Duration::from_micros(200);
const TICK: Duration = Duration::from_millis(250);
/// So many events that wait are applied without a point, up to a moment so long ago.
const MOST_WAITING: usize = 500_000;
const LONG_AGO: u64 = 1_000_000_000;
/// How long a command that was sent SIGTERM gets.
const PATIENCE: Duration = Duration::from_secs(2);

/// Counters behind which a fault may be hidden, or a process that was to be followed.
const HIDES: [&str; 6] =
    ["ring_full", "task_map_full", "target_map_full", "kernel_read_failed", "fault_end_missed", "recursion_misses"];

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The command.
    pub argv: Vec<OsString>,
    /// Run it as root although sudo was used.
    pub as_root: bool,
    /// Its standard output goes to standard error.
    pub stdout_is_ours: bool,
    /// Attach type asked for.
    pub attach: Option<Attach>,
    /// Sizes of the BPF object's maps.
    pub sizes: Sizes,
    /// Also look so often in between.
    pub every: Option<Duration>,
    /// Keep every so many-eth fault from the model: a test of the comparison itself.
    pub withhold: Option<u64>,
}

/// What came of it.
#[derive(Debug)]
pub struct Verified {
    /// What was attached.
    pub plan: Plan,
    /// The sums.
    pub tally: Tally,
    /// Counters that are not 0.
    pub loss: BTreeMap<String, u64>,
    /// Why not everything can have been seen.
    pub incomplete_because: Vec<String>,
    /// The command's process.
    pub pid: u32,
    /// How it ended.
    pub ended: Ended,
    /// Tasks that it left running, which were not followed to their end.
    pub left: usize,
    /// From its release to its end.
    pub watched: Duration,
    /// Pages that the kernel maps around a read fault.
    pub around: u64,
    /// Faults that were kept from the model.
    pub withheld: u64,
    /// Looks in between for which not all tasks stopped in time.
    pub skipped: u64,
}

/// The model, and what of the records it is given.
struct Intake {
    world: World,
    withhold: Option<u64>,
    seen: u64,
    withheld: u64,
    unknown: u64,
}

/// The state of a run.
struct Session {
    attached: Attached,
    intake: Intake,
    reader: Reader,
    skipped: u64,
    troubles: BTreeSet<String>,
}

impl Session {
    /// Gives the model every fault that has happened by now.
    fn drain(&mut self) {
        for last in [false, true] {
            let Self { attached, intake, .. } = self;
            attached.drain(&mut |bytes, _| intake.take(bytes));
            if !last {
                thread::sleep(WRITING);
            }
        }
    }

    fn look(&mut self, space: SpaceId, tid: u32, occasion: Occasion) {
        match self.reader.read(tid, occasion) {
            Ok(read) => {
                if read.unreadable_lines != 0 {
                    self.trouble(format!("{} lines of maps could not be read", read.unreadable_lines));
                }
                // Threads on their way out can fault during the reading.
                self.drain();
                self.intake.world.look(space, &read.snapshot, &mut self.reader);
            }
            Err(err) => self.trouble(format!("the pages of task {tid} could not be read: {err}")),
        }
    }

    fn point(&mut self, point: Point) {
        self.drain();
        let now = monotonic_ns();
        match point {
            Point::Exec { former, pid, space, call } => {
                self.intake.world.executed(former, pid, space, call, now);
                self.look(space, pid, Occasion::Exec);
            }
            Point::Fork { parent, child, pid, call } => {
                self.intake.world.forked(parent, child, pid, call, now);
                self.look(child, pid, Occasion::Fork);
            }
            Point::Look { space, tid, occasion } => {
                if occasion != Occasion::BeforeExec || !self.intake.world.is_idle(space) {
                    self.look(space, tid, occasion);
                }
            }
        }
    }

    fn trouble(&mut self, sentence: String) {
        const MOST: usize = 20;
        if self.troubles.len() < MOST {
            self.troubles.insert(sentence);
        }
    }

    /// Deals with a notice; the command's end ends the run.
    fn notice(&mut self, notice: Notice) -> Option<(Option<i32>, usize)> {
        match notice {
            Notice::Thread { tid, pid, space } => self.intake.world.thread(tid, pid, space),
            Notice::Ended { tid } => {
                self.drain();
                self.intake.world.ended(tid);
            }
            Notice::Unseen { pid } => {
                self.trouble(format!("process {pid} was killed where its pages could not be looked at"));
            }
            Notice::Changed(space, changed) => self.intake.world.changed(space, changed),
            Notice::Point(point, done) => {
                self.point(point);
                // The follower waits for it, unless it is gone.
                let _ = done.send(());
            }
            Notice::Skipped => self.skipped += 1,
            Notice::Trouble(sentence) => self.trouble(sentence),
            Notice::Finished { status, left } => return Some((status, left)),
        }
        None
    }

    async fn read(&mut self) -> io::Result<()> {
        let Self { attached, intake, .. } = self;
        attached.wait_and_drain(&mut |bytes, _| intake.take(bytes)).await
    }
}

impl Intake {
    /// Hands a fault to the model, unless it is one of those that are withheld.
    fn take(&mut self, bytes: &[u8]) {
        match Record::decode(bytes) {
            Record::Fault(record) => {
                self.seen += 1;
                if self.withhold.is_some_and(|every| self.seen.is_multiple_of(every)) {
                    self.withheld += 1;
                } else {
                    self.world.fault(fault(&record));
                }
            }
            Record::Unknown { .. } => self.unknown += 1,
            _ => {}
        }
    }
}

/// A fault as the model has it.
fn fault(record: &wire::fault::Fault) -> Fault {
    /// `VM_FAULT_OOM`, `_SIGBUS`, `_HWPOISON`, `_HWPOISON_LARGE`, `_SIGSEGV` (include/linux/mm_types.h).
    const FAILED: u32 = 0x73;
    const RETRY: u32 = 0x400;
    const WRITE: u32 = 1;
    let ended = (record.duration != u64::MAX).then_some(record.header.ts);
    let outcome = match (ended, record.result) {
        (None, _) => Outcome::Unknown,
        (_, result) if result & FAILED != 0 => Outcome::Failed,
        (_, result) if result & RETRY != 0 => Outcome::Again,
        _ => Outcome::Done,
    };
    Fault {
        at: ended.map_or(record.header.ts, |end| end.saturating_sub(record.duration)),
        end: ended,
        tid: record.header.tid,
        owner: record.mm.tgid,
        mm: record.mm.mm,
        page: record.address / 4096,
        mode: match record.mode {
            wire::fault::mode::USER => Mode::User,
            wire::fault::mode::KERNEL => Mode::Kernel,
            _ => Mode::Pinning,
        },
        write: record.fault_flags & WRITE != 0,
        outcome,
    }
}

/// Runs to the command's end.
///
/// # Errors
/// When the command cannot start or be traced, or nothing can be attached.
pub async fn run(facts: &KernelFacts, wanted: &Wanted, note: &mut dyn FnMut(&str)) -> Result<Verified> {
    let stdout = if wanted.stdout_is_ours { session::command_stdout()? } else { Stdio::inherit() };
    let offsets = session::offsets(facts)?;
    let mut workload = Workload::spawn_stopped(&wanted.argv, &RunAs::of_caller(wanted.as_root)?, stdout)?;
    let pid = workload.pid();
    // Only faults are wanted: no wait or hold is that long.
    let run = Run {
        trace: true,
        no_lock_stacks: true,
        min_lock_ns: u64::MAX,
        target_mode: wire::setting::target::LISTED,
        ..Run::default()
    };
    let spec = Spec { attach: wanted.attach, run, sizes: wanted.sizes, ..Spec::default() };
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let keys = prepare::process_keys(&BTreeSet::from([pid]));
    let (plan, _settings, attached) = session::attach(facts, &spec, &offsets, &keys)?;
    let reader = Reader::new().context("cannot read /proc/self/pagemap: the kernel needs CONFIG_PROC_PAGE_MONITOR")?;
    let mut world = World::new(reader.page_size, reader.around);
    world.thread(pid, pid, FIRST);
    let around = reader.around;
    let mut session = Session {
        attached,
        intake: Intake { world, withhold: wanted.withhold, seen: 0, withheld: 0, unknown: 0 },
        reader,
        skipped: 0,
        troubles: BTreeSet::new(),
    };
    let (tell, mut notices) = mpsc::channel(AHEAD);
    let follower = tracer::follow(pid, tell).context("cannot trace the command with ptrace")?;
    let started = monotonic_ns();
    if let Err(err) = workload.release().await {
        // Whoever asked first has its status; it has ended in any case.
        drop(notices);
        follower.join();
        return Err(err.into());
    }
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looks = wanted.every.map(|every| {
        let mut looks = tokio::time::interval(every);
        // A look that takes longer must not keep the command from running in between.
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        looks
    });
    let mut asked_to_end: Option<Instant> = None;
    let (status, left) = loop {
        tokio::select! {
            biased;
            _ = interrupt.recv() => end(&workload, "SIGINT", &mut asked_to_end, note)?,
            _ = terminate.recv() => end(&workload, "SIGTERM", &mut asked_to_end, note)?,
            notice = notices.recv() => match notice {
                Some(notice) => if let Some(finished) = session.notice(notice) { break finished },
                None => anyhow::bail!("the thread that follows the command is gone"),
            },
            read = session.read() => read.context("cannot read the ring buffer")?,
            () = next(&mut looks) => follower.ask(),
            _ = tick.tick() => {
                if session.intake.world.waiting() > MOST_WAITING {
                    session.intake.world.settle(monotonic_ns().saturating_sub(LONG_AGO));
                }
                if asked_to_end.is_some_and(|since| since.elapsed() > PATIENCE) {
                    workload.kill().context("cannot end the command")?;
                }
            }
        }
    };
    let watched = Duration::from_nanos(monotonic_ns().saturating_sub(started));
    follower.join();
    session.drain();
    let counters = session.attached.counters_by_cpu()?;
    session.attached.detach();
    let loss: BTreeMap<String, u64> = counters
        .iter()
        .map(|(name, values)| ((*name).to_owned(), values.iter().sum()))
        .filter(|(_, sum)| *sum != 0)
        .collect();
    let lost = loss.iter().filter(|(name, _)| HIDES.contains(&name.as_str()));
    let mut incomplete: Vec<String> =
        lost.map(|(name, count)| format!("{name} is {count}: faults may not have been seen")).collect();
    incomplete.extend(session.troubles);
    if session.intake.unknown != 0 {
        incomplete.push(format!("{} records could not be decoded", session.intake.unknown));
    }
    Ok(Verified {
        plan,
        tally: session.intake.world.finish(),
        loss,
        incomplete_because: incomplete,
        pid,
        ended: status.map_or(Ended::Unknown, ended),
        left,
        watched,
        around,
        withheld: session.intake.withheld,
        skipped: session.skipped,
    })
}

/// The next time to look in between; never, where that is not asked for.
async fn next(looks: &mut Option<tokio::time::Interval>) {
    match looks {
        Some(looks) => drop(looks.tick().await),
        None => std::future::pending().await,
    }
}

/// Asks the command to end; it is followed until it has.
fn end(workload: &Workload, by: &str, since: &mut Option<Instant>, note: &mut dyn FnMut(&str)) -> Result<()> {
    if since.is_none() {
        note(&format!("stopped by {by}: ending the command"));
        workload.signal(Signal::TERM).context("cannot signal the command")?;
        *since = Some(Instant::now());
    }
    Ok(())
}

fn ended(status: i32) -> Ended {
    match libc::WIFEXITED(status) {
        true => Ended::Exited(libc::WEXITSTATUS(status)),
        false => Ended::Signalled(libc::WTERMSIG(status)),
    }
}
