//! kprobes and kretprobes for the lock order. A program goes to all functions that share its arguments and outcome.

use aya_ebpf::{
    macros::{kprobe, kretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use pagetrace_ebpf::wire::{body, lock::held, order::how};

use crate::{
    handover::{Handed, go_on, handed},
    hooks::order,
};

#[inline(always)]
fn arg(ctx: &ProbeContext, index: usize) -> u64 {
    ctx.arg(index).unwrap_or(0)
}

macro_rules! want {
    ($($name:ident, $flags:expr;)*) => {$(
        #[kprobe]
        pub(crate) fn $name(ctx: ProbeContext) -> u32 {
            if order::is_followed() {
                go_on(&ctx, body::WANT, Handed { about: arg(&ctx, 0), ip: 0, flags: $flags });
            }
            0
        }
    )*};
}
want! {
    kp_order_mutex, how::MUTEX | held::WRITE;
    kp_order_mutex_may_fail, how::MUTEX | held::WRITE | held::TENTATIVE;
    kp_order_mutex_try, how::MUTEX | held::WRITE | held::TENTATIVE | held::TRY;
    kp_order_read, held::READ;
    kp_order_read_may_fail, held::READ | held::TENTATIVE;
    kp_order_read_interruptible, held::READ | held::TENTATIVE | held::ANY_SIGNAL;
    kp_order_read_try, held::READ | held::TENTATIVE | held::TRY;
    kp_order_write, held::WRITE;
    kp_order_write_may_fail, held::WRITE | held::TENTATIVE;
    kp_order_write_try, held::WRITE | held::TENTATIVE | held::TRY;
}

/// What all of these go on to.
#[kprobe]
pub(crate) fn kp_want(ctx: ProbeContext) -> u32 {
    if let Some(Handed { about: lock, flags, .. }) = handed() {
        order::on_want(&ctx, lock, flags);
    }
    0
}

/// Of functions that return 0 when they have the lock.
#[kretprobe]
pub(crate) fn kr_order_may_fail(ctx: RetProbeContext) -> u32 {
    order::on_return(ctx.ret::<i32>() == 0);
    0
}

/// Of functions that return 1 when they have the lock.
#[kretprobe]
pub(crate) fn kr_order_try(ctx: RetProbeContext) -> u32 {
    order::on_return(ctx.ret::<i32>() != 0);
    0
}

#[kprobe]
pub(crate) fn kp_order_release(ctx: ProbeContext) -> u32 {
    order::on_release(arg(&ctx, 0), false);
    0
}

#[kprobe]
pub(crate) fn kp_order_release_read(ctx: ProbeContext) -> u32 {
    order::on_release(arg(&ctx, 0), true);
    0
}

#[kprobe]
pub(crate) fn kp_order_downgrade(ctx: ProbeContext) -> u32 {
    order::on_downgrade(arg(&ctx, 0));
    0
}

#[kprobe]
pub(crate) fn kp_order_init_mutex(ctx: ProbeContext) -> u32 {
    order::on_init(&ctx, arg(&ctx, 0), true);
    0
}

#[kprobe]
pub(crate) fn kp_order_init_rwsem(ctx: ProbeContext) -> u32 {
    order::on_init(&ctx, arg(&ctx, 0), false);
    0
}

#[kprobe]
pub(crate) fn kp_order_fault(ctx: ProbeContext) -> u32 {
    order::on_fault(&ctx, arg(&ctx, 0), arg(&ctx, 1), arg(&ctx, 2));
    0
}
