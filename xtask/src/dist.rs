//! `cargo xtask dist`: what is given to users. A static binary, man pages, completions, a Debian package, checksums.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    build, setup,
    step::{self, note},
    workspace,
};

/// What `cargo xtask dist` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Directory for the files; it is emptied first.
    #[arg(long)]
    out: Option<PathBuf>,
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs the subcommand.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure(true)?;
    let out = options.out.clone().unwrap_or_else(|| workspace::target().join("dist"));
    let _ = fs::remove_dir_all(&out);
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let binary = build::build_pagetrace()?;
    copy(&binary, &out.join("pagetrace"), 0o755)?;
    let mut generate = Command::new(workspace::cargo());
    generate.args(["run", "--quiet", "--package", "pagetrace-tests", "--bin", "pagetrace-generate", "--"]).arg(&out);
    step::run("man pages and completions", generate.current_dir(workspace::root()))?;
    package(&out)?;
    checksums(&out)?;
    for path in files(&out)? {
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let context = || format!("cannot copy {} to {}", from.display(), to.display());
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).with_context(context)?;
    }
    fs::copy(from, to).with_context(context)?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).with_context(context)
}

fn compressed(from: &Path, to: &Path) -> Result<()> {
    copy(from, to, 0o644)?;
    let mut gzip = Command::new("gzip");
    // No name and time: the same input gives the same package.
    step::capture("gzip", gzip.args(["-9n", "-f"]).arg(to)).and_then(|done| {
        ensure!(done.status.success(), "{gzip:?} failed: {}", done.tail());
        Ok(())
    })
}

/// The package, from a tree as it will be installed.
fn package(out: &Path) -> Result<()> {
    let root = out.join("root");
    let usr = root.join("usr");
    copy(&out.join("pagetrace"), &usr.join("bin/pagetrace"), 0o755)?;
    for page in files(&out.join("man"))? {
        compressed(&page, &usr.join("share/man/man1").join(page.file_name().unwrap_or_default()))?;
    }
    for (from, to) in [
        ("pagetrace.bash", "bash-completion/completions/pagetrace"),
        ("_pagetrace", "zsh/vendor-completions/_pagetrace"),
        ("pagetrace.fish", "fish/vendor_completions.d/pagetrace.fish"),
    ] {
        copy(&out.join("completions").join(from), &usr.join("share").join(to), 0o644)?;
    }
    let doc = usr.join("share/doc/pagetrace");
    compressed(&workspace::root().join("CHANGELOG.md"), &doc.join("changelog"))?;
    copy(&workspace::root().join("README.md"), &doc.join("README.md"), 0o644)?;
    for page in files(&workspace::root().join("docs"))?.iter().filter(|page| page.is_file()) {
        copy(page, &doc.join("docs").join(page.strip_prefix(workspace::root().join("docs"))?), 0o644)?;
    }
    write(&doc.join("copyright"), &copyright()?)?;
    write(&root.join("DEBIAN/control"), &control(size(&usr)?.div_ceil(1024)))?;
    let mut build = Command::new("dpkg-deb");
    build.args(["--build", "--root-owner-group"]).arg(&root).arg(out.join(format!("pagetrace_{VERSION}_amd64.deb")));
    if let Some(time) = source_date() {
        build.env("SOURCE_DATE_EPOCH", time);
    }
    step::run("the Debian package", &mut build).context("is dpkg-deb (package dpkg) there?")?;
    fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(context)?;
    }
    fs::write(path, text).with_context(context)
}

fn copyright() -> Result<String> {
    let root = workspace::root();
    let read = |name: &str| fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"));
    Ok(format!(
        "pagetrace is licensed under either of the MIT licence and the Apache licence, version 2.0, at your option; its BPF object\n\
         under MIT or GPL version 2.\n\n{}\n\n{}",
        read("LICENSE-MIT")?,
        read("LICENSE-APACHE")?
    ))
}

fn control(kibibytes: u64) -> String {
    format!(
        "Package: pagetrace\nVersion: {VERSION}\nArchitecture: amd64\nMaintainer: The pagetrace developers <pagetrace@localhost>\n\
         Installed-Size: {kibibytes}\nSuggests: qemu-system-x86\nSection: devel\nPriority: optional\n\
         Description: tells who touched user memory while holding mmap_lock\n \
         A kernel path must never access user memory while it holds an mmap lock. pagetrace\n \
         finds the violation on a stock kernel when it happens: both stacks, the address,\n \
         the VMA, whose lock, and whether a writer was already queued.\n"
    )
}

/// All files below a directory, in order.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    found.sort();
    Ok(found)
}

fn size(dir: &Path) -> Result<u64> {
    files(dir)?.iter().try_fold(0, |sum, path| Ok(sum + fs::metadata(path)?.len()))
}

/// The time of the last commit; none outside of a repository.
fn source_date() -> Option<String> {
    let given = env::var("SOURCE_DATE_EPOCH").ok();
    given.or_else(|| {
        let out =
            Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(workspace::root()).output().ok()?;
        let time = String::from_utf8(out.stdout).ok()?.trim().to_owned();
        (!time.is_empty()).then_some(time)
    })
}

/// In the form that `sha256sum -c` reads.
fn checksums(out: &Path) -> Result<()> {
    let names: Vec<PathBuf> =
        files(out)?.iter().filter_map(|path| Some(path.strip_prefix(out).ok()?.to_owned())).collect();
    let done = Command::new("sha256sum").args(&names).current_dir(out).output().context("cannot start sha256sum")?;
    ensure!(done.status.success(), "sha256sum failed: {}", String::from_utf8_lossy(&done.stderr).trim());
    write(&out.join("SHA256SUMS"), &String::from_utf8_lossy(&done.stdout))?;
    note(&format!("{} files in {}", names.len() + 1, out.display()));
    Ok(())
}
