//! Violations that the kernel side told once and only counted since.

use std::collections::HashMap;

use super::finding::Class;

/// What a violation's record came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Counted into this finding, as a sighting of this class.
    Counted(usize, Class),
    /// Cannot be told from something benign.
    Uncertain,
    /// Turned out benign, or another record of the same access counts.
    Nothing,
}

/// A violation that was seen again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeat {
    /// `task_struct` of its record.
    pub task: u64,
    /// Time of its record.
    pub first: u64,
    /// Times it was seen after that record.
    pub count: u64,
    /// Last time, nanoseconds of `CLOCK_MONOTONIC`.
    pub last: u64,
}

/// Records kept in mind: more than the kernel side remembers.
const KEPT: usize = 1 << 16;

/// What became of the records, and how often they were repeated.
#[derive(Default)]
pub(super) struct Told(HashMap<(u64, u64), (Fate, u64)>);

impl Told {
    /// A record came.
    pub(super) fn record(&mut self, task: u64, time: u64, fate: Fate) {
        if self.0.len() < KEPT {
            self.0.insert((task, time), (fate, 0));
        }
    }

    /// What its record came to, and how often it was repeated since this was last asked.
    pub(super) fn repeat(&mut self, repeat: &Repeat) -> Option<(Fate, u64)> {
        let (fate, before) = self.0.get_mut(&(repeat.task, repeat.first))?;
        let more = repeat.count.saturating_sub(*before);
        *before = (*before).max(repeat.count);
        Some((*fate, more))
    }
}
