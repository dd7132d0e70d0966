//! Random schedules: what the model derives from events against what really was held.

#[path = "world.rs"]
mod world;

use std::collections::BTreeSet;

use pagetrace_ebpf::wire::{
    fault::Violation,
    lock::held,
    stream::{self, Brief, Handler, Lock, life, op, seen},
};
use world::{Dice, World};

use super::*;
use crate::analysis::CrossCheck;

fn derive(rules: Rules, records: &[Record]) -> Vec<Derived> {
    let mut model = Model::new(rules);
    let mut out: Vec<Derived> = records.iter().filter_map(|record| model.take(record)).collect();
    out.extend(model.finish());
    out
}

fn held_of(derived: &Derived) -> BTreeSet<(u64, bool)> {
    derived.held.iter().map(|(mm, mode)| (*mm, *mode == LockMode::Write)).collect()
}

/// Plays one schedule, and says what is wrong with what was derived of it; how many violations it has, and how many of those
/// by tasks with more locks than are told apart.
fn check(seed: u64) -> Result<(u64, u64), String> {
    let world = World::new(seed).play();
    let derived = derive(world.rules(), &world.records);
    let excused = |task: u64, address: u64| world.excused.contains(&(task, address));
    for truth in &world.truths {
        if excused(truth.task, truth.address) {
            continue;
        }
        let found = derived.iter().find(|found| (found.task, found.address) == (truth.task, truth.address));
        match found {
            Some(found) if held_of(found) == truth.held && found.certain => {}
            Some(_) if truth.piled => {}
            // Which of its locks a task with that many releases is not known: it may be taken for another's.
            Some(found) if held_of(found) == truth.held && world.ever_piled => {}
            other => return Err(format!("schedule {seed}: {truth:x?} was derived as {other:x?}")),
        }
    }
    for found in &derived {
        let known = world.truths.iter().any(|truth| (truth.task, truth.address) == (found.task, found.address));
        if !known && found.certain && !excused(found.task, found.address) {
            return Err(format!("schedule {seed}: nothing was held, but derived was {found:x?}"));
        }
    }
    Ok((world.truths.len() as u64, world.truths.iter().filter(|truth| truth.piled).count() as u64))
}

/// How many schedules: many, or as many as somebody has time for.
fn schedules() -> u64 {
    std::env::var("PAGETRACE_SCHEDULES").ok().and_then(|text| text.replace('_', "").parse().ok()).unwrap_or(20_000)
}

#[test]
fn what_is_derived_is_what_was_held() {
    let (mut violations, mut piled) = (0, 0);
    for seed in 0..schedules() {
        let of = check(seed).unwrap_or_else(|why| panic!("{why}"));
        (violations, piled) = (violations + of.0, piled + of.1);
    }
    assert!(
        violations > schedules() / 10 && piled > schedules() / 100,
        "the schedules hardly violate anything: {violations}"
    );
}

#[test]
fn lost_events_never_panic_and_never_grow() {
    for seed in 0..2_000 {
        let world = World::new(seed).play();
        let mut dice = Dice(!seed);
        let left: Vec<Record> = world.records.iter().filter(|_| !dice.one_in(5)).cloned().collect();
        let mut model = Model::new(world.rules());
        for record in &left {
            let _ = model.take(record);
        }
        assert!(model.tasks.values().all(|task| task.holds.len() <= MAX_HELD));
    }
}

fn violation_of(truth: &Derived) -> Record {
    let mut record = Violation { address: truth.address, ..Violation::default() };
    record.header.task = truth.task;
    record.header.tgid = 7;
    for (slot, (mm, mode)) in record.held.iter_mut().zip(&truth.held) {
        slot.owner.mm = *mm;
        slot.flags = if *mode == LockMode::Write { held::WRITE } else { held::READ };
        record.held_len += 1;
    }
    Record::Violation(Box::new(record))
}

/// The records with a violation where the kernel side would emit it: behind the words that settle it.
fn with_violations(records: &[Record], rules: Rules, mut change: impl FnMut(&mut Derived) -> bool) -> Vec<Record> {
    let derived = derive(rules, records);
    let mut out = Vec::new();
    for (at, record) in records.iter().enumerate() {
        out.push(record.clone());
        let Record::Words(words) = record else { continue };
        if matches!(records.get(at + 1), Some(Record::Words(_))) {
            continue;
        }
        if let Some(found) = derived.iter().find(|found| (found.task, found.ts) == (words.brief.task, words.brief.ts)) {
            let mut found = found.clone();
            if change(&mut found) {
                out.push(violation_of(&found));
            }
        }
    }
    out
}

fn compared(records: &[Record], rules: Rules) -> CrossCheck {
    let mut check = CrossCheck::new(rules, 1);
    records.iter().for_each(|record| check.take(record));
    check.finish();
    check
}

