//! The arguments of `pagetrace vm`: syntax only.

use std::{ffi::OsString, path::PathBuf};

use clap::Args as ClapArgs;

use crate::cli::{args::Output, ci::CiArgs};

/// `vm`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Example: pagetrace vm --kernel ~/linux --kernel 6.12 --junit out.xml -- check --strict -- ./my-test

The command, its interpreter and its libraries are put into the guest; what else it needs comes with --share. Exit codes are those of the
command that runs in the guest, and 69 when the machine failed: no boot, a panic, no answer in time, no QEMU.")]
pub struct VmArgs {
    /// A kernel: a bzImage or vmlinuz, a kernel package (.deb, .rpm), a build tree, or a series of Debian's such as 6.12 (repeatable)
    #[arg(long, value_name = "PATH|SERIES", required = true)]
    pub kernel: Vec<String>,
    /// Put this directory of kernel modules into the guest as /lib/modules/NAME; or load this one module (repeatable)
    #[arg(long, value_name = "DIR|FILE.ko")]
    pub modules: Vec<PathBuf>,
    /// Unpack this initramfs in the guest first, so that its programs and files are there
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Copy this directory into the guest, to the same path (repeatable)
    #[arg(long, value_name = "DIR")]
    pub share: Vec<PathBuf>,
    /// Put this program of this machine and its libraries into the guest as well (repeatable)
    #[arg(long, value_name = "PROGRAM")]
    pub program: Vec<String>,
    /// Give the guest a shell and small tools: busybox from Debian's archive
    #[arg(long)]
    pub tools: bool,
    /// Processors of the guest
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,
    /// Memory of the guest: MiB, or with a letter, as in 2G
    #[arg(long, value_name = "SIZE", default_value = "1536M", value_parser = mebibytes)]
    pub mem: u32,
    /// Text for the kernel's command line
    #[arg(long, value_name = "ARGS", default_value = "", allow_hyphen_values = true)]
    pub append: String,
    /// Seconds that the command may run
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// Guests at a time; as many as the machine can take if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub jobs: Option<u32>,
    /// Keep what comes back in this directory: one below it for each kernel
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Show the guests' consoles on stderr as they come
    #[arg(long)]
    pub console: bool,
    /// Where to.
    #[command(flatten)]
    pub output: Output,
    /// What it means elsewhere.
    #[command(flatten)]
    pub ci: CiArgs,
    /// What runs in the guest: check, trace or record, their options, and behind a second `--` the command
    #[arg(last = true, required = true, value_name = "check|trace|record … -- COMMAND")]
    pub inner: Vec<OsString>,
}

fn mebibytes(text: &str) -> Result<u32, String> {
    let (number, factor) = match text.strip_suffix(['G', 'g']) {
        Some(number) => (number, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    let mib = number.parse::<u32>().ok().and_then(|number| number.checked_mul(factor));
    mib.filter(|mib| (256..=1 << 20).contains(mib)).ok_or_else(|| "must be from 256M to 1024G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_mebibytes_or_have_a_letter() {
        assert_eq!((mebibytes("512"), mebibytes("512M"), mebibytes("2G")), (Ok(512), Ok(512), Ok(2048)));
        for bad in ["", "G", "1K", "100", "-1", "99999999999G", "2.5G"] {
            assert!(mebibytes(bad).is_err(), "{bad}");
        }
    }
}
