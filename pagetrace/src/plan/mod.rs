//! Which hook by which attach type: decided purely from what the kernel shows, never from its version.
//!
//! A [`Plan`] says for every logical event what gets attached, what was passed over and why, and what therefore
//! stays unseen. It attaches nothing.

mod access;
mod choose;
mod order;
pub mod skipped;
mod ways;

use serde::{Deserialize, Serialize};

pub use access::is_user_access;
pub use choose::{PlanError, Refusal, Wish, plan};

/// What a kernel offers, as far as planning asks.
pub trait KernelView {
    /// Whether a text symbol of this name exists.
    fn has_symbol(&self, name: &str) -> bool;
    /// Whether BTF describes a function of this name.
    fn has_btf_function(&self, name: &str) -> bool;
    /// Arguments of a tracepoint as BTF tells, without the leading context; `None` when there is no such tracepoint.
    fn tracepoint_args(&self, name: &str) -> Option<usize>;
    /// Whether the kernel keeps kprobes out of this function.
    fn forbids_kprobe(&self, name: &str) -> bool;
    /// Whether the processor has this ability, as /proc/cpuinfo calls it.
    fn cpu_has(&self, flag: &str) -> bool;
    /// Whether the kernel was built with kprobes.
    fn has_kprobes(&self) -> bool;
    /// Whether a task can be preempted inside an fentry program. Another task that comes to the same program on that
    /// CPU is skipped then (kernel/bpf/trampoline.c, `prog->active`).
    fn preempts_programs(&self) -> bool;
    /// Whether each BPF trampoline has an ftrace_ops of its own (since 6.0). Before, attaching fentry programs one by one
    /// takes seconds each on a slow machine.
    fn has_own_trampoline_ops(&self) -> bool;
}

/// How a program gets attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Attach {
    /// kprobes and kretprobes.
    Kprobe,
    /// fentry and fexit.
    Fentry,
    /// Tracepoints typed by BTF.
    Tracepoint,
    /// Raw tracepoints.
    RawTracepoint,
    /// The processor's breakpoints. Few, so never for what can be had otherwise.
    #[value(skip)]
    Breakpoint,
}

impl Attach {
    /// As the command line spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kprobe => "kprobe",
            Self::Fentry => "fentry",
            Self::Tracepoint => "tracepoint",
            Self::RawTracepoint => "raw-tracepoint",
            Self::Breakpoint => "breakpoint",
        }
    }
}

/// A logical event of the design.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// mmap lock acquired, failed, released, downgraded.
    MmapLock,
    /// The fault handler goes for mmap_lock on behalf of a kernel-mode access.
    KernelFault,
    /// The exception's error code: read or write.
    FaultKind,
    /// The VMA that a violation fell into.
    FaultVma,
    /// Every page fault, with latency.
    PageFault,
    /// Page walks, with range and duration.
    PageWalk,
    /// Functions that access user memory, entered; of the strict check.
    UserAccess,
    /// System calls begin and end; of the strict check.
    UserBoundary,
    /// Fork, exec and the end of tasks.
    TaskLife,
    /// Mutexes and rwsems of all kinds, for the lock order.
    SleepingLock,
    /// A kernel module goes, and with it what its addresses meant.
    ModuleUnload,
}

impl Event {
    /// As reports spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MmapLock => "mmap-lock",
            Self::KernelFault => "kernel-fault",
            Self::FaultKind => "fault-kind",
            Self::FaultVma => "fault-vma",
            Self::PageFault => "page-fault",
            Self::PageWalk => "page-walk",
            Self::UserAccess => "user-access",
            Self::UserBoundary => "user-boundary",
            Self::TaskLife => "task-life",
            Self::SleepingLock => "sleeping-lock",
            Self::ModuleUnload => "module-unload",
        }
    }
}

/// The BPF program type behind an [`Attach`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProgramType {
    /// Function entry by breakpoint or ftrace.
    Kprobe,
    /// Function return by trampoline on the stack.
    Kretprobe,
    /// Function entry by BPF trampoline.
    Fentry,
    /// Function return by BPF trampoline.
    Fexit,
    /// Tracepoint typed by BTF.
    BtfTracepoint,
    /// Raw tracepoint.
    RawTracepoint,
    /// Instruction breakpoint.
    Breakpoint,
}

