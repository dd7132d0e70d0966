//! Tells the kernel side how to unwind, from the samples it sends of what it had to unwind.

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use pagetrace_ebpf::wire::{kind, unwind};

use super::{AttachError, map};
use crate::{
    kernel::kallsyms::Kallsyms,
    live::{
        shortcut::{Learner, Lesson},
        undisturbed::undisturbed,
    },
};

/// What has been learnt, and the maps it is told through.
pub(super) struct Teacher {
    learner: Learner,
    distances: Array<MapData, u64>,
    shortcuts: Array<MapData, [u64; unwind::SHORTCUT_WORDS]>,
}

impl Teacher {
    /// Without symbols nothing can be learnt.
    pub(super) fn new(bpf: &mut Ebpf, symbols: Option<&Kallsyms>) -> Result<Self, AttachError> {
        let mut distances = Array::<_, u64>::try_from(map(bpf, "DISTANCES")?)?;
        // Right where a kprobe's stack pointer points.
        undisturbed(|| distances.set(unwind::kind::KPROBE, 1, 0))?;
        let shortcuts = Array::try_from(map(bpf, "SHORTCUTS_OF")?)?;
        Ok(Self { learner: symbols.map(Learner::new).unwrap_or_default(), distances, shortcuts })
    }

    /// Whether this is a sample, which is taken then, and no event.
    pub(super) fn take(&mut self, item: &[u8]) -> bool {
        if item.get(..4) != Some(kind::UNWIND_SAMPLE.to_le_bytes().as_slice()) {
            return false;
        }
        let Lesson { distance, shortcut } = self.learner.take(item);
        if distance.is_none() && shortcut.is_none() {
            return true;
        }
        log::debug!("learnt for unwinding: distance {distance:?}, chain {shortcut:?}");
        let told = undisturbed(|| {
            if let Some((program, distance)) = distance {
                self.distances.set(program, distance + 1, 0)?;
            }
            shortcut.map_or(Ok(()), |(place, shortcut)| self.shortcuts.set(place, shortcut.words(), 0))
        });
        if let Err(why) = told {
            // Without it the kernel side goes on unwinding.
            log::info!("cannot tell the BPF object how to unwind: {why}");
        }
        true
    }
}
