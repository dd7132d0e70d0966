//! Measures how fast pagemap is read: see the library's `bench`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pagetrace_tests::bench::main()
}
