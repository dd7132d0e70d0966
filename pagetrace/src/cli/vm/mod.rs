//! `pagetrace vm`: a check, a recording or a trace on test kernels, as if it had run here.
//!
//! Everything is looked at, opened and found before a machine is started. A failure of a machine is never a verdict.

mod args;
mod closure;
mod document;
mod guest;
mod inner;
mod share;
mod stop;

use std::{
    collections::VecDeque,
    env,
    ffi::OsString,
    fs,
    io::Read as _,
    num::NonZero,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    ci,
    exit::{Exit, Misuse, Refused},
    sink,
};
use crate::{
    output::{Format, report::Report},
    vm::{Source, VmFile, busybox, cache, kernel},
};
pub(super) use args::VmArgs;
use closure::Closure;
use document::{Column, Document};
use guest::Setup;
use inner::{Inner, Kind};

fn note(sentence: &str) {
    eprintln!("pagetrace: {sentence}");
}

/// Runs it.
pub(super) fn run(args: &VmArgs) -> Result<Exit> {
    let inner = Inner::parse(&args.inner)?;
    let recordings = recordings(&inner, args.kernel.len())?;
    let mut taken = vec![("--output", args.output.output.as_deref())];
    taken.extend(recordings.iter().map(|path| ("the recording", Some(path.as_path()))));
    let ready = args.ci.open(&taken)?;
    let (mut out, style) = sink::open(args.output.output.as_deref())?;
    let setup = match setup(args, inner) {
        Ok(setup) => setup,
        // As a shell has it, and as `check` does on this machine.
        Err(Unfit::Command(err, code)) => {
            note(&super::told(&err));
            return Ok(Exit::Command(code));
        }
        Err(Unfit::Other(err)) => return Err(err),
    };
    let scratch = Scratch::new(args.out.as_deref())?;
    stop::removes((!scratch.kept).then(|| scratch.base.clone()))?;
    let mut columns = all(args, &setup, &scratch, &recordings)?;
    for column in &mut columns {
        if let Some(report) = &mut column.report {
            ready.complete(report);
            column.exit = exit(report, column.exit);
        }
        column.exit_code = column.exit.code();
        if column.exit != Exit::Machine && args.out.is_none() {
            column.console_log = None;
        }
    }
    let written = ready.write(&document::cases(&columns), &Document::of(&columns));
    let json = args.output.format == Format::Json;
    streams(&columns, json && args.output.output.is_none());
    let text = match (&setup.inner.kind, json) {
        (Kind::Trace(_), _) => events(&columns),
        (_, true) => (serde_json::to_string_pretty(&Document::of(&columns))? + "\n").into_bytes(),
        (_, false) => document::render(&columns, style).into_bytes(),
    };
    sink::write(&mut *out, &text)?;
    for column in columns.iter().filter(|column| column.exit == Exit::Machine) {
        let failure = column.failure.as_deref().unwrap_or("the machine failed");
        let log = column.console_log.as_ref().map_or_else(String::new, |log| format!("; console log: {log}"));
        note(&format!("{}: {failure}{log}", column.name()));
    }
    written?;
    scratch.done(columns.iter().all(|column| column.exit != Exit::Machine));
    Ok(document::worst(&columns))
}

/// How a run with a report ends: by it, unless pagetrace itself had an error in the guest.
fn exit(report: &Report, guest: Exit) -> Exit {
    match guest {
        Exit::Command(5) if report.command.as_ref().is_none_or(|command| command.exit_code != Some(5)) => {
            Exit::Internal
        }
        _ => ci::exit(report, report.command.as_ref().and_then(code)),
    }
}

fn code(command: &crate::output::report::Command) -> Option<u8> {
    match (command.exit_code, command.signal) {
        (Some(code), _) => u8::try_from(code & 0xff).ok(),
        (None, Some(signal)) => u8::try_from(128 + signal).ok(),
        (None, None) => None,
    }
}

