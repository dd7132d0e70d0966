//! The helper process: round after round, until it is told to end or pagetrace is gone.
//!
//! It has the same program as pagetrace and is told by its name what it is. What it came to goes to its standard output,
//! one line of JSON a round; orders come by its standard input.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsStr,
    fs,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use rustix::{
    process::{Signal, getppid, set_parent_process_death_signal},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

use super::{
    able::able,
    advice::Advice,
    orders::Orders,
    pace::Pace,
    process::Processes,
    round::{How, push},
};
use crate::{output::provocation::Provocation, pages::swaps};

/// What pagetrace calls it.
pub(super) const NAME: &str = "pagetrace-provoke";
/// How often new children and swap are looked for.
const LOOK_AROUND: Duration = Duration::from_millis(250);

/// Whether this process is the helper.
#[must_use]
pub fn is_helper() -> bool {
    env::args_os().next().as_deref() == Some(OsStr::new(NAME))
}

/// The helper.
#[must_use]
pub fn main() -> ExitCode {
    let Some((interval, roots)) = arguments(env::args().skip(1)) else { return ExitCode::from(2) };
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let _ = rustix::thread::set_name(c"pagetrace-prov");
    let Ok(advice) = able() else { return ExitCode::FAILURE };
    run(interval, &roots, advice);
    ExitCode::SUCCESS
}

fn arguments(mut words: impl Iterator<Item = String>) -> Option<(Duration, BTreeSet<u32>)> {
    let interval = words.next()?.parse().ok().map(Duration::from_millis)?;
    let roots = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
    Some((interval, roots))
}

fn run(interval: Duration, roots: &BTreeSet<u32>, advice: Advice) {
    let (mut orders, mut pace) = (Orders::new(), Pace::default());
    let parent = getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
    let mut processes = Processes::new(Path::new("/proc"), roots, BTreeSet::from([std::process::id(), parent]));
    let mut tally = Provocation::default();
    let page_size = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    let mut how = How { advice, swap: false, page_size };
    if advice == Advice::Cold {
        tally.note("this kernel has no MADV_PAGEOUT: pages are marked cold, and leave when memory is short");
    }
    let mut cpus = Cpus::allowed();
    let mut looked: Option<Instant> = None;
    while orders.rest(interval) {
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK_AROUND) {
            looked = Some(Instant::now());
            processes.refresh();
            how.swap = fs::read_to_string("/proc/swaps").is_ok_and(|text| swaps::has_room(&text));
            tally.swap = how.swap;
            if !how.swap {
                tally.note(
                    "no swap with room: anonymous pages stay, only pages of files are pushed out; add swap (mkswap and \
                     swapon, or zram) to push them too",
                );
            }
        }
        cpus.next();
        for process in processes.iter_mut() {
            if !push(process, how, &mut tally, &mut |work| orders.rest(pace.after(work))) {
                tell(&tally);
                return;
            }
        }
        tally.rounds += 1;
        if !tell(&tally) {
            return;
        }
    }
}

/// Whether somebody still listens.
fn tell(tally: &Provocation) -> bool {
    let Ok(line) = serde_json::to_string(tally) else { return false };
    writeln!(io::stdout(), "{line}").is_ok()
}

/// Moves this process over the CPUs it may use, one a round: pages that were faulted in just now wait in a list of the CPU
/// on which that was, where they cannot be reclaimed, and advising empties only the list of the CPU it runs on.
pub(super) struct Cpus {
    allowed: Vec<usize>,
    turn: usize,
}

impl Cpus {
    /// Those that this process was given.
    pub(super) fn allowed() -> Self {
        let set = sched_getaffinity(None).unwrap_or_default();
        Self { allowed: (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(), turn: 0 }
    }

    /// To the next one.
    pub(super) fn next(&mut self) {
        self.turn = self.turn.wrapping_add(1);
        let Some(place) = self.turn.checked_rem(self.allowed.len()) else { return };
        let Some(cpu) = self.allowed.get(place) else { return };
        let mut set = CpuSet::new();
        set.set(*cpu);
        // Where that is refused, e.g. for a CPU that was taken away, any CPU does.
        let _ = sched_setaffinity(None, &set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_an_interval_and_processes() {
        let parse = |words: &[&str]| arguments(words.iter().map(ToString::to_string));
        assert_eq!(parse(&["50", "7", "3"]), Some((Duration::from_millis(50), BTreeSet::from([3, 7]))));
        for bad in [&[][..], &["x"], &["50", "-1"]] {
            assert_eq!(parse(bad), None);
        }
    }
}
