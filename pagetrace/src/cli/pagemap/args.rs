//! Arguments: syntax only.

use std::time::Duration;

use clap::Args as ClapArgs;

use super::super::args::Output;
use crate::{
    output::pagemap::View,
    pages::{range::Addresses, walk::ScanUse},
};

/// `pagemap`.
#[derive(Debug, ClapArgs)]
pub struct PagemapArgs {
    /// The process, or `self`
    #[arg(value_name = "PID|self", value_parser = process)]
    pub process: Of,
    /// Only these addresses, hexadecimal, the end not included
    #[arg(long, value_name = "A-B", value_parser = clap::value_parser!(Addresses), conflicts_with = "vma")]
    pub range: Option<Addresses>,
    /// Only mappings of this name: a path, its last part, or what maps shows in brackets
    #[arg(long, value_name = "NAME")]
    pub vma: Option<String>,
    /// Only pages of which this holds, such as 'present & file & !huge'
    #[arg(long = "where", value_name = "EXPR")]
    pub filter: Option<String>,
    /// What to make of the pages
    #[arg(long, value_enum, default_value_t = View::Summary)]
    pub view: View,
    /// Ask what the kernel says of each page's frame (/proc/kpageflags and kpagecount; needs root)
    #[arg(long)]
    pub flags: bool,
    /// Add the kernel's own sums of each mapping (/proc/PID/smaps), which makes it walk the page table once more
    #[arg(long)]
    pub smaps: bool,
    /// Spare the process: pause so many microseconds after each call that holds its mmap_lock, and let none go through more than
    /// 2 MiB of its pages
    #[arg(long, value_name = "US", value_parser = microseconds)]
    pub pace: Option<Duration>,
    /// Whether to use PAGEMAP_SCAN, where the kernel has it; what comes out is the same
    #[arg(long, value_enum, default_value_t = ScanUse::Auto)]
    pub scan: ScanUse,
    /// Where to.
    #[command(flatten)]
    pub output: Output,
}

/// Whose pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// This process's own.
    This,
    /// Those of the process with this id.
    Pid(u32),
}

impl PagemapArgs {
    /// The process id.
    pub(super) fn pid(&self) -> u32 {
        match self.process {
            Of::This => std::process::id(),
            Of::Pid(pid) => pid,
        }
    }
}

fn process(text: &str) -> Result<Of, String> {
    match text {
        "self" => Ok(Of::This),
        _ => text.parse().map(Of::Pid).map_err(|_| "neither a process id nor `self`".to_owned()),
    }
}

fn microseconds(text: &str) -> Result<Duration, String> {
    /// Nobody waits longer.
    const LONGEST: u64 = 10_000_000;
    let us = text.parse().map_err(|_| "not a number of microseconds".to_owned())?;
    if us > LONGEST { Err(format!("must be {LONGEST} at most")) } else { Ok(Duration::from_micros(us)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_a_number_or_self() {
        assert_eq!((process("self"), process("12")), (Ok(Of::This), Ok(Of::Pid(12))));
        assert!(process("-1").is_err() && process("4294967296").is_err() && process("").is_err());
        assert!(microseconds("10000001").is_err() && microseconds("x").is_err());
    }
}
