//! Tasks of the workspace: `cargo xtask --help`.

mod bench;
#[path = "../../pagetrace/build/bpf.rs"]
#[expect(dead_code, unreachable_pub, reason = "the module is the build script's; here it only finds toolchains")]
mod bpf;
mod build;
#[path = "../../tests/src/fixture/cases.rs"]
#[expect(dead_code, unreachable_pub, reason = "the table is the fixture program's")]
mod cases;
mod demo;
mod dist;
mod guest;
mod kmod;
mod lockdep;
mod selftests;
mod setup;
mod source;
mod step;
mod test;
#[path = "../../pagetrace/src/vm/mod.rs"]
#[expect(dead_code, unreachable_pub, unused_imports, reason = "the module is part of pagetrace's public library")]
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// Tasks of the workspace.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    after_help = "Environment:
  PAGETRACE_DEBIAN_MIRROR  Debian's archive, which test kernels come from, such as http://HOST/debian; default: apt's own
  PAGETRACE_CACHE          directory for kernels and packages; default: pagetrace in the user's cache directory
  PAGETRACE_VM_ACCEL       kvm or tcg; default: kvm where it works"
)]
enum Task {
    /// Finds what is missing to build and test, and installs it.
    Setup(setup::Options),
    /// Shows a real violation being found on a stock kernel, and its clean twin being passed.
    Demo(demo::Options),
    /// Runs all suites: format, lints, unit tests, this host, test kernels.
    Test(test::Options),
    /// Measures what watching costs: storms plain and watched, and the time until all is attached.
    Bench(bench::Options),
    /// Makes what is given to users: binary, man pages, completions, Debian package, checksums.
    Dist(dist::Options),
    /// Builds a kernel with lockdep, and holds its verdict on each fixture against pagetrace's.
    Lockdep(lockdep::Options),
    /// Runs the kernel's own tests of its memory management under `pagetrace check`.
    Selftests(selftests::Options),
    /// Boots a test kernel and runs a command on it.
    Vm(guest::Options),
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Setup(options) => setup::run(&options),
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Dist(options) => dist::run(&options),
        Task::Lockdep(options) => lockdep::run(&options),
        Task::Selftests(options) => selftests::run(&options),
        Task::Vm(options) => guest::run(&options),
    };
    done.unwrap_or_else(|err| {
        eprintln!("error: {err:#}");
        // EX_UNAVAILABLE: the task could not be done, which says nothing about what it tests.
        ExitCode::from(69)
    })
}
