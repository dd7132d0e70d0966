//! One pattern a subcommand, right or wrong, exercised for real: see `pagetrace-fixture list`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pagetrace_tests::fixture::main()
}
