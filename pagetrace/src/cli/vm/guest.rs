//! One run on one kernel: the guest's files in, what came of it out. What goes wrong with the machine is a value.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    document::{Column, Streams},
    inner::{EVENTS, Inner, Kind, RECORDING, REPORT, TEXT},
};
use crate::{
    cli::exit::Exit,
    output::{console::Sign, report::Report},
    vm::{self, Outcome, VmFile, VmResult, VmSpec, kernel::Kernel, protocol, trouble::Collector},
};

/// What all guests of an invocation have in common.
pub(super) struct Setup {
    /// This program.
    pub(super) program: PathBuf,
    pub(super) inner: Inner,
    /// The command's path in the guest.
    pub(super) command: OsString,
    pub(super) files: Vec<VmFile>,
    pub(super) modules: Vec<PathBuf>,
    pub(super) library_path: Option<OsString>,
    pub(super) cwd: Option<PathBuf>,
    pub(super) initrd: Option<PathBuf>,
    pub(super) cpus: u32,
    pub(super) mem_mib: u32,
    pub(super) append: String,
    pub(super) timeout: Duration,
    /// Whether the console is shown as it comes.
    pub(super) console: bool,
    /// Whether what comes back is kept in the run's directory.
    pub(super) keep: bool,
}

impl Setup {
    fn spec(&self, kernel: &Kernel, dir: &Path) -> VmSpec {
        let mut spec = VmSpec::new(&kernel.image, &self.program, dir);
        spec.files = vec![VmFile::link("/bin/pagetrace", "/init")];
        spec.files.extend(self.files.iter().cloned());
        spec.modules.clone_from(&self.modules);
        spec.command = self.inner.guest(&self.command, protocol::OUT);
        spec.env.extend(self.library_path.iter().map(|path| ("LD_LIBRARY_PATH".into(), path.clone())));
        (spec.cpus, spec.mem_mib, spec.timeout) = (self.cpus, self.mem_mib, self.timeout);
        // Warnings belong on the console, among them what lockdep says; and a time, by which the kernel's lines are known.
        spec.append = format!("loglevel=5 printk.time=1 {}", self.append);
        spec.initrd.clone_from(&self.initrd);
        spec.cwd.clone_from(&self.cwd);
        spec.keep_output = true;
        // What a kernel complains of is part of the report, which is worth waiting for.
        spec.stop_on_complaint = false;
        spec
    }

    /// Boots, runs, and judges the machine; `recording` is where a recording goes.
    pub(super) fn run(&self, wanted: &str, kernel: Result<Kernel>, dir: &Path, recording: Option<&Path>) -> Column {
        let mut column = Column {
            kernel: wanted.to_owned(),
            release: kernel.as_ref().ok().map(|kernel| kernel.release.clone()),
            outcome: "machine",
            exit_code: 0,
            failure: None,
            console: Vec::new(),
            console_log: None,
            boot_ms: None,
            duration_ms: 0,
            report: None,
            exit: Exit::Machine,
            streams: Streams::default(),
            command: self.inner.argv.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        };
        let done = kernel.and_then(|kernel| self.boot(&kernel, dir, &mut column));
        let done = done.and_then(|result| self.take(&result, &mut column, dir, recording));
        if let Err(err) = done {
            column.failure.get_or_insert_with(|| format!("{err:#}"));
            column.exit = Exit::Machine;
        }
        column
    }

    fn boot(&self, kernel: &Kernel, dir: &Path, column: &mut Column) -> Result<VmResult> {
        eprintln!("pagetrace: booting {}", kernel.release);
        let mut signs = Collector::default();
        let mut heard = false;
        let mut result = vm::run(&self.spec(kernel, dir), &mut |line| {
            heard = true;
            signs.line(line);
            if self.console {
                eprintln!("{line}");
            }
        })?;
        if let (Outcome::NoBoot { reason }, false) = (&mut result.outcome, heard) {
            reason.push_str("; it printed nothing: it needs a serial console (CONFIG_SERIAL_8250_CONSOLE) and an initramfs (CONFIG_BLK_DEV_INITRD)");
        }
        column.console = signs.finish().into_iter().map(Sign::from).collect();
        Ok(result)
    }

    fn take(&self, result: &VmResult, column: &mut Column, dir: &Path, recording: Option<&Path>) -> Result<()> {
        column.duration_ms = millis(result.duration);
        column.boot_ms = result.boot.map(millis);
        column.console_log = Some(result.console_log.display().to_string());
        let file = |name: &str| result.out_file(name);
        let copy = |name: &str| file(name).map(<[u8]>::to_vec);
        column.streams = Streams {
            stdout: copy(protocol::STDOUT).unwrap_or_default(),
            stderr: copy(protocol::STDERR).unwrap_or_default(),
            events: copy(EVENTS),
        };
        if self.keep {
            for name in [REPORT, TEXT, RECORDING, EVENTS, protocol::STDOUT, protocol::STDERR] {
                if let Some(data) = file(name) {
                    let path = dir.join(name);
                    fs::write(&path, data).with_context(|| format!("cannot write {}", path.display()))?;
                }
            }
        }
        if let (Some(path), Some(data)) = (recording, file(RECORDING)) {
            fs::write(path, data).with_context(|| format!("cannot write the recording {}", path.display()))?;
        }
        let code = match &result.outcome {
            Outcome::Exited { code } => u8::try_from(*code).unwrap_or(u8::MAX),
            other => {
                column.outcome = word(other);
                column.failure = Some(match other {
                    Outcome::Signaled { signal } => {
                        format!(
                            "signal {signal} ended pagetrace in the guest; a guest short of memory does that, see --mem"
                        )
                    }
                    other => other.to_string(),
                });
                return Ok(());
            }
        };
        column.outcome = "exited";
        // The guest's own code, where it gave no verdict: an error, or a command that could not be started.
        column.exit = Exit::Command(code);
        match file(REPORT).filter(|data| !data.is_empty()) {
            Some(data) => {
                let mut report: Report = serde_json::from_slice(data).context("the guest's report cannot be read")?;
                report.add_console(column.console.clone());
                column.report = Some(report);
            }
            None if matches!(self.inner.kind, Kind::Trace(_)) => {}
            None => {
                let said = String::from_utf8_lossy(&column.streams.stderr).trim().to_owned();
                column.exit = match code {
                    2 => Exit::Usage,
                    3 => Exit::Cannot,
                    5 => Exit::Internal,
                    code => Exit::Command(code),
                };
                column.failure = Some(format!("pagetrace in the guest ended with {code} and made no report: {said}"));
            }
        }
        Ok(())
    }
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

const fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Exited { .. } => "exited",
        Outcome::Signaled { .. } => "signaled",
        Outcome::Panic { .. } => "panic",
        Outcome::Hung { .. } => "hung",
        Outcome::Timeout { .. } => "timeout",
        Outcome::NoBoot { .. } => "no-boot",
        Outcome::InfraError { .. } => "machine",
    }
}
