//! Tests of the correlation: each severity, each way to be wrong.

use pagetrace_ebpf::wire::{Header, kind};

use super::*;

struct Fake;

impl Stacks for Fake {
    fn stack(&self, id: i32) -> Option<Vec<u64>> {
        (id >= 0).then(|| vec![0x1000 + u64::try_from(id).unwrap()])
    }
    fn is_fault_entry(&self, address: u64) -> bool {
        address == 0xfa17
    }
    fn is_user_access(&self, address: u64) -> bool {
        (ENTRY..ENTRY + 0x200).contains(&address)
    }
    fn function(&self, address: u64) -> Option<u64> {
        // Functions of 256 bytes; nothing is known of what lies high.
        (address < 0xffff_0000).then_some(address & !0xff)
    }
    fn is_function(&self, address: u64, names: &[&str]) -> bool {
        address == 0x1000 + u64::try_from(IN_TIMER).unwrap() && names.contains(&"hrtimer_interrupt")
    }
}

/// The stack of a lock that a timer took.
const IN_TIMER: i32 = 0x77;

const OWN: u64 = 0xa000;
/// Two functions that access user memory, one behind the other.
const ENTRY: u64 = 0xe000;
const OTHER: u64 = 0xb000;

fn lock(mm: u64, flags: u32) -> Held {
    Held { owner: MmOwner { mm, tgid: 7, ..MmOwner::default() }, since: 100, flags, stack_id: 3, ..Held::default() }
}

fn violation(held: &[Held]) -> Violation {
    let mut record = Violation {
        header: Header { kind: kind::VIOLATION, ts: 150, task: 1, tid: 11, tgid: 10, ..Header::default() },
        mm: MmOwner { mm: OWN, tgid: 10, ..MmOwner::default() },
        address: 0x7000,
        flags: violation::PROVEN,
        held_len: u32::try_from(held.len()).unwrap(),
        stack_len: 16,
        ..Violation::default()
    };
    record.held[..held.len()].copy_from_slice(held);
    record.stack[..2].copy_from_slice(&[0x51, 0x52]);
    record
}

fn take(record: Violation) -> (Correlator, Outcome) {
    let mut correlator = Correlator::default();
    let outcome = correlator.take(&Record::Violation(Box::new(record)), &Fake);
    (correlator, outcome)
}

#[test]
fn severity_is_the_worst_over_the_locks_held() {
    for (held, expected) in [
        (vec![lock(OWN, held::WRITE)], Severity::Deadlock),
        (vec![lock(OWN, held::READ)], Severity::RecursiveRead),
        (vec![lock(OTHER, held::WRITE)], Severity::CrossMm),
        (vec![lock(OTHER, held::READ), lock(OWN, held::READ)], Severity::RecursiveRead),
        (vec![lock(OWN, held::WRITE), lock(OTHER, held::READ)], Severity::Deadlock),
    ] {
        let (correlator, outcome) = take(violation(&held));
        assert_eq!(outcome, Outcome::New(0));
        assert_eq!(correlator.findings()[0].severity, expected, "{held:?}");
    }
}

#[test]
fn what_an_interrupt_took_is_not_the_tasks() {
    let taken = |mm, mode| Held { stack_id: IN_TIMER, ..lock(mm, mode | held::TRY) };
    for alone in [vec![taken(OWN, held::READ)], vec![taken(OTHER, held::READ), taken(OWN, held::WRITE)]] {
        let (correlator, outcome) = take(violation(&alone));
        assert_eq!((outcome, correlator.disproved, correlator.uncertain), (Outcome::None, 1, 0));
    }
    // What the task holds itself counts, and nothing else.
    let (correlator, outcome) = take(violation(&[taken(OWN, held::WRITE), lock(OTHER, held::READ)]));
    assert_eq!(outcome, Outcome::New(0));
    let finding = &correlator.findings()[0];
    assert_eq!((finding.severity, finding.locks.len()), (Severity::CrossMm, 1));
    // What is not known of the rest is told.
    let (correlator, outcome) = take(violation(&[taken(OWN, held::READ), lock(OTHER, held::READ | held::UNSURE)]));
    assert_eq!((outcome, correlator.disproved, correlator.uncertain), (Outcome::None, 0, 1));
    let mut more = violation(&[taken(OWN, held::READ)]);
    more.flags |= violation::MORE_HELD;
    assert_eq!(take(more).1, Outcome::New(0));
    more.flags |= violation::MORE_UNSURE;
    assert_eq!(take(more).0.uncertain, 1);
}