/// Where recordings go, one a kernel; each can be written.
fn recordings(inner: &Inner, kernels: usize) -> Result<Vec<PathBuf>> {
    let Kind::Record(path) = &inner.kind else { return Ok(Vec::new()) };
    let paths: Vec<PathBuf> = match kernels {
        1 => vec![path.clone()],
        _ => (1..=kernels)
            .map(|number| {
                let mut name = path.clone().into_os_string();
                name.push(format!(".{number}"));
                name.into()
            })
            .collect(),
    };
    for path in &paths {
        if fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
            return Err(Refused(format!("cannot record to {}: it is not a regular file", path.display())).into());
        }
        sink::keep(path).with_context(|| format!("cannot write the recording {}", path.display()))?;
    }
    Ok(paths)
}

/// Why no machine need be started.
enum Unfit {
    /// The command cannot run there; with a shell's code.
    Command(anyhow::Error, u8),
    /// Anything else.
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Unfit {
    fn from(err: anyhow::Error) -> Self {
        Self::Other(err)
    }
}

fn setup(args: &VmArgs, inner: Inner) -> Result<Setup, Unfit> {
    let program = env::current_exe().context("cannot find the program that runs")?;
    let mut closure = Closure::new();
    closure.program(&program).context("pagetrace itself cannot go into a guest")?;
    let mut files = Vec::new();
    let name = inner.argv.first().cloned().unwrap_or_default();
    for dir in &args.share {
        let absolute = dir.canonicalize().map_err(|err| Refused(format!("--share {}: {err}", dir.display())));
        let absolute = absolute.map_err(anyhow::Error::from)?;
        if !absolute.is_dir() {
            return Err(anyhow::Error::from(Refused(format!("--share {} is no directory", dir.display()))).into());
        }
        files.extend(shared(&absolute, &absolute_of(dir)?)?);
    }
    let mut modules = Vec::new();
    for path in &args.modules {
        if path.is_dir() {
            let name = path.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_owned()));
            files.extend(shared(path, &Path::new("/lib/modules").join(name.unwrap_or_default()))?);
        } else if path.is_file() {
            modules.push(path.clone());
        } else {
            return Err(anyhow::Error::from(Refused(format!("--modules {} does not exist", path.display()))).into());
        }
    }
    if let Some(initrd) = args.initrd.as_deref().filter(|initrd| !initrd.is_file()) {
        return Err(anyhow::Error::from(Refused(format!("--initrd {} is no file", initrd.display()))).into());
    }
    if args.tools {
        files.extend(busybox::files(&note).context("cannot get --tools")?);
    }
    for program in &args.program {
        let path = closure::find(program).ok_or_else(|| Refused(format!("--program {program} does not exist")));
        closure.program(&path.map_err(anyhow::Error::from)?)?;
    }
    let command = command(&name, &mut closure, args)?;
    let dirs: Vec<PathBuf> = closure.library_dirs.iter().cloned().collect();
    let library_path = env::join_paths(&dirs).ok().filter(|path| !path.is_empty());
    files.extend(closure.into_files());
    fits(&files, args.mem)?;
    Ok(Setup {
        program,
        inner,
        command,
        files,
        modules,
        library_path,
        cwd: shared_cwd(&args.share),
        initrd: args.initrd.clone(),
        cpus: args.cpus,
        mem_mib: args.mem,
        append: args.append.clone(),
        timeout: Duration::from_secs(args.timeout),
        console: args.console,
        keep: args.out.is_some(),
    })
}

/// The files of a directory; what of them cannot go along is said.
fn shared(host: &Path, guest: &Path) -> Result<Vec<VmFile>> {
    let share::Shared { files, left_out } = share::directory(host, guest)?;
    if left_out != 0 {
        note(&format!("{left_out} sockets, pipes and devices of {} stay here", host.display()));
    }
    Ok(files)
}

/// Refuses what a guest with so much memory cannot take: the archive is in memory until it is unpacked, and then there twice.
fn fits(files: &[VmFile], mem_mib: u32) -> Result<()> {
    /// What the kernel and its programs need besides.
    const BESIDES: u64 = 128;
    let size = |file: &VmFile| match &file.source {
        Source::Host(path) => fs::metadata(path).map_or(0, |meta| meta.len()),
        Source::Bytes(bytes) => bytes.len() as u64,
        Source::Link(_) | Source::Directory => 0,
    };
    let mib = files.iter().map(size).sum::<u64>() / 1024 / 1024;
    if 2 * mib + BESIDES > u64::from(mem_mib) {
        let text = format!(
            "what goes into the guest has {mib} MiB, too much for its {mem_mib} MiB of memory: share less, or give --mem {}",
            2 * mib + 2 * BESIDES
        );
        return Err(Refused(text).into());
    }
    Ok(())
}

