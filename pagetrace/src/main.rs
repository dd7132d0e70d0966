//! The command.

fn main() {
    if pagetrace::vm::guest::is_init() {
        pagetrace::vm::guest::main();
    }
    println!("pagetrace {}", env!("CARGO_PKG_VERSION"));
}
