//! What is chosen on which kernel: default choices, forced ones, refusals, what is said to stay unseen, attach order.

mod kernels;

use kernels::{Fake, LOCKDEP, PLAIN, v5_10, v6_1, v6_12, v6_18, v7_3};

use super::*;

fn wish(force: Option<Attach>) -> Wish {
    Wish { force, ..Wish::default() }
}

fn of(kernel: &Fake, wish: &Wish) -> Plan {
    plan(kernel, wish).expect("there is a plan")
}

fn chosen(kernel: &Fake, wish: &Wish) -> Vec<(Event, Option<Attach>)> {
    of(kernel, wish).events.iter().map(|event| (event.event, event.attach)).collect()
}

fn event(plan: &Plan, event: Event) -> &EventPlan {
    plan.event(event).expect("the event is planned")
}

/// Why `attach` was not used for `of`.
fn why(plan: &Plan, of: Event, attach: Attach) -> &str {
    let passed = event(plan, of).passed_over.iter().find(|passed| passed.attach == attach);
    &passed.expect("it was passed over").why
}

fn targets<'a>(plan: &'a Plan, of: Event, program: &str) -> Vec<&'a str> {
    let probes = event(plan, of).probes.iter().filter(|probe| probe.program == program);
    probes.map(|probe| probe.target.as_str()).collect()
}

fn programs(plan: &Plan, of: Event) -> Vec<&str> {
    event(plan, of).probes.iter().map(|probe| probe.program.as_str()).collect()
}

const TASKS: (Event, Option<Attach>) = (Event::TaskLife, Some(Attach::Tracepoint));
const MODULES: (Event, Option<Attach>) = (Event::ModuleUnload, Some(Attach::Tracepoint));
const KIND: (Event, Option<Attach>) = (Event::FaultKind, Some(Attach::Tracepoint));

#[test]
fn a_stock_kernel_gets_the_best_way_it_has() {
    let by = |attach| {
        [
            (Event::MmapLock, Some(attach)),
            (Event::KernelFault, Some(attach)),
            KIND,
            (Event::FaultVma, Some(attach)),
            TASKS,
            MODULES,
        ]
    };
    assert_eq!(chosen(&v6_1(), &wish(None)), by(Attach::Fentry), "6.1");
    assert_eq!(chosen(&v6_12(), &wish(None)), by(Attach::Fentry), "6.12");
    assert_eq!(chosen(&v6_18(), &wish(None)), by(Attach::Fentry), "6.18");
    assert_eq!(chosen(&v7_3(), &wish(None)), by(Attach::Kprobe), "7.3 preempts programs");
    let mut old = by(Attach::Kprobe);
    old[1].1 = Some(Attach::Tracepoint);
    assert_eq!(chosen(&v5_10(), &wish(None)), old, "5.10 has no handler lock path");
}

#[test]
fn without_the_handlers_lock_path_the_lock_confirms_and_the_handler_tells_the_vma() {
    let old = of(&v5_10(), &wish(None));
    assert!(old.confirms_by_lock() && !old.vma_by_return());
    assert_eq!(programs(&old, Event::FaultVma), ["kp_handle_mm_fault"]);
    assert_eq!(why(&old, Event::KernelFault, Attach::Kprobe), "this kernel has no function lock_mm_and_find_vma");
    assert_eq!(why(&old, Event::MmapLock, Attach::Fentry), "kprobe is better here");
    assert_eq!(why(&old, Event::MmapLock, Attach::Tracepoint), "this kernel has no tracepoint mmap_lock_released");
    let new = of(&v6_1(), &wish(None));
    assert!(!new.confirms_by_lock() && new.vma_by_return());
    assert_eq!(programs(&new, Event::FaultVma), ["fx_lock_mm_and_find_vma"]);
}

