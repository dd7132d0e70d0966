//! The functions that access user memory, by how each gets the address, and which of them this kernel lets be seen.
//!
//! Names of all kernels from 5.10 on stand side by side: what a kernel has is looked up, not inferred.

use super::{Attach, Event, EventPlan, KernelView, PassedOver, Probe, ProgramType, Stage, ways::probe};

/// One program of the BPF object and the functions it can sit on.
struct Shape {
    stem: &'static str,
    functions: &'static [&'static str],
}

/// Functions whose page faults are disabled by contract stay out: copy_page_from_iter_atomic and its like.
const SHAPES: [Shape; 13] = [
    // The assembly loops stand here as well: copies that are put in line end there on processors without fast short
    // `rep movs` (arch/x86/include/asm/uaccess_64.h, `copy_user_generic`).
    Shape {
        stem: "access_move",
        functions: &[
            "_copy_from_user",
            "_copy_to_user",
            "strncpy_from_user",
            "rep_movs_alternative",
            "copy_user_generic_unrolled",
            "copy_user_generic_string",
            "copy_user_enhanced_fast_string",
            "copy_user_fast_string",
            "__copy_user_nocache",
            "__copy_user_flushcache",
            "copy_mc_to_user",
        ],
    },
    Shape { stem: "access_move_reversed", functions: &["csum_partial_copy_generic"] },
    Shape {
        stem: "access_get",
        functions: &[
            "__get_user_1",
            "__get_user_2",
            "__get_user_4",
            "__get_user_8",
            "__get_user_nocheck_1",
            "__get_user_nocheck_2",
            "__get_user_nocheck_4",
            "__get_user_nocheck_8",
        ],
    },
    Shape {
        stem: "access_put",
        functions: &[
            "__put_user_1",
            "__put_user_2",
            "__put_user_4",
            "__put_user_8",
            "__put_user_nocheck_1",
            "__put_user_nocheck_2",
            "__put_user_nocheck_4",
            "__put_user_nocheck_8",
        ],
    },
    Shape { stem: "access_read", functions: &["strnlen_user", "fault_in_readable"] },
    Shape {
        stem: "access_write",
        functions: &[
            "clear_user",
            "__clear_user",
            "clear_user_original",
            "clear_user_rep_good",
            "clear_user_erms",
            "rep_stos_alternative",
            "fault_in_writeable",
            "fault_in_safe_writeable",
        ],
    },
    Shape { stem: "access_iter0_read", functions: &["fault_in_iov_iter_readable", "iov_iter_fault_in_readable"] },
    Shape { stem: "access_iter0_write", functions: &["fault_in_iov_iter_writeable"] },
    Shape { stem: "access_iter1_write", functions: &["iov_iter_zero"] },
    Shape {
        stem: "access_iter2_read",
        functions: &[
            "_copy_from_iter",
            "_copy_from_iter_nocache",
            "_copy_from_iter_flushcache",
            "_copy_from_iter_full",
            "_copy_from_iter_full_nocache",
        ],
    },
    Shape { stem: "access_iter2_write", functions: &["_copy_to_iter", "_copy_mc_to_iter"] },
    Shape {
        stem: "access_iter3_read",
        functions: &["copy_page_from_iter", "csum_and_copy_from_iter", "csum_and_copy_from_iter_full"],
    },
    Shape { stem: "access_iter3_write", functions: &["copy_page_to_iter", "csum_and_copy_to_iter"] },
];

/// Whether a function of this name accesses user memory for its caller.
pub fn is_user_access(name: &str) -> bool {
    SHAPES.iter().any(|shape| shape.functions.contains(&name))
}

/// Breakpoints that an x86 processor has (debug registers 0 to 3).
const BREAKPOINTS: usize = 4;

/// The assembly loops that all copies went through until 6.4; the processor's abilities decided at boot which
/// (`copy_user_generic`, an alternative call).
const LOOPS: [(&str, Option<&str>); 3] = [
    ("copy_user_enhanced_fast_string", Some("erms")),
    ("copy_user_generic_string", Some("rep_good")),
    ("copy_user_generic_unrolled", None),
];

/// Functions whose copies end in such a loop.
const CARRIED: [&str; 8] = [
    "_copy_from_user",
    "_copy_to_user",
    "_copy_from_iter",
    "_copy_from_iter_full",
    "_copy_to_iter",
    "copy_page_from_iter",
    "copy_page_to_iter",
    "copy_user_generic_unrolled",
];

/// Functions that carry whatever size there is, best first: without one of them there is no strict check.
fn bulk(kernel: &dyn KernelView) -> Vec<&'static str> {
    let has = |flag: &Option<&str>| flag.is_none_or(|flag| kernel.cpu_has(flag));
    let used = LOOPS.iter().find(|(_, flag)| has(flag)).map(|(name, _)| *name);
    let entries = ["_copy_from_user", "_copy_to_user", "_copy_to_iter", "_copy_from_iter"];
    match used.filter(|name| kernel.has_symbol(name)) {
        Some(name) => std::iter::once(name).chain(entries).collect(),
        // With fast short `rep movs` copies are put in line, and only the functions around them can be seen.
        None if kernel.cpu_has("fsrm") => entries.into(),
        None => std::iter::once("rep_movs_alternative").chain(entries).collect(),
    }
}

