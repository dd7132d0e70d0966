//! One run: attach, let the command go, take records until it ends, and say what came of it.

mod order;
mod parts;

use std::{
    collections::BTreeSet,
    io,
    os::fd::AsFd as _,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use pagetrace_ebpf::wire::{
    Field as _, kind,
    setting::{target, target_key},
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

pub use parts::{Begun, CommandEnd, Observer, Outcomes, Spec, Tape};

use super::{
    deadlock,
    hang::{HangWatch, Suspect},
    loader::{self, AttachError, Attached, StackTable, Types},
    order::fields,
    prepare::{self, Run, View},
    provoke::Provoker,
    settings::Settings,
    stacks::{LiveStacks, loaded_modules},
    strict,
    workload::{Ended, RunAs, Workload, targets::Targets},
};
use crate::{
    analysis::{Loss, Outcome, Severity, suspected},
    clock::monotonic_ns,
    kernel::{KernelFacts, cast::Cast, offsets::Offsets},
    output::{deadlock::ReportedDeadlock, gather::Gather},
    plan::{Plan, Wish, plan},
    record::Record,
    symbolize::Symbolizer,
};

/// How often hangs and vanished targets are looked for.
const TICK: Duration = Duration::from_millis(250);
/// How often a recording takes the counters down.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// How long a task that was sent SIGKILL gets to end.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Attaches, planning anew without each way that the kernel refuses.
pub(super) fn attach(
    facts: &KernelFacts,
    spec: &Spec,
    offsets: &Offsets,
    targets: &[u64],
) -> Result<(Plan, Settings, Attached)> {
    let (Ok(btf), Some(view)) = (&facts.btf, View::of(facts)) else { anyhow::bail!("this kernel has no usable BTF") };
    let Run { trace, strict, order, .. } = spec.run;
    let types = Types::read()?;
    let mut wish = Wish { force: spec.attach, trace, strict, order, refused: Vec::new() };
    let mut cast = Cast::from_btf(btf);
    loop {
        let plan = plan(&view, &wish)?;
        let settings = prepare::settings(btf, cast, facts.kallsyms.as_ref().ok(), offsets, &plan, &spec.run);
        match loader::attach(&plan, &settings, cast, spec.sizes, targets, facts.kallsyms.as_ref().ok(), &types) {
            Ok(attached) => return Ok((plan, settings, attached)),
            // The way may be as open as before without what made the programs cheaper.
            Err(AttachError::Unloadable(refusal)) if cast.is_some() => {
                log::info!("the kernel refused a program that casts, {}: {}", refusal.target, refusal.why);
                cast = None;
            }
            // Every refusal closes one way for good, so this ends.
            Err(AttachError::Refused(refusal)) if !wish.refused.contains(&refusal) => {
                log::info!("{} on {} was refused: {}", refusal.attach.name(), refusal.target, refusal.why);
                wish.refused.push(refusal);
            }
            Err(AttachError::Closed(refusals)) if !refusals.iter().all(|it| wish.refused.contains(it)) => {
                for refusal in &refusals {
                    log::info!("{} on {} was refused: {}", refusal.attach.name(), refusal.target, refusal.why);
                }
                wish.refused.extend(refusals);
            }
            Err(err) => return Err(err.into()),
        }
    }
}

/// The plan that would be used, tried out: what the kernel refuses is passed over with its reason.
///
/// # Errors
/// As [`run`].
pub fn try_plan(facts: &KernelFacts, spec: &Spec) -> Result<Plan> {
    let offsets = offsets(facts)?;
    attach(facts, spec, &offsets, &[]).map(|(plan, _settings, _attached)| plan)
}

pub(super) fn offsets(facts: &KernelFacts) -> Result<Offsets> {
    let btf = facts.btf.as_ref().map_err(|missing| anyhow::anyhow!("{}: {}", missing.path.display(), missing.why))?;
    Offsets::from_btf(btf).context("this kernel's BTF lacks what pagetrace needs")
}

/// The state of a run between records.
struct Session<'a> {
    attached: Attached,
    facts: &'a KernelFacts,
    gather: Gather,
    /// Those loaded when the symbols were read.
    modules: Vec<String>,
    names: Symbolizer,
    watch: HangWatch,
    standing: deadlock::Watch,
    deadlocks: Vec<ReportedDeadlock>,
    reader_gone: bool,
}

impl Session<'_> {
    fn take(&mut self, bytes: &[Vec<u8>], observer: &mut dyn Observer) {
        for bytes in bytes {
            let record = Record::decode(bytes);
            self.gather.forget_names(&record, &mut self.names);
            let stacks = LiveStacks::new(&self.attached, self.facts.kallsyms.as_ref().ok(), &self.modules);
            if self.gather.take_order(&record, &stacks) {
                observer.note("locks around mmap_lock are taken in both orders: see lock-order in the report");
            }
            let outcome = self.gather.take(&record, &stacks);
            if let (Outcome::New(_) | Outcome::Again(_) | Outcome::Worse(_), Record::Violation(violation)) =
                (outcome, &record)
                && let Some(suspected) = suspected(violation, &stacks)
            {
                // Each of a finding's tasks can get stuck in it.
                if matches!(suspected.severity, Severity::RecursiveRead | Severity::Deadlock) {
                    self.watch.suspect(Suspect { pid: violation.header.tgid, tid: violation.header.tid });
                }
                self.standing.suspect(violation, suspected);
            }
            let told = match outcome {
                Outcome::New(index) => self.new_finding(index, observer),
                Outcome::Again(_) => Ok(()),
                Outcome::Worse(index) => {
                    self.gather.name(index, &mut self.names);
                    Ok(())
                }
                Outcome::None => {
                    let id = match &record {
                        Record::Wait(wait) => wait.stack_id,
                        Record::Hold(hold) => hold.stack_id,
                        _ => -1,
                    };
                    let stack = self.attached.stack(id).unwrap_or_default();
                    observer.event(&record, &self.names, &stack)
                }
            };
            if told.is_err() {
                self.reader_gone = true;
            }
        }
        self.gather.name_edges(&mut self.names, false);
    }

    fn new_finding(&mut self, index: usize, observer: &mut dyn Observer) -> io::Result<()> {
        match self.gather.name(index, &mut self.names) {
            Some(named) => observer.finding(index + 1, named),
            None => Ok(()),
        }
    }

    /// Takes over what the kernel side only counted. Records first: a count belongs to one of them.
    fn take_repeats(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if self.gather.correlator.findings().is_empty() && self.gather.correlator.uncertain == 0 {
            return Ok(());
        }
        self.drain(observer);
        for repeat in self.attached.repeats()? {
            self.gather.correlator.again(&repeat);
        }
        Ok(())
    }

    fn drain(&mut self, observer: &mut dyn Observer) {
        let mut bytes = Vec::new();
        self.attached.drain(&mut |record, stacks| sort(record, stacks, observer, &mut bytes));
        self.take(&bytes, observer);
    }
}