#[test]
fn a_kernel_without_kprobes_works_by_the_rest() {
    let kernel = Fake { kprobes: false, ..v7_3() };
    let plan = of(&kernel, &wish(None));
    assert_eq!(event(&plan, Event::MmapLock).attach, Some(Attach::Fentry));
    assert_eq!(why(&plan, Event::MmapLock, Attach::Kprobe), "this kernel was built without kprobes");
    assert!(plan.not_seen().iter().any(|line| line.contains("recursion_misses")), "{:?}", plan.not_seen());
    // Nor fentry, which a policy refuses with EPERM.
    let refusal = Refusal {
        attach: Attach::Fentry,
        target: "down_read".to_owned(),
        why: "not permitted".to_owned(),
        whole_type: true,
    };
    let plan = of(&kernel, &Wish { refused: vec![refusal], ..Wish::default() });
    assert_eq!(event(&plan, Event::MmapLock).attach, Some(Attach::Tracepoint));
    assert_eq!(why(&plan, Event::MmapLock, Attach::Fentry), "the kernel refused down_read: not permitted");
    assert_eq!(programs(&plan, Event::MmapLock), ["tb_mmap_lock_released", "tb_mmap_lock_acquire_returned"]);
    assert!(plan.confirms_by_lock());
    assert_eq!(event(&plan, Event::FaultVma).attach, None);
    let lines = plan.not_seen();
    for part in ["around the mmap_lock wrappers", "the VMA that a faulting address lies in"] {
        assert!(lines.iter().any(|line| line.contains(part)), "{part}: {lines:?}");
    }
}

#[test]
fn a_kernel_without_tracepoints_in_the_wrappers_cannot_be_forced_to_them() {
    let kernel = v6_12().without_tracepoints("mmap_lock");
    assert_eq!(event(&of(&kernel, &wish(None)), Event::MmapLock).attach, Some(Attach::Fentry));
    let PlanError::Blind { event, reasons } = plan(&kernel, &wish(Some(Attach::Tracepoint))).expect_err("no such way");
    assert_eq!(event, Event::MmapLock);
    assert_eq!(reasons, "tracepoint: this kernel has no tracepoint mmap_lock_released");
}

#[test]
fn without_the_exception_tracepoints_reads_and_writes_are_not_told_apart() {
    let plan = of(&v6_12().without_tracepoints("page_fault"), &wish(None));
    assert_eq!(event(&plan, Event::FaultKind).attach, None);
    assert_eq!(plan.not_seen(), ["whether a faulting access was a read or a write"]);
}

#[test]
fn children_are_told_of_twice_where_a_program_can_be_skipped() {
    let second = |preempts, kprobes| {
        let mut fake = Fake { preempts, kprobes, ..v6_18().add(&["wake_up_new_task"]) };
        fake.tracepoints.insert("task_newtask", 2);
        let plan = of(&fake, &wish(None));
        event(&plan, Event::TaskLife).probes.get(3).map(|probe| probe.program.clone())
    };
    assert_eq!(second(true, true).as_deref(), Some("kp_wake_up_new_task"));
    assert_eq!(second(true, false).as_deref(), Some("tb_task_newtask"));
    assert_eq!(second(false, true), None);
    let plan = of(&Fake { preempts: true, ..v6_12() }, &wish(None));
    assert_eq!(event(&plan, Event::TaskLife).probes.len(), 3, "a kernel that has neither");
}

#[test]
fn without_the_end_of_modules_there_is_a_plan_that_says_so() {
    let plan = of(&v6_12().add(&["find_module"]).without_tracepoints("module"), &wish(None));
    assert_eq!(event(&plan, Event::ModuleUnload).attach, None);
    assert_eq!(plan.not_seen(), ["that a module is unloaded: what comes in its place may be taken for it"]);
}

#[test]
fn a_kernel_without_modules_loses_none() {
    let plan = of(&v6_12().without_tracepoints("module"), &wish(None));
    assert!(plan.event(Event::ModuleUnload).is_none());
    assert_eq!(plan.not_seen(), [] as [&str; 0]);
}

#[test]
fn without_task_life_there_is_no_plan() {
    let blind = plan(&v6_12().without_tracepoints("sched"), &wish(None)).expect_err("tasks' ends are needed");
    let PlanError::Blind { event, reasons } = blind;
    assert_eq!(event, Event::TaskLife);
    assert!(reasons.contains("tracepoint: this kernel has no tracepoint sched_process_fork"), "{reasons}");
}

#[test]
fn preemption_and_slow_trampolines_put_kprobes_first_and_the_plan_says_what_that_hides() {
    for kernel in [Fake { preempts: true, ..v6_12() }, Fake { own_ops: false, ..v6_12() }] {
        let plan = of(&kernel, &wish(None));
        assert_eq!(event(&plan, Event::MmapLock).attach, Some(Attach::Kprobe));
        assert_eq!(plan.not_seen().len(), 1, "{:?}", plan.not_seen());
        assert!(plan.not_seen()[0].contains("before 6.7 does not count it"));
    }
    assert!(of(&v6_12(), &wish(None)).not_seen().is_empty());
}