#[test]
fn an_exception_is_believed_only_when_the_stack_shows_the_handler() {
    let mut record = violation(&[lock(OWN, held::READ)]);
    record.flags = violation::NEEDS_STACK;
    let (correlator, outcome) = take(record);
    assert_eq!((outcome, correlator.disproved, correlator.uncertain), (Outcome::None, 1, 0));
    record.stack[1] = 0xfa17;
    assert_eq!(take(record).1, Outcome::New(0));
    record.stack_len = -14;
    let (correlator, outcome) = take(record);
    assert_eq!((outcome, correlator.uncertain), (Outcome::None, 1));
}

#[test]
fn a_lock_that_may_have_been_given_away_accuses_nobody() {
    let (correlator, outcome) = take(violation(&[lock(OWN, held::READ | held::GIVEN_AWAY)]));
    assert_eq!((outcome, correlator.uncertain), (Outcome::None, 1));
    let mixed = [lock(OWN, held::WRITE | held::UNSURE), lock(OTHER, held::READ)];
    let (correlator, _) = take(violation(&mixed));
    assert_eq!(correlator.findings()[0].severity, Severity::CrossMm, "only the certain lock counts");
    assert_eq!(correlator.findings()[0].locks.len(), 1);
}

fn all(records: &[Violation]) -> Correlator {
    let mut correlator = Correlator::default();
    for record in records {
        correlator.take(&Record::Violation(Box::new(*record)), &Fake);
    }
    correlator
}

/// As [`violation`], by another task.
fn by(task: u64, held: &[Held]) -> Violation {
    let mut record = violation(held);
    record.header.task = task;
    record.header.tid = u32::try_from(task).unwrap();
    record.header.tgid = record.header.tid;
    record
}

#[test]
fn the_same_pair_of_stacks_is_one_finding_whoever_does_it() {
    let mut records: Vec<Violation> = (100..1100).map(|task| by(task, &[lock(OWN, held::READ)])).collect();
    for (record, ts) in records.iter_mut().zip(1000..) {
        record.header.ts = ts;
    }
    records.push(records[5]);
    let correlator = all(&records);
    let [finding] = correlator.findings() else { panic!("{} findings", correlator.findings().len()) };
    assert_eq!((finding.count, finding.tasks, finding.seen), (1001, 1000, (1000, 1999)));
    assert_eq!(finding.task.tid, 100, "the first of those that are equally bad is shown");
}

#[test]
fn an_id_used_again_is_another_task() {
    let mut records = [by(100, &[lock(OWN, held::READ)]); 3];
    records[1].header.task = 7;
    records[2].header.tid = 8;
    assert_eq!(all(&records).findings()[0].tasks, 3);
}

#[test]
fn where_in_a_function_does_not_tell_findings_apart_but_the_function_does() {
    let held = [lock(OWN, held::READ)];
    let (mut inner, mut caller) = (violation(&held), violation(&held));
    inner.stack[1] = 0x99;
    caller.stack[1] = 0x152;
    let correlator = all(&[violation(&held), inner]);
    assert_eq!((correlator.findings().len(), correlator.findings()[0].count), (1, 2));
    assert_eq!(all(&[violation(&held), caller]).findings().len(), 2, "another function on the access stack");

    let mut elsewhere = violation(&held);
    elsewhere.ip = 0x1234;
    assert_eq!(all(&[violation(&held), elsewhere]).findings().len(), 2, "another function's instruction");

    let (mut same_function, mut other_function) = (held, held);
    same_function[0].stack_id = 9;
    other_function[0].stack_id = 0x100;
    assert_eq!(all(&[violation(&held), violation(&same_function)]).findings().len(), 1);
    assert_eq!(all(&[violation(&held), violation(&other_function)]).findings().len(), 2, "locked by another function");

    let mut unknown = [violation(&held), violation(&held)];
    unknown[0].stack[1] = 0xffff_0010;
    unknown[1].stack[1] = 0xffff_0020;
    assert_eq!(all(&unknown).findings().len(), 2, "addresses in no known function stand for themselves");
}

