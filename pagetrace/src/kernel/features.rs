//! Settings and abilities of the running kernel that are neither types nor symbols. Reads files below the roots it is
//! given; a file that is absent is a fact (`None` or [`Presence::Absent`]), not an error.

use std::{collections::BTreeSet, fs, path::Path, str::FromStr};

use serde::Serialize;

use super::{
    Roots,
    btf::Btf,
    tracefs::{Presence, Tracefs},
};

/// How far the kernel keeps even root from its memory, `security/lockdown/lockdown.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lockdown {
    /// Not at all.
    None,
    /// Root may read kernel memory, not change it.
    Integrity,
    /// Root may not read it either: no kprobes, no reads from BPF.
    Confidentiality,
    /// securityfs is not mounted or has no lockdown file; a level may be compiled in all the same.
    Unknown,
}

impl Lockdown {
    /// From `/sys/kernel/security/lockdown`, where the level in force stands in brackets.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let level = text.split_ascii_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
        match level {
            Some("none") => Self::None,
            Some("integrity") => Self::Integrity,
            Some("confidentiality") => Self::Confidentiality,
            _ => Self::Unknown,
        }
    }
}

/// Numbers from `/proc/sys` and `/sys`; `None` where the kernel has no such setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// `kernel.perf_event_paranoid`: above 1, an unprivileged user may not look at the kernel.
    pub perf_event_paranoid: Option<i64>,
    /// `kernel.kptr_restrict`: at 2, addresses are hidden from root too.
    pub kptr_restrict: Option<i64>,
    /// `kernel.perf_event_max_stack`: frames a stack may have.
    pub perf_event_max_stack: Option<u32>,
    /// `kernel.unprivileged_bpf_disabled`.
    pub unprivileged_bpf_disabled: Option<i64>,
    /// `net.core.bpf_jit_enable`; 0 makes probes slow.
    pub bpf_jit_enable: Option<i64>,
    /// `kernel.ftrace_enabled`; 0 keeps fentry and most kprobes from firing.
    pub ftrace_enabled: Option<i64>,
    /// `kernel.pid_max`: thread ids are below it.
    pub pid_max: Option<u32>,
    /// `kernel.threads-max`: threads the system may have.
    pub threads_max: Option<u32>,
    /// CPUs that run now.
    pub cpus_online: Option<u32>,
    /// CPUs that could: per-CPU maps have as many slots.
    pub cpus_possible: Option<u32>,
}

/// What this kernel can do, as far as files show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Features {
    /// `uname -r`.
    pub release: String,
    /// `uname -m`.
    pub machine: String,
    /// Bytes in a page.
    pub page_size: u64,
    /// Where tracefs is.
    pub tracefs: Tracefs,
    /// Whether kprobes can be made, through perf (`CONFIG_KPROBE_EVENTS`) or tracefs.
    pub kprobes: Presence,
    /// Functions that kprobes are kept out of, as far as debugfs tells.
    pub kprobe_blacklist: BTreeSet<String>,
    /// Abilities of the processor.
    pub cpu_flags: BTreeSet<String>,
    /// Whether uprobes can be made.
    pub uprobes: Presence,
    /// Lockdown level.
    pub lockdown: Lockdown,
    /// Whether kernel code is preempted; true where it cannot be known.
    pub preemptible: bool,
    /// Numbers.
    pub settings: Settings,
}

impl Features {
    pub(super) fn gather(roots: &Roots) -> Self {
        let Roots { proc, sys } = roots;
        let tracefs = Tracefs::find(sys, &read(&proc.join("filesystems")).unwrap_or_default());
        let lockdown = read(&sys.join("kernel/security/lockdown"));
        Self {
            release: read(&proc.join("sys/kernel/osrelease")).unwrap_or_else(|| "unknown".to_owned()),
            machine: rustix::system::uname().machine().to_string_lossy().into_owned(),
            page_size: u64::try_from(rustix::param::page_size()).unwrap_or(4096),
            kprobes: probes(sys, &tracefs, "kprobe"),
            kprobe_blacklist: blacklist(&read(&sys.join("kernel/debug/kprobes/blacklist")).unwrap_or_default()),
            cpu_flags: cpu_flags(&read(&proc.join("cpuinfo")).unwrap_or_default()),
            uprobes: probes(sys, &tracefs, "uprobe"),
            tracefs,
            preemptible: preemptible(
                read(&sys.join("kernel/debug/sched/preempt")).as_deref(),
                &rustix::system::uname().version().to_string_lossy(),
            ),
            lockdown: lockdown.map_or(Lockdown::Unknown, |text| Lockdown::parse(&text)),
            settings: Settings::gather(roots),
        }
    }
}