#[test]
fn what_is_asked_for_is_used_wherever_it_can_be() {
    for (force, lock) in [
        (Attach::Kprobe, "kp_down_read"),
        (Attach::Fentry, "fx_down_read"),
        (Attach::Tracepoint, "tb_mmap_lock_released"),
        (Attach::RawTracepoint, "tr_mmap_lock_released"),
    ] {
        for kernel in [v6_18(), v7_3()] {
            let plan = of(&kernel, &wish(Some(force)));
            assert_eq!(event(&plan, Event::MmapLock).attach, Some(force));
            assert_eq!(event(&plan, Event::KernelFault).attach, Some(force));
            assert!(programs(&plan, Event::MmapLock).contains(&lock), "{force:?}");
            let vma = matches!(force, Attach::Kprobe | Attach::Fentry).then_some(force);
            assert_eq!(event(&plan, Event::FaultVma).attach, vma, "no other type for what is not essential");
        }
    }
    let plan = of(&v6_18(), &wish(Some(Attach::Tracepoint)));
    assert_eq!(why(&plan, Event::FaultVma, Attach::Fentry), "another attach type was asked for");
    assert_eq!(why(&plan, Event::MmapLock, Attach::Fentry), "tracepoint is better here");
}

#[test]
fn the_cgroup_path_of_the_tracepoints_takes_other_programs() {
    for (kernel, suffix) in [(v6_1(), "_path"), (v6_12(), "_path"), (v6_18(), "")] {
        let plan = of(&kernel, &wish(Some(Attach::RawTracepoint)));
        let expected = [format!("tr_mmap_lock_released{suffix}"), format!("tr_mmap_lock_acquire_returned{suffix}")];
        assert_eq!(programs(&plan, Event::MmapLock), expected);
    }
}

#[test]
fn a_refused_function_closes_its_way() {
    let refusal = Refusal {
        attach: Attach::Fentry,
        target: "down_read_killable".to_owned(),
        why: "invalid argument".to_owned(),
        whole_type: false,
    };
    let plan = of(&v6_12(), &Wish { refused: vec![refusal], ..Wish::default() });
    assert_eq!(event(&plan, Event::MmapLock).attach, Some(Attach::Kprobe));
    assert_eq!(why(&plan, Event::MmapLock, Attach::Fentry), "the kernel refused down_read_killable: invalid argument");
    assert_eq!(event(&plan, Event::KernelFault).attach, Some(Attach::Fentry), "the other functions stay open");
}

#[test]
fn lockdep_functions_are_hooked_where_they_exist() {
    let plain = of(&v6_12(), &wish(Some(Attach::Kprobe)));
    assert!(event(&plain, Event::MmapLock).probes.iter().all(|probe| PLAIN.contains(&probe.target.as_str())));

    let kernel = v6_12().add(&LOCKDEP);
    let kprobes = of(&kernel, &wish(Some(Attach::Kprobe)));
    let at = |program| targets(&kprobes, Event::MmapLock, program);
    assert_eq!(at("kp_down_read"), ["down_read", "down_read_nested", "down_read_non_owner"]);
    assert_eq!(at("kp_down_write"), ["down_write", "down_write_nested", "_down_write_nest_lock"]);
    assert_eq!(at("kr_down_read_killable"), ["down_read_killable", "down_read_killable_nested"]);
    assert_eq!(at("kp_down_write_killable"), ["down_write_killable", "down_write_killable_nested"]);
    assert_eq!(at("kp_up_read"), ["up_read", "up_read_non_owner"]);

    let fentry = of(&kernel, &wish(None));
    assert_eq!(event(&fentry, Event::MmapLock).attach, Some(Attach::Fentry));
    for target in LOCKDEP {
        let hooked = event(&fentry, Event::MmapLock).probes.iter().filter(|probe| probe.target == target);
        assert_eq!(hooked.count(), 1, "{target}");
    }
    assert_eq!(targets(&fentry, Event::MmapLock, "fx_down_write_nest_lock"), ["_down_write_nest_lock"]);
}

#[test]
fn a_lockdep_function_without_types_closes_fentry_and_leaves_no_lock_unseen() {
    let mut kernel = v6_12().add(&LOCKDEP);
    kernel.btf.retain(|name| *name != "down_read_nested");
    let plan = of(&kernel, &wish(None));
    assert_eq!(event(&plan, Event::MmapLock).attach, Some(Attach::Kprobe));
    assert_eq!(why(&plan, Event::MmapLock, Attach::Fentry), "BTF describes no function down_read_nested");
    assert!(targets(&plan, Event::MmapLock, "kp_down_read").contains(&"down_read_nested"));
}

