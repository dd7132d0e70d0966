//! What the model makes of events: each explanation is earned, and a withheld event shows.

use std::{collections::BTreeSet, ops::Range};

use proptest::prelude::*;

use super::*;
use crate::pages::{Vma, Vmas};

const HERE: SpaceId = SpaceId(1);
const TID: u32 = 7;

fn fault(at: u64, page: u64) -> Fault {
    Fault {
        at,
        end: None,
        tid: TID,
        owner: TID,
        mm: 0xabc,
        page,
        mode: Mode::User,
        write: true,
        outcome: Outcome::Unknown,
    }
}

fn read(at: u64, page: u64) -> Fault {
    Fault { write: false, ..fault(at, page) }
}

fn change(at: u64, change: Change) -> Changed {
    Changed { at, end: at, tid: TID, change }
}

fn vmas(lines: &str) -> Vec<Vma> {
    Vmas::parse(lines.as_bytes()).list
}

/// Pages 0x100 to 0x200 anonymous, 0x205 to 0x300 of a file.
fn usual() -> Vec<Vma> {
    vmas("00100000-00200000 rw-p 00000000 00:00 0 \n00205000-00300000 r--p 00000000 fe:01 9 /lib/x\n")
}

fn present(pages: Range<u64>) -> Run {
    Run { first: pages.start, count: pages.end - pages.start, present: true, frame: None }
}

fn snapshot(begun: u64, runs: Vec<Run>) -> Snapshot {
    Snapshot { begun, occasion: Occasion::Exit, vmas: usual(), runs, reclaimed: false }
}

fn world() -> World {
    let mut world = World::new(4096, 16);
    world.thread(TID, TID, HERE);
    world
}

fn sums(world: World) -> (Vec<(Class, u64)>, Tally) {
    let tally = world.finish();
    (tally.present.clone().into_iter().collect(), tally)
}

#[test]
fn a_page_is_explained_by_its_fault_and_by_no_other() {
    let mut world = world();
    world.fault(fault(1, 0x110));
    world.fault(Fault { mode: Mode::Kernel, ..fault(2, 0x111) });
    world.look(HERE, &snapshot(10, vec![present(0x110..0x114)]), &mut NoFolios);
    let (present, tally) = sums(world);
    assert_eq!(present, [(Class::Fault, 1), (Class::KernelFault, 1), (Class::Unexplained, 2)]);
    assert_eq!((tally.faulted, tally.there, tally.missing), (2, 2, 0));
    let found = tally.unexplained.first().unwrap();
    assert_eq!((found.address, found.pages, found.pid), (0x11_2000, 2, TID));
    assert_eq!(found.vma, "100000-200000 rw-p anonymous");
}

#[test]
fn a_page_that_is_not_there_is_missing_unless_something_took_it() {
    let mut world = world();
    for (at, page) in [(1, 0x100), (2, 0x110), (3, 0x120), (4, 0x130), (5, 0x140), (6, 0x400), (7, 0x210)] {
        world.fault(fault(at, page));
    }
    world.changed(HERE, change(20, Change::Unmap(0x110..0x111)));
    world.changed(HERE, change(21, Change::Discard(0x120..0x121)));
    world.changed(HERE, change(22, Change::MayLose(0x130..0x131)));
    world.look(HERE, &snapshot(30, vec![Run { present: false, ..present(0x140..0x141) }]), &mut NoFolios);
    let (present, tally) = sums(world);
    assert_eq!(present, []);
    let reasons: Vec<_> = tally.gone.keys().copied().collect();
    // A write to what may only be read, and an access where nothing is.
    assert_eq!(
        reasons,
        [Gone::Unmapped, Gone::Discarded, Gone::MayLose, Gone::Swapped, Gone::NotMapped, Gone::Forbidden]
    );
    assert_eq!((tally.faulted, tally.missing, tally.vanished), (7, 1, 0));
    assert_eq!(tally.missed.first().map(|missed| missed.address), Some(0x10_0000));
}

