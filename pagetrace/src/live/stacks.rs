//! What the correlation looks stacks up in while a run goes on: the stack map, and the symbols read when it began.
//!
//! The symbols are not read again, so that an address means the same function from the first record to the last; one
//! that they may be wrong about is in no function.

use std::{cell::Cell, fs};

use super::{
    loader::Attached,
    prepare::{is_fault_entry, is_one_of},
};
use crate::{analysis::Stacks, kernel::kallsyms::Kallsyms, plan::is_user_access};

/// The stacks of one record.
pub(super) struct LiveStacks<'a> {
    attached: &'a Attached,
    symbols: Option<&'a Kallsyms>,
    /// The modules that `symbols` is about.
    modules: &'a [String],
    /// Whether they are the ones loaded now, once that was asked.
    same_modules: Cell<Option<bool>>,
}

impl<'a> LiveStacks<'a> {
    pub(super) fn new(attached: &'a Attached, symbols: Option<&'a Kallsyms>, modules: &'a [String]) -> Self {
        Self { attached, symbols, modules, same_modules: Cell::new(None) }
    }

    fn same_modules(&self) -> bool {
        let same = self.same_modules.get().unwrap_or_else(|| loaded_modules() == self.modules);
        self.same_modules.set(Some(same));
        same
    }
}

impl Stacks for LiveStacks<'_> {
    fn stack(&self, id: i32) -> Option<Vec<u64>> {
        self.attached.stack(id)
    }
    fn is_fault_entry(&self, address: u64) -> bool {
        self.symbols.and_then(|symbols| symbols.resolve(address)).is_some_and(|found| is_fault_entry(found.name))
    }
    fn is_user_access(&self, address: u64) -> bool {
        self.symbols.and_then(|symbols| symbols.resolve(address)).is_some_and(|found| is_user_access(found.name))
    }
    fn is_function(&self, address: u64, names: &[&str]) -> bool {
        let found = self.symbols.and_then(|symbols| symbols.resolve(address));
        found.is_some_and(|found| is_one_of(found.name, names))
    }
    fn function(&self, address: u64) -> Option<u64> {
        let found = self.symbols?.resolve(address)?;
        let known = match found.module {
            None => true,
            // Programs come and go all the time: the nearest name may be another one's.
            Some("bpf") => false,
            Some(_) => found.size.is_some() && self.same_modules(),
        };
        known.then(|| address - found.offset)
    }
}

/// Names and addresses of the modules that are loaded; fewer where the kernel does not tell.
pub(super) fn loaded_modules() -> Vec<String> {
    let text = fs::read_to_string("/proc/modules").unwrap_or_default();
    let module = |line: &str| {
        let mut words = line.split_whitespace();
        // Name, size, users, their names, state, address: kernel/module/procfs.c, `m_show`.
        Some(format!("{} {}", words.next()?, words.nth(4)?))
    };
    text.lines().filter_map(module).collect()
}