#[test]
fn a_trace_shows_waits_faults_and_the_walkers_there_are() {
    let trace = Wish { trace: true, ..Wish::default() };
    let plan = of(&v6_18(), &trace);
    assert!(programs(&plan, Event::MmapLock).contains(&"fe_down_read"));
    assert_eq!(programs(&plan, Event::PageFault), ["fe_handle_mm_fault", "fx_handle_mm_fault"]);
    assert_eq!(targets(&plan, Event::PageWalk, "fe_walk_page_range_mm"), ["walk_page_range_mm_unsafe"]);
    assert_eq!(targets(&plan, Event::PageWalk, "fx_walk_page_range_novma"), ["walk_page_range_debug"]);
    assert!(plan.not_seen().is_empty(), "{:?}", plan.not_seen());
    let old = of(&v5_10(), &trace).not_seen();
    let walkers = old.iter().find(|line| line.contains("walkers")).expect("5.10 lacks some");
    for missing in ["do_pagemap_scan", "walk_page_range_mm", "walk_page_range_vma"] {
        assert!(walkers.contains(missing), "{walkers}");
    }
}

#[test]
fn every_way_is_attached_so_that_nothing_seen_beginning_goes_on_unseen() {
    for kernel in [v5_10(), v6_1(), v6_18().add(&LOCKDEP), v7_3()] {
        for force in [None, Some(Attach::Kprobe), Some(Attach::Fentry), Some(Attach::RawTracepoint)] {
            for trace in [false, true] {
                let Ok(plan) = plan(&kernel, &Wish { force, trace, ..Wish::default() }) else { continue };
                in_order(&plan);
            }
        }
    }
}

/// Holds the order against the names of the targets, which the plan's own stages are not made from.
fn in_order(plan: &Plan) {
    let probes = plan.probes();
    let places = |wanted: &dyn Fn(&Probe) -> bool| -> Vec<usize> {
        (0..probes.len()).filter(|place| wanted(probes[*place])).collect()
    };
    let before = |first: &[usize], then: &[usize], what: &str| {
        if let (Some(last), Some(next)) = (first.iter().max(), then.iter().min()) {
            assert!(last < next, "{what}: {probes:?}");
        }
    };
    let tasks = places(&|probe| probe.target.starts_with("sched_"));
    let releases = places(&|probe| {
        probe.target.starts_with("up_") || matches!(probe.target.as_str(), "downgrade_write" | "mmap_lock_released")
    });
    let returns = places(&|probe| probe.kind == ProgramType::Kretprobe);
    let acquisitions = places(&|probe| {
        let takes = probe.target.trim_start_matches('_').starts_with("down_")
            || matches!(probe.target.as_str(), "mmap_lock_acquire_returned" | "mmap_lock_start_locking");
        takes && probe.kind != ProgramType::Kretprobe
    });
    let faults = places(&|probe| probe.target.starts_with("page_fault_"));
    assert!(!tasks.is_empty() && !releases.is_empty() && !acquisitions.is_empty());
    before(&tasks, &releases, "task life comes first");
    before(&releases, &acquisitions, "releases come before acquisitions");
    before(&returns, &acquisitions, "returns come before acquisitions");
    before(&acquisitions, &faults, "faults come last");
    for place in places(&|probe| matches!(probe.kind, ProgramType::Kretprobe | ProgramType::Fexit)) {
        let entry = places(&|probe| {
            probe.target == probes[place].target && matches!(probe.kind, ProgramType::Kprobe | ProgramType::Fentry)
        });
        let acquires = acquisitions.contains(&place);
        assert!(acquires || entry.iter().all(|entry| place < *entry), "a return comes before its entry: {probes:?}");
    }
    assert_eq!(
        places(&|_| true).len(),
        probes.iter().map(|probe| (&probe.program, &probe.target)).collect::<std::collections::HashSet<_>>().len()
    );
}

const COPIES: [&str; 8] = [
    "_copy_from_user",
    "_copy_to_user",
    "_copy_to_iter",
    "_copy_from_iter",
    "__get_user_4",
    "__put_user_4",
    "__get_user_8",
    "clear_user",
];

fn strict(force: Option<Attach>) -> Wish {
    Wish { force, strict: true, ..Wish::default() }
}