#[test]
fn the_kernel_maps_around_a_read_of_a_file_and_nothing_else() {
    let look = |faults: &[Fault], pages: Range<u64>| {
        let mut world = world();
        faults.iter().for_each(|fault| world.fault(*fault));
        world.look(HERE, &snapshot(10, vec![present(pages)]), &mut NoFolios);
        let (present, _) = sums(world);
        present.iter().find(|(class, _)| *class == Class::Unexplained).map_or(0, |(_, pages)| *pages)
    };
    // Sixteen pages, aligned.
    assert_eq!(look(&[read(1, 0x234)], 0x230..0x240), 0);
    assert_eq!(look(&[read(1, 0x234)], 0x22f..0x241), 2);
    // From the mapping's first page on, where that is later than the aligned one.
    assert_eq!(look(&[read(1, 0x206)], 0x205..0x215), 0);
    assert_eq!(look(&[read(1, 0x206)], 0x205..0x216), 1);
    // Neither in memory without a file, nor around a write.
    assert_eq!(look(&[read(1, 0x134)], 0x130..0x140), 15);
    assert_eq!(look(&[fault(1, 0x234)], 0x230..0x240), 15);
}

#[test]
fn what_was_around_and_was_unmapped_needs_a_fault_of_its_own() {
    let mut world = world();
    world.fault(read(1, 0x234));
    world.changed(HERE, change(2, Change::Unmap(0x234..0x238)));
    world.fault(fault(3, 0x235));
    world.look(HERE, &snapshot(10, vec![present(0x230..0x240)]), &mut NoFolios);
    let (present, tally) = sums(world);
    assert_eq!(present, [(Class::Fault, 1), (Class::FaultAround, 12), (Class::Unexplained, 3)]);
    assert_eq!((tally.faulted, tally.there), (2, 1));
}

#[test]
fn a_mapping_split_since_the_fault_was_one() {
    let mut world = world();
    let vmas = vmas("00205000-00206000 r--p 00000000 fe:01 9 /lib/x\n00206000-00300000 rw-p 00001000 fe:01 9 /lib/x\n");
    world.fault(read(1, 0x207));
    world.look(HERE, &Snapshot { vmas, ..snapshot(10, vec![present(0x205..0x215)]) }, &mut NoFolios);
    assert_eq!(world.finish().unexplained, []);
}

struct Large(Range<u64>);

impl Folios for Large {
    fn folio(&mut self, frame: u64) -> Option<Range<u64>> {
        self.0.contains(&frame).then(|| self.0.clone())
    }
}

#[test]
fn a_large_page_is_explained_by_one_of_its_parts() {
    let look = |faults: &[Fault], frame: u64| {
        let mut world = world();
        faults.iter().for_each(|fault| world.fault(*fault));
        let run = Run { frame: Some(frame), ..present(0x110..0x150) };
        world.look(HERE, &snapshot(10, vec![run]), &mut Large(0x5000..0x5040));
        sums(world).0
    };
    assert_eq!(look(&[fault(1, 0x123)], 0x5000), [(Class::Fault, 1), (Class::LargePage, 63)]);
    assert_eq!(look(&[], 0x5000), [(Class::Unexplained, 64)]);
    // Half of the frames are another's.
    assert_eq!(look(&[fault(1, 0x111)], 0x5020), [(Class::Fault, 1), (Class::LargePage, 31), (Class::Unexplained, 32)]);
}

#[test]
fn a_child_has_what_its_parent_had_until_it_is_looked_at() {
    let mut world = world();
    world.fault(fault(1, 0x110));
    world.fault(fault(2, 0x120));
    world.forked(HERE, SpaceId(2), 8, 5, 6);
    // The parent goes on; the child has nothing of that.
    world.fault(fault(7, 0x130));
    let birth =
        Snapshot { occasion: Occasion::Fork, ..snapshot(10, vec![present(0x110..0x111), present(0x130..0x131)]) };
    world.look(SpaceId(2), &birth, &mut NoFolios);
    // What was not there at first has to be explained anew.
    world.look(SpaceId(2), &snapshot(20, vec![present(0x110..0x111), present(0x120..0x121)]), &mut NoFolios);
    let (present, tally) = sums(world);
    assert_eq!(present, [(Class::Inherited, 2), (Class::Unexplained, 2)]);
    assert_eq!(tally.unexplained.iter().map(|found| found.pid).collect::<BTreeSet<_>>(), BTreeSet::from([8]));
}

