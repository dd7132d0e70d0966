//! Stacks of lock acquisitions, by id.

use aya_ebpf::{EbpfContext, helpers::generated::bpf_get_stackid, macros::map, maps::StackTrace};
use pagetrace_ebpf::wire::{counter, setting};

use crate::{kernel::setting, state::count};

/// Stacks, by id.
#[map]
static STACKS: StackTrace = StackTrace::with_max_entries(16384, 0);

/// `EEXIST`.
const EEXIST: i32 = -17;

/// Stores the current kernel stack and returns its id, or a negative errno.
///
/// Two stacks can meet in one bucket. Without its first frame, which is a probe's own, the second goes to another.
#[inline(always)]
pub(crate) fn stack_id(ctx: &impl EbpfContext) -> i32 {
    if setting(setting::LOCK_STACKS) == 0 {
        return -1;
    }
    let mut id = EEXIST;
    for skip in 0..3 {
        // SAFETY: the context is the one the program was called with, the map a stack map.
        id = unsafe { bpf_get_stackid(ctx.as_ptr(), (&raw const STACKS).cast_mut().cast(), skip) } as i32;
        if id != EEXIST {
            break;
        }
    }
    if id < 0 {
        count(counter::STACK_UNREADABLE);
    }
    id
}
