//! Gathering from made-up `/proc` and `/sys`, and what preflight makes of it.

use std::{fs, path::Path};

use super::{
    FactsError, KernelFacts, Problem, Roots,
    features::{Lockdown, charges_memlock},
    preflight,
    tracefs::{Presence, Tracefs},
};
use crate::kernel::btf::{Btf, testing::Builder};

struct Machine(tempfile::TempDir);

impl Machine {
    fn new(caps: &str) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        machine.write("proc/self/status", format!("Uid:\t0\t0\t0\t0\nCapEff:\t{caps}\n"));
        machine.write("proc/self/uid_map", "0 0 4294967295\n");
        machine.write("proc/filesystems", "nodev\ttracefs\n");
        machine
    }

    fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn facts(&self) -> KernelFacts {
        KernelFacts::gather(&roots(self.0.path())).unwrap()
    }
}

fn roots(base: &Path) -> Roots {
    Roots { proc: base.join("proc"), sys: base.join("sys") }
}

fn find<'a>(problems: &'a [Problem], word: &str) -> &'a Problem {
    problems.iter().find(|p| p.what.contains(word) || p.why.contains(word)).unwrap_or_else(|| panic!("{problems:#?}"))
}

const ALL: &str = "000001ffffffffff";

#[test]
fn a_bare_machine_gives_problems_with_remedies() {
    let machine = Machine::new("0000000000000000");
    let problems = preflight(&machine.facts());
    assert!(find(&problems, "CAP_BPF and CAP_PERFMON").fatal);
    assert!(find(&problems, "CAP_BPF").why.contains("though it is root"));
    assert!(find(&problems, "type information").remedy.contains("CONFIG_DEBUG_INFO_BTF"));
    assert!(find(&problems, "tracefs").remedy.contains("mount -t tracefs"));
    assert!(!find(&problems, "kallsyms").fatal);
    assert!(problems.is_sorted_by_key(|p| !p.fatal), "fatal first");
}

#[test]
fn settings_are_read_below_the_roots() {
    let machine = Machine::new(ALL);
    machine.write("proc/sys/kernel/osrelease", "6.1.0-test\n");
    machine.write("proc/sys/kernel/perf_event_paranoid", "-1\n");
    machine.write("proc/sys/kernel/pid_max", "4194304\n");
    machine.write("sys/devices/system/cpu/possible", "0-7\n");
    machine.write("sys/kernel/security/lockdown", "none integrity [confidentiality]\n");
    machine.write("sys/bus/event_source/devices/kprobe/type", "6\n");
    machine.write("sys/kernel/tracing/events/mmap_lock/mmap_lock_released/format", "");
    let facts = machine.facts();
    assert_eq!(facts.features.release, "6.1.0-test");
    assert_eq!(facts.features.settings.perf_event_paranoid, Some(-1));
    assert_eq!(facts.features.settings.pid_max, Some(4_194_304));
    assert_eq!(facts.features.settings.cpus_possible, Some(8));
    assert_eq!(facts.features.settings.threads_max, None);
    assert_eq!(facts.features.lockdown, Lockdown::Confidentiality);
    assert_eq!(facts.features.kprobes, Presence::Present);
    assert_eq!(facts.features.uprobes, Presence::Absent);
    assert!(matches!(facts.features.tracefs, Tracefs::Mounted(_)));
    assert_eq!(facts.tracepoint("mmap_lock", "mmap_lock_released"), Presence::Present);
    assert_eq!(facts.tracepoint("mmap_lock", "absent"), Presence::Absent);
    assert!(find(&preflight(&facts), "locked down").fatal);
    serde_json::to_string(&facts.features).unwrap();
}

#[test]
fn hidden_addresses_name_the_setting_that_hides_them() {
    let machine = Machine::new(ALL);
    machine.write("proc/kallsyms", "0000000000000000 T down_read\n");
    machine.write("proc/sys/kernel/kptr_restrict", "2\n");
    assert!(find(&preflight(&machine.facts()), "hides every address").remedy.contains("kptr_restrict=1"));
    machine.write("proc/sys/kernel/kptr_restrict", "0\n");
    assert!(find(&preflight(&machine.facts()), "hides every address").remedy.contains("sudo"));
}

#[test]
fn btf_tells_tracepoints_where_tracefs_cannot() {
    let machine = Machine::new(ALL);
    let mut b = Builder::new();
    let proto = b.proto(0, &[("", 0), ("", 0)]);
    let pointer = b.pointer(proto);
    b.reference(8, "btf_trace_page_fault_kernel", pointer);
    machine.write("sys/kernel/btf/vmlinux", b.finish());
    let facts = machine.facts();
    assert_eq!(facts.tracepoint("exceptions", "page_fault_kernel"), Presence::Present);
    assert_eq!(facts.tracepoint("exceptions", "page_fault_user"), Presence::Absent);
    assert!(find(&preflight(&facts), "task_struct.mm").fatal);
}

#[test]
fn memlock_counts_only_where_maps_are_charged_to_it() {
    let mut b = Builder::new();
    let int = b.int("int", 4);
    b.record("bpf_map", 4, &[("memory", int, 0)]);
    assert!(charges_memlock(&Btf::parse(b.finish()).unwrap()));
    assert!(!charges_memlock(&Btf::parse(Builder::new().finish()).unwrap()));
}

#[test]
fn without_procfs_there_is_an_error() {
    let empty = tempfile::tempdir().unwrap();
    let error = KernelFacts::gather(&roots(empty.path())).unwrap_err();
    assert!(matches!(error, FactsError::Read { .. }));
    assert!(error.to_string().contains("self/status"));
}

#[test]
fn this_machine_can_be_looked_at() {
    let facts = KernelFacts::gather(&Roots::default()).unwrap();
    for Problem { what, why, remedy, fatal } in preflight(&facts) {
        println!("{what} (fatal: {fatal})\n  {why}\n  {remedy}");
    }
    assert!(facts.features.page_size.is_power_of_two());
    assert!(facts.features.settings.cpus_online.is_some_and(|cpus| cpus > 0));
}
