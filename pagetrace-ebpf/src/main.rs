//! The BPF object.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "BPF programs read kernel memory")]
use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};

/// Placeholder until the hooks land.
#[raw_tracepoint]
pub fn nothing(_ctx: RawTracePointContext) -> i32 {
    0
}

/// BPF programs cannot panic; the linker still wants a handler.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
