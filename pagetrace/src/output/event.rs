//! One event of `trace`: a line for people, or an object a line for programs.

use pagetrace_ebpf::wire::{
    Header, MmOwner,
    fault::{Fault, mode},
    lock::{Hold, Wait, held},
    walk::{Walk, function},
};
use serde::Serialize;

use crate::{
    record::{Record, name},
    symbolize::{Frame, Symbolizer},
};

/// Version of the objects.
pub const SCHEMA: &str = "pagetrace.event/1";

/// `VM_FAULT_*`, include/linux/mm_types.h.
const VM_FAULT_MAJOR: u32 = 0x4;
const VM_FAULT_RETRY: u32 = 0x400;
const VM_FAULT_ERROR: u32 = 0x1 | 0x2 | 0x10 | 0x20 | 0x40 | 0x800;
const VM_FAULT_COMPLETED: u32 = 0x4000;
/// `FAULT_FLAG_*`, include/linux/mm_types.h.
const FAULT_FLAG_WRITE: u32 = 0x1;
const FAULT_FLAG_VMA_LOCK: u32 = 0x1000;

/// One event.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Nanoseconds of `CLOCK_MONOTONIC` at its end.
    pub time_ns: u64,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Thread name.
    pub comm: String,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// Whose address space.
#[derive(Debug, Clone, Serialize)]
pub struct Mm {
    /// Address of the mm.
    pub mm: String,
    /// Process that owns it; null where the kernel does not tell.
    pub owner_pid: Option<u32>,
    /// That process's name.
    pub owner_comm: Option<String>,
}

/// The kinds of event.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// A page fault.
    Fault {
        /// `user`, `kernel`, or `remote` for get_user_pages.
        mode: &'static str,
        /// `minor`, `major`, `retry`, `error`; `unknown` when the end cannot be seen.
        kind: &'static str,
        /// Faulting address.
        address: String,
        /// Write access.
        write: bool,
        /// Taken under a per-VMA lock instead of mmap_lock.
        vma_lock: bool,
        /// Nanoseconds; null when the end cannot be seen.
        latency_ns: Option<u64>,
        /// mmap locks the task held already.
        held: u32,
        /// Where.
        #[serde(flatten)]
        mm: Mm,
    },
    /// A page walk.
    Walk {
        /// The walker.
        function: &'static str,
        /// Name of its `mm_walk_ops`, where there is one.
        ops: Option<String>,
        /// First address.
        start: String,
        /// First address behind the range.
        end: String,
        /// Nanoseconds.
        duration_ns: u64,
        /// Return value.
        result: i64,
        /// Where.
        #[serde(flatten)]
        mm: Mm,
    },
    /// A wait for an mmap lock.
    LockWait {
        /// `read` or `write`.
        mode: &'static str,
        /// Whether it was acquired.
        acquired: bool,
        /// Nanoseconds.
        duration_ns: u64,
        /// Where.
        #[serde(flatten)]
        mm: Mm,
        /// The waiting stack.
        stack: Vec<Frame>,
    },
    /// A hold of an mmap lock.
    LockHold {
        /// `read` or `write`.
        mode: &'static str,
        /// Nanoseconds.
        duration_ns: u64,
        /// Where.
        #[serde(flatten)]
        mm: Mm,
        /// Where it was taken.
        stack: Vec<Frame>,
    },
}

fn mm(owner: &MmOwner) -> Mm {
    let known = owner.tgid != 0;
    Mm {
        mm: format!("{:#x}", owner.mm),
        owner_pid: known.then_some(owner.tgid),
        owner_comm: known.then(|| name(&owner.comm)),
    }
}

fn lock_mode(flags: u32) -> &'static str {
    if flags & held::WRITE != 0 { "write" } else { "read" }
}

fn fault_kind(fault: &Fault) -> &'static str {
    match fault.result {
        _ if fault.duration == u64::MAX => "unknown",
        result if result & VM_FAULT_ERROR != 0 => "error",
        result if result & VM_FAULT_COMPLETED != 0 => "minor",
        result if result & VM_FAULT_RETRY != 0 => "retry",
        result if result & VM_FAULT_MAJOR != 0 => "major",
        _ => "minor",
    }
}

