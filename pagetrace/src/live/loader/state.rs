//! What the kernel side keeps in its maps, read while it runs.

use pagetrace_ebpf::wire::{
    Wire, kind, order, seen,
    task::{Slot, Task},
};

use super::{AttachError, Attached};
use crate::{analysis::Repeat, live::undisturbed::undisturbed};

/// A map's value as what it is: `aya` reads plain words.
fn decoded<T: Wire>(words: &[u64]) -> Option<T> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    T::decode(&bytes)
}

impl Attached {
    /// Violations that were told once and seen again since.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn repeats(&self) -> Result<Vec<Repeat>, AttachError> {
        let mut out = Vec::new();
        let entries: Vec<_> = undisturbed(|| self.seen.iter().collect());
        for entry in entries {
            let (key, value) = entry?;
            let repeat = Repeat {
                task: key[seen::KEY_TASK],
                first: value[seen::VALUE_FIRST],
                count: value[seen::VALUE_COUNT],
                last: value[seen::VALUE_LAST],
            };
            if repeat.count != 0 {
                out.push(repeat);
            }
        }
        Ok(out)
    }

    /// The mmap locks that the task with this `task_struct` holds now; a lock whose function was entered and has not
    /// returned can be among them.
    pub fn holds(&self, task: u64) -> Vec<Slot> {
        // A task that holds nothing may have no state.
        let Ok(place) = undisturbed(|| self.task_at.get(&task, 0)) else { return Vec::new() };
        let state = undisturbed(|| self.tasks.get(&place, 0)).ok().and_then(|words| decoded::<Task>(&words));
        // It may have ended meanwhile, and another task come to its place.
        state.filter(|state| state.task == task).map(|state| state.held().to_vec()).unwrap_or_default()
    }

    /// The sleeping locks that tasks hold and want now, as far as the lock order follows them.
    pub fn order_tasks(&self) -> Vec<order::OrderTask> {
        // What ends meanwhile is left out.
        let entries: Vec<_> = undisturbed(|| self.order_tasks.iter().filter_map(Result::ok).collect());
        let tasks = entries.iter().filter_map(|(_, words)| decoded::<order::OrderTask>(words));
        tasks.filter(|task| task.depth > 1).collect()
    }

    /// How often the edges of the lock order were seen after they were told.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn edge_counts(&self) -> Result<Vec<order::EdgeCount>, AttachError> {
        let mut out = Vec::new();
        let entries: Vec<_> = undisturbed(|| self.edges.iter().collect());
        for entry in entries {
            let (key, value) = entry?;
            let (count, last) = (value[order::VALUE_COUNT], value[order::VALUE_LAST]);
            if count != 0 {
                out.push(order::EdgeCount { kind: kind::EDGE_COUNT, pad: 0, key, count, last });
            }
        }
        Ok(out)
    }
}