#[test]
fn two_that_tell_the_same_agree_and_every_difference_is_told() {
    let mut different = 0;
    for seed in 0..500 {
        let world = World::new(seed).play();
        let rules = world.rules();
        let same = compared(&with_violations(&world.records, rules, |_| true), rules);
        assert_eq!((same.disagreed, same.gate), (0, same.derived), "schedule {seed}: {:?}", same.described);
        if same.gate == 0 {
            continue;
        }
        different += 1;
        let mut first = true;
        let silent = compared(&with_violations(&world.records, rules, |_| !std::mem::take(&mut first)), rules);
        assert_eq!((silent.disagreed, silent.agreed), (1, same.agreed - 1), "schedule {seed}: a violation withheld");
        let other = compared(
            &with_violations(&world.records, rules, |found| {
                found.held = vec![(0xdead, LockMode::Read)];
                true
            }),
            rules,
        );
        assert_eq!((other.disagreed, other.agreed), (same.agreed, 0), "schedule {seed}: another lock");
        assert!(other.described[0].text().contains("0xdead for read"));
    }
    assert!(different > 100, "{different}");
}

#[test]
fn locks_there_is_no_room_for_are_counted_until_released() {
    let mut model = Model::new(Rules::default());
    let event = |op, mm, flags| Record::Lock(Lock { mm, op, flags, ..Lock::default() });
    let held = MAX_HELD as u64 + 3;
    (1..=held).for_each(|mm| drop(model.take(&event(op::ACQUIRED, mm, held::READ))));
    model.take(&Record::Handler(Handler { mm: 99, address: 0x7000, flags: seen::WANTED, ..Handler::default() }));
    let found = model.take(&event(op::RELEASE, held, held::READ)).expect("a violation");
    assert_eq!((found.held.len(), found.certain), (MAX_HELD, true));
    (1..held).rev().for_each(|mm| drop(model.take(&event(op::RELEASE, mm, held::READ))));
    model.take(&Record::Handler(Handler { mm: 99, address: 0x8000, flags: seen::WANTED, ..Handler::default() }));
    assert_eq!(model.finish(), [], "all were released");
}

#[test]
fn of_holds_of_one_lock_those_without_room_end_first() {
    let mut model = Model::new(Rules::default());
    let mut event = |op| drop(model.take(&Record::Lock(Lock { mm: 7, op, flags: held::READ, ..Lock::default() })));
    (0..MAX_HELD + 4).for_each(|_| event(op::ACQUIRED));
    (0..MAX_HELD + 3).for_each(|_| event(op::RELEASE));
    model.take(&Record::Handler(Handler { mm: 9, flags: seen::WANTED, ..Handler::default() }));
    let found = model.finish();
    assert_eq!(found.iter().map(|found| found.held.len()).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_missed_return_is_made_up_for_or_leaves_the_lock_unsure() {
    for (settled, found) in [(op::SETTLED, Some(true)), (op::UNSETTLED, Some(false)), (op::RETURNED_FAIL, None)] {
        let mut model = Model::new(Rules::default());
        for op in [op::ATTEMPT, settled] {
            model.take(&Record::Lock(Lock { mm: 7, op, flags: held::READ, ..Lock::default() }));
        }
        model.take(&Record::Handler(Handler { mm: 9, flags: seen::WANTED, ..Handler::default() }));
        assert_eq!(model.finish().first().map(|found| found.certain), found);
    }
}

#[test]
fn a_hold_that_anothers_release_ended_is_over_whoever_reads_now() {
    for (flags, left) in [(0, 2), (seen::ENDED, 1)] {
        let mut model = Model::new(Rules::default());
        let words = Words { mm: 7, count: 1 << 8, flags: seen::READABLE | held::READ, ..Words::default() };
        let hold = Lock { mm: 7, op: op::ACQUIRED, flags: held::READ, ..Lock::default() };
        (0..2).for_each(|_| drop(model.take(&Record::Lock(hold))));
        model.take(&Record::Handler(Handler { mm: 9, flags: seen::WANTED, ..Handler::default() }));
        model.take(&Record::Words(words));
        model.take(&Record::Words(Words { flags: words.flags | flags, ..words }));
        assert_eq!(model.finish().iter().map(|found| found.held.len()).collect::<Vec<_>>(), [left]);
    }
}

#[test]
fn a_lock_older_than_the_tracing_is_unknown_and_its_release_says_so() {
    let mut model = Model::new(Rules { attached_at: 1000, ..Rules::default() });
    for (task, start) in [(1, 500), (2, 1500)] {
        let brief = Brief { task, ..Brief::default() };
        model.take(&Record::Task(stream::Task { brief, op: life::SEEN, start, ..stream::Task::default() }));
        model.take(&Record::Handler(Handler { brief, mm: 9, flags: seen::WANTED, ..Handler::default() }));
        let release = Lock { brief, mm: 9, op: op::RELEASE, flags: held::READ, ..Lock::default() };
        assert_eq!(model.take(&Record::Lock(release)), None);
    }
    assert_eq!(model.before_known, 1, "the younger task cannot have held it");
}

#[test]
fn the_recorder_itself_is_not_compared() {
    let mut record = Violation::default();
    record.header.tgid = 1;
    assert_eq!(compared(&[Record::Violation(Box::new(record))], Rules::default()).disagreed, 0);
}
