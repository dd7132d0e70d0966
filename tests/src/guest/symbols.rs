//! What the running kernel has, by its symbols. They are read once: that takes a guest most of a second.

use std::{fs, sync::OnceLock};

use anyhow::{Context as _, Result};

static SYMBOLS: OnceLock<String> = OnceLock::new();

/// Whether the running kernel has a function or variable of this name.
///
/// # Errors
/// When its symbols cannot be read.
pub fn has(name: &str) -> Result<bool> {
    let symbols = match SYMBOLS.get() {
        Some(symbols) => symbols,
        None => {
            let text = fs::read_to_string("/proc/kallsyms").context("cannot read the kernel's symbols")?;
            SYMBOLS.get_or_init(|| text)
        }
    };
    Ok(symbols.lines().any(|line| line.split_whitespace().nth(2) == Some(name)))
}

/// Whether the kernel tells where the tables lie: not without randomised memory, where the place is built in.
///
/// # Errors
/// As [`has`].
pub fn shows_page_tables() -> Result<bool> {
    has("page_offset_base")
}
