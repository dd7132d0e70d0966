//! `pagetrace report`: the verdict of a recording. Looks at nothing of this machine.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use pagetrace_ebpf::wire::setting;

use super::{
    args::ReportArgs,
    check::{print, put},
    exit::{Exit, Misuse, Refused},
    sink,
};
use crate::{
    analysis::{CrossCheck, Disagreement, Inputs, Loss, Outcome, Stacks, model::Rules},
    live::{
        prepare::{is_fault_entry, is_one_of},
        workload::Ended,
    },
    output::{
        Format, ReportFormat, dot,
        gather::Gather,
        merge::merge,
        report::{Command, Damage, Kernel, Recording, Report, Run},
    },
    plan::is_user_access,
    record::{
        reader::{Entry, Reader},
        user::{CommandEnd, End, Note, User},
    },
    symbolize::Symbolizer,
};

/// Most stacks that are kept: a damaged file must not fill the memory.
const MAX_STACKS: usize = 1 << 20;

/// Counters of loss that explain why recorded events and the kernel side's own verdict may differ.
const EXPLAINS: [&str; 5] = ["stream_lost", "violation_lost", "task_map_full", "target_map_full", "kernel_read_failed"];

struct Recorded<'a> {
    stacks: &'a HashMap<i32, Vec<u64>>,
    names: &'a Symbolizer,
}

impl Stacks for Recorded<'_> {
    fn stack(&self, id: i32) -> Option<Vec<u64>> {
        self.stacks.get(&id).cloned()
    }
    fn is_fault_entry(&self, address: u64) -> bool {
        self.names.name(address).is_some_and(is_fault_entry)
    }
    fn is_user_access(&self, address: u64) -> bool {
        self.names.name(address).is_some_and(is_user_access)
    }
    fn is_function(&self, address: u64, names: &[&str]) -> bool {
        self.names.name(address).is_some_and(|name| is_one_of(name, names))
    }
    fn function(&self, address: u64) -> Option<u64> {
        let found = self.names.lookup(address)?;
        // As live: BPF programs come and go, and the nearest name may be another one's.
        if found.module.as_deref() == Some("bpf") { None } else { address.checked_sub(found.offset) }
    }
}

/// What the report of a recording is, and how the command in it ended.
pub(super) struct Read {
    /// The report.
    pub(super) report: Report,
    /// The command's own exit code.
    pub(super) code: Option<u8>,
}

