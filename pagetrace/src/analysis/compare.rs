//! Holds what the kernel side concluded against what the model derives from the stream: one truth, or a reason to doubt.

use pagetrace_ebpf::wire::{
    fault::{Violation, violation as flag},
    lock::{Held, held},
};

use super::{
    LockMode,
    model::{Derived, Model, Rules},
};
use crate::record::Record;

/// Most disagreements that are described; the rest are only counted.
const DESCRIBED: usize = 16;

/// A violation that only one of the two tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    /// What the kernel side says is held; `None` when it tells of no violation.
    pub gate: Option<Vec<(u64, LockMode)>>,
    /// What the model says is held.
    pub model: Option<Vec<(u64, LockMode)>>,
    /// Address of the task.
    pub task: u64,
    /// The address that faulted.
    pub address: u64,
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    pub ts: u64,
}

impl Disagreement {
    /// As reports say it.
    pub fn text(&self) -> String {
        let side = |held: &Option<Vec<(u64, LockMode)>>| match held {
            None => "no violation".to_owned(),
            Some(held) => {
                let mode = |mode: &LockMode| if *mode == LockMode::Write { "write" } else { "read" };
                let held: Vec<String> = held.iter().map(|(mm, of)| format!("{mm:#x} for {}", mode(of))).collect();
                format!("a violation with {}", if held.is_empty() { "more locks".to_owned() } else { held.join(", ") })
            }
        };
        format!(
            "fault of task {:#x} at {:#x}, {:.6} s: the kernel side says {}, the recorded events say {}",
            self.task,
            self.address,
            self.ts as f64 / 1e9,
            side(&self.gate),
            side(&self.model)
        )
    }
}

/// Compares as records come.
#[derive(Debug, Default)]
pub struct CrossCheck {
    model: Model,
    /// The recorder itself is not in the stream.
    recorder: u32,
    /// Violations the kernel side told of.
    pub gate: u64,
    /// Violations derived.
    pub derived: u64,
    /// Violations that both tell alike.
    pub agreed: u64,
    /// Violations that only one tells of, or that they tell differently.
    pub disagreed: u64,
    /// The first of these.
    pub described: Vec<Disagreement>,
}

impl CrossCheck {
    /// For a run with these rules, recorded by the process `recorder`.
    pub fn new(rules: Rules, recorder: u32) -> Self {
        Self { model: Model::new(rules), recorder, ..Self::default() }
    }

    /// Takes one record.
    pub fn take(&mut self, record: &Record) {
        let Record::Violation(violation) = record else {
            if let Some(derived) = self.model.take(record) {
                self.derived += 1;
                self.differ(None, Some(derived));
            }
            return;
        };
        // The model derives faults; an access without one and a lock left behind are the kernel side's alone.
        if violation.header.tgid == self.recorder || violation.flags & (flag::LATENT | flag::LEAKED) != 0 {
            return;
        }
        self.gate += 1;
        let derived = self.model.settle(violation.header.task);
        self.derived += u64::from(derived.is_some());
        match derived {
            Some(derived) if derived.address == violation.address && sorted(derived.held.clone()) == of(violation) => {
                self.agreed += 1;
            }
            derived => self.differ(Some(violation), derived),
        }
    }

    /// Settles what is open when the records have ended.
    pub fn finish(&mut self) {
        for derived in self.model.finish() {
            self.derived += 1;
            self.differ(None, Some(derived));
        }
    }

    /// Whether the model had no room to follow something.
    pub fn crowded(&self) -> bool {
        self.model.crowded != 0
    }

    fn differ(&mut self, gate: Option<&Violation>, model: Option<Derived>) {
        self.disagreed += 1;
        if self.described.len() >= DESCRIBED {
            return;
        }
        let (task, address, ts) = match (gate, &model) {
            (Some(gate), _) => (gate.header.task, gate.address, gate.header.ts),
            (None, Some(model)) => (model.task, model.address, model.ts),
            (None, None) => return,
        };
        let model = model.map(|model| sorted(model.held));
        self.described.push(Disagreement { gate: gate.map(of), model, task, address, ts });
    }
}

fn sorted(mut held: Vec<(u64, LockMode)>) -> Vec<(u64, LockMode)> {
    held.sort_unstable_by_key(|(mm, mode)| (*mm, *mode == LockMode::Write));
    held
}

/// The locks of a violation.
fn of(violation: &Violation) -> Vec<(u64, LockMode)> {
    let mode = |lock: &Held| if lock.flags & held::WRITE != 0 { LockMode::Write } else { LockMode::Read };
    let used = violation.held.iter().take(violation.held_len as usize);
    sorted(used.map(|lock| (lock.owner.mm, mode(lock))).collect())
}
