//! What a run does about the lock order and about deadlocks, besides taking records.

use anyhow::Result;

use super::{
    super::{hang::Suspect, loader::NoStacks, stacks::LiveStacks},
    Observer, Session,
};
use crate::{clock::monotonic_ns, output::order::ReportedOrder};

impl Session<'_> {
    /// Looks for deadlocks.
    pub(super) fn look(&mut self, ordered: bool, observer: &mut dyn Observer) {
        if ordered {
            let stacks = LiveStacks::new(&self.attached, self.facts.kallsyms.as_ref().ok(), &self.modules);
            self.standing.ordered(&self.attached.order_tasks(), monotonic_ns(), &stacks);
        }
        for found in self.standing.look(&mut self.names, &|task| self.attached.holds(task)) {
            observer.note(&format!("deadlock: {}", found.summary));
            for task in &found.tasks {
                self.watch.suspect_in_deadlock(Suspect { pid: task.pid, tid: task.tid });
            }
            self.deadlocks.push(found);
        }
    }

    /// Takes over what the kernel side only counted about the lock order, and says what the order is.
    pub(super) fn order(&mut self, observer: &mut dyn Observer) -> Result<ReportedOrder> {
        for count in self.attached.edge_counts()? {
            if let Some(tape) = observer.tape() {
                tape.record(&count.encode(), &NoStacks);
            }
            self.gather.orders.count(&count);
        }
        self.names.hurry();
        self.gather.name_edges(&mut self.names, false);
        Ok(self.gather.order())
    }
}