#[test]
fn a_finding_shows_its_worst_sighting() {
    let mut queued = lock(OWN, held::READ);
    queued.count = RWSEM_WAITERS;
    let records = [
        by(1, &[lock(OTHER, held::READ)]),
        by(2, &[lock(OWN, held::READ)]),
        by(3, &[queued]),
        by(4, &[lock(OWN, held::READ)]),
        by(5, &[lock(OTHER, held::WRITE)]),
    ];
    let mut correlator = Correlator::default();
    let outcomes: Vec<Outcome> =
        records.iter().map(|record| correlator.take(&Record::Violation(Box::new(*record)), &Fake)).collect();
    let expected = [Outcome::New(0), Outcome::Worse(0), Outcome::Worse(0), Outcome::Again(0), Outcome::Again(0)];
    assert_eq!(outcomes, expected);
    let finding = &correlator.findings()[0];
    assert_eq!((finding.severity, finding.count, finding.tasks), (Severity::RecursiveRead, 5, 5));
    assert_eq!((finding.task.tid, finding.locks[0].writer_queued), (3, Some(true)));
    assert_eq!(finding.locks[0].mm.address, OWN, "task, locks and access are of one sighting");
}

#[test]
fn who_is_stuck_is_told_of_the_finding_it_got_stuck_in() {
    let mut other = by(2, &[lock(OWN, held::READ)]);
    other.stack[1] = 0x152;
    let mut correlator = all(&[by(1, &[lock(OWN, held::READ)]), by(2, &[lock(OWN, held::READ)]), other]);
    correlator.mark_hung(1, 1);
    correlator.mark_hung(1, 1);
    correlator.mark_hung(3, 2);
    let stuck: Vec<&[u32]> = correlator.findings().iter().map(|finding| finding.stuck.as_slice()).collect();
    assert_eq!(stuck, [&[1][..], &[]], "once, and only that process's thread");
    correlator.mark_hung(2, 2);
    assert_eq!(correlator.findings()[1].stuck, [2], "the last violation is the one that hangs");
}

#[test]
fn a_vma_of_a_task_that_is_not_shown_is_not_shown() {
    let mut correlator = all(&[by(1, &[lock(OWN, held::READ)]), by(2, &[lock(OWN, held::READ)])]);
    let vma = |task: u64| {
        let header = by(task, &[]).header;
        Record::Vma(Vma { header, address: 0x7000, start: 0x6000 + task, end: 0x8000, ..Vma::default() })
    };
    correlator.take(&vma(2), &Fake);
    assert_eq!(correlator.findings()[0].access.vma, None);
    correlator.take(&vma(1), &Fake);
    assert_eq!(correlator.findings()[0].access.vma.as_ref().map(|vma| vma.start), Some(0x6001));
}

#[test]
fn a_vma_goes_to_the_violation_it_belongs_to() {
    let (mut correlator, _) = take(violation(&[lock(OWN, held::READ)]));
    let header = Header { task: 1, tid: 11, tgid: 10, ..Header::default() };
    let mut vma = Vma { header, address: 0x9999, start: 0x7000, end: 0xa000, ..Vma::default() };
    correlator.take(&Record::Vma(vma), &Fake);
    assert_eq!(correlator.findings()[0].access.vma, None, "another address");
    vma.address = 0x7000;
    for (start, end) in [(0x7001, 0x8000), (0x6000, 0x7000), (0x8000, 0x6000)] {
        correlator.take(&Record::Vma(Vma { start, end, ..vma }), &Fake);
        assert_eq!(correlator.findings()[0].access.vma, None, "it lies elsewhere");
    }
    vma.vm_flags = 3;
    vma.inode = 5;
    vma.name[..3].copy_from_slice(b"lib");
    correlator.take(&Record::Vma(vma), &Fake);
    let info = correlator.findings()[0].access.vma.clone().unwrap();
    assert_eq!((info.perms.as_str(), info.file.as_deref()), ("rw-p", Some("lib")));
}

#[test]
fn what_is_known_of_a_lock_is_told() {
    let mut held = lock(OWN, held::READ | held::TRY | held::DOWNGRADED);
    held.count = RWSEM_WAITERS | 1 << 8;
    let (correlator, _) = take(violation(&[held]));
    let lock = &correlator.findings()[0].locks[0];
    assert_eq!((lock.held_ns, lock.writer_queued, lock.trylock, lock.downgraded), (50, Some(true), true, true));
    assert_eq!(lock.stack, [0x1003]);
    assert!(!lock.at_most);
    assert_eq!(correlator.findings()[0].access.write, None);
}

