//! Chooses the accelerator. That `/dev/kvm` can be opened proves little (nested virtualization may
//! be half there), so KVM is used only where a kernel was seen to boot under it.

use std::{
    fmt, fs,
    path::Path,
    time::{Duration, Instant},
};

use super::{
    cache,
    console::Lines,
    qemu::{Chunk, Machine, Qemu},
    spec::ALL_FEATURES,
};

/// Runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The processor, through KVM.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// A kernel under a working KVM needs a second or two to find that it has no root file system.
const PROBE_LIMIT: Duration = Duration::from_secs(12);

/// The accelerator of this machine; the probe's answer is remembered until the next boot.
/// `PAGETRACE_VM_ACCEL=kvm` or `tcg` decides it.
#[must_use]
pub fn choose(kernel: &Path) -> Accel {
    match std::env::var("PAGETRACE_VM_ACCEL").as_deref() {
        Ok("kvm") => return Accel::Kvm,
        Ok("tcg") => return Accel::Tcg,
        _ => {}
    }
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Accel::Tcg;
    }
    let Ok(dir) = cache::dir() else { return probe(kernel) };
    let _lock = cache::lock(&dir, "accel.lock");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let file = dir.join("accel");
    if let Some(known) = fs::read_to_string(&file).ok().and_then(|text| remembered(&text, boot.trim())) {
        return known;
    }
    let accel = probe(kernel);
    // Without the note the next run probes again.
    let _ = fs::write(&file, format!("{} {accel}\n", boot.trim()));
    accel
}

fn remembered(text: &str, boot: &str) -> Option<Accel> {
    match text.trim().strip_prefix(boot)?.strip_prefix(' ')? {
        "kvm" => Some(Accel::Kvm),
        "tcg" => Some(Accel::Tcg),
        _ => None,
    }
}

/// Boots the kernel without a root file system: a kernel that gets as far as to complain about that
/// has run under KVM.
fn probe(kernel: &Path) -> Accel {
    let machine = Machine {
        kernel,
        initrd: None,
        disk: None,
        line: None,
        accel: Accel::Kvm,
        cpu: ALL_FEATURES,
        cpus: 2,
        mem_mib: 512,
        append: "",
    };
    let Ok(qemu) = Qemu::start(&machine) else { return Accel::Tcg };
    let deadline = Instant::now() + PROBE_LIMIT;
    let mut lines = Lines::default();
    loop {
        match qemu.next(deadline) {
            Chunk::Console(bytes) => {
                if lines.push(&bytes).iter().any(|line| line.contains("Kernel panic") && line.contains("VFS")) {
                    return Accel::Kvm;
                }
            }
            Chunk::Stderr(bytes) if !String::from_utf8_lossy(&bytes).contains("error") => {}
            Chunk::Stderr(_) | Chunk::Silence | Chunk::End => return Accel::Tcg,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_holds_for_one_boot() {
        assert_eq!(remembered("abc tcg\n", "abc"), Some(Accel::Tcg));
        assert_eq!(remembered("abc kvm\n", "abc"), Some(Accel::Kvm));
        assert_eq!(remembered("abc kvm\n", "def"), None);
        assert_eq!(remembered("abckvm", "abc"), None);
    }
}
