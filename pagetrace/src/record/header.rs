//! What a recording says about itself before its first record: where, when and how it was made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{kernel::locks::LockFields, plan::Plan};

/// The header. A field that a reader does not know is skipped; one that a writer did not know is empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHeader {
    /// Version of the program that recorded.
    pub version: String,
    /// The kernel.
    pub kernel: KernelId,
    /// What was attached.
    pub plan: Plan,
    /// The settings of the BPF object, by name: offsets from BTF, the target, limits.
    #[serde(default)]
    pub settings: BTreeMap<String, u64>,
    /// The command, when one was run.
    #[serde(default)]
    pub command: Option<Vec<String>>,
    /// What was to be watched, as given.
    #[serde(default)]
    pub target: Target,
    /// When the recording began, on two clocks.
    pub clock: Clock,
    /// Identifies the boot: monotonic times of one boot can be compared.
    #[serde(default)]
    pub boot_id: Option<String>,
    /// Bytes of the ring buffer.
    #[serde(default)]
    pub ring_bytes: u32,
    /// Tasks that could have state at once.
    #[serde(default)]
    pub max_tasks: u32,
    /// When everything was attached, nanoseconds of `CLOCK_MONOTONIC`: older tasks may hold locks unseen.
    pub attached_at_ns: u64,
    /// Names of fields that are sleeping locks, for the lock order; empty without it.
    #[serde(default)]
    pub lock_fields: LockFields,
    /// The recorder's own process id: what it does itself is not in the stream.
    pub recorder_pid: u32,
}

/// The kernel that was watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelId {
    /// `uname -r`.
    pub release: String,
    /// `uname -m`.
    pub machine: String,
    /// Build id of the kernel image, hexadecimal.
    #[serde(default)]
    pub build_id: Option<String>,
}

/// What was asked to be watched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Processes.
    #[serde(default)]
    pub pids: Vec<u32>,
    /// Threads.
    #[serde(default)]
    pub tids: Vec<u32>,
    /// Task name.
    #[serde(default)]
    pub comms: Vec<String>,
    /// cgroup.
    #[serde(default)]
    pub cgroup: Option<String>,
}

/// One moment on two clocks, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// `CLOCK_MONOTONIC`, which records carry.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME`.
    pub realtime_ns: u64,
}
