//! The BPF object: per-task lock state, and what userspace needs of it.
//!
//! `shims` fetch arguments, one file an attach type; `hooks` hold the logic they share; `state` is what a task
//! carries between events. Nothing here decides what a finding is worth: that is userspace's part.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "BPF programs read kernel memory and call helpers")]

mod handover;
mod hooks;
mod kernel;
mod shims;
mod stacks;
mod state;
mod stream;
mod target;

/// Licence the kernel asks for before it lets the object call GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The verifier rejects whatever could reach this.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
