//! One run: builds the initramfs, boots, follows the console, fetches the files.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    accel,
    console::Lines,
    cpio::{self, Entry},
    initramfs,
    outcome::Outcome,
    qemu::{Chunk, Machine, Qemu},
    spec::VmSpec,
    watch::{End, Watch},
};

/// The disk is sparse: what the guest does not write costs nothing.
const DISK_SIZE: u64 = 1 << 30;
/// The init needs this long, at most, to send files and to power off.
const LAST_STEPS: Duration = Duration::from_secs(45);

/// What came of a run.
#[derive(Debug, Clone)]
pub struct VmResult {
    /// How it ended.
    pub outcome: Outcome,
    /// The files the command left in `/out`, paths relative to it.
    pub out_files: Vec<Entry>,
    /// From QEMU's start until the init reported; `None` when it never did.
    pub boot: Option<Duration>,
    /// From QEMU's start to its end.
    pub duration: Duration,
    /// Everything the console showed.
    pub console_log: PathBuf,
}

impl VmResult {
    /// What a file that the command left in `/out` holds.
    #[must_use]
    pub fn out_file(&self, name: &str) -> Option<&[u8]> {
        self.out_files.iter().find(|entry| entry.path == Path::new(name)).map(|entry| entry.data.as_slice())
    }

    /// The same as text.
    #[must_use]
    pub fn out_text(&self, name: &str) -> Option<String> {
        self.out_file(name).map(|data| String::from_utf8_lossy(data).into_owned())
    }
}

/// Runs a guest; each line of its console is handed to `on_line` as it comes.
///
/// A kernel that dies before the guest's init runs is booted once more: that says nothing about the
/// command, which has not begun. What the failed boot printed stays in `console-failed-boot.log`.
/// From the init on nothing is repeated.
///
/// # Errors
/// When the guest's files cannot be read, or the run's own files cannot be written. What goes wrong
/// from QEMU's start on is an [`Outcome`].
pub fn run(spec: &VmSpec, on_line: &mut dyn FnMut(&str)) -> Result<VmResult> {
    let result = attempt(spec, on_line)?;
    let Outcome::NoBoot { reason } = &result.outcome else { return Ok(result) };
    // Where QEMU itself refuses, a second time is no different.
    if !reason.starts_with("QEMU") {
        on_line(&format!("the kernel did not boot ({reason}); trying once more"));
        let kept = spec.work_dir.join("console-failed-boot.log");
        fs::rename(&result.console_log, &kept).with_context(|| format!("cannot create {}", kept.display()))?;
        return attempt(spec, on_line);
    }
    Ok(result)
}

fn attempt(spec: &VmSpec, on_line: &mut dyn FnMut(&str)) -> Result<VmResult> {
    let work = &spec.work_dir;
    fs::create_dir_all(work).with_context(|| format!("cannot create {}", work.display()))?;
    let console_log = work.join("console.log");
    let mut log = File::create(&console_log).with_context(|| format!("cannot create {}", console_log.display()))?;
    let files =
        Scratch { initrd: work.join("initramfs.cpio"), disk: work.join("out.img"), line: work.join("out.line") };
    let token = token()?;
    initramfs::write(spec, &token, &files.initrd)?;
    File::create(&files.disk)
        .and_then(|disk| disk.set_len(DISK_SIZE))
        .with_context(|| format!("cannot create {}", files.disk.display()))?;
    let machine = Machine {
        kernel: &spec.kernel,
        initrd: Some(&files.initrd),
        disk: Some(&files.disk),
        line: Some(&files.line),
        accel: spec.accel.unwrap_or_else(|| accel::choose(&spec.kernel)),
        cpu: &spec.cpu,
        cpus: spec.cpus,
        mem_mib: spec.mem_mib,
        append: &spec.append,
    };
    let start = Instant::now();
    let mut watch = Watch::new(token, spec.stop_on_complaint);
    let mut boot = None;
    let mut sink = |chunk: &[u8], lines: Vec<String>, watch: &mut Watch| {
        // A full disk must not end the run: the caller sees the lines anyway.
        let _ = log.write_all(chunk);
        for line in lines {
            if let Some(text) = watch.line(&line) {
                on_line(text);
            }
            if watch.booted {
                boot.get_or_insert_with(|| start.elapsed());
            }
        }
    };
    let mut outcome = match Qemu::start(&machine) {
        Ok(mut qemu) => {
            let end = follow(spec, &mut qemu, &mut watch, &mut sink);
            watch.outcome(&end, spec.timeout)
        }
        Err(err) => Outcome::InfraError { reason: format!("{err:#}") },
    };
    let duration = start.elapsed();
    let sent = watch.out.map(|bytes| (&files.disk, bytes)).or(watch.line_out.map(|bytes| (&files.line, bytes)));
    let out_files = match sent.map(|(path, bytes)| read_out(path, bytes)).transpose() {
        Ok(entries) => entries.unwrap_or_default(),
        Err(err) => {
            outcome = Outcome::InfraError { reason: format!("the guest's files did not arrive: {err:#}") };
            Vec::new()
        }
    };
    Ok(VmResult { outcome, out_files, boot, duration, console_log })
}