/// The keys of the target map, and the mode, for what was asked.
fn targets(spec: &mut Spec, workload: Option<&Workload>) -> Result<(Vec<u64>, BTreeSet<u32>)> {
    let proc = PathBuf::from("/proc");
    let found = Targets::resolve(&spec.selection, &proc)?;
    let mut keys = prepare::process_keys(&found.tgids);
    let mut alive = found.tgids.clone();
    for tid in found.tids.iter().chain(&found.comm_tids) {
        keys.push(target_key::THREAD | u64::from(*tid));
        let Ok(text) = std::fs::read_to_string(proc.join(tid.to_string()).join("status")) else { continue };
        let tgid = text.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse::<u32>().ok());
        keys.extend(tgid.map(|tgid| target_key::MM_ONLY | u64::from(tgid)));
        if found.tids.contains(tid) {
            alive.insert(*tid);
        }
    }
    if let Some(workload) = workload {
        keys.push(target_key::PROCESS | u64::from(workload.pid()));
    }
    spec.run.comm = found.comms.first().copied();
    spec.run.cgroup = found.cgroup.as_ref().map(|cgroup| (cgroup.id, cgroup.level));
    if let Some(cgroup) = &found.cgroup {
        keys.extend(cgroup_processes(&cgroup.path).iter().map(|pid| target_key::PROCESS | u64::from(*pid)));
    }
    spec.run.target_mode = match (found.whole_machine() && workload.is_none(), &spec.run) {
        (true, _) => target::ALL,
        (_, Run { cgroup: Some(_), .. }) => target::CGROUP,
        (_, Run { comm: Some(_), .. }) => target::COMM,
        _ => target::LISTED,
    };
    Ok((keys, alive))
}

/// The processes of a cgroup and of those below it.
fn cgroup_processes(dir: &std::path::Path) -> BTreeSet<u32> {
    let mut out: BTreeSet<u32> = std::fs::read_to_string(dir.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect();
    let children = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for child in children.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        out.extend(cgroup_processes(&child.path()));
    }
    out
}