/// What breakpoints are spent on, best first.
fn worth_a_breakpoint(kernel: &dyn KernelView) -> Vec<&'static str> {
    let mut bulk = bulk(kernel);
    // Where a loop carries all copies, the functions around it would tell the same accesses again.
    let carries_all = bulk.first().is_some_and(|name| !name.starts_with("_copy_") && kernel.has_symbol(name));
    let around = if carries_all { bulk.split_off(1) } else { Vec::new() };
    let single = ["__get_user_4", "__put_user_4", "__get_user_8", "__put_user_8", "strncpy_from_user"];
    bulk.into_iter().chain(single).chain(around).filter(|name| kernel.has_symbol(name)).collect()
}

/// Decides by what each function is watched. `check` says whether a probe may be attached.
pub(super) fn choose(kernel: &dyn KernelView, check: &dyn Fn(&Probe) -> Result<(), String>) -> EventPlan {
    let all = || {
        SHAPES
            .iter()
            .flat_map(|shape| shape.functions.iter().map(|name| (shape.stem, *name)))
            .filter(|(_, name)| kernel.has_symbol(name))
    };
    let stem_of = |name: &str| all().find(|(_, known)| *known == name).map(|(stem, _)| stem);
    let mut why_no_kprobe = None;
    let mut probes = Vec::new();
    for (stem, name) in all() {
        let probe = probe(ProgramType::Kprobe, stem, name, Stage::UserAccess);
        let verdict =
            if kernel.forbids_kprobe(name) { Err("the kernel's blacklist has it".to_owned()) } else { check(&probe) };
        match verdict {
            Ok(()) => probes.push(probe),
            Err(why) => {
                why_no_kprobe.get_or_insert(format!("{name}: {why}"));
            }
        }
    }
    let has = |probes: &[Probe], name: &str| probes.iter().any(|probe| probe.target == name);
    let mut why_no_breakpoint = None;
    let wanted: Vec<_> = worth_a_breakpoint(kernel).into_iter().filter(|name| !has(&probes, name)).collect();
    let mut left = BREAKPOINTS;
    for name in wanted {
        let Some(stem) = stem_of(name).filter(|_| left != 0) else { continue };
        let probe = probe(ProgramType::Breakpoint, stem, name, Stage::UserAccess);
        match check(&probe) {
            Ok(()) => {
                probes.push(probe);
                left -= 1;
            }
            Err(why) => {
                why_no_breakpoint.get_or_insert(format!("{name}: {why}"));
            }
        }
    }
    let seen = bulk(kernel).into_iter().find_map(|name| probes.iter().find(|probe| probe.target == name));
    let attach = seen.map(|probe| probe.kind.attach());
    let mut plan = EventPlan {
        event: Event::UserAccess,
        attach,
        probes: Vec::new(),
        passed_over: reasons(attach, why_no_kprobe, why_no_breakpoint),
        not_seen: Vec::new(),
    };
    if attach.is_some() {
        let by_loop = seen.is_some_and(|probe| !probe.target.starts_with("_copy_"));
        let unseen = |name: &&str| !(has(&probes, name) || by_loop && CARRIED.contains(name));
        let unseen: Vec<&str> = all().map(|(_, name)| name).filter(unseen).collect();
        plan.not_seen.push(INLINED.to_owned());
        if !unseen.is_empty() {
            plan.not_seen.push(format!("{CLOSED}: {}", unseen.join(", ")));
        }
        plan.probes = probes;
    }
    plan
}

fn reasons(attach: Option<Attach>, kprobe: Option<String>, breakpoint: Option<String>) -> Vec<PassedOver> {
    let mut out = Vec::new();
    let mut pass = |over, why: String| out.push(PassedOver { attach: over, why });
    if attach != Some(Attach::Kprobe) {
        pass(Attach::Kprobe, kprobe.unwrap_or_else(|| "there is no function that carries copies".to_owned()));
    }
    if attach != Some(Attach::Breakpoint) {
        pass(Attach::Breakpoint, breakpoint.unwrap_or_else(|| "kprobe is better here".to_owned()));
    }
    pass(Attach::Fentry, "kernels build lib/ and their assembly without ftrace, which fentry needs".to_owned());
    pass(Attach::Tracepoint, "there are no tracepoints in user accesses".to_owned());
    out
}

/// What the entries of functions cannot show.
const INLINED: &str = "user accesses without a function of their own: unsafe_get_user(), unsafe_put_user() and what \
     else stands between user_access_begin() and user_access_end(), the futex operations, and copies put in line on \
     processors with fast short `rep movs` and `rep stos`; they are seen when they fault";
/// Why a function has no probe.
const CLOSED: &str = "user accesses that do not fault, by these functions: the kernel takes no kprobe in what was built \
     without ftrace, and the processor has only four breakpoints";
