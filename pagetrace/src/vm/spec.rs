//! What a caller says about a run: the kernel, what goes in, the command, the limits.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use super::accel::Accel;

/// Where the content of a guest file comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file of the host.
    Host(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
    /// A symbolic link with this target.
    Link(OsString),
    /// No content: a directory.
    Directory,
}

/// A file of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmFile {
    /// Absolute path in the guest; missing parents are created.
    pub path: PathBuf,
    /// What it holds.
    pub source: Source,
    /// Permission bits.
    pub mode: u32,
}

impl VmFile {
    /// An executable copied from the host.
    #[must_use]
    pub fn executable(path: impl Into<PathBuf>, host: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), source: Source::Host(host.into()), mode: 0o755 }
    }

    /// A plain file copied from the host.
    #[must_use]
    pub fn copy(path: impl Into<PathBuf>, host: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), source: Source::Host(host.into()), mode: 0o644 }
    }

    /// A plain file with the given bytes.
    #[must_use]
    pub fn bytes(path: impl Into<PathBuf>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), source: Source::Bytes(bytes.into()), mode: 0o644 }
    }

    /// A symbolic link.
    #[must_use]
    pub fn link(path: impl Into<PathBuf>, target: impl Into<OsString>) -> Self {
        Self { path: path.into(), source: Source::Link(target.into()), mode: 0o777 }
    }
}

/// The processor model that has everything QEMU can emulate.
pub const ALL_FEATURES: &str = "max";

/// A run.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// The kernel image (bzImage, vmlinuz).
    pub kernel: PathBuf,
    /// The static binary that serves as the guest's init.
    pub init: PathBuf,
    /// Files of the guest besides the init.
    pub files: Vec<VmFile>,
    /// Kernel modules of the host to load before the command, in this order.
    pub modules: Vec<PathBuf>,
    /// The command and its arguments; looked up in the guest's `PATH`.
    pub command: Vec<OsString>,
    /// Variables added to the command's small default environment.
    pub env: Vec<(OsString, OsString)>,
    /// The model of the processors where they are emulated, as QEMU's `-cpu` takes it.
    pub cpu: String,
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// Text added to the kernel's command line.
    pub append: String,
    /// How long the command may run.
    pub timeout: Duration,
    /// How long the kernel may take until the guest's init runs.
    pub boot_timeout: Duration,
    /// A guest that prints nothing for this long counts as hung; `None` trusts `timeout` alone.
    pub silence: Option<Duration>,
    /// Whether a kernel complaint (an oops, a soft lockup, an RCU stall) ends the run.
    pub stop_on_complaint: bool,
    /// The accelerator; `None` uses KVM where a probe boot proves that it works.
    pub accel: Option<Accel>,
    /// An archive, compressed or not, that is unpacked in the guest before everything else.
    pub initrd: Option<PathBuf>,
    /// Directory the command starts in.
    pub cwd: Option<PathBuf>,
    /// Whether what the command prints comes back as files as well: `stdout` and `stderr`.
    pub keep_output: bool,
    /// A directory for the run's temporary files; `console.log` stays in it afterwards.
    pub work_dir: PathBuf,
}

impl VmSpec {
    /// A run with the usual limits.
    #[must_use]
    pub fn new(kernel: impl Into<PathBuf>, init: impl Into<PathBuf>, work_dir: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            init: init.into(),
            files: Vec::new(),
            modules: Vec::new(),
            command: Vec::new(),
            env: Vec::new(),
            cpu: ALL_FEATURES.to_owned(),
            cpus: 2,
            mem_mib: 1536,
            append: String::new(),
            timeout: Duration::from_secs(120),
            boot_timeout: Duration::from_secs(90),
            silence: None,
            stop_on_complaint: true,
            accel: None,
            initrd: None,
            cwd: None,
            keep_output: false,
            work_dir: work_dir.into(),
        }
    }
}