enum Wake {
    Records(io::Result<Vec<Vec<u8>>>),
    Command(io::Result<Ended>),
    Stop(&'static str),
    Tick,
}

/// Runs to the end.
///
/// # Errors
/// When the target does not exist, the command cannot start, or nothing can be attached.
pub async fn run(facts: &KernelFacts, mut spec: Spec, observer: &mut dyn Observer) -> Result<Outcomes> {
    let begun = Instant::now();
    let offsets = offsets(facts)?;
    let mut workload = match spec.argv.is_empty() {
        true => None,
        false => {
            let stdout = if spec.stdout_is_ours { command_stdout()? } else { Stdio::inherit() };
            Some(Workload::spawn_stopped(&spec.argv, &RunAs::of_caller(spec.as_root)?, stdout)?)
        }
    };
    let (keys, mut alive) = targets(&mut spec, workload.as_ref())?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let (plan, settings, attached) = attach(facts, &spec, &offsets, &keys)?;
    if let Some(tape) = observer.tape() {
        let begun = Begun { plan: &plan, settings: &settings, attached_at: attached.attached_at };
        tape.begin(&begun).context("cannot write the recording")?;
    }
    if spec.run.strict {
        strict::calibrate().await;
    }
    observer.attached(&plan, begun.elapsed());
    let mut session = Session {
        attached,
        facts,
        gather: Gather::with_fields(fields(facts, &spec.run)),
        modules: loaded_modules(),
        names: Symbolizer::new("/proc/kallsyms".into()),
        watch: HangWatch::new("/proc".into()),
        standing: deadlock::Watch::new("/proc".into()),
        deadlocks: Vec::new(),
        reader_gone: false,
    };
    if spec.run.trace {
        session.names.cover(&[]);
    }
    let mut provoker = provoker(&spec, workload.as_ref())?;
    let started = monotonic_ns();
    if let Some(workload) = &mut workload {
        workload.release().await?;
    }
    let mut command = workload.as_ref().map(|workload| CommandEnd {
        pid: workload.pid(),
        ended: None,
        hung: false,
        left_behind: false,
    });
    let mut killed: Vec<(Suspect, Instant)> = Vec::new();
    let mut reasons = Vec::new();
    let mut counted = Instant::now();
    let deadline = spec.duration.map(|duration| Instant::now() + duration);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if let Some(provoker) = &mut provoker {
            provoker.mind(session.watch.suspects_a_hang());
        }
        let wake = tokio::select! {
            biased;
            _ = interrupt.recv() => Wake::Stop("SIGINT"),
            _ = terminate.recv() => Wake::Stop("SIGTERM"),
            ended = async { match &mut workload { Some(workload) => workload.wait().await, None => std::future::pending().await } } => Wake::Command(ended),
            _ = tick.tick() => Wake::Tick,
            records = read(&mut session.attached, observer) => Wake::Records(records),
        };
        match wake {
            Wake::Records(records) => session.take(&records.context("cannot read the ring buffer")?, observer),
            Wake::Command(ended) => {
                if let Some(command) = &mut command {
                    command.ended = Some(ended.context("cannot wait for the command")?);
                }
                break;
            }
            Wake::Stop(signal) => {
                observer.note(&format!("stopped by {signal}"));
                if let Some(workload) = &mut workload {
                    end_command(workload, command.as_mut()).await?;
                }
                break;
            }
            Wake::Tick => {
                let now = Instant::now();
                if observer.tape().is_some() {
                    // The stream wakes nobody until a good part of the ring is unread.
                    session.drain(observer);
                }
                if let Some(tape) = observer.tape().filter(|_| now.duration_since(counted) >= COUNT_EVERY) {
                    tape.counters(&session.attached.counters_by_cpu()?);
                    counted = now;
                }
                session.take_repeats(observer)?;
                session.gather.name_edges(&mut session.names, false);
                session.look(spec.run.order, observer);
                if spec.run.strict {
                    strict::access();
                }
                for suspect in session.watch.stuck(now) {
                    session.gather.correlator.mark_hung(suspect.pid, suspect.tid);
                    if let Some(tape) = observer.tape() {
                        tape.hung(suspect.pid, suspect.tid);
                    }
                    // Only what the command started is ours to end.
                    let Some(command) = command.as_mut().filter(|_| session.attached.is_target(suspect.pid)) else {
                        observer.note(&format!("task {} is stuck on a lock", suspect.tid));
                        continue;
                    };
                    command.hung = true;
                    observer.note(&format!("task {} is stuck on a lock: sending SIGKILL to its process", suspect.tid));
                    kill(suspect.pid);
                    killed.push((suspect, now));
                }
                killed.retain(|(suspect, _)| task_exists(*suspect));
                if killed.iter().any(|(_, since)| now.duration_since(*since) >= KILL_PATIENCE) {
                    if let (Some(workload), Some(command)) = (&mut workload, &mut command) {
                        end_command(workload, Some(command)).await?;
                        command.left_behind = true;
                    }
                    break;
                }
                let had_targets = !alive.is_empty();
                alive.retain(|pid| PathBuf::from(format!("/proc/{pid}")).exists());
                if had_targets && alive.is_empty() && workload.is_none() {
                    observer.note("the target has ended");
                    break;
                }
                if deadline.is_some_and(|deadline| now >= deadline) {
                    if let Some(workload) = &mut workload {
                        end_command(workload, command.as_mut()).await?;
                    }
                    break;
                }
            }
        }
        if observer.tape().is_some_and(|tape| tape.is_full()) {
            reasons.push("the recording could not go on, so the run was ended before its time".to_owned());
            observer.note("the recording cannot go on: ending the run");
            if let Some(workload) = &mut workload {
                end_command(workload, command.as_mut()).await?;
            }
            break;
        }
        if session.reader_gone {
            // Nobody reads on: what was started for the reader ends with it, and that is no error.
            if let Some(workload) = &mut workload {
                end_command(workload, None).await?;
            }
            break;
        }
    }
    let ended = monotonic_ns();
    let provocation = provoker.map(Provoker::finish);
    session.drain(observer);
    let by_cpu = session.attached.counters_by_cpu()?;
    let skipped_by_program = session.attached.skipped();
    session.attached.detach();
    session.take_repeats(observer)?;
    session.drain(observer);
    let order = if spec.run.order { Some(session.order(observer)?) } else { None };
    let mut loss: Loss = by_cpu.iter().map(|(name, values)| ((*name).into(), values.iter().sum())).collect();
    loss.extend(session.gather.loss(spec.run.order).map(|(name, count)| (name.into(), count)));
    let (correlator, findings) = session.gather.finish();
    log::debug!("disproved by their stack: {}", correlator.disproved);
    Ok(Outcomes {
        plan,
        findings,
        uncertain: correlator.uncertain,
        unknown_records: correlator.unknown_records,
        loss,
        by_cpu,
        skipped_by_program,
        reasons,
        command,
        watched: Duration::from_nanos(ended.saturating_sub(started)),
        provocation,
        order,
        deadlocks: session.deadlocks,
    })
}

