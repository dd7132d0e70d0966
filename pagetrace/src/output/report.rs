//! The report of a check: the document that `--format json` prints, and what the text is made from.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use super::{
    advice,
    console::Sign,
    deadlock::ReportedDeadlock,
    fingerprint,
    found::{Found, Marks},
    order::ReportedOrder,
    provocation::Provocation,
};
use crate::{
    analysis::{
        Class, Finding, HeldLock, Inputs, LockMode, MmId, PageInfo, Relation, Severity, Verdict, VmaInfo, judge,
    },
    lines::Source,
    plan::{Attach, PassedOver, Plan, Probe},
    policy,
    symbolize::{Frame, Symbolizer},
};

/// Version of the document.
pub const SCHEMA: &str = "pagetrace.report/1";

/// A whole report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: Cow<'static, str>,
    /// The verdict.
    pub verdict: Verdict,
    /// The kernel that was watched.
    pub kernel: Kernel,
    /// The command that was run, if one was.
    pub command: Option<Command>,
    /// Milliseconds watched.
    pub duration_ms: u64,
    /// Findings: violations, oldest first, then deadlocks, then inversions of the lock order.
    pub findings: Vec<Found>,
    /// Counters, by name.
    pub loss: BTreeMap<Cow<'static, str>, u64>,
    /// The counters that counted anything, a number a CPU.
    pub loss_by_cpu: BTreeMap<Cow<'static, str>, Vec<u64>>,
    /// `recursion_misses` by program.
    pub skipped_by_program: BTreeMap<String, u64>,
    /// What was seen and what was not.
    pub coverage: Coverage,
    /// The order in which sleeping locks were taken, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<ReportedOrder>,
    /// What pushing the target's pages out came to, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provocation: Option<Provocation>,
    /// The recording this was read from; absent in a live run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recording: Option<Recording>,
    /// Source lines of the frames, by their addresses, as far as debug information was at hand.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, Source>,
    /// What the kernel of a test machine said about its own health.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub console: Vec<Sign>,
    /// What follows from it, where a policy was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<policy::Outcome>,
}

/// What a report is made of, whether it comes from a live run or from a recording.
pub struct Run {
    /// The kernel.
    pub kernel: Kernel,
    /// The command.
    pub command: Option<Command>,
    /// Milliseconds watched.
    pub duration_ms: u64,
    /// Findings, named.
    pub findings: Vec<ReportedFinding>,
    /// What was attached.
    pub plan: Plan,
    /// What the verdict is made from, besides the findings.
    pub inputs: Inputs,
    /// Counters, a number a CPU.
    pub loss_by_cpu: BTreeMap<Cow<'static, str>, Vec<u64>>,
    /// Calls that the kernel skipped, by program; a recording does not tell.
    pub skipped_by_program: BTreeMap<String, u64>,
    /// The recording, when it was one.
    pub recording: Option<Recording>,
    /// What pushing pages out came to.
    pub provocation: Option<Provocation>,
    /// The lock order.
    pub order: Option<ReportedOrder>,
    /// Deadlocks that stood.
    pub deadlocks: Vec<ReportedDeadlock>,
}

impl Report {
    /// Judges a run.
    pub fn of(run: Run) -> Self {
        let Run {
            kernel,
            command,
            duration_ms,
            findings,
            plan,
            mut inputs,
            recording,
            provocation,
            order,
            deadlocks,
            ..
        } = run;
        let (mut loss_by_cpu, skipped_by_program) = (run.loss_by_cpu, run.skipped_by_program);
        loss_by_cpu.retain(|_, by_cpu| by_cpu.iter().any(|count| *count != 0));
        let violations = findings.into_iter().map(|it| Found::Violation(Box::new(it)));
        let deadlocks = deadlocks.into_iter().map(|it| Found::Deadlock(Box::new(it)));
        let inversions = order.iter().flat_map(ReportedOrder::inversions).map(|it| Found::Inversion(Box::new(it)));
        let findings: Vec<Found> = violations.chain(deadlocks).chain(inversions).map(Found::marked).collect();
        inputs.findings = findings.len();
        let (verdict, because) = judge(&inputs);
        let coverage = Coverage::of(&plan, because);
        let loss = inputs.loss.into_iter().collect();
        Self {
            schema: SCHEMA.into(),
            verdict,
            kernel,
            command,
            duration_ms,
            findings,
            loss,
            loss_by_cpu,
            skipped_by_program,
            coverage,
            order,
            provocation,
            recording,
            sources: BTreeMap::new(),
            console: Vec::new(),
            policy: None,
        }
    }
}

