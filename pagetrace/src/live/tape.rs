//! Takes a run down: the records as they come, and, before the first that refers to them, the stacks and names that the
//! machine will not have for ever.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
};

use pagetrace_ebpf::wire::{order::OrderLock, setting};

use super::{
    loader::{ByCpu, StackTable},
    session::{Begun, Tape},
    settings::Settings,
};
use crate::{
    clock::monotonic_ns,
    kernel::{KernelFacts, build_id, locks::LockFields},
    output::order::named_addresses,
    record::{
        Record,
        header::{Clock, FileHeader, KernelId, Target},
        user::{Counter, End, Note, User},
        writer::{Medium, Stop, Writer, Written},
    },
    symbolize::Symbolizer,
};

/// What a recording says of itself that is known before the run.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// The command.
    pub command: Option<Vec<String>>,
    /// What is watched.
    pub target: Target,
    /// Bytes of the ring buffer.
    pub ring_bytes: u32,
    /// Tasks that can have state at once.
    pub max_tasks: u32,
    /// The lock order is recorded.
    pub order: bool,
}

/// A recording that is being made.
pub struct FileTape<M> {
    about: About,
    kernel: KernelId,
    fields: LockFields,
    limit: u64,
    /// Before the run has begun.
    medium: Option<M>,
    writer: Option<Writer<M>>,
    names: Symbolizer,
    stacks: HashSet<i32>,
    addresses: HashSet<u64>,
    /// Addresses, and whether each is a variable's, for which the table has to be read again first.
    later: Vec<(u64, bool)>,
    /// When the record at hand was written, nanoseconds of `CLOCK_MONOTONIC`.
    at: u64,
}

impl<M: Medium> FileTape<M> {
    /// Will record to `medium`, at most `limit` bytes.
    pub fn new(facts: &KernelFacts, about: About, medium: M, limit: u64) -> Self {
        let kernel = KernelId {
            release: facts.features.release.clone(),
            machine: facts.features.machine.clone(),
            build_id: fs::read("/sys/kernel/notes").ok().and_then(|notes| build_id::parse(&notes)),
        };
        let fields = match &facts.btf {
            Ok(btf) if about.order => LockFields::of(btf),
            _ => LockFields::default(),
        };
        let mut names = Symbolizer::new("/proc/kallsyms".into());
        // Once now, rather than when the first record waits for it.
        names.cover(&[]);
        Self {
            about,
            kernel,
            fields,
            limit,
            medium: Some(medium),
            writer: None,
            names,
            stacks: HashSet::new(),
            addresses: HashSet::new(),
            later: Vec::new(),
            at: 0,
        }
    }

    fn stack(&mut self, id: i32, stacks: &dyn StackTable) {
        if id < 0 || !self.stacks.insert(id) {
            return;
        }
        let Some(frames) = stacks.stack(id) else { return };
        self.name(&frames);
        if let Some(writer) = &mut self.writer {
            writer.user(&User::Stack { id, frames });
        }
    }

    /// Writes the names at these addresses that have not been written.
    fn name(&mut self, addresses: &[u64]) {
        let fresh: Vec<u64> =
            addresses.iter().copied().filter(|at| at >> 63 != 0 && self.addresses.insert(*at)).collect();
        if fresh.is_empty() {
            return;
        }
        self.write_names(fresh.into_iter().map(|address| (address, false)).collect());
    }

    /// Writes names now, or keeps the addresses until the table may be read again.
    fn write_names(&mut self, addresses: Vec<(u64, bool)>) {
        let all: Vec<u64> = addresses.iter().map(|(address, _)| *address).collect();
        if !self.names.cover_since(self.at, &[&all]) {
            return self.later.extend(addresses);
        }
        self.write_known(addresses);
    }

    /// Writes the names that the table has.
    fn write_known(&mut self, addresses: Vec<(u64, bool)>) {
        for (address, is_variable) in addresses {
            let symbol = if is_variable { self.names.variable(address) } else { self.names.lookup(address) };
            if let (Some(symbol), Some(writer)) = (symbol, &mut self.writer) {
                writer.user(&User::Symbol { address, symbol });
            }
        }
    }

    /// Writes the names that have waited.
    fn settle_names(&mut self) {
        if !self.later.is_empty() {
            self.names.hurry();
            let later = std::mem::take(&mut self.later);
            self.write_names(later);
        }
    }