#[test]
fn a_hold_known_to_the_tick_was_held_for_that_long_at_most() {
    let (correlator, _) = take(violation(&[lock(OWN, held::READ | held::DATED_EARLY)]));
    let lock = &correlator.findings()[0].locks[0];
    assert_eq!((lock.held_ns, lock.at_most), (50, true));
}

/// An access seen at the entry of `ENTRY`, called from 0x900.
fn latent(at: u64) -> Violation {
    let mut record = violation(&[lock(OWN, held::READ)]);
    record.flags = violation::LATENT | violation::ERROR_KNOWN;
    record.ip = at;
    record.stack = [0; 64];
    record.stack[..3].copy_from_slice(&[at, 0x900, 0x800]);
    record.stack_len = 24;
    record
}

/// The same access, faulting in the inner function.
fn faulting() -> Violation {
    let mut record = violation(&[lock(OWN, held::READ)]);
    record.ip = ENTRY + 0x130;
    record.stack[..6].copy_from_slice(&[0x51, 0xfa17, ENTRY + 0x130, ENTRY + 0x20, 0x900, 0x800]);
    record.stack_len = 48;
    record
}

fn each(records: Vec<Violation>) -> (Correlator, Vec<Outcome>) {
    let mut correlator = Correlator::default();
    let take = |record| correlator.take(&Record::Violation(Box::new(record)), &Fake);
    let outcomes = records.into_iter().map(take).collect();
    (correlator, outcomes)
}

#[test]
fn an_access_that_did_not_fault_is_latent_and_one_finding_however_many_functions_it_passes_through() {
    let mut inner = latent(ENTRY + 0x101);
    inner.stack[..4].copy_from_slice(&[ENTRY + 0x101, ENTRY + 0x20, 0x900, 0x800]);
    inner.stack_len = 32;
    let (correlator, outcomes) = each(vec![latent(ENTRY + 1), inner, latent(ENTRY + 1), inner]);
    assert_eq!(outcomes, [Outcome::New(0), Outcome::Again(0), Outcome::Again(0), Outcome::Again(0)]);
    let [finding] = correlator.findings() else { panic!("one finding") };
    assert_eq!((finding.class, finding.severity, finding.count), (Class::UaccessUnderLock, Severity::Latent, 2));
    assert_eq!(finding.access.write, Some(false));
}

#[test]
fn a_fault_of_the_same_access_takes_the_latent_finding_over_and_keeps_it() {
    let (correlator, outcomes) = each(vec![latent(ENTRY + 1), faulting(), latent(ENTRY + 1), faulting()]);
    assert_eq!(outcomes, [Outcome::New(0), Outcome::Worse(0), Outcome::Again(0), Outcome::Again(0)]);
    let [finding] = correlator.findings() else { panic!("one finding") };
    assert_eq!((finding.class, finding.severity, finding.count), (Class::FaultUnderLock, Severity::RecursiveRead, 2));
    let (correlator, _) = each(vec![faulting(), latent(ENTRY + 1)]);
    assert_eq!(correlator.findings().len(), 1, "whichever comes first");
    let mut elsewhere = latent(ENTRY + 1);
    elsewhere.stack[1] = 0x700;
    let (correlator, _) = each(vec![faulting(), elsewhere]);
    assert_eq!(correlator.findings().len(), 2, "another caller is another finding");
}

#[test]
fn what_the_kernel_only_counted_is_added_once() {
    let (mut correlator, _) = each(vec![violation(&[lock(OWN, held::READ)])]);
    let repeat = |count, last| Repeat { task: 1, first: 150, count, last };
    correlator.again(&repeat(5, 400));
    correlator.again(&repeat(5, 400));
    correlator.again(&repeat(7, 500));
    correlator.again(&Repeat { task: 2, ..repeat(9, 600) });
    let finding = &correlator.findings()[0];
    assert_eq!((finding.count, finding.seen), (8, (150, 500)));
    let (mut correlator, _) = each(vec![violation(&[lock(OWN, held::READ | held::GIVEN_AWAY)])]);
    correlator.again(&repeat(3, 400));
    assert_eq!(correlator.uncertain, 4, "each of them is as uncertain as the first");
    let (mut correlator, _) = each(vec![latent(ENTRY + 1), faulting()]);
    correlator.again(&repeat(3, 400));
    assert_eq!(correlator.findings()[0].class, Class::FaultUnderLock);
}
