//! The settings the BPF object is loaded with.

use pagetrace_ebpf::wire::setting;

/// One value a slot; what this kernel does not have stays [`setting::NONE`].
#[derive(Debug, Clone)]
pub struct Settings([u64; setting::LEN]);

impl Default for Settings {
    fn default() -> Self {
        let mut slots = [setting::NONE; setting::LEN];
        for flag in [
            setting::CONFIRM_BY_LOCK,
            setting::TRACE,
            setting::LOCK_STACKS,
            setting::VMA_BY_RETURN,
            setting::TARGET_MODE,
            setting::PAGE_HEAD_IS_MASK,
            setting::MIN_LOCK_NS,
            setting::MIN_FAULT_NS,
            setting::STREAM,
            setting::ORDER,
        ] {
            slots[flag] = 0;
        }
        Self(slots)
    }
}

impl Settings {
    /// Sets one slot. Slots are constants of [`setting`]; another number changes nothing.
    pub fn set(&mut self, slot: usize, value: u64) -> &mut Self {
        if let Some(entry) = self.0.get_mut(slot) {
            *entry = value;
        }
        self
    }

    /// Sets a slot that may be missing on this kernel.
    pub fn set_if(&mut self, slot: usize, value: Option<u64>) -> &mut Self {
        self.set(slot, value.unwrap_or(setting::NONE))
    }

    /// One slot.
    pub fn get(&self, slot: usize) -> u64 {
        self.0.get(slot).copied().unwrap_or(setting::NONE)
    }

    /// As the object stores them.
    pub(crate) fn slots(&self) -> &[u64; setting::LEN] {
        &self.0
    }
}
