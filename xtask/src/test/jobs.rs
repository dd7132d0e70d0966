//! What runs several at a time, a line for each: in test machines the suite on each kernel and the suite of `pagetrace vm`, and
//! beside them `cargo test`.

use std::{
    collections::VecDeque,
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

/// One more than the processors this is meant for: a guest often waits, for its kernel to be sure that nobody is in a probe. With two
/// more all took longer.
const AT_A_TIME: usize = 3;
const TIMEOUT: Duration = Duration::from_secs(2400);

/// Longer than the suite lets one run of pagetrace last (`LIMIT` in the tests' guest/tool.rs), so that a slow case fails by its name
/// and not as a guest that says nothing.
const SILENCE: Duration = Duration::from_secs(480);

/// The series whose suites take longest, in this order: begun first, so that none of them is what all wait for in the end.
const LONGEST: &[&str] = &["7.3", "6.1", "6.12"];

/// What runs beside others.
enum Job {
    /// The suite, on a kernel that was fetched, or not.
    Kernel(Fetched),
    /// `pagetrace vm` itself, with this image.
    Command(Option<PathBuf>),
    /// `cargo test`: it takes all processors it can get, and so those that the last kernels leave idle.
    Units,
}

/// Runs `cargo test`, the suite on every kernel that was fetched, and that of `pagetrace vm` where there is its series or all are
/// wanted; a kernel that was not fetched is a failure. Each suite is sent when it has ended.
pub(super) fn all(
    mut fetched: Vec<Fetched>,
    everything: bool,
    binaries: Option<&StaticBinaries>,
    suites: &Sender<Suite>,
) {
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
    fetched.sort_by_key(|(wanted, _)| LONGEST.iter().position(|series| series == wanted).unwrap_or(LONGEST.len()));
    let mut jobs: VecDeque<_> = fetched.into_iter().map(Job::Kernel).collect();
    jobs.push_back(Job::Units);
    if everything || image.is_some() {
        jobs.push_back(Job::Command(image));
    }
    let queue = Mutex::new(jobs);
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            let (queue, sender) = (&queue, suites.clone());
            scope.spawn(move || {
                while let Some(job) = queue.lock().ok().and_then(|mut queue| queue.pop_front()) {
                    if sender.send(job.run(binaries)).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

impl Job {
    fn run(self, binaries: &StaticBinaries) -> Suite {
        match self {
            Self::Command(image) => command::suite(image.as_deref(), binaries),
            Self::Units => local::cargo_test(Some(&binaries.pagetrace)),
            Self::Kernel((wanted, kernel)) => {
                let name = format!("vm {wanted}");
                kernel
                    .and_then(|kernel| one(&name, &kernel, binaries))
                    .unwrap_or_else(|err| Suite::broken(name, &format!("{err:#}")))
            }
        }
    }
}

fn one(name: &str, kernel: &Kernel, binaries: &StaticBinaries) -> Result<Suite> {
    let start = Instant::now();
    let module = kmod::build(&kernel.series, &kernel.release)?;
    let mut spec = guest::base(&kernel.image, &binaries.pagetrace, &format!("test-{}", kernel.series))?;
    assets(&mut spec, binaries, module.as_deref());
    spec.command = vec!["/bin/pagetrace-guest-suite".into()];
    (spec.cpu, spec.append) = machine(&kernel.series);
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
/// by another branch (arch/x86/lib/copy_user_64.S).
const PROCESSOR: &str = "max,erms=off";

/// On the kernel's command line. An emulator translates a program anew wherever it lies, so programs lie in one place; and a kernel
/// that waits for its processors asks them instead of sitting it out.
const APPEND: &str = "norandmaps rcupdate.rcu_expedited=1";

/// The processor's model, and text for the kernel's command line: both save emulated machines time. A series with a small suite
/// keeps the usual way.
fn machine(series: &str) -> (String, String) {
    let (cpu, append) = if series == "5.10" { (spec::ALL_FEATURES, "") } else { (PROCESSOR, APPEND) };
    (cpu.to_owned(), append.to_owned())
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