    /// What a record refers to.
    fn refer(&mut self, record: &Record, stacks: &dyn StackTable) {
        match record {
            Record::Lock(lock) => self.stack(lock.stack_id, stacks),
            Record::Wait(wait) => self.stack(wait.stack_id, stacks),
            Record::Hold(hold) => self.stack(hold.stack_id, stacks),
            Record::Exception(exception) => self.name(&[exception.ip]),
            Record::Handler(handler) => self.name(&[handler.ip]),
            Record::Fault(fault) => self.name(&[fault.ip]),
            Record::Walk(walk) => self.data(walk.ops),
            // Written again, if there is something at these addresses again.
            Record::Unloaded(unloaded) => {
                // From the table at hand: another would lack the module.
                let later = std::mem::take(&mut self.later);
                self.write_known(later);
                self.names.forget(unloaded);
                self.addresses.retain(|at| !unloaded.contains(*at));
                self.stacks.clear();
            }
            Record::Edge(edge) => {
                for lock in [&edge.held, &edge.wanted] {
                    self.stack(lock.stack_id, stacks);
                    self.lock(lock);
                }
                self.name(&edge.stack);
            }
            Record::Violation(violation) => {
                // A finding is named when its record is read.
                self.names.hurry();
                let used = violation.held.iter().take(violation.held_len as usize);
                used.for_each(|held| self.stack(held.stack_id, stacks));
                self.name(&[violation.ip]);
                self.name(&violation.stack);
            }
            _ => {}
        }
    }

    /// What a lock is named by.
    fn lock(&mut self, lock: &OrderLock) {
        let [variable, site] = named_addresses(lock.class.id(), lock.address);
        self.name(&[site]);
        if variable != 0 && self.addresses.insert(variable) {
            self.write_names(vec![(variable, true)]);
        }
    }

    /// The name of a variable.
    fn data(&mut self, address: u64) {
        if address == 0 || !self.addresses.insert(address) {
            return;
        }
        if let (Some(name), Some(writer)) = (self.names.data_name(address), &mut self.writer) {
            let symbol = crate::record::user::Symbol { name, offset: 0, module: None };
            writer.user(&User::Symbol { address, symbol });
        }
    }

    /// Writes the counters and the end.
    ///
    /// `None` when the run never began.
    pub fn finish(mut self, counters: &[ByCpu], end: End) -> Option<Written> {
        self.settle_names();
        let mut last: Vec<User> = counters.iter().map(counter).collect();
        last.push(User::End(end));
        Some(self.writer?.finish(&last))
    }
}

fn counter((name, by_cpu): &ByCpu) -> User {
    User::Counter(Counter { name: (*name).to_owned(), time_ns: monotonic_ns(), by_cpu: by_cpu.clone() })
}

fn named(settings: &Settings) -> BTreeMap<String, u64> {
    let known = setting::NAMES.iter().enumerate().map(|(slot, name)| ((*name).to_owned(), settings.get(slot)));
    known.filter(|(_, value)| *value != setting::NONE).collect()
}

fn realtime_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

impl<M: Medium> Tape for FileTape<M> {
    fn begin(&mut self, begun: &Begun<'_>) -> io::Result<()> {
        let Some(medium) = self.medium.take() else { return Ok(()) };
        let About { command, target, ring_bytes, max_tasks, order: _ } = self.about.clone();
        let header = FileHeader {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: self.kernel.clone(),
            plan: begun.plan.clone(),
            settings: named(begun.settings),
            command,
            target,
            clock: Clock { monotonic_ns: monotonic_ns(), realtime_ns: realtime_ns() },
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned()),
            ring_bytes,
            max_tasks,
            attached_at_ns: begun.attached_at,
            lock_fields: self.fields.clone(),
            recorder_pid: std::process::id(),
        };
        self.writer = Some(Writer::begin(medium, &header, self.limit)?);
        Ok(())
    }

    fn record(&mut self, bytes: &[u8], stacks: &dyn StackTable) {
        let record = Record::decode(bytes);
        self.at = record.time().unwrap_or(self.at);
        self.refer(&record, stacks);
        if let Some(writer) = &mut self.writer {
            writer.record(bytes);
        }
    }

    fn hung(&mut self, pid: u32, tid: u32) {
        if let Some(writer) = &mut self.writer {
            writer.user(&User::Note(Note::Hung { pid, tid }));
        }
    }

    fn counters(&mut self, counters: &[ByCpu]) {
        self.settle_names();
        if let Some(writer) = &mut self.writer {
            counters.iter().for_each(|values| writer.user(&counter(values)));
            writer.settle();
        }
    }

    fn is_full(&self) -> bool {
        self.writer.as_ref().and_then(Writer::stop).is_some()
    }
}

/// Why a recording is not whole, as a sentence.
pub fn stopped(stop: &Stop) -> String {
    match stop {
        Stop::Limit(limit) => format!("the recording reached --max-bytes {limit}"),
        Stop::Failed(err) => format!("the recording could not be written further: {err}"),
    }
}