impl Settings {
    fn gather(Roots { proc, sys }: &Roots) -> Self {
        let kernel = proc.join("sys/kernel");
        let cpus = |which: &str| count_cpus(&read(&sys.join("devices/system/cpu").join(which))?);
        Self {
            perf_event_paranoid: number(&kernel.join("perf_event_paranoid")),
            kptr_restrict: number(&kernel.join("kptr_restrict")),
            perf_event_max_stack: number(&kernel.join("perf_event_max_stack")),
            unprivileged_bpf_disabled: number(&kernel.join("unprivileged_bpf_disabled")),
            bpf_jit_enable: number(&proc.join("sys/net/core/bpf_jit_enable")),
            ftrace_enabled: number(&kernel.join("ftrace_enabled")),
            pid_max: number(&kernel.join("pid_max")),
            threads_max: number(&kernel.join("threads-max")),
            cpus_online: cpus("online"),
            cpus_possible: cpus("possible"),
        }
    }
}

/// The preemption model: `mode` is debugfs' sched/preempt, which marks the one in force (kernel/sched/core.c,
/// `sched_dynamic_show`); `version` is `uname -v`, which names how the kernel was built.
fn preemptible(mode: Option<&str>, version: &str) -> bool {
    match mode {
        Some(mode) => !mode.contains("(none)") && !mode.contains("(voluntary)"),
        None => {
            version.contains("PREEMPT") && !version.contains("PREEMPT(none)") && !version.contains("PREEMPT(voluntary)")
        }
    }
}

#[cfg(test)]
mod preemption_tests {
    use super::preemptible;

    #[test]
    fn the_mode_in_force_decides_and_doubt_means_preemptible() {
        assert!(preemptible(Some("none voluntary (full)"), ""));
        assert!(preemptible(Some("none voluntary full (lazy)"), ""));
        assert!(!preemptible(Some("none (voluntary) full"), "#1 SMP PREEMPT_DYNAMIC"));
        assert!(preemptible(None, "#1 SMP PREEMPT_DYNAMIC Debian"));
        assert!(!preemptible(None, "#1 SMP Debian 5.10"));
    }
}

/// The perf device says it without privileges; a kernel with only the tracefs interface has the events file.
fn probes(sys: &Path, tracefs: &Tracefs, which: &str) -> Presence {
    if Presence::of(&sys.join("bus/event_source/devices").join(which)) == Presence::Present {
        return Presence::Present;
    }
    match tracefs {
        Tracefs::Mounted(path) => Presence::of(&path.join(format!("{which}_events"))),
        // With perf events there would be a device, so its absence says enough where their directory exists.
        _ => match Presence::of(&sys.join("bus/event_source/devices")) {
            Presence::Present => Presence::Absent,
            Presence::Absent | Presence::Unknown => Presence::Unknown,
        },
    }
}

/// Those of the first processor: the kernel uses what all have (arch/x86/kernel/cpu/proc.c).
fn cpu_flags(text: &str) -> BTreeSet<String> {
    let flags = text.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':'));
    flags.map_or("", |(_, flags)| flags).split_ascii_whitespace().map(str::to_owned).collect()
}

/// Lines of an address range and a name (kernel/kprobes.c, `kprobe_blacklist_seq_show`).
fn blacklist(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.split_ascii_whitespace().nth(1)).map(str::to_owned).collect()
}

/// Whether the kernel still charges BPF maps to `RLIMIT_MEMLOCK`. It did until 5.11, when their accounting moved to
/// memory cgroups and `struct bpf_map` lost its `memory` member.
#[must_use]
pub fn charges_memlock(btf: &Btf) -> bool {
    btf.member("bpf_map", "memory").is_some() || btf.struct_size("bpf_map_memory").is_some()
}

/// Counts a list such as `0-3,8`.
fn count_cpus(list: &str) -> Option<u32> {
    list.trim().split(',').try_fold(0u32, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

fn read(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim_end().to_owned())
}

fn number<T: FromStr>(path: &Path) -> Option<T> {
    read(path)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Lockdown, blacklist, count_cpus, cpu_flags};

    #[test]
    fn the_flags_are_those_of_the_first_processor() {
        let flags = cpu_flags("model name\t: x\nflags\t\t: fpu erms\nbugs\t: y\nflags\t\t: fsrm\n");
        assert_eq!(flags.into_iter().collect::<Vec<_>>(), ["erms", "fpu"]);
    }

    #[test]
    fn the_names_of_a_blacklist_stand_behind_ranges() {
        let text = "0xffffffff81000000-0xffffffff81000010\tasm_exc_page_fault\n0x1-0x2\tdo_int3\n";
        assert_eq!(blacklist(text).into_iter().collect::<Vec<_>>(), ["asm_exc_page_fault", "do_int3"]);
        assert!(blacklist("").is_empty());
    }

    #[test]
    fn lockdown_is_the_bracketed_word() {
        assert_eq!(Lockdown::parse("none [integrity] confidentiality\n"), Lockdown::Integrity);
        assert_eq!(Lockdown::parse("[none] integrity confidentiality"), Lockdown::None);
        assert_eq!(Lockdown::parse(""), Lockdown::Unknown);
    }

    #[test]
    fn cpu_lists_are_counted() {
        assert_eq!(count_cpus("0-3,8\n"), Some(5));
        assert_eq!(count_cpus("0"), Some(1));
        assert_eq!(count_cpus("3-1"), None);
        assert_eq!(count_cpus("0-4294967295"), None);
        assert_eq!(count_cpus(""), None);
    }
}