/// The helper that pushes pages out, held back, where that was asked for.
fn provoker(spec: &Spec, workload: Option<&Workload>) -> Result<Option<Provoker>> {
    let Some(interval) = spec.provoke else { return Ok(None) };
    let roots = spec.selection.pids.iter().copied().chain(workload.map(Workload::pid)).collect();
    Provoker::start(interval, &roots).map(Some)
}

/// Standard error, as a place for the command's standard output.
pub(super) fn command_stdout() -> Result<Stdio> {
    let stderr = io::stderr().as_fd().try_clone_to_owned().context("cannot duplicate standard error")?;
    Ok(Stdio::from(stderr))
}

async fn read(attached: &mut Attached, observer: &mut dyn Observer) -> io::Result<Vec<Vec<u8>>> {
    let mut bytes = Vec::new();
    attached.wait_and_drain(&mut |record, stacks| sort(record, stacks, observer, &mut bytes)).await?;
    Ok(bytes)
}

/// A record goes to the tape, if there is one, and is kept for the findings unless only a recording has use for it.
fn sort(record: &[u8], stacks: &dyn StackTable, observer: &mut dyn Observer, kept: &mut Vec<Vec<u8>>) {
    let Some(tape) = observer.tape() else { return kept.push(record.to_vec()) };
    tape.record(record, stacks);
    if matches!(u32::read(record, 0), Some(kind::VIOLATION | kind::VMA | kind::EDGE) | None) {
        kept.push(record.to_vec());
    }
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended by itself meanwhile.
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn task_exists(suspect: Suspect) -> bool {
    let stat = std::fs::read(format!("/proc/{}/task/{}/stat", suspect.pid, suspect.tid));
    stat.ok()
        .and_then(|stat| super::workload::targets::Stat::parse(&stat))
        .is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// Ends the command: SIGTERM, then SIGKILL; gives up on one that ends for neither.
async fn end_command(workload: &mut Workload, command: Option<&mut CommandEnd>) -> Result<()> {
    let mut ended = None;
    for signal in [Signal::TERM, Signal::KILL] {
        workload.signal(signal).context("cannot signal the command")?;
        if let Ok(status) = tokio::time::timeout(Duration::from_secs(2), workload.wait()).await {
            ended = Some(status.context("cannot wait for the command")?);
            break;
        }
    }
    if let Some(command) = command {
        command.left_behind = ended.is_none();
        command.ended = ended;
    }
    Ok(())
}
