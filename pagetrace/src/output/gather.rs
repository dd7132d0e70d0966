//! Findings as they come, with their names: the one way from records to a report, live and from a recording.

use super::report::ReportedFinding;
use crate::{
    analysis::{Correlator, Outcome, Stacks},
    record::Record,
    symbolize::Symbolizer,
};

/// Collects findings and names each once.
#[derive(Default)]
pub struct Gather {
    /// What makes findings of records.
    pub correlator: Correlator,
    named: Vec<ReportedFinding>,
}

impl Gather {
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

    /// The findings, brought up to date.
    pub fn finish(self) -> (Correlator, Vec<ReportedFinding>) {
        let Self { correlator, mut named } = self;
        for (named, finding) in named.iter_mut().zip(correlator.findings()) {
            named.update(finding);
        }
        (correlator, named)
    }
}