/// A recording and what checking it against itself gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recording {
    /// Version of the program that made it.
    pub version: String,
    /// When it began, nanoseconds of `CLOCK_REALTIME`.
    pub began_ns: u64,
    /// Records read.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Records of kinds that this program does not know.
    pub unknown_kinds: u64,
    /// Where it is damaged; null when it is whole.
    pub damage: Option<Damage>,
    /// Violations that the kernel side told of and that the recorded events show alike.
    pub agreed: u64,
    /// Violations that the two tell differently.
    pub disagreed: u64,
}

/// Damage of a recording.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Damage {
    /// Bytes from its start that could be trusted.
    pub offset: u64,
    /// What is wrong there.
    pub why: String,
}

/// The kernel.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// `uname -m`.
    pub machine: String,
}

/// The traced command.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Command {
    /// Its words.
    pub argv: Vec<String>,
    /// Its process id.
    pub pid: u32,
    /// Exit code, when it exited.
    pub exit_code: Option<i32>,
    /// Signal, when one killed it.
    pub signal: Option<i32>,
    /// One of its tasks was found stuck on an mmap lock.
    pub hung: bool,
    /// It could not be ended and is still there.
    pub left_behind: bool,
}

/// What was attached and what stays unseen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Coverage {
    /// One entry a logical event.
    pub events: Vec<CoveredEvent>,
    /// What this kernel, or the attach type asked for, does not show.
    pub not_seen: Vec<String>,
    /// Why nothing can be called clean; empty otherwise.
    pub incomplete_because: Vec<String>,
}

/// How one event was had.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CoveredEvent {
    /// The event.
    pub event: Cow<'static, str>,
    /// The attach type; null when nothing shows it.
    pub attach: Option<Attach>,
    /// The programs.
    pub probes: Vec<Probe>,
    /// Attach types not used, and why.
    pub passed_over: Vec<PassedOver>,
}

impl Coverage {
    /// From a plan.
    pub fn of(plan: &Plan, incomplete_because: Vec<String>) -> Self {
        let events = plan
            .events
            .iter()
            .map(|event| CoveredEvent {
                event: event.event.name().into(),
                attach: event.attach,
                probes: event.probes.clone(),
                passed_over: event.passed_over.clone(),
            })
            .collect();
        Self { events, not_seen: plan.not_seen(), incomplete_because }
    }
}

/// A finding with names.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReportedFinding {
    /// Its class.
    pub class: Class,
    /// Its severity.
    pub severity: Severity,
    /// What tells it over time.
    #[serde(flatten)]
    pub marks: Marks,
    /// Times it was seen.
    pub count: u64,
    /// Tasks it was seen of.
    pub tasks: u64,
    /// First and last time, nanoseconds of `CLOCK_MONOTONIC`.
    pub first_seen_ns: u64,
    /// See there.
    pub last_seen_ns: u64,
    /// A task was found stuck.
    pub hung: bool,
    /// Thread ids of those that were.
    pub stuck_tids: Vec<u32>,
    /// Who, in the worst case seen; so are locks and access.
    pub task: Task,
    /// Locks held, outermost first.
    pub locks: Vec<Lock>,
    /// The access.
    pub fault: Fault,
    /// What happened, in a sentence.
    pub summary: String,
    /// What to do about it.
    pub advice: String,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Thread name.
    pub comm: String,
    /// Whether it is a kernel thread.
    pub kernel_thread: bool,
}

/// A process that owns an address space.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Owner {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
}

/// A lock held.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lock {
    /// Address of the mm.
    pub mm: String,
    /// Whether it is the faulting mm's.
    pub relation: Relation,
    /// Whose mm.
    pub owner: Option<Owner>,
    /// How it is held.
    pub mode: LockMode,
    /// Taken by a trylock.
    pub trylock: bool,
    /// Was a writer before.
    pub downgraded: bool,
    /// Nobody saw it being taken, before tracing began for one: the lock's own word names the task as its writer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub taken_unseen: bool,
    /// Nanoseconds held, as far as is known.
    pub held_ns: u64,
    /// Held for at most that: the acquisition is only known to the timer tick.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held_ns_at_most: bool,
    /// Whether a writer was queued.
    pub writer_queued: Option<bool>,
    /// Where it was taken.
    pub stack: Vec<Frame>,
}

