//! kprobes and hardware breakpoints on the functions that access user memory; one program for each way they get the
//! address, attached to all functions that share it.
//!
//! Breakpoints, because most kernels take no kprobe in functions that were built without ftrace, as all of lib/ and the
//! assembly is.

use aya_ebpf::{
    bindings::pt_regs,
    macros::{kprobe, perf_event},
    programs::{PerfEventContext, ProbeContext},
};

use crate::hooks::access::{Direction, judge, on_access, on_iterator, on_move};

/// Where the probe sits, and the registers in which functions take addresses.
struct Registers {
    ip: u64,
    ax: u64,
    di: u64,
    si: u64,
    dx: u64,
    cx: u64,
}

impl Registers {
    #[inline(always)]
    fn of(regs: *const pt_regs) -> Self {
        // SAFETY: the context of a kprobe is the registers, that of a perf event begins with them.
        unsafe {
            Self {
                ip: (*regs).rip,
                ax: (*regs).rax,
                di: (*regs).rdi,
                si: (*regs).rsi,
                dx: (*regs).rdx,
                cx: (*regs).rcx,
            }
        }
    }
}

macro_rules! accesses {
    ($($kprobe:ident, $breakpoint:ident, |$ctx:ident, $regs:ident| $body:expr;)*) => {$(
        #[kprobe]
        pub(crate) fn $kprobe(ctx: ProbeContext) -> u32 {
            let ($ctx, $regs) = (&ctx, Registers::of(ctx.regs));
            $body;
            0
        }

        #[perf_event]
        pub(crate) fn $breakpoint(ctx: PerfEventContext) -> u32 {
            let ($ctx, $regs) = (&ctx, Registers::of(ctx.ctx.cast()));
            $body;
            0
        }
    )*};
}

/// What the kprobes go on to when the task holds a lock.
#[kprobe]
pub(crate) fn kp_judge(ctx: ProbeContext) -> u32 {
    judge(&ctx);
    0
}

/// What the breakpoints go on to then.
#[perf_event]
pub(crate) fn bp_judge(ctx: PerfEventContext) -> u32 {
    judge(&ctx);
    0
}

use Direction::{From, To};

accesses! {
    // Destination, then source; and the other way round.
    kp_access_move, bp_access_move, |ctx, regs| on_move(ctx, regs.ip, regs.di, regs.si);
    kp_access_move_reversed, bp_access_move_reversed, |ctx, regs| on_move(ctx, regs.ip, regs.si, regs.di);
    // arch/x86/lib/getuser.S and putuser.S have registers of their own.
    kp_access_get, bp_access_get, |ctx, regs| on_access(ctx, regs.ip, regs.ax, From);
    kp_access_put, bp_access_put, |ctx, regs| on_access(ctx, regs.ip, regs.cx, To);
    kp_access_read, bp_access_read, |ctx, regs| on_access(ctx, regs.ip, regs.di, From);
    kp_access_write, bp_access_write, |ctx, regs| on_access(ctx, regs.ip, regs.di, To);
    kp_access_iter0_read, bp_access_iter0_read, |ctx, regs| on_iterator(ctx, regs.ip, regs.di, From);
    kp_access_iter0_write, bp_access_iter0_write, |ctx, regs| on_iterator(ctx, regs.ip, regs.di, To);
    kp_access_iter1_write, bp_access_iter1_write, |ctx, regs| on_iterator(ctx, regs.ip, regs.si, To);
    kp_access_iter2_read, bp_access_iter2_read, |ctx, regs| on_iterator(ctx, regs.ip, regs.dx, From);
    kp_access_iter2_write, bp_access_iter2_write, |ctx, regs| on_iterator(ctx, regs.ip, regs.dx, To);
    kp_access_iter3_read, bp_access_iter3_read, |ctx, regs| on_iterator(ctx, regs.ip, regs.cx, From);
    kp_access_iter3_write, bp_access_iter3_write, |ctx, regs| on_iterator(ctx, regs.ip, regs.cx, To);
}
