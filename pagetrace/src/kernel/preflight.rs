//! Turns facts into sentences before any program is loaded: what is wrong, why, and what to do. Pure.

use serde::Serialize;

use super::{
    KernelFacts, Unavailable,
    features::Lockdown,
    offsets::Offsets,
    tracefs::{Presence, Tracefs},
};

/// Something that prevents tracing (`fatal`) or makes it know less.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What was tried and failed.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do about it.
    pub remedy: String,
    /// Whether nothing can be traced.
    pub fatal: bool,
}

const PRIVILEGE_REMEDY: &str = "run it with sudo, or give it CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN and CAP_SYSLOG (setcap, or AmbientCapabilities= in a unit)";

/// All problems, the fatal ones first.
#[must_use]
pub fn preflight(facts: &KernelFacts) -> Vec<Problem> {
    let mut problems: Vec<Problem> =
        [privileges(facts), lockdown(facts), btf(facts), kallsyms(facts), tracefs(facts), probes(facts), ftrace(facts)]
            .into_iter()
            .flatten()
            .collect();
    problems.sort_by_key(|problem| !problem.fatal);
    problems
}

fn problem(fatal: bool, what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Option<Problem> {
    Some(Problem { what: what.into(), why: why.into(), remedy: remedy.into(), fatal })
}

fn privileges(facts: &KernelFacts) -> Option<Problem> {
    let who = &facts.privileges;
    let what = "this process may not load and attach BPF programs";
    if !who.initial_user_namespace {
        let why = "it runs in a user namespace, whose capabilities do not count outside of it";
        return problem(true, what, why, "run it on the host, outside the rootless container or unshare");
    }
    if who.may_load_bpf() && who.may_trace() {
        return None;
    }
    let lacking = match (who.may_load_bpf(), who.may_trace()) {
        (false, true) => "CAP_BPF",
        (true, false) => "CAP_PERFMON",
        _ => "CAP_BPF and CAP_PERFMON",
    };
    let root = if who.euid == 0 { ", though it is root: a container or a unit took it away" } else { "" };
    problem(true, what, format!("user {} lacks {lacking}{root}", who.euid), PRIVILEGE_REMEDY)
}

fn lockdown(facts: &KernelFacts) -> Option<Problem> {
    let confidential = facts.features.lockdown == Lockdown::Confidentiality;
    confidential.then_some(())?;
    let why = "it is locked down for confidentiality, so kprobes and reads of kernel memory are refused even to root";
    let remedy = "boot with lockdown=integrity or lockdown=none; with secure boot, disable it or use a test machine";
    problem(true, "this kernel does not let BPF programs look at it", why, remedy)
}

fn btf(facts: &KernelFacts) -> Option<Problem> {
    let what = "the kernel's type information cannot be used";
    match &facts.btf {
        Err(Unavailable { path, why, absent }) => {
            let remedy = if *absent {
                "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as the large distributions' are; if it is, mount sysfs"
            } else {
                "check that the file is readable and belongs to the running kernel, and report this message"
            };
            problem(true, what, format!("{}: {why}", path.display()), remedy)
        }
        Ok(btf) => {
            let missing = Offsets::from_btf(btf).err()?;
            let remedy = "report this with the kernel's release: its layout is one that pagetrace does not know";
            problem(true, what, missing.to_string(), remedy)
        }
    }
}

fn kallsyms(facts: &KernelFacts) -> Option<Problem> {
    let what = "kernel functions cannot be named";
    match &facts.kallsyms {
        Err(Unavailable { path, why, .. }) => {
            let remedy = "use a kernel built with CONFIG_KALLSYMS=y; without, stacks are plain addresses";
            problem(false, what, format!("{}: {why}", path.display()), remedy)
        }
        Ok(table) if table.is_empty() => {
            problem(false, what, "/proc/kallsyms is empty", "use a kernel built with CONFIG_KALLSYMS=y")
        }
        Ok(table) if table.addresses_hidden() => {
            let (why, remedy) = match facts.features.settings.kptr_restrict {
                Some(2..) => {
                    ("kernel.kptr_restrict is 2 and hides every address", "run `sysctl kernel.kptr_restrict=1`")
                }
                _ => ("the kernel hides every address in /proc/kallsyms from this user", PRIVILEGE_REMEDY),
            };
            problem(false, what, why, remedy)
        }
        Ok(_) => None,
    }
}

fn tracefs(facts: &KernelFacts) -> Option<Problem> {
    let what = "classic tracepoints cannot be looked up";
    match &facts.features.tracefs {
        Tracefs::Mounted(_) => None,
        Tracefs::NotMounted => {
            let why = "tracefs is mounted neither at /sys/kernel/tracing nor at /sys/kernel/debug/tracing";
            problem(false, what, why, "run `mount -t tracefs tracefs /sys/kernel/tracing`; BTF tracepoints do without")
        }
        Tracefs::Denied(path) => {
            problem(false, what, format!("{} may not be read by this user", path.display()), PRIVILEGE_REMEDY)
        }
        Tracefs::Unsupported => problem(
            false,
            what,
            "this kernel has no tracefs",
            "use a kernel built with CONFIG_TRACING=y, or BTF tracepoints",
        ),
    }
}

fn probes(facts: &KernelFacts) -> Option<Problem> {
    if facts.features.kprobes != Presence::Absent {
        return None;
    }
    let why = "there is neither /sys/bus/event_source/devices/kprobe nor kprobe_events in tracefs: \
               the kernel was built without CONFIG_KPROBE_EVENTS";
    let remedy = "nothing, if tracepoints and fentry suffice (`pagetrace probes` tells); else use a kernel that has it";
    problem(false, "kprobes cannot be used", why, remedy)
}

fn ftrace(facts: &KernelFacts) -> Option<Problem> {
    if facts.features.settings.ftrace_enabled != Some(0) {
        return None;
    }
    let why = "kernel.ftrace_enabled is 0";
    problem(false, "probes at function entries may not fire", why, "run `sysctl kernel.ftrace_enabled=1`")
}
