//! What runs several at a time, a line for each: in test machines the suite on each kernel and the suite of `pagetrace vm`, and
//! beside them `cargo test`.

use std::{
    collections::VecDeque,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Mutex, mpsc::Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{Fetched, command, local, parse::GuestSuite, report::Suite};
use crate::{
    build::StaticBinaries,
    guest, kmod,
    step::note,
    vm::{self, Outcome, VmFile, VmSpec, kernel::Kernel, spec},
};

/// Two more than the processors this is meant for: a guest often waits, for its kernel to be sure that nobody is in a probe, or for a
/// deadlock to have lasted.
const AT_A_TIME: usize = 4;
const TIMEOUT: Duration = Duration::from_secs(2400);

/// Longer than the suite lets one run of pagetrace last (`LIMIT` in the tests' guest/tool.rs), so that a slow case fails by its name
/// and not as a guest that says nothing.
const SILENCE: Duration = Duration::from_secs(480);

/// What takes longest, in this order: begun first, so that none of it is what all wait for in the end.
const LONGEST: &[(&str, Share)] = &[
    ("7.3", Share::Kernel),
    ("6.12", Share::Kernel),
    ("6.1", Share::Kernel),
    ("7.3", Share::Rest),
    ("6.18", Share::Kernel),
    ("5.10", Share::Rest),
    ("5.10", Share::Kernel),
];

/// The suite in two, as the guests know it: what every kernel has to be asked, and what the oldest, the newest and this machine's
/// own are enough for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    Kernel,
    Rest,
}

impl Share {
    fn word(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Rest => "rest",
        }
    }

    fn of(self, series: &str) -> String {
        match self {
            Self::Kernel => format!("vm {series}"),
            Self::Rest => format!("vm {series}, the rest"),
        }
    }
}

/// What runs beside others.
enum Job {
    /// A share of the suite, on a kernel.
    Kernel(Kernel, Share),
    /// A kernel that could not be fetched.
    Missing(String, anyhow::Error),
    /// `pagetrace vm` itself, with this image.
    Command(Option<PathBuf>),
    /// `cargo test`: it takes all processors it can get, and so those that the last kernels leave idle.
    Units,
}

/// Runs the suite of this machine, `cargo test`, the suite on every kernel that was fetched, and that of `pagetrace vm` where there is
/// its series or all are wanted; a kernel that was not fetched is a failure. Each suite is sent when it has ended.
pub(super) fn all(fetched: Vec<Fetched>, everything: bool, binaries: Option<&StaticBinaries>, suites: &Sender<Suite>) {
    let Some(binaries) = binaries else {
        for (wanted, _) in fetched {
            let broken = Suite::broken(format!("vm {wanted}"), "there is nothing to run: the build failed");
            let _ = suites.send(broken);
        }
        let _ = suites.send(local::cargo_test(None));
        return;
    };
    let image = fetched.iter().find_map(|(wanted, kernel)| match kernel {
        Ok(kernel) if wanted == command::SERIES => Some(kernel.image.clone()),
        _ => None,
    });
    let mut jobs = in_guests(fetched);
    jobs.push_back(Job::Units);
    if everything || image.is_some() {
        jobs.push_back(Job::Command(image));
    }
    let queue = Mutex::new(jobs);
    let work = |suites: Sender<Suite>| {
        while let Some(job) = queue.lock().ok().and_then(|mut queue| queue.pop_front()) {
            if suites.send(job.run(binaries)).is_err() {
                return;
            }
        }
    };
    thread::scope(|scope| {
        // Alone: what it traces is this machine, and some of it has to fit between two timer ticks.
        let _ = suites.send(local::host(binaries));
        for _ in 0..AT_A_TIME {
            scope.spawn(|| work(suites.clone()));
        }
    });
}

/// The shares of the suite on these kernels, of which the first is the oldest and the last the newest.
fn in_guests(fetched: Vec<Fetched>) -> VecDeque<Job> {
    let last = fetched.len().saturating_sub(1);
    let (mut jobs, mut missing) = (Vec::new(), VecDeque::new());
    for (index, (wanted, kernel)) in fetched.into_iter().enumerate() {
        match kernel {
            Ok(kernel) => {
                if index == 0 || index == last {
                    jobs.push((kernel.clone(), Share::Rest));
                }
                jobs.push((kernel, Share::Kernel));
            }
            Err(err) => missing.push_back(Job::Missing(wanted, err)),
        }
    }
    let rank = |series: &str, share| LONGEST.iter().position(|long| *long == (series, share)).unwrap_or(LONGEST.len());
    jobs.sort_by_key(|(kernel, share)| rank(&kernel.series, *share));
    missing.extend(jobs.into_iter().map(|(kernel, share)| Job::Kernel(kernel, share)));
    missing
}

