//! Programs that others go on to by a tail call: what several have in common goes into the kernel, and past its verifier, once and not
//! once for each.
//!
//! Trampolines cannot: kernels let their programs go on only to one for a function with the same arguments (`attach_func_proto` in
//! `__bpf_prog_map_compatible`, kernel/bpf/core.c), older ones excepted.

/// Slots of each map of them.
pub const LEN: u32 = 3;
/// A lock that is an mm's is wanted, or taken.
pub const ACQUIRE: u32 = 0;
/// A lock is wanted, for the lock order.
pub const WANT: u32 = 1;
/// User memory is accessed.
pub const ACCESS: u32 = 2;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body {
    /// Its name.
    pub program: &'static str,
    /// The map in which programs find it, and where there.
    pub map: &'static str,
    /// Its slot there.
    pub slot: u32,
    /// How the names of the programs begin that go on to it.
    pub entries: &'static [&'static str],
}

/// All there are.
pub const ALL: &[Body] = &[
    Body { program: "kp_acquire", map: "BODIES", slot: ACQUIRE, entries: &["kp_down_"] },
    Body {
        program: "kp_want",
        map: "BODIES",
        slot: WANT,
        entries: &["kp_order_mutex", "kp_order_read", "kp_order_write"],
    },
    Body { program: "kp_judge", map: "BODIES", slot: ACCESS, entries: &["kp_access_"] },
    Body { program: "bp_judge", map: "BREAKPOINT_BODIES", slot: ACCESS, entries: &["bp_access_"] },
];

/// What this program goes on to.
#[must_use]
pub fn of(program: &str) -> Option<&'static Body> {
    ALL.iter().find(|body| body.entries.iter().any(|entry| program.starts_with(entry)))
}
