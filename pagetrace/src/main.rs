//! The command.

use std::process::ExitCode;

fn main() -> ExitCode {
    // In a test kernel the same static binary is the first process.
    if pagetrace::vm::guest::is_init() {
        pagetrace::vm::guest::main();
    }
    pagetrace::cli::main()
}