/// Finds the command here, and says where it is in the guest. One that only the initramfs or the tools have is found there.
fn command(name: &OsString, closure: &mut Closure, args: &VmArgs) -> Result<OsString, Unfit> {
    let text = name.to_string_lossy();
    let Some(path) = closure::find(&text) else {
        if args.initrd.is_some() || (args.tools && !text.contains('/')) {
            return Ok(name.clone());
        }
        return Err(Unfit::Command(anyhow::anyhow!("cannot run {text} in the guest: it does not exist here"), 127));
    };
    if path.is_dir() {
        return Err(Unfit::Command(anyhow::anyhow!("cannot run {}: it is a directory", path.display()), 126));
    }
    if let Some(why) = not_a_program(&path) {
        return Err(Unfit::Command(anyhow::anyhow!("cannot run {}: {why}", path.display()), 126));
    }
    closure.program(&path).map_err(|err| Unfit::Command(err, 126))?;
    Ok(path.into_os_string())
}

/// Why the kernel would not run a file, if it would not (execve(2), EACCES and ENOEXEC).
fn not_a_program(path: &Path) -> Option<&'static str> {
    let mut first = [0_u8; 4];
    let mut file = fs::File::open(path).ok()?;
    if file.metadata().ok()?.permissions().mode() & 0o111 == 0 {
        return Some("it is not executable");
    }
    let read = file.read(&mut first).ok()?;
    let known = first.get(..read).is_some_and(|first| first.starts_with(b"#!") || first.starts_with(b"\x7fELF"));
    (!known).then_some("it is neither a program nor a script that names its interpreter with #!")
}

fn absolute_of(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot tell where {} is", path.display()))
}

/// The directory that the command starts in: the one that is current here, where it was shared.
fn shared_cwd(shares: &[PathBuf]) -> Option<PathBuf> {
    let here = env::current_dir().ok()?;
    let shared = |share: &PathBuf| std::path::absolute(share).is_ok_and(|share| here.starts_with(share));
    shares.iter().any(shared).then_some(here)
}

/// Runs all kernels, some at a time, and gives them in the order they were asked for.
fn all(args: &VmArgs, setup: &Setup, scratch: &Scratch, recordings: &[PathBuf]) -> Result<Vec<Column>> {
    for wanted in args.kernel.iter().filter(|wanted| !Path::new(wanted).exists()) {
        if wanted.contains('/') {
            return Err(Refused(format!("--kernel {wanted} does not exist")).into());
        }
        if wanted != "newest" && !wanted.starts_with(|first: char| first.is_ascii_digit()) {
            let text = format!("--kernel `{wanted}` is no file here, and neither a series such as 6.1 nor `newest`");
            return Err(Refused(text).into());
        }
    }
    let queue: Mutex<VecDeque<(usize, &String)>> = Mutex::new(args.kernel.iter().enumerate().collect());
    let done: Mutex<Vec<(usize, Column)>> = Mutex::default();
    let at_a_time = args.jobs.map_or_else(|| room(args), |jobs| jobs as usize).min(args.kernel.len());
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().ok().and_then(|mut queue| queue.pop_front());
                    let Some((index, wanted)) = next else { return };
                    let kernel = kernel::resolve(wanted, &note);
                    let dir =
                        scratch.dir(index, args.kernel.len(), kernel.as_ref().map_or(wanted, |kernel| &kernel.release));
                    let column = setup.run(wanted, kernel, &dir, recordings.get(index).map(PathBuf::as_path));
                    if let Ok(mut done) = done.lock() {
                        done.push((index, column));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().map_err(|_| Misuse("a run was lost"))?;
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, column)| column).collect())
}