/// Takes what was read and the lines it completed.
type Sink<'a> = &'a mut dyn FnMut(&[u8], Vec<String>, &mut Watch);

fn follow(spec: &VmSpec, qemu: &mut Qemu, watch: &mut Watch, sink: Sink<'_>) -> End {
    let start = Instant::now();
    let mut lines = Lines::default();
    let mut stderr = Vec::new();
    let mut heard = start;
    let mut command_start = None;
    let mut grace_end = None;
    let end = loop {
        let mut deadlines = match command_start {
            None => vec![(start + spec.boot_timeout, End::Boot(spec.boot_timeout))],
            Some(at) => vec![(at + spec.timeout + LAST_STEPS, End::Deadline(spec.timeout))],
        };
        deadlines.extend(grace_end.map(|at| (at, End::Grace)));
        if let (Some(limit), Some(_)) = (spec.silence, command_start) {
            deadlines.push((heard + limit, End::Silence(limit)));
        }
        let Some((at, end)) = deadlines.into_iter().min_by_key(|(at, _)| *at) else { break End::Grace };
        match qemu.next(at) {
            Chunk::Console(bytes) => {
                let complete = lines.push(&bytes);
                sink(&bytes, complete, watch);
                heard = Instant::now();
            }
            Chunk::Stderr(bytes) => stderr.extend_from_slice(&bytes),
            Chunk::Silence => break end,
            Chunk::End => break End::Gone(how_it_went(qemu.exit_status(), &stderr)),
        }
        if watch.booted {
            command_start.get_or_insert_with(Instant::now);
        }
        if let Some(grace) = watch.grace() {
            grace_end.get_or_insert_with(|| Instant::now() + grace);
        }
    };
    sink(b"", lines.finish().into_iter().collect(), watch);
    end
}

fn how_it_went(status: Option<ExitStatus>, stderr: &[u8]) -> String {
    let how = status.map_or_else(|| "closed its streams".to_owned(), |status| format!("ended ({status})"));
    let text = String::from_utf8_lossy(stderr);
    match text.trim() {
        "" => how,
        text => format!("{how}, saying: {text}"),
    }
}

fn read_out(disk: &PathBuf, bytes: u64) -> Result<Vec<Entry>> {
    let mut archive = Vec::new();
    File::open(disk)
        .and_then(|file| file.take(bytes).read_to_end(&mut archive))
        .with_context(|| format!("cannot read {}", disk.display()))?;
    cpio::read(&archive)
}

/// A word nobody can guess who has not seen the initramfs.
fn token() -> Result<String> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("cannot read /dev/urandom")?;
    Ok(format!("vm-{:016x}", u64::from_ne_bytes(bytes)))
}

/// Files that go away with the run.
struct Scratch {
    initrd: PathBuf,
    disk: PathBuf,
    line: PathBuf,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let Self { initrd, disk, line } = self;
        let _ = fs::remove_file(initrd);
        let _ = fs::remove_file(line);
        let _ = fs::remove_file(disk);
    }
}
