//! `cargo xtask vm`: a command on a test kernel.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    build, kmod,
    step::note,
    test::assets,
    vm::{self, VmFile, VmResult, VmSpec, busybox, cpio, kernel, spec},
    workspace,
};

/// What `cargo xtask vm` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A series such as 6.1, "newest", or the path of a kernel image.
    #[arg(long, default_value = "newest")]
    kernel: String,
    /// Seconds the command may run.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    /// Memory in MiB.
    #[arg(long, default_value_t = 1536)]
    mem: u32,
    /// Processors.
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Model of the processors where they are emulated, as QEMU's -cpu takes it.
    #[arg(long, default_value = spec::ALL_FEATURES)]
    cpu: String,
    /// Text added to the kernel's command line.
    #[arg(long, default_value = "")]
    append: String,
    /// A kernel module to load before the command; may be repeated.
    #[arg(long)]
    module: Vec<PathBuf>,
    /// A file for the guest, as HOST:GUEST; may be repeated.
    #[arg(long, value_parser = parse_file)]
    file: Vec<VmFile>,
    /// Where the files go that the command leaves in /out.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Bring the fixtures along, and run this part of the suite instead of a command.
    #[arg(long, value_name = "PART", conflicts_with = "command")]
    suite: Option<String>,
    /// The command.
    #[arg(last = true)]
    command: Vec<OsString>,
}

fn parse_file(text: &str) -> Result<VmFile, String> {
    let (host, guest) = text.split_once(':').ok_or("expected HOST:GUEST")?;
    Ok(VmFile::executable(guest, host))
}

/// Runs the subcommand; its exit code is the command's.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let kernel = kernel::resolve(&options.kernel, &note)?;
    let pagetrace = build::build_pagetrace()?;
    let mut spec = base(&kernel.image, &pagetrace, &format!("vm-{}-{}", kernel.series, std::process::id()))?;
    spec.files.extend(options.file.iter().cloned());
    spec.modules.clone_from(&options.module);
    spec.command.clone_from(&options.command);
    if let Some(part) = &options.suite {
        let module = kmod::build(&kernel.series, &kernel.release)?;
        assets(&mut spec, &build::build_static()?, module.as_deref());
        spec.command = ["/bin/pagetrace-guest-suite", "--only", part].map(OsString::from).to_vec();
    }
    if spec.command.is_empty() {
        spec.command = ["sh", "-c", "uname -a; pagetrace --version"].map(OsString::from).to_vec();
    }
    spec.timeout = Duration::from_secs(options.timeout);
    (spec.mem_mib, spec.cpus) = (options.mem, options.cpus);
    spec.append.clone_from(&options.append);
    spec.cpu.clone_from(&options.cpu);
    note(&format!("booting {}", kernel.release));
    let result = vm::run(&spec, &mut |line| println!("{line}"))?;
    let out = options.out.clone().unwrap_or_else(|| spec.work_dir.join("out"));
    save(&result, &out)?;
    let VmResult { outcome, boot, duration, console_log, .. } = &result;
    let boot = boot.map_or_else(|| "never".to_owned(), |boot| format!("{:.1} s", boot.as_secs_f32()));
    note(&format!("{outcome}; booted: {boot}, whole run: {:.1} s", duration.as_secs_f32()));
    if !outcome.success() {
        note(&format!("console: {}", console_log.display()));
    }
    Ok(ExitCode::from(outcome.exit_code()))
}

/// A guest with a shell and the tracer; the caller adds the rest.
pub(crate) fn base(image: &Path, pagetrace: &Path, name: &str) -> Result<VmSpec> {
    let mut spec = VmSpec::new(image, pagetrace, workspace::target().join("vm").join(name));
    spec.files = busybox::files(&note)?;
    // The init and the tracer are the same program.
    spec.files.push(VmFile::link("/bin/pagetrace", "/init"));
    Ok(spec)
}

fn save(result: &VmResult, dir: &Path) -> Result<()> {
    for file in &result.out_files {
        let path = dir.join(&file.path);
        if file.mode & cpio::kind::MASK == cpio::kind::DIRECTORY {
            fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
            continue;
        }
        fs::create_dir_all(path.parent().unwrap_or(dir))?;
        fs::write(&path, &file.data).with_context(|| format!("cannot write {}", path.display()))?;
        note(&format!("{} ({} bytes)", path.display(), file.data.len()));
    }
    Ok(())
}
