//! Builds the kernel's own tests of its memory management, statically: once for a source. A test that cannot be built is told.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::list;
use crate::{
    kmod::COMPILER,
    source::{self, Source},
    step::{self, note},
    vm::cache,
};

/// Part of the directory's name: raise it when the way of building changes.
const RECIPE: u32 = 1;
/// What make said, kept with what it built.
const LOG: &str = "build.log";

/// The tests of a source.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) version: String,
    /// Name and file of each test.
    pub(super) programs: Vec<(String, PathBuf)>,
    /// Tests that could not be built.
    pub(super) missing: Vec<String>,
    /// What make said.
    pub(super) log: PathBuf,
}

/// Builds the tests of `series`, or finds them in the cache.
pub(super) fn tests(series: &str) -> Result<Built> {
    let source = source::of(series)?;
    let base = cache::dir()?.join("selftests");
    fs::create_dir_all(&base).with_context(|| format!("cannot create {}", base.display()))?;
    let _lock = cache::lock(&base, "lock")?;
    let dir = base.join(format!("{}-{RECIPE}", source.version));
    let log = dir.join(LOG);
    if !log.is_file() {
        make(&source, &dir, &log)?;
    }
    let output = fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let programs = programs(&dir.join("bin"))?;
    ensure!(!programs.is_empty(), "no test could be built; see {}", log.display());
    Ok(Built { version: source.version, programs, missing: list::not_built(&output), log })
}

fn make(source: &Source, dir: &Path, log: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(dir);
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    let command = |below: &str| {
        let mut make = Command::new("nice");
        make.args(["-n", "10", "make", "-s", "-k", "-C"]).arg(source.dir.join(below));
        make.args(["ARCH=x86_64", &format!("CC={COMPILER}")]);
        make
    };
    step::run("making the kernel's headers", command("").arg(format!("O={}", dir.display())).arg("headers"))?;
    let mut tests = command("tools/testing/selftests/mm");
    tests.arg(format!("OUTPUT={}", bin.display())).arg("EXTRA_CFLAGS=-static");
    tests.arg(format!("KHDR_INCLUDES=-isystem {}", dir.join("usr/include").display()));
    note("building tools/testing/selftests/mm");
    // Some tests ask for more than this machine's C library has; the others are built all the same.
    let finished = step::capture("building tools/testing/selftests/mm", &mut tests)?;
    fs::write(log, finished.output).with_context(|| format!("cannot write {}", log.display()))
}

fn programs(bin: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(bin).with_context(|| format!("cannot list {}", bin.display()))? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_file() && meta.permissions().mode() & 0o111 != 0 {
            found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
        }
    }
    found.sort();
    Ok(found)
}
