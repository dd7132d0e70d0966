//! Static binaries: the form that runs in an initramfs without any library.
//!
//! They have a target directory of their own, because other compiler flags would make cargo rebuild
//! everything in the usual one.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, ensure};

use crate::{step, workspace};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What the suites on test kernels need.
#[derive(Debug, Clone)]
pub(crate) struct StaticBinaries {
    /// The tracer.
    pub(crate) pagetrace: PathBuf,
    /// The workloads with known violations and their clean twins.
    pub(crate) fixture: PathBuf,
    /// The suite that runs in the guest.
    pub(crate) guest_suite: PathBuf,
}

/// The tracer alone.
pub(crate) fn build_pagetrace() -> Result<PathBuf> {
    cargo("building pagetrace (static)", &["--package", "pagetrace", "--bin", "pagetrace"])?;
    binary("pagetrace")
}

/// The tracer, the fixture and the guest's suite.
pub(crate) fn build_static() -> Result<StaticBinaries> {
    let pagetrace = build_pagetrace()?;
    cargo("building the fixtures (static)", &["--package", "pagetrace-tests", "--bins"])?;
    Ok(StaticBinaries {
        pagetrace,
        fixture: binary("pagetrace-fixture")?,
        guest_suite: binary("pagetrace-guest-suite")?,
    })
}

/// What the bench within a test machine needs.
#[derive(Debug, Clone)]
pub(crate) struct BenchBinaries {
    /// The tracer.
    pub(crate) pagetrace: PathBuf,
    /// The storms.
    pub(crate) fixture: PathBuf,
    /// This program.
    pub(crate) xtask: PathBuf,
}

/// The tracer, the fixture and xtask itself.
pub(crate) fn build_bench() -> Result<BenchBinaries> {
    let pagetrace = build_pagetrace()?;
    cargo("building the storms (static)", &["--package", "pagetrace-tests", "--bin", "pagetrace-fixture"])?;
    cargo("building xtask (static)", &["--package", "xtask"])?;
    Ok(BenchBinaries { pagetrace, fixture: binary("pagetrace-fixture")?, xtask: binary("xtask")? })
}

/// The tracer and the fixture as they run on this machine.
pub(crate) fn build_release() -> Result<(PathBuf, PathBuf)> {
    let mut command = Command::new(workspace::cargo());
    command.args(["build", "--release", "--package", "pagetrace", "--package", "pagetrace-tests"]);
    command.args(["--bin", "pagetrace", "--bin", "pagetrace-fixture"]).current_dir(workspace::root());
    step::run("building pagetrace and the storms", &mut command)?;
    let dir = workspace::target().join("release");
    let paths = (dir.join("pagetrace"), dir.join("pagetrace-fixture"));
    for path in [&paths.0, &paths.1] {
        ensure!(path.is_file(), "the build left no {}", path.display());
    }
    Ok(paths)
}

/// The program that measures readers of pagemap.
pub(crate) fn build_pagemap_bench() -> Result<PathBuf> {
    let mut command = Command::new(workspace::cargo());
    command.args(["build", "--release", "--package", "pagetrace-tests", "--bin", "pagetrace-bench"]);
    step::run("building the bench of pagemap", command.current_dir(workspace::root()))?;
    let path = workspace::target().join("release/pagetrace-bench");
    ensure!(path.is_file(), "the build left no {}", path.display());
    Ok(path)
}

fn cargo(title: &str, args: &[&str]) -> Result<()> {
    let mut command = Command::new(workspace::cargo());
    command
        .args(["build", "--release", "--target", TARGET, "--target-dir"])
        .arg(workspace::target().join("static"))
        .args(args)
        .current_dir(workspace::root())
        // As users are given it. Line tables are half of a binary, and a guest has all of it in memory before it does anything.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
        // With an explicit target the flags reach neither build scripts nor procedural macros.
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    step::run(title, &mut command)?;
    Ok(())
}

fn binary(name: &str) -> Result<PathBuf> {
    let path = workspace::target().join("static").join(TARGET).join("release").join(name);
    ensure!(path.is_file(), "the build left no {}", path.display());
    Ok(path)
}