/// How many guests this machine takes: each its processors, and its memory with what QEMU needs besides.
fn room(args: &VmArgs) -> usize {
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    let by_cpus = cpus / args.cpus as usize;
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let mib = available.and_then(|text| text.split_whitespace().next()?.parse::<usize>().ok()).map(|kib| kib / 1024);
    let by_memory = mib.map_or(1, |mib| mib / (args.mem as usize + 512));
    by_cpus.min(by_memory).max(1)
}

/// What the guests printed, as if it had been printed here.
fn streams(columns: &[Column], stdout_is_ours: bool) {
    use std::io::Write as _;
    for column in columns {
        // Nobody reading it is no error.
        let _ = std::io::stderr().write_all(&column.streams.stderr);
        let _ = if stdout_is_ours {
            std::io::stderr().write_all(&column.streams.stdout)
        } else {
            std::io::stdout().write_all(&column.streams.stdout)
        };
    }
}

fn events(columns: &[Column]) -> Vec<u8> {
    columns.iter().filter_map(|column| column.streams.events.as_deref()).collect::<Vec<_>>().concat()
}

/// Directories of the runs.
struct Scratch {
    base: PathBuf,
    /// Whether a person asked for it.
    kept: bool,
}

impl Scratch {
    fn new(out: Option<&Path>) -> Result<Self> {
        let base = match out {
            Some(dir) => dir.to_owned(),
            None => {
                let all = cache::dir()?.join("vm");
                tidy(&all);
                all.join(std::process::id().to_string())
            }
        };
        fs::create_dir_all(&base).with_context(|| format!("cannot write to --out {}", base.display()))?;
        Ok(Self { base, kept: out.is_some() })
    }

    fn dir(&self, index: usize, of: usize, name: &str) -> PathBuf {
        let name = name.replace(['/', ' '], "_");
        self.base.join(if of == 1 { name } else { format!("{}-{name}", index + 1) })
    }

    /// The console log of a machine that failed stays.
    fn done(self, all_well: bool) {
        if all_well && !self.kept {
            let _ = fs::remove_dir_all(&self.base);
        }
    }
}

/// Takes away what runs that were killed have left below their process ids, all but the logs.
fn tidy(all: &Path) {
    let running = |name: &str| name.parse::<u32>().is_ok_and(|pid| Path::new("/proc").join(pid.to_string()).exists());
    let list = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    for run in list(all).filter(|run| !run.file_name().to_str().is_some_and(running)) {
        let mut logs = false;
        for machine in list(&run.path()) {
            for file in list(&machine.path()) {
                if file.path().extension().is_some_and(|ext| ext == "log") {
                    logs = true;
                } else {
                    let _ = fs::remove_file(file.path());
                }
            }
        }
        if !logs {
            let _ = fs::remove_dir_all(run.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_runs_left_goes_and_logs_stay() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let this = std::process::id();
        for path in ["4294967294/6.1", "4294967293/6.1", &format!("{this}/6.1")] {
            fs::create_dir_all(at(path)).unwrap();
            fs::write(at(path).join("out.img"), "x").unwrap();
        }
        fs::write(at("4294967294/6.1/console.log"), "x").unwrap();
        tidy(dir.path());
        assert!(at("4294967294/6.1/console.log").exists() && !at("4294967294/6.1/out.img").exists());
        assert!(!at("4294967293").exists() && at(&format!("{this}/6.1/out.img")).exists());
    }

    #[test]
    fn what_cannot_run_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = |text: &str, mode| {
            let path = dir.path().join("f");
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            not_a_program(&path)
        };
        assert_eq!(file("#!/bin/sh\n", 0o755), None);
        assert!(file("#!/bin/sh\n", 0o644).is_some_and(|why| why.contains("not executable")));
        assert!(file("true\n", 0o755).is_some_and(|why| why.contains("#!")) && file("", 0o755).is_some());
        assert_eq!(not_a_program(&env::current_exe().unwrap()), None);
    }

    #[test]
    fn a_guest_takes_what_its_memory_has_room_for_twice() {
        let of = |mib: usize| VmFile { path: "/a".into(), source: Source::Bytes(vec![0; mib << 20]), mode: 0o644 };
        assert!(fits(&[of(20), of(20)], 256).is_ok());
        assert!(fits(&[of(40), of(30)], 256).unwrap_err().to_string().contains("has 70 MiB"));
    }
}