impl Job {
    fn run(self, binaries: &StaticBinaries) -> Suite {
        match self {
            Self::Command(image) => command::suite(image.as_deref(), binaries),
            Self::Units => local::cargo_test(Some(&binaries.pagetrace)),
            Self::Missing(wanted, err) => Suite::broken(Share::Kernel.of(&wanted), &format!("{err:#}")),
            Self::Kernel(kernel, share) => {
                let name = share.of(&kernel.series);
                one(&name, &kernel, share, binaries).unwrap_or_else(|err| Suite::broken(name, &format!("{err:#}")))
            }
        }
    }
}

fn one(name: &str, kernel: &Kernel, share: Share, binaries: &StaticBinaries) -> Result<Suite> {
    let start = Instant::now();
    let module = kmod::build(&kernel.series, &kernel.release)?;
    let mut spec =
        guest::base(&kernel.image, &binaries.pagetrace, &format!("test-{}-{}", kernel.series, share.word()))?;
    assets(&mut spec, binaries, module.as_deref());
    spec.command = ["/bin/pagetrace-guest-suite", "--share", share.word()].map(OsString::from).to_vec();
    spec.cpu = processor(&kernel.series, share).to_owned();
    APPEND.clone_into(&mut spec.append);
    spec.timeout = TIMEOUT;
    spec.silence = Some(SILENCE);
    let mut suite = Suite::new(name);
    let mut parser = GuestSuite::default();
    note(&format!("{name}: booting {}", kernel.release));
    let result = vm::run(&spec, &mut |line| parser.line(line, &mut suite))?;
    suite.took = start.elapsed();
    suite.log = Some(result.console_log);
    match result.outcome {
        Outcome::Exited { code } => {
            parser.finish(&mut suite);
            if code != 0 && suite.failures.is_empty() {
                suite.fail("exit code", format!("{code} though no case failed"));
            }
        }
        other => suite.fail("guest", other.to_string()),
    }
    Ok(suite)
}

/// The model of the emulated processor. QEMU goes through `rep movsb` and `rep stosb` byte by byte, and kernels that see `erms` clear
/// every page with them. Without it user memory is copied in other ways as well: until 6.4 by another function, after that
/// by another branch (arch/x86/lib/copy_user_64.S). A fifth level of page tables costs each walk of QEMU's own a step, and writing the
/// rights of protection keys empties its TLB.
const PROCESSOR: &str = "max,erms=off,la57=off,pku=off";

/// On the kernel's command line. An emulator translates a program anew wherever it lies, so programs lie in one place; and a kernel
/// that waits for its processors asks them instead of sitting it out. This machine's own has neither, nor have those of `pagetrace vm`.
const APPEND: &str = "norandmaps rcupdate.rcu_expedited=1";

/// What is asked of every kernel is asked of one with all that the processor has.
fn processor(series: &str, share: Share) -> &'static str {
    if (series, share) == ("5.10", Share::Kernel) { spec::ALL_FEATURES } else { PROCESSOR }
}

/// Puts what the suite and the demo need into a guest, and says in its environment where it is.
pub(crate) fn assets(spec: &mut VmSpec, binaries: &StaticBinaries, module: Option<&Path>) {
    spec.files.push(VmFile::executable("/bin/pagetrace-fixture", &binaries.fixture));
    spec.files.push(VmFile::executable("/bin/pagetrace-guest-suite", &binaries.guest_suite));
    if let Some(module) = module {
        carry(spec, module);
    }
}

/// Puts the module into a guest, to be loaded by whoever wants to, and says in its environment where it is.
pub(crate) fn carry(spec: &mut VmSpec, module: &Path) {
    const MODULE: &str = "/lib/pagetrace/fixture.ko";
    spec.files.push(VmFile::copy(MODULE, module));
    spec.env.push(("PAGETRACE_FIXTURE_KMOD".into(), MODULE.into()));
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn kernel(series: &str) -> Fetched {
        let release = format!("{series}.0-cloud-amd64");
        (series.to_owned(), Ok(Kernel { series: series.to_owned(), release, image: PathBuf::new() }))
    }

    fn names(fetched: Vec<Fetched>) -> Vec<String> {
        let name = |job: &Job| match job {
            Job::Kernel(kernel, share) => share.of(&kernel.series),
            Job::Missing(wanted, _) => format!("no {wanted}"),
            Job::Command(_) | Job::Units => "of no kernel".into(),
        };
        in_guests(fetched).iter().map(name).collect()
    }

    #[test]
    fn every_kernel_is_asked_and_the_outer_ones_for_all() {
        let fetched = ["5.10", "6.1", "6.18", "7.3"].map(kernel).into();
        assert_eq!(names(fetched), ["vm 7.3", "vm 6.1", "vm 7.3, the rest", "vm 6.18", "vm 5.10, the rest", "vm 5.10"]);
    }

    #[test]
    fn one_kernel_is_asked_for_all() {
        assert_eq!(names(vec![kernel("6.12")]), ["vm 6.12", "vm 6.12, the rest"]);
    }

    #[test]
    fn a_kernel_that_is_missing_is_a_suite_that_fails() {
        let fetched = vec![("6.1".to_owned(), Err(anyhow!("gone"))), kernel("7.3")];
        assert_eq!(names(fetched), ["no 6.1", "vm 7.3", "vm 7.3, the rest"]);
    }
}
