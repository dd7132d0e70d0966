//! How a program goes on to the one that does the rest of its work, and what it gives it along.

use aya_ebpf::{
    EbpfContext,
    macros::map,
    maps::{PerCpuArray, ProgramArray},
    programs::{PerfEventContext, ProbeContext},
};
use pagetrace_ebpf::wire::{body, counter};

use crate::state::count;

/// For kprobes.
#[map]
static BODIES: ProgramArray = ProgramArray::with_max_entries(body::LEN, 0);

/// For breakpoints: the programs of a map are all of one type.
#[map]
static BREAKPOINT_BODIES: ProgramArray = ProgramArray::with_max_entries(body::LEN, 0);

/// What is given along: a program's context cannot be written to. None of either type interrupts another on a processor, not even
/// from an NMI (`bpf_prog_active` in `trace_call_bpf`, kernel/trace/bpf_trace.c, and `bpf_overflow_handler`, kernel/events/core.c).
#[map]
static HANDED: PerCpuArray<Handed> = PerCpuArray::with_max_entries(1, 0);

/// What is given along.
#[derive(Clone, Copy)]
pub(crate) struct Handed {
    /// What it is about: an mm, a lock, an address.
    pub(crate) about: u64,
    /// Where the probe sits, if that matters.
    pub(crate) ip: u64,
    /// What kind of event it is.
    pub(crate) flags: u32,
}

/// A program that can go on to another.
pub(crate) trait GoesOn: EbpfContext {
    /// Where it finds them.
    fn bodies() -> &'static ProgramArray;
}

impl GoesOn for ProbeContext {
    #[inline(always)]
    fn bodies() -> &'static ProgramArray {
        &BODIES
    }
}

impl GoesOn for PerfEventContext {
    #[inline(always)]
    fn bodies() -> &'static ProgramArray {
        &BREAKPOINT_BODIES
    }
}

/// Goes on to a body of [`body`], and does not come back; if it does, that is counted.
#[inline(always)]
pub(crate) fn go_on<C: GoesOn>(ctx: &C, slot: u32, handed: Handed) {
    if let Some(place) = HANDED.get_ptr_mut(0) {
        // SAFETY: the pointer is this CPU's slot of the map, which nobody else uses before it is read. The context is the program's
        // own, and there is nothing to be dropped.
        unsafe {
            *place = handed;
            C::bodies().tail_call(ctx, slot);
        }
    }
    count(counter::HANDOVER_FAILED);
}

/// What the program that went on to this one has given along.
#[inline(always)]
pub(crate) fn handed() -> Option<Handed> {
    // SAFETY: the value is copied out at once.
    HANDED.get(0).copied()
}
