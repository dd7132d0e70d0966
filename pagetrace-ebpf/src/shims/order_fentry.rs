//! fentry and fexit for the lock order: a program a function, since each is bound to one when it is loaded.

use aya_ebpf::{
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use pagetrace_ebpf::wire::{lock::held, order::how};

use crate::hooks::order;

macro_rules! want {
    ($($name:ident, $flags:expr;)*) => {$(
        #[fentry]
        pub(crate) fn $name(ctx: FEntryContext) -> i32 {
            order::on_want(&ctx, ctx.arg(0), $flags);
            0
        }
    )*};
}
want! {
    fe_order_mutex_lock, how::MUTEX | held::WRITE;
    fe_order_mutex_lock_nested, how::MUTEX | held::WRITE;
    fe_order_mutex_lock_nest_lock, how::MUTEX | held::WRITE;
    fe_order_mutex_lock_io_nested, how::MUTEX | held::WRITE;
    fe_order_mutex_lock_interruptible, how::MUTEX | held::WRITE | held::TENTATIVE;
    fe_order_mutex_lock_interruptible_nested, how::MUTEX | held::WRITE | held::TENTATIVE;
    fe_order_mutex_lock_killable, how::MUTEX | held::WRITE | held::TENTATIVE;
    fe_order_mutex_lock_killable_nested, how::MUTEX | held::WRITE | held::TENTATIVE;
    fe_order_mutex_trylock, how::MUTEX | held::WRITE | held::TENTATIVE | held::TRY;
    fe_order_mutex_trylock_nest_lock, how::MUTEX | held::WRITE | held::TENTATIVE | held::TRY;
    fe_order_down_read, held::READ;
    fe_order_down_read_nested, held::READ;
    fe_order_down_read_non_owner, held::READ;
    fe_order_down_read_interruptible, held::READ | held::TENTATIVE | held::ANY_SIGNAL;
    fe_order_down_read_killable, held::READ | held::TENTATIVE;
    fe_order_down_read_killable_nested, held::READ | held::TENTATIVE;
    fe_order_down_read_trylock, held::READ | held::TENTATIVE | held::TRY;
    fe_order_down_write, held::WRITE;
    fe_order_down_write_nested, held::WRITE;
    fe_order_down_write_nest_lock, held::WRITE;
    fe_order_down_write_killable, held::WRITE | held::TENTATIVE;
    fe_order_down_write_killable_nested, held::WRITE | held::TENTATIVE;
    fe_order_down_write_trylock, held::WRITE | held::TENTATIVE | held::TRY;
}

macro_rules! returned {
    ($($name:ident, $args:literal, |$ret:ident| $ok:expr;)*) => {$(
        #[fexit]
        pub(crate) fn $name(ctx: FExitContext) -> i32 {
            let $ret = ctx.arg::<i32>($args);
            order::on_return($ok);
            0
        }
    )*};
}
returned! {
    fx_order_mutex_lock_interruptible, 1, |ret| ret == 0;
    fx_order_mutex_lock_interruptible_nested, 2, |ret| ret == 0;
    fx_order_mutex_lock_killable, 1, |ret| ret == 0;
    fx_order_mutex_lock_killable_nested, 2, |ret| ret == 0;
    fx_order_mutex_trylock, 1, |ret| ret != 0;
    fx_order_mutex_trylock_nest_lock, 2, |ret| ret != 0;
    fx_order_down_read_interruptible, 1, |ret| ret == 0;
    fx_order_down_read_killable, 1, |ret| ret == 0;
    fx_order_down_read_killable_nested, 2, |ret| ret == 0;
    fx_order_down_read_trylock, 1, |ret| ret != 0;
    fx_order_down_write_killable, 1, |ret| ret == 0;
    fx_order_down_write_killable_nested, 2, |ret| ret == 0;
    fx_order_down_write_trylock, 1, |ret| ret != 0;
}

macro_rules! release {
    ($($name:ident, $read:literal;)*) => {$(
        #[fentry]
        pub(crate) fn $name(ctx: FEntryContext) -> i32 {
            order::on_release(ctx.arg(0), $read);
            0
        }
    )*};
}
release! {
    fe_order_mutex_unlock, false;
    fe_order_up_read, true;
    fe_order_up_read_non_owner, true;
    fe_order_up_write, false;
}

#[fentry]
pub(crate) fn fe_order_downgrade_write(ctx: FEntryContext) -> i32 {
    order::on_downgrade(ctx.arg(0));
    0
}

macro_rules! init {
    ($($name:ident, $mutex:literal;)*) => {$(
        #[fentry]
        pub(crate) fn $name(ctx: FEntryContext) -> i32 {
            order::on_init(&ctx, ctx.arg(0), $mutex);
            0
        }
    )*};
}
init! {
    fe_order_mutex_init, true;
    fe_order_mutex_init_generic, true;
    fe_order_init_rwsem, false;
}

#[fentry]
pub(crate) fn fe_order_lock_mm_and_find_vma(ctx: FEntryContext) -> i32 {
    order::on_fault(&ctx, ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}