#[test]
fn a_program_begins_with_its_stack_and_what_the_call_faulted_in() {
    let mut world = world();
    world.fault(fault(1, 0x110));
    world.fault(fault(5, 0x111));
    world.executed(TID, TID, SpaceId(2), 4, 6);
    let vmas = vmas("00100000-00200000 rw-p 00000000 00:00 0 \n00400000-00500000 rw-p 00000000 00:00 0 [stack]\n");
    let runs = vec![present(0x110..0x112), present(0x4fe..0x500)];
    world.look(SpaceId(2), &Snapshot { occasion: Occasion::Exec, vmas, ..snapshot(10, runs) }, &mut NoFolios);
    let (present, tally) = sums(world);
    assert_eq!(present, [(Class::Exec, 3), (Class::Unexplained, 1)]);
    assert_eq!(tally.gone.get(&Gone::Exec), Some(&1));
}

#[test]
fn a_thread_that_runs_another_program_becomes_its_process() {
    let mut world = world();
    world.thread(8, TID, HERE);
    world.fault(Fault { tid: 8, mode: Mode::Pinning, mm: 0xdef, ..fault(5, 0x110) });
    // By now it has its process's id.
    world.fault(Fault { mode: Mode::Pinning, mm: 0xdef, ..fault(6, 0x111) });
    world.ended(TID);
    world.executed(8, TID, SpaceId(2), 4, 7);
    world.look(SpaceId(2), &snapshot(10, vec![present(0x110..0x113)]), &mut NoFolios);
    assert_eq!(sums(world).0, [(Class::Exec, 2), (Class::Unexplained, 1)]);
}

#[test]
fn memory_of_an_address_space_that_is_gone_serves_the_next() {
    const FIRST: u32 = 8;
    const SECOND: u32 = 9;
    let mut world = world();
    for (child, space, at) in [(FIRST, SpaceId(2), 4), (SECOND, SpaceId(3), 14)] {
        // Both share their parent's memory until they run a program, and the end of the first is not known yet.
        world.thread(child, TID, HERE);
        world.fault(Fault { tid: child, owner: child, mm: 0xdef, mode: Mode::Pinning, ..fault(at + 1, 0x110) });
        world.executed(child, child, space, at, at + 2);
        world.fault(Fault { tid: child, owner: child, mm: 0xdef, ..fault(at + 3, 0x111) });
    }
    world.look(SpaceId(3), &snapshot(20, vec![present(0x110..0x113)]), &mut NoFolios);
    assert_eq!(sums(world).0, [(Class::Fault, 1), (Class::Exec, 1), (Class::Unexplained, 1)]);
}

#[test]
fn page_tables_move_with_what_is_known_of_them() {
    let mut world = world();
    world.fault(fault(1, 0x110));
    world.fault(fault(2, 0x150));
    world.changed(HERE, change(3, Change::Move(0x110..0x114, 0x150)));
    world.look(HERE, &snapshot(10, vec![present(0x110..0x111), present(0x150..0x151)]), &mut NoFolios);
    let (present, tally) = sums(world);
    assert_eq!(present, [(Class::Fault, 1), (Class::Unexplained, 1)]);
    assert_eq!(tally.gone.get(&Gone::Unmapped), Some(&1));
}

#[test]
fn a_fault_during_another_threads_change_may_have_come_before_or_after() {
    for (there, begun) in [(true, 5), (false, 5), (true, 2), (false, 2)] {
        let mut world = world();
        world.thread(8, TID, HERE);
        world.fault(Fault { tid: 8, ..fault(begun, 0x110) });
        world.changed(HERE, Changed { end: 9, ..change(4, Change::Discard(0x100..0x200)) });
        let runs = if there { vec![present(0x110..0x111)] } else { Vec::new() };
        world.look(HERE, &snapshot(10, runs), &mut NoFolios);
        let tally = world.finish();
        assert_eq!((tally.unexplained_pages(), tally.missing, tally.vanished), (0, 0, 0), "{there} {begun}");
    }
}

