//! The guest's file systems.

use std::{ffi::CStr, fs};

use anyhow::{Context as _, Result};
use rustix::mount::{self, MountFlags};

struct Mount {
    kind: &'static str,
    at: &'static str,
    data: Option<&'static CStr>,
    /// Some kernels are built without it, and the command may not care.
    optional: bool,
}

const fn needed(kind: &'static str, at: &'static str) -> Mount {
    Mount { kind, at, data: None, optional: false }
}

const fn optional(kind: &'static str, at: &'static str) -> Mount {
    Mount { kind, at, data: None, optional: true }
}

const MOUNTS: [Mount; 11] = [
    needed("proc", "/proc"),
    needed("sysfs", "/sys"),
    needed("devtmpfs", "/dev"),
    Mount { data: Some(c"mode=1777"), ..needed("tmpfs", "/tmp") },
    Mount { data: Some(c"mode=0755"), ..needed("tmpfs", "/run") },
    Mount { data: Some(c"mode=1777"), ..optional("tmpfs", "/dev/shm") },
    Mount { data: Some(c"mode=0620,ptmxmode=0666"), ..optional("devpts", "/dev/pts") },
    optional("debugfs", "/sys/kernel/debug"),
    optional("tracefs", "/sys/kernel/tracing"),
    optional("bpf", "/sys/fs/bpf"),
    optional("cgroup2", "/sys/fs/cgroup"),
];

/// Mounts them all.
pub(super) fn all() -> Result<()> {
    for Mount { kind, at, data, optional } in MOUNTS {
        let _ = fs::create_dir_all(at);
        // What the initramfs put there must not vanish; it lies in memory as well.
        if kind == "tmpfs" && fs::read_dir(at).is_ok_and(|mut entries| entries.next().is_some()) {
            continue;
        }
        match mount::mount(kind, at, kind, MountFlags::empty(), data) {
            // devtmpfs may be mounted by the kernel itself.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(err) if optional => eprintln!("init: no {kind} on {at}: {err}"),
            Err(err) => return Err(err).with_context(|| format!("cannot mount {kind} on {at}")),
        }
    }
    for (link, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        let _ = std::os::unix::fs::symlink(format!("/proc/self/{target}"), format!("/dev/{link}"));
    }
    Ok(())
}