impl ProgramType {
    /// The attach type it belongs to.
    pub const fn attach(self) -> Attach {
        match self {
            Self::Kprobe | Self::Kretprobe => Attach::Kprobe,
            Self::Fentry | Self::Fexit => Attach::Fentry,
            Self::BtfTracepoint => Attach::Tracepoint,
            Self::RawTracepoint => Attach::RawTracepoint,
            Self::Breakpoint => Attach::Breakpoint,
        }
    }

    /// Prefix of the programs of this type in the BPF object.
    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            Self::Kprobe => "kp_",
            Self::Kretprobe => "kr_",
            Self::Fentry => "fe_",
            Self::Fexit => "fx_",
            Self::BtfTracepoint => "tb_",
            Self::RawTracepoint => "tr_",
            Self::Breakpoint => "bp_",
        }
    }
}

/// When a program is attached: the stages follow each other, so that every hold that is seen beginning is seen ending,
/// and an access is judged only when locks are seen. Detaching goes the other way round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// User accesses are seen. First, though nothing can come of them yet: only trying shows what the kernel takes here,
    /// and the rest of the plan waits for that.
    UserAccess,
    /// Tasks are followed.
    #[default]
    TaskLife,
    /// Releases and downgrades are seen.
    Release,
    /// Returns are seen: nothing that waits for one may come before.
    Return,
    /// Acquisitions, and waits for them, are seen.
    Acquire,
    /// Faults and walks are seen.
    Access,
}

/// One program to load and where it goes. A program may go to several targets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Probe {
    /// Name of the program in the BPF object.
    pub program: String,
    /// Its type.
    pub kind: ProgramType,
    /// Function or tracepoint it is attached to.
    pub target: String,
    /// When.
    #[serde(skip)]
    pub stage: Stage,
}

/// What was decided for one event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventPlan {
    /// The event.
    pub event: Event,
    /// The attach type chosen; `None` when nothing on this kernel shows the event.
    pub attach: Option<Attach>,
    /// Programs.
    pub probes: Vec<Probe>,
    /// Attach types not used, each with the reason.
    pub passed_over: Vec<PassedOver>,
    /// What stays unseen, one sentence each.
    pub not_seen: Vec<String>,
}

/// An attach type that was not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedOver {
    /// The attach type.
    pub attach: Attach,
    /// Why.
    pub why: String,
}

/// Everything to attach on this kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// One entry an event.
    pub events: Vec<EventPlan>,
}

impl Plan {
    /// What was decided for `event`.
    pub fn event(&self, event: Event) -> Option<&EventPlan> {
        self.events.iter().find(|plan| plan.event == event)
    }

    /// All programs, each once a target, in the order in which they must be attached.
    pub fn probes(&self) -> Vec<&Probe> {
        let mut out: Vec<&Probe> = Vec::new();
        for probe in self.events.iter().flat_map(|event| &event.probes) {
            if !out.contains(&probe) {
                out.push(probe);
            }
        }
        out.sort_by_key(|probe| probe.stage);
        out
    }

    /// Whether a fault under a lock is proven by the lock attempt that follows the exception, because the handler's
    /// own lock path cannot be hooked.
    pub fn confirms_by_lock(&self) -> bool {
        self.event(Event::KernelFault)
            .and_then(|plan| plan.attach)
            .is_some_and(|attach| matches!(attach, Attach::Tracepoint | Attach::RawTracepoint))
    }

    /// Whether the VMA comes from the return of the handler's lock path.
    pub fn vma_by_return(&self) -> bool {
        self.event(Event::FaultVma)
            .is_some_and(|plan| plan.probes.iter().any(|probe| probe.target == ways::HANDLER_LOCK))
    }

    /// What stays unseen on this kernel, over all events.
    pub fn not_seen(&self) -> Vec<String> {
        self.events.iter().flat_map(|event| event.not_seen.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests;