#[test]
fn a_thread_that_is_stopped_in_a_fault_takes_it_anew() {
    const LATER: u64 = 5_000_000_000;
    let missing = |faults: &[Fault]| {
        let mut world = world();
        faults.iter().for_each(|fault| world.fault(*fault));
        world.look(HERE, &snapshot(LATER, Vec::new()), &mut NoFolios);
        world.finish().missing
    };
    assert_eq!(missing(&[fault(LATER - 9, 0x110)]), 0);
    // Only the last can be going on, only not for long, and not when its end was seen.
    assert_eq!(missing(&[fault(LATER - 9, 0x110), fault(LATER - 8, 0x111)]), 1);
    assert_eq!(missing(&[fault(9, 0x110)]), 1);
    assert_eq!(missing(&[Fault { end: Some(LATER - 1), outcome: Outcome::Done, ..fault(LATER - 9, 0x110) }]), 1);
}

#[test]
fn what_the_program_asked_for_need_not_be_there() {
    let mut world = world();
    world.changed(HERE, change(1, Change::Populate(0x110..0x120)));
    world.look(HERE, &snapshot(10, vec![present(0x110..0x112)]), &mut NoFolios);
    world.look(HERE, &snapshot(20, vec![present(0x110..0x113)]), &mut NoFolios);
    let (present, tally) = sums(world);
    assert_eq!(present, [(Class::Populate, 4), (Class::Unexplained, 1)]);
    assert_eq!((tally.faulted, tally.missing), (0, 0));
}

#[test]
fn threads_are_told_of_after_their_first_faults_and_others_by_the_memory() {
    let mut world = world();
    world.fault(fault(1, 0x110));
    world.fault(Fault { tid: 99, owner: 0, mode: Mode::Pinning, ..fault(2, 0x111) });
    world.fault(Fault { tid: 8, owner: 0, mm: 1, ..fault(3, 0x112) });
    world.thread(8, TID, HERE);
    world.fault(Fault { tid: 50, owner: 50, mm: 2, ..fault(4, 0x113) });
    world.look(HERE, &snapshot(10, vec![present(0x110..0x114)]), &mut NoFolios);
    let (present, tally) = sums(world);
    assert_eq!(present, [(Class::Fault, 2), (Class::GetUserPages, 1), (Class::Unexplained, 1)]);
    assert_eq!(tally.strangers, 1);
}

#[test]
fn a_page_that_a_look_found_cannot_go_unseen() {
    let mut world = world();
    world.fault(fault(1, 0x110));
    world.look(HERE, &snapshot(10, vec![present(0x110..0x111)]), &mut NoFolios);
    world.look(HERE, &snapshot(20, Vec::new()), &mut NoFolios);
    let tally = world.finish();
    assert_eq!((tally.there, tally.missing, tally.vanished, tally.missed.len()), (1, 0, 1, 1));
}

/// What a process did to one page.
#[derive(Debug, Clone)]
enum Step {
    Touch(u64),
    Discard(u64, u64),
    Move(u64, u64, u64),
    Look,
}

fn step() -> impl Strategy<Value = Step> {
    let page = 0x100_u64..0x140;
    prop_oneof![
        8 => page.clone().prop_map(Step::Touch),
        2 => (page.clone(), 0_u64..16).prop_map(|(at, count)| Step::Discard(at, count)),
        1 => (page, 0_u64..16, 0x140_u64..0x180).prop_map(|(at, count, to)| Step::Move(at, count, to)),
        1 => Just(Step::Look),
    ]
}

