//! The command.

use std::process::ExitCode;

fn main() -> ExitCode {
    // In a test kernel the same static binary is the first process.
    if pagetrace::vm::guest::is_init() {
        pagetrace::vm::guest::main();
    }
    // The same program again, in a process that may get stuck where the check must not.
    if pagetrace::live::provoke::is_helper() {
        return pagetrace::live::provoke::helper_main();
    }
    pagetrace::cli::main()
}