impl Event {
    /// The event a record tells; `None` for records that belong to findings. `stack` is the one the record refers to.
    pub fn of(record: &Record, names: &Symbolizer, stack: &[u64]) -> Option<Self> {
        let (header, what) = match record {
            Record::Fault(fault) => (&fault.header, fault_event(fault)),
            Record::Walk(walk) => (&walk.header, walk_event(walk, names)),
            Record::Wait(wait) => (&wait.header, wait_event(wait, names, stack)),
            Record::Hold(hold) => (&hold.header, hold_event(hold, names, stack)),
            _ => return None,
        };
        let Header { ts, tid, tgid, comm, .. } = header;
        Some(Self { schema: SCHEMA, time_ns: *ts, pid: *tgid, tid: *tid, comm: name(comm), what })
    }

    /// As a line for people.
    pub fn text(&self) -> String {
        let seconds = self.time_ns as f64 / 1e9;
        format!("{seconds:>14.6} {:<15} {:>7} {}", self.comm, self.tid, self.what.text())
    }
}

fn fault_event(fault: &Fault) -> What {
    What::Fault {
        mode: match fault.mode {
            mode::USER => "user",
            mode::KERNEL => "kernel",
            _ => "remote",
        },
        kind: fault_kind(fault),
        address: format!("{:#x}", fault.address),
        write: fault.fault_flags & FAULT_FLAG_WRITE != 0,
        vma_lock: fault.fault_flags & FAULT_FLAG_VMA_LOCK != 0,
        latency_ns: (fault.duration != u64::MAX).then_some(fault.duration),
        held: fault.held,
        mm: mm(&fault.mm),
    }
}

fn walk_event(walk: &Walk, names: &Symbolizer) -> What {
    let function = usize::try_from(walk.function).ok().and_then(|index| function::NAMES.get(index));
    What::Walk {
        function: function.copied().unwrap_or("unknown"),
        ops: (walk.ops != 0).then(|| names.data_name(walk.ops)).flatten(),
        start: format!("{:#x}", walk.start),
        end: format!("{:#x}", walk.end),
        duration_ns: walk.duration,
        result: walk.result,
        mm: mm(&walk.mm),
    }
}

fn wait_event(wait: &Wait, names: &Symbolizer, stack: &[u64]) -> What {
    What::LockWait {
        mode: lock_mode(wait.flags),
        acquired: wait.acquired != 0,
        duration_ns: wait.duration,
        mm: mm(&wait.owner),
        stack: names.frames(stack),
    }
}

fn hold_event(hold: &Hold, names: &Symbolizer, stack: &[u64]) -> What {
    What::LockHold {
        mode: lock_mode(hold.flags),
        duration_ns: hold.duration,
        mm: mm(&hold.owner),
        stack: names.frames(stack),
    }
}

fn micros(ns: u64) -> String {
    format!("{:.1} us", ns as f64 / 1000.0)
}

fn of_whom(mm: &Mm) -> String {
    match (&mm.owner_pid, &mm.owner_comm) {
        (Some(pid), Some(comm)) => format!("mm of {pid} ({comm})"),
        _ => format!("mm {}", mm.mm),
    }
}

/// The innermost functions of a stack, enough to recognise the caller.
fn brief(stack: &[Frame]) -> String {
    let names: Vec<&str> = stack.iter().filter_map(|frame| frame.symbol.as_deref()).take(5).collect();
    if names.is_empty() { String::new() } else { format!("  {}", names.join(" < ")) }
}

impl What {
    fn text(&self) -> String {
        match self {
            Self::Fault { mode, kind, address, write, vma_lock, latency_ns, held, mm } => {
                let access = if *write { "write" } else { "read" };
                let lock = if *vma_lock { ", vma lock" } else { "" };
                let held = if *held == 0 { String::new() } else { format!(", {held} mmap lock held") };
                let latency = latency_ns.map_or_else(String::new, |ns| format!(" {}", micros(ns)));
                format!("fault {mode} {kind} {access} {address}{latency}, {}{lock}{held}", of_whom(mm))
            }
            Self::Walk { function, ops, start, end, duration_ns, result, mm } => {
                let ops = ops.as_ref().map_or_else(String::new, |ops| format!(" ({ops})"));
                let result = if *result < 0 { format!(", returned {result}") } else { String::new() };
                format!("walk {function}{ops} {start}-{end} {}, {}{result}", micros(*duration_ns), of_whom(mm))
            }
            Self::LockWait { mode, acquired, duration_ns, mm, stack } => {
                let end = if *acquired { "" } else { ", not acquired" };
                format!("wait {mode} {}{end}, {}{}", micros(*duration_ns), of_whom(mm), brief(stack))
            }
            Self::LockHold { mode, duration_ns, mm, stack } => {
                format!("hold {mode} {}, {}{}", micros(*duration_ns), of_whom(mm), brief(stack))
            }
        }
    }
}