proptest! {
    /// Against a page table of one page a number: with all events everything is explained; without one fault exactly its page is
    /// not, if nothing else tells of it.
    #[test]
    fn nothing_is_explained_that_was_not_seen(steps in prop::collection::vec(step(), 1..60), withhold: prop::sample::Index) {
        let touches = steps.iter().filter(|step| matches!(step, Step::Touch(_))).count();
        for hidden in [None, (touches > 0).then(|| withhold.index(touches.max(1)))] {
            let mut world = world();
            // Each page's value: whether the fault that put it there was told.
            let mut table: BTreeMap<u64, bool> = BTreeMap::new();
            let (mut time, mut nth, mut untold) = (0, 0, BTreeSet::new());
            let mut wanted = BTreeSet::new();
            let look = |world: &mut World, table: &BTreeMap<u64, bool>, time: u64| {
                let runs = table.keys().map(|page| present(*page..page + 1)).collect();
                world.look(HERE, &snapshot(time, runs), &mut NoFolios);
            };
            for step in &steps {
                time += 1;
                match *step {
                    Step::Touch(page) => {
                        let told = hidden != Some(nth);
                        nth += 1;
                        if !table.contains_key(&page) || told {
                            *table.entry(page).or_default() |= told;
                        }
                        if told {
                            world.fault(fault(time, page));
                            untold.remove(&page);
                        } else if table.get(&page) == Some(&false) {
                            untold.insert(page);
                        }
                    }
                    Step::Discard(at, count) => {
                        table.retain(|page, _| !(at..at + count).contains(page));
                        world.changed(HERE, change(time, Change::Discard(at..at + count)));
                    }
                    Step::Move(at, count, to) => {
                        let moved: Vec<_> = (at..at + count).filter_map(|page| Some((page - at + to, table.remove(&page)?))).collect();
                        table.retain(|page, _| !(to..to + count).contains(page));
                        table.extend(moved);
                        world.changed(HERE, change(time, Change::Move(at..at + count, to)));
                    }
                    Step::Look => {
                        look(&mut world, &table, time);
                        wanted.extend(table.iter().filter(|(_, told)| !**told).map(|(page, _)| *page));
                        // Listed once; from then on it is known as such.
                    }
                }
            }
            look(&mut world, &table, time + 1);
            wanted.extend(table.iter().filter(|(_, told)| !**told).map(|(page, _)| *page));
            let tally = world.finish();
            prop_assert_eq!((tally.missing, tally.vanished), (0, 0));
            prop_assert_eq!(tally.faulted, tally.there + tally.gone.values().sum::<u64>());
            let listed: BTreeSet<u64> = tally.unexplained.iter().flat_map(|found| found.address / 4096..found.address / 4096 + found.pages).collect();
            if hidden.is_none() {
                prop_assert!(listed.is_empty(), "{:?}", listed);
            } else {
                // One that was found may have moved since.
                prop_assert!(listed.is_subset(&wanted), "{:?} {:?}", listed, wanted);
                prop_assert_eq!(listed.is_empty(), wanted.is_empty());
            }
        }
    }

    /// Any events at any times are taken.
    #[test]
    fn any_events_are_taken(events in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), 0_u8..8), 0..40), begun: u64, around in 0_u64..64) {
        let mut world = World::new(4096, around);
        world.thread(TID, TID, HERE);
        for (at, page, length, what) in events {
            let pages = page..page.saturating_add(length % 4096);
            match what {
                0 => world.fault(fault(at, page)),
                1 => world.fault(read(at, page)),
                2 => world.changed(HERE, change(at, Change::Move(pages, length))),
                3 => world.changed(HERE, change(at, Change::Unmap(pages))),
                4 => world.changed(HERE, change(at, Change::Populate(pages))),
                5 => world.changed(HERE, change(at, Change::Failed(page))),
                6 => world.changed(HERE, change(at, Change::MayLose(0..u64::MAX))),
                _ => world.look(HERE, &snapshot(at, vec![present(0x110..0x120)]), &mut NoFolios),
            }
        }
        world.look(HERE, &snapshot(begun, vec![present(0x100..0x300)]), &mut NoFolios);
        let tally = world.finish();
        prop_assert_eq!(tally.faulted, tally.there + tally.missing + tally.gone.values().sum::<u64>());
    }
}
