//! How fast pagemap is read, by pagetrace and by others, in turns: what else the machine does falls on all alike. Prints a line a
//! measurement for `cargo xtask bench pagemap` to make a table of: the time that passed, and what of it was the processor's.
#![expect(unsafe_code, reason = "the processor's time is asked for by a system call")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod readers;

use std::{
    env,
    io::{BufRead as _, BufReader},
    ops::Range,
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::fixture::pages::PAGE_SIZE;

/// Pages of the sparse mapping: 1 TiB.
const SPARSE: usize = 1024;
/// Bytes from one written page of it to the next.
const STEP: usize = 1 << 30;

/// The program: `pagetrace-bench pagemap FIXTURE PAGETRACE GIB ROUNDS`.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let ["pagemap", fixture, pagetrace, gigabytes, rounds] = words.as_slice() else {
        eprintln!("usage: pagetrace-bench pagemap FIXTURE PAGETRACE GIB ROUNDS");
        return ExitCode::from(2);
    };
    let done = gigabytes.parse().ok().zip(rounds.parse().ok()).context("GIB and ROUNDS are numbers");
    match done.and_then(|(gigabytes, rounds)| run(Path::new(fixture), Path::new(pagetrace), gigabytes, rounds)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("error: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(fixture: &Path, pagetrace: &Path, gigabytes: usize, rounds: u32) -> Result<()> {
    let full = Mapped::start(fixture, &[&gigabytes.to_string()])?;
    let written = full.pages.end - full.pages.start;
    measure("resident", &full, pagetrace, written, rounds)?;
    drop(full);
    let sparse = Mapped::start(fixture, &[&SPARSE.to_string(), &STEP.to_string()])?;
    measure("sparse", &sparse, pagetrace, (SPARSE << 30).div_ceil(STEP) as u64, rounds)
}

/// Each way once a round; every answer is held against what the fixture has written.
fn measure(what: &str, mapped: &Mapped, pagetrace: &Path, present: u64, rounds: u32) -> Result<()> {
    let pages = mapped.pages.end - mapped.pages.start;
    let mut ways = readers::all(mapped.pid, mapped.pages.clone(), pagetrace)?;
    ways.retain(|(_, reader)| reader.affordable(pages));
    for round in 0..=rounds {
        for (name, reader) in &mut ways {
            let (since, cpu) = (Instant::now(), cpu_seconds()?);
            let found = reader.count().with_context(|| format!("{name}, {what}"))?;
            let (seconds, cpu) = (since.elapsed().as_secs_f64(), cpu_seconds()? - cpu);
            ensure!(found == present, "{name}: {found} pages of {what} are present, not {present}");
            // The first round finds caches cold.
            if round != 0 {
                println!("{what}\t{name}\t{pages}\t{seconds:.9}\t{cpu:.6}");
            }
        }
    }
    Ok(())
}

/// Processor time of this process and of the children it has waited for, in the kernel and outside.
fn cpu_seconds() -> Result<f64> {
    let of = |who| {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the kernel fills the structure in; zeroes are one.
        let (result, usage) = unsafe { (libc::getrusage(who, usage.as_mut_ptr()), usage.assume_init()) };
        ensure!(result == 0, "cannot ask for the processor's time");
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        Ok(seconds(usage.ru_utime) + seconds(usage.ru_stime))
    };
    Ok(of(libc::RUSAGE_SELF)? + of(libc::RUSAGE_CHILDREN)?)
}

/// A fixture that holds a mapping.
struct Mapped {
    child: Child,
    pid: u32,
    pages: Range<u64>,
}

impl Mapped {
    fn start(fixture: &Path, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(fixture);
        command.arg("sparse").args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let pid = child.id();
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout is a pipe")?).read_line(&mut line)?;
        let mut mapped = Self { child, pid, pages: 0..0 };
        let words: Vec<&str> = line.trim().split(' ').collect();
        let ["ready", start, length] = words.as_slice() else { bail!("{command:?} says {line:?}") };
        let (start, length): (u64, u64) = (start.parse()?, length.parse()?);
        let size = PAGE_SIZE as u64;
        mapped.pages = start / size..(start + length) / size;
        Ok(mapped)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
