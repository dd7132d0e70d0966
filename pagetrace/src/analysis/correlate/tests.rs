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
}

const OWN: u64 = 0xa000;
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

#[test]
fn the_same_stacks_of_the_same_task_are_one_finding() {
    let mut correlator = Correlator::default();
    let mut record = violation(&[lock(OWN, held::READ)]);
    for ts in [150, 160, 170] {
        record.header.ts = ts;
        correlator.take(&Record::Violation(Box::new(record)), &Fake);
    }
    record.header.tid = 12;
    correlator.take(&Record::Violation(Box::new(record)), &Fake);
    let [first, second] = correlator.findings() else { panic!("two findings") };
    assert_eq!((first.count, first.seen, second.count), (3, (150, 170), 1));
}

#[test]
fn a_vma_goes_to_the_violation_it_belongs_to() {
    let (mut correlator, _) = take(violation(&[lock(OWN, held::READ)]));
    let mut vma = Vma { header: Header { task: 1, ..Header::default() }, address: 0x9999, ..Vma::default() };
    correlator.take(&Record::Vma(vma), &Fake);
    assert_eq!(correlator.findings()[0].access.vma, None, "another address");
    vma.address = 0x7000;
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
    assert_eq!(correlator.findings()[0].access.write, None);
}