/// The access that faulted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fault {
    /// Address.
    pub address: String,
    /// Write or read, where known.
    pub write: Option<bool>,
    /// Address of the mm.
    pub mm: String,
    /// Whose mm.
    pub owner: Option<Owner>,
    /// VMA of the address; null when the lock it is under could not be had.
    pub vma: Option<Vma>,
    /// The page before the fault was handled, as the page tables had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<PageInfo>,
    /// The instruction that accessed it.
    pub instruction: Frame,
    /// Where it was accessed.
    pub stack: Vec<Frame>,
}

/// A VMA.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Vma {
    /// First address.
    pub start: String,
    /// First address behind it.
    pub end: String,
    /// As in /proc/PID/maps.
    pub perms: String,
    /// Offset into the file, bytes.
    pub offset: u64,
    /// File name without its directory; null when anonymous.
    pub file: Option<String>,
}

fn owner(mm: &MmId) -> Option<Owner> {
    mm.owner.as_ref().map(|(pid, comm)| Owner { pid: *pid, comm: comm.clone() })
}

fn vma(info: &VmaInfo) -> Vma {
    Vma {
        start: format!("{:#x}", info.start),
        end: format!("{:#x}", info.end),
        perms: info.perms.clone(),
        offset: info.offset,
        file: info.file.clone(),
    }
}

fn lock(held: &HeldLock, names: &Symbolizer) -> Lock {
    Lock {
        mm: format!("{:#x}", held.mm.address),
        relation: held.relation,
        owner: owner(&held.mm),
        mode: held.mode,
        trylock: held.trylock,
        downgraded: held.downgraded,
        taken_unseen: held.taken_unseen,
        held_ns: held.held_ns,
        held_ns_at_most: held.at_most,
        writer_queued: held.writer_queued,
        stack: names.frames(&held.stack),
    }
}

impl ReportedFinding {
    /// Names a finding. Call it soon after the event: modules and BPF programs go, and their names with them.
    pub fn name(finding: &Finding, names: &Symbolizer) -> Self {
        let Finding { class, severity, task, locks, access, count, tasks, seen, stuck } = finding;
        let instruction = names.frames(&[access.ip]).into_iter().next();
        let mut named = Self {
            class: *class,
            severity: *severity,
            marks: Marks::default(),
            count: *count,
            tasks: *tasks,
            first_seen_ns: seen.0,
            last_seen_ns: seen.1,
            hung: !stuck.is_empty(),
            stuck_tids: stuck.clone(),
            task: Task { pid: task.pid, tid: task.tid, comm: task.comm.clone(), kernel_thread: task.kernel_thread },
            locks: locks.iter().map(|held| lock(held, names)).collect(),
            fault: Fault {
                address: format!("{:#x}", access.address),
                write: access.write,
                mm: format!("{:#x}", access.mm.address),
                owner: owner(&access.mm),
                vma: access.vma.as_ref().map(vma),
                page: access.page,
                instruction: instruction.unwrap_or(Frame {
                    addr: format!("{:#x}", access.ip),
                    symbol: None,
                    offset: 0,
                    module: None,
                }),
                stack: names.frames(&access.stack),
            },
            summary: advice::summary(finding),
            advice: advice::advice(finding),
        };
        named.mark();
        named
    }

    /// Gives it its fingerprint.
    pub fn mark(&mut self) {
        self.marks.fingerprint = fingerprint::hash(&self.identity());
    }

    /// Takes over what changed since it was named.
    pub fn update(&mut self, finding: &Finding) {
        self.count = finding.count;
        self.first_seen_ns = finding.seen.0;
        self.last_seen_ns = finding.seen.1;
        self.tasks = finding.tasks;
        self.hung = !finding.stuck.is_empty();
        self.stuck_tids.clone_from(&finding.stuck);
        self.fault.vma = finding.access.vma.as_ref().map(vma);
        self.fault.page = finding.access.page;
    }
}
