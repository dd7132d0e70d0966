//! What a run is asked for, what it tells meanwhile, and what it comes to: values and interfaces only.

use std::{collections::BTreeMap, ffi::OsString, io, time::Duration};

use super::super::{
    loader::{ByCpu, Sizes, StackTable},
    prepare::Run,
    settings::Settings,
    workload::{Ended, targets::Selection},
};
use crate::{
    analysis::Loss,
    output::{deadlock::ReportedDeadlock, order::ReportedOrder, provocation::Provocation, report::ReportedFinding},
    plan::Plan,
    record::Record,
    symbolize::Symbolizer,
};

/// What to watch and how.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    /// Attach type asked for.
    pub attach: Option<crate::plan::Attach>,
    /// Tasks asked for.
    pub selection: Selection,
    /// Command to run.
    pub argv: Vec<OsString>,
    /// Our standard output carries data for a program: the command's own goes to standard error.
    pub stdout_is_ours: bool,
    /// Run it as root although sudo was used.
    pub as_root: bool,
    /// Stop after this long.
    pub duration: Option<Duration>,
    /// Push the target's pages out, with this pause between rounds.
    pub provoke: Option<Duration>,
    /// Settings of the BPF object.
    pub run: Run,
    /// Sizes of its maps.
    pub sizes: Sizes,
}

/// How the command fared.
#[derive(Debug, Clone, Copy)]
pub struct CommandEnd {
    /// Its process id.
    pub pid: u32,
    /// How it ended; `None` when it had not ended yet.
    pub ended: Option<Ended>,
    /// One of its tasks was found stuck.
    pub hung: bool,
    /// It could not be ended.
    pub left_behind: bool,
}

/// What a run came to.
pub struct Outcomes {
    /// What was attached.
    pub plan: Plan,
    /// The findings, named.
    pub findings: Vec<ReportedFinding>,
    /// Violations that could not be told from benign events.
    pub uncertain: u64,
    /// Records that could not be decoded.
    pub unknown_records: u64,
    /// Counters.
    pub loss: Loss,
    /// The same, each CPU by itself.
    pub by_cpu: Vec<ByCpu>,
    /// Calls that the kernel skipped, by program.
    pub skipped_by_program: BTreeMap<String, u64>,
    /// Reasons of the run itself why nothing can be called clean.
    pub reasons: Vec<String>,
    /// The command.
    pub command: Option<CommandEnd>,
    /// How long was watched.
    pub watched: Duration,
    /// What provoking came to, where it was asked for.
    pub provocation: Option<Provocation>,
    /// The lock order, where it was asked for.
    pub order: Option<ReportedOrder>,
    /// Deadlocks that stood.
    pub deadlocks: Vec<ReportedDeadlock>,
}

/// What the caller sees while the run goes on.
pub trait Observer {
    /// Everything is attached; the command starts now.
    fn attached(&mut self, plan: &Plan, took: Duration);
    /// An event of `trace`.
    ///
    /// # Errors
    /// When nobody reads it any more, which ends the run in order.
    fn event(&mut self, record: &Record, names: &Symbolizer, stack: &[u64]) -> io::Result<()>;
    /// A finding seen for the first time.
    ///
    /// # Errors
    /// As [`Observer::event`].
    fn finding(&mut self, number: usize, finding: &ReportedFinding) -> io::Result<()>;
    /// Something a person should know now.
    fn note(&mut self, sentence: &str);
    /// Takes every record as it came, when this run makes a recording.
    fn tape(&mut self) -> Option<&mut dyn Tape> {
        None
    }
}

/// Takes a run down, record by record.
pub trait Tape {
    /// Everything is attached, nothing has been read.
    ///
    /// # Errors
    /// When the recording cannot be begun, which ends the run.
    fn begin(&mut self, begun: &Begun<'_>) -> io::Result<()>;
    /// One record.
    fn record(&mut self, bytes: &[u8], stacks: &dyn StackTable);
    /// A task was found stuck.
    fn hung(&mut self, pid: u32, tid: u32);
    /// The counters, now and then.
    fn counters(&mut self, counters: &[ByCpu]);
    /// Whether no more can be taken down, which ends the run.
    fn is_full(&self) -> bool;
}

/// What a recording has to know of its run.
pub struct Begun<'a> {
    /// What was attached.
    pub plan: &'a Plan,
    /// The settings of the BPF object.
    pub settings: &'a Settings,
    /// When everything was attached, nanoseconds of `CLOCK_MONOTONIC`.
    pub attached_at: u64,
}