/// What has which kind of probe, in the order of attaching.
fn watched(plan: &Plan, kind: ProgramType) -> Vec<&str> {
    let event = plan.event(Event::UserAccess).unwrap();
    event.probes.iter().filter(|probe| probe.kind == kind).map(|probe| probe.target.as_str()).collect()
}

/// The kernel takes no kprobe in what was built without ftrace.
fn no_kprobe_in(names: &[&str]) -> Wish {
    let refuse = |name: &&str| Refusal {
        attach: Attach::Kprobe,
        target: (*name).to_owned(),
        why: "invalid".to_owned(),
        whole_type: false,
    };
    Wish { refused: names.iter().map(refuse).collect(), ..strict(None) }
}

#[test]
fn strict_puts_a_kprobe_on_every_copy_that_takes_one_whatever_shows_the_locks() {
    let kernel = v6_12().add(&COPIES);
    for force in [None, Some(Attach::Fentry), Some(Attach::Tracepoint)] {
        let plan = of(&kernel, &strict(force));
        let mut targets = watched(&plan, ProgramType::Kprobe);
        targets.sort_unstable();
        let mut all = COPIES;
        all.sort_unstable();
        assert_eq!(targets, all);
        assert_eq!(plan.event(Event::UserAccess).unwrap().attach, Some(Attach::Kprobe));
        assert!(plan.probes().iter().take(COPIES.len()).all(|probe| probe.stage == Stage::UserAccess));
        assert!(plan.not_seen().iter().any(|sentence| sentence.contains("unsafe_get_user")));
    }
    assert!(of(&kernel, &wish(None)).event(Event::UserAccess).is_none());
}

#[test]
fn breakpoints_go_to_the_loop_that_carries_all_copies_before_anything_else() {
    let refused = no_kprobe_in(&COPIES[..7]);
    let (old, new) = ("copy_user_enhanced_fast_string", "rep_movs_alternative");
    for (name, cpu, expected) in [
        (old, "erms", vec![old, "__get_user_4", "__put_user_4", "__get_user_8"]),
        (new, "erms", vec![new, "__get_user_4", "__put_user_4", "__get_user_8"]),
        (new, "erms fsrm", vec!["_copy_from_user", "_copy_to_user", "_copy_to_iter", "_copy_from_iter"]),
        (old, "", vec!["_copy_from_user", "_copy_to_user", "_copy_to_iter", "_copy_from_iter"]),
    ] {
        let kernel = Fake { cpu, ..v6_12().add(&COPIES).add(&[name]) };
        let mut refused = refused.clone();
        refused.refused.extend(no_kprobe_in(&[name]).refused);
        let plan = of(&kernel, &refused);
        assert_eq!(watched(&plan, ProgramType::Breakpoint), expected, "{name} {cpu}");
        assert_eq!(watched(&plan, ProgramType::Kprobe), ["clear_user"]);
        assert_eq!(plan.event(Event::UserAccess).unwrap().attach, Some(Attach::Breakpoint));
        let closed =
            plan.not_seen().into_iter().find(|sentence| sentence.contains("four breakpoints")).unwrap_or_default();
        // What a watched loop carries is seen, by whatever function it comes.
        let by_loop = !expected[0].starts_with("_copy_");
        for name in COPIES.iter().filter(|name| !expected.contains(name) && **name != "clear_user") {
            assert_eq!(closed.contains(name), !(by_loop && name.starts_with("_copy_")), "{name}: {closed}");
        }
    }
}

#[test]
fn a_kernel_that_takes_neither_cannot_be_checked_strictly_and_that_is_said() {
    let kernel = v6_12().add(&COPIES);
    let mut closed = no_kprobe_in(&COPIES);
    closed.refused.push(Refusal {
        attach: Attach::Breakpoint,
        target: "_copy_from_user".to_owned(),
        why: "no debug registers".to_owned(),
        whole_type: true,
    });
    let without = Fake { kprobes: false, ..kernel.clone() };
    for (kernel, wish, reason) in
        [(&kernel, &closed, "no debug registers"), (&without, &strict(None), "built without kprobes")]
    {
        let PlanError::Blind { event, reasons } = plan(kernel, wish).unwrap_err();
        assert_eq!(event, Event::UserAccess);
        assert!(reasons.contains(reason), "{reasons}");
        assert!(plan(kernel, &Wish::default()).is_ok(), "only the strict check needs it");
    }
    let forbidden = Fake { forbidden: COPIES.into(), ..v6_12().add(&COPIES) };
    assert_eq!(watched(&of(&forbidden, &strict(None)), ProgramType::Kprobe), Vec::<&str>::new());
}
