//! Feeds damaged recordings and damaged BTF to the readers, as often as one likes.

use std::process::ExitCode;

fn main() -> ExitCode {
    pagetrace_tests::fuzz::main()
}