/// Reads a recording to its end and judges it.
///
/// # Errors
/// When it cannot be read at all.
pub(super) fn read(path: &Path) -> Result<Read> {
    let file = File::open(path).with_context(|| format!("cannot open the recording {}", path.display()))?;
    let mut reader = Reader::open(BufReader::with_capacity(1 << 18, file))
        .with_context(|| format!("cannot read the recording {}", path.display()))?;
    let header = reader.header().clone();
    let rules = Rules { confirm_by_lock: header.plan.confirms_by_lock(), attached_at: header.attached_at_ns };
    let mut check = CrossCheck::new(rules, header.recorder_pid);
    let ordered = header.settings.get(setting::NAMES[setting::ORDER]) == Some(&1);
    let mut gather = Gather::with_fields(header.lock_fields.clone());
    let mut names = Symbolizer::recorded();
    let mut stacks: HashMap<i32, Vec<u64>> = HashMap::new();
    let mut counters: HashMap<String, u64> = HashMap::new();
    let mut loss_by_cpu = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    let (mut end, mut latest) = (None, 0_u64);
    while let Some(entry) = reader.next_entry() {
        match entry {
            Entry::Kernel(record) => {
                latest = latest.max(record.time().unwrap_or(0));
                check.take(&record);
                gather.forget_names(&record, &mut names);
                let known = Recorded { stacks: &stacks, names: &names };
                gather.take_order(&record, &known);
                if let Outcome::New(index) | Outcome::Worse(index) = gather.take(&record, &known) {
                    gather.name(index, &mut names);
                }
            }
            Entry::User(User::Stack { id, frames }) if stacks.len() < MAX_STACKS => {
                stacks.insert(id, frames);
            }
            Entry::User(User::Symbol { address, symbol }) => names.learn(address, symbol),
            Entry::User(User::Counter(counter)) => {
                if !counters.contains_key(&counter.name) {
                    order.push(counter.name.clone());
                }
                let sum = counter.by_cpu.iter().fold(0_u64, |sum, value| sum.saturating_add(*value));
                counters.insert(counter.name.clone(), sum);
                loss_by_cpu.insert(counter.name.into(), counter.by_cpu);
            }
            Entry::User(User::Note(Note::Hung { pid, tid })) => gather.correlator.mark_hung(pid, tid),
            Entry::User(User::End(ended)) => end = Some(ended),
            Entry::User(User::Stack { .. } | User::Unknown) => {}
        }
    }
    check.finish();
    gather.name_edges(&mut names, true);
    let lock_order = ordered.then(|| gather.order());
    let count = |name: &String| counters.get(name).copied().unwrap_or(0);
    let mut loss: Loss = order.iter().map(|name| (name.clone().into(), count(name))).collect();
    loss.extend(gather.loss(ordered).map(|(name, count)| (name.into(), count)));
    let (correlator, findings) = gather.finish();
    // One that was not finished does not say how long it took.
    let unfinished = || End { watched_ns: latest.saturating_sub(header.attached_at_ns), ..End::default() };
    let End { command, watched_ns, mut reasons, deadlocks } = end.unwrap_or_else(unfinished);
    let damage = reader.damage().map(|damage| Damage { offset: damage.offset, why: damage.why.clone() });
    if let Some(damage) = &damage {
        reasons.push(format!("the recording is damaged at byte {}: {}", damage.offset, damage.why));
    }
    if reader.incomplete() {
        reasons.push("the recording was not finished by its recorder".to_owned());
    }
    let explained = EXPLAINS.iter().any(|name| counters.get(*name).is_some_and(|count| *count != 0));
    if check.disagreed != 0 && !explained && damage.is_none() && !check.crowded() {
        reasons.push(format!(
            "{} violations are told differently by the kernel side and by the recorded events",
            check.disagreed
        ));
        reasons.extend(check.described.iter().map(Disagreement::text));
    }
    let code = command.as_ref().and_then(ended).and_then(Ended::code);
    let report = Report::of(Run {
        kernel: Kernel { release: header.kernel.release, machine: header.kernel.machine },
        command: command.map(reported),
        duration_ms: watched_ns / 1_000_000,
        findings,
        plan: header.plan,
        inputs: Inputs { findings: 0, uncertain: correlator.uncertain, unknown_records: 0, loss, reasons },
        loss_by_cpu,
        skipped_by_program: BTreeMap::new(),
        provocation: None,
        order: lock_order,
        deadlocks,
        recording: Some(Recording {
            version: header.version,
            began_ns: header.clock.realtime_ns,
            records: reader.records(),
            bytes: reader.offset(),
            unknown_kinds: reader.unknown(),
            damage,
            agreed: check.agreed,
            disagreed: check.disagreed,
        }),
    });
    Ok(Read { report, code })
}

fn ended(command: &CommandEnd) -> Option<Ended> {
    match (command.exit_code, command.signal) {
        (Some(code), _) => Some(Ended::Exited(code)),
        (None, Some(signal)) => Some(Ended::Signalled(signal)),
        (None, None) => None,
    }
}

fn reported(end: CommandEnd) -> Command {
    let CommandEnd { argv, pid, exit_code, signal, hung, left_behind } = end;
    Command { argv, pid, exit_code, signal, hung, left_behind }
}

/// Reads the recordings and judges them together.
fn read_all(files: &[PathBuf]) -> Result<Read> {
    if let [only] = files {
        return read(only);
    }
    let named = |file: &PathBuf| Ok((file.display().to_string(), read(file)?.report));
    let reports = files.iter().map(named).collect::<Result<Vec<_>>>()?;
    let report = merge(reports).map_err(|why| Refused(why.to_string()))?.context("there is no recording")?;
    Ok(Read { report, code: None })
}

/// Prints the report of recordings.
pub(super) fn run(args: &ReportArgs) -> Result<Exit> {
    let recordings = args.files.iter().map(|file| ("the recording", Some(file.as_path())));
    let taken: Vec<_> = [("--output", args.output.as_deref())].into_iter().chain(recordings).collect();
    let ready = args.ci.open(&taken)?;
    let (mut out, style) = sink::open(args.output.as_deref())?;
    let read = read_all(&args.files)?;
    let format = match (args.format, &read.report.order) {
        (ReportFormat::Text, _) => Format::Text,
        (ReportFormat::Json, _) => Format::Json,
        (ReportFormat::Dot, Some(order)) => {
            let graph = dot::render(order);
            return ready.conclude(read.report, read.code, |_| put(&graph, &mut *out));
        }
        (ReportFormat::Dot, None) => {
            return Err(Misuse("there is no lock order in the recording: it is recorded with --order").into());
        }
    };
    ready.conclude(read.report, read.code, |report| print(report, format, &mut *out, style))
}
