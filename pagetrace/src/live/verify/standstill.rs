//! Who has to stop before an address space can be looked at in between, and who has. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::analysis::presence::SpaceId;

/// How a task goes on after it was held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// It runs on, with this signal if that is not 0.
    Run(i32),
    /// It stays stopped by a signal to its process.
    Listen,
}

/// Address spaces that shall stand still.
#[derive(Debug, Default)]
pub(super) struct Standstill {
    spaces: HashMap<SpaceId, BTreeMap<u32, Held>>,
}

impl Standstill {
    /// From now on the tasks of this address space are held.
    pub(super) fn begin(&mut self, space: SpaceId) {
        self.spaces.entry(space).or_default();
    }

    /// Holds a task that has stopped, if its address space shall stand still.
    pub(super) fn hold(&mut self, space: SpaceId, tid: u32, how: Held) -> bool {
        self.spaces.get_mut(&space).map(|held| held.insert(tid, how)).is_some()
    }

    /// A task is gone, and holds nobody up.
    pub(super) fn forget(&mut self, tid: u32) {
        self.spaces.values_mut().for_each(|held| {
            held.remove(&tid);
        });
    }

    /// Whether all of these are held: one of them, to look by.
    pub(super) fn complete(&self, space: SpaceId, needed: &BTreeSet<u32>) -> Option<u32> {
        let held = self.spaces.get(&space)?;
        let first = held.keys().next().copied()?;
        needed.iter().all(|tid| held.contains_key(tid)).then_some(first)
    }

    /// No longer holds them: who goes on, and how.
    pub(super) fn release(&mut self, space: SpaceId) -> BTreeMap<u32, Held> {
        self.spaces.remove(&space).unwrap_or_default()
    }

    /// Those that shall stand still and do not yet.
    pub(super) fn waiting(&self) -> Vec<SpaceId> {
        self.spaces.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: SpaceId = SpaceId(3);

    #[test]
    fn a_space_stands_still_when_all_its_tasks_do() {
        let mut still = Standstill::default();
        assert!(!still.hold(SPACE, 1, Held::Run(0)), "nobody asked");
        still.begin(SPACE);
        let needed = BTreeSet::from([1, 2]);
        assert!(still.hold(SPACE, 1, Held::Run(10)));
        assert_eq!(still.complete(SPACE, &needed), None);
        assert!(still.hold(SPACE, 2, Held::Listen));
        assert_eq!(still.complete(SPACE, &needed), Some(1));
        assert_eq!(still.waiting(), [SPACE]);
        assert_eq!(still.release(SPACE), BTreeMap::from([(1, Held::Run(10)), (2, Held::Listen)]));
        assert!(!still.hold(SPACE, 1, Held::Run(0)) && still.waiting().is_empty());
    }

    #[test]
    fn a_task_that_is_gone_holds_nobody_up_and_is_not_looked_by() {
        let mut still = Standstill::default();
        still.begin(SPACE);
        still.hold(SPACE, 1, Held::Run(0));
        still.forget(1);
        assert_eq!(still.complete(SPACE, &BTreeSet::new()), None);
        still.hold(SPACE, 2, Held::Run(0));
        assert_eq!(still.complete(SPACE, &BTreeSet::from([2])), Some(2));
    }
}
