//! The suite that runs in a test VM as root, or on this host with `--host`: pagetrace against the fixtures.

use std::process::ExitCode;

fn main() -> ExitCode {
    pagetrace_tests::guest::main()
}
