//! Findings as they come, with their names: the one way from records to a report, live and from a recording.

use std::iter;

use super::{
    order::{ReportedEdge, ReportedOrder},
    report::ReportedFinding,
};
use crate::{
    analysis::{Correlator, Outcome, Stacks, order::Orders},
    kernel::locks::LockFields,
    record::Record,
    symbolize::Symbolizer,
};

/// Collects findings and names each once.
#[derive(Default)]
pub struct Gather {
    /// What makes findings of records.
    pub correlator: Correlator,
    named: Vec<ReportedFinding>,
    /// What makes an order of the edges.
    pub orders: Orders,
    named_edges: Vec<ReportedEdge>,
    told_inversions: usize,
    fields: LockFields,
}

impl Gather {
    /// Names locks by these fields.
    pub fn with_fields(fields: LockFields) -> Self {
        Self { fields, ..Self::default() }
    }

    /// Takes one record. A finding that is new, or shows another sighting now, has to be named: see [`Gather::name`].
    pub fn take(&mut self, record: &Record, stacks: &dyn Stacks) -> Outcome {
        self.correlator.take(record, stacks)
    }

    /// Names a finding. Call it soon: modules and BPF programs go, and their names with them.
    pub fn name(&mut self, index: usize, names: &mut Symbolizer) -> Option<&ReportedFinding> {
        let finding = self.correlator.findings().get(index)?;
        let mut stacks: Vec<&[u64]> = finding.locks.iter().map(|lock| lock.stack.as_slice()).collect();
        stacks.push(&finding.access.stack);
        names.cover(&stacks);
        let named = ReportedFinding::name(finding, names);
        match self.named.get_mut(index) {
            Some(old) => *old = named,
            None => self.named.push(named),
        }
        self.named.get(index)
    }

    /// Takes a record of the lock order; whether it makes one cycle more.
    pub fn take_order(&mut self, record: &Record, stacks: &dyn Stacks) -> bool {
        match record {
            Record::Edge(edge) if self.orders.take(edge, stacks).is_some() => {
                let before = self.told_inversions;
                self.told_inversions = self.orders.inversions().len();
                self.told_inversions > before
            }
            Record::EdgeCount(count) => {
                self.orders.count(count);
                false
            }
            _ => false,
        }
    }

    /// Where a record says that a module goes, its names go: to be called before the record is taken.
    pub fn forget_names(&mut self, record: &Record, names: &mut Symbolizer) {
        if let Record::Unloaded(unloaded) = record {
            self.name_edges(names, true);
            names.forget(unloaded);
        }
    }

    /// Names the edges that have no names yet. Call it soon, as [`Gather::name`], and again; before names are
    /// lost, all have to be named `now`.
    pub fn name_edges(&mut self, names: &mut Symbolizer, now: bool) {
        for edge in self.orders.edges().iter().skip(self.named_edges.len()) {
            let Some(named) = ReportedEdge::name(edge, names, &self.fields, now) else { return };
            self.named_edges.push(named);
        }
    }

    /// The lock order as it is now.
    pub fn order(&mut self) -> ReportedOrder {
        ReportedOrder::of(&self.orders, self.named_edges.clone())
    }

    /// What was lost of the findings, and of the order where that was `ordered`, beside what the kernel side counts.
    pub fn loss(&self, ordered: bool) -> impl Iterator<Item = (&'static str, u64)> {
        let edges = ordered.then(|| self.orders.left_out()).into_iter().flatten();
        iter::once(("uncertain_violation", self.correlator.uncertain)).chain(edges)
    }

    /// The findings, brought up to date.
    pub fn finish(self) -> (Correlator, Vec<ReportedFinding>) {
        let Self { correlator, mut named, .. } = self;
        for (named, finding) in named.iter_mut().zip(correlator.findings()) {
            named.update(finding);
        }
        (correlator, named)
    }
}
