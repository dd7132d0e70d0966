//! Stacks of lock acquisitions, by id; unwound only where no shortcut knows the chain.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_RING_SIZE},
    helpers::generated::{bpf_get_stack, bpf_get_stackid, bpf_probe_read_kernel},
    macros::map,
    maps::{Array, StackTrace},
    programs::{
        BtfTracePointContext, FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext,
    },
};
use pagetrace_ebpf::wire::{
    counter, kind, setting,
    unwind::{
        self, MAX_FRAMES, SAMPLE_FRAMES, SAMPLE_WORDS, SEAL, SHORTCUTS, Sample, Shortcut, WAYS, WINDOW, WINDOW_ROOM,
    },
};

use crate::{
    kernel::{can_cast, number, setting, word_at},
    state::{RECORDS, Task, count, flag},
};

/// Stacks, by id.
#[map]
static STACKS: StackTrace = StackTrace::with_max_entries(16384, 0);

/// Chains the loader has learnt. An entry is written once and never changed: one half written fails the comparison.
#[map]
static SHORTCUTS_OF: Array<Shortcut> = Array::with_max_entries(SHORTCUTS as u32, 0);

/// Bytes from a program's context to the first return address, and one; by kind of program. 0 until learnt.
#[map]
static DISTANCES: Array<u64> = Array::with_max_entries(unwind::kind::LEN, 0);

/// Samples taken, by place.
#[map]
static SAMPLED: Array<u32> = Array::with_max_entries(SHORTCUTS as u32, 0);

/// Farther than a sample reaches, and all bits set.
const MAX_DISTANCE: u64 = 1023;
const _: () = assert!(MAX_DISTANCE as usize + 1 >= SAMPLE_WORDS * 8);

/// Words of a window that are read first: what a short chain needs.
const HEAD: usize = 16;
/// The rest of a window is shorter than this, and it has all bits set.
const REST_MASK: u32 = 127;
const _: () = assert!(HEAD + REST_MASK as usize <= WINDOW_ROOM);

/// Words of a sample read at once: a power of two.
const PIECE: usize = 8;

/// `EEXIST`.
const EEXIST: i32 = -17;

/// The context of a program, as the way to the stack it runs on.
pub(crate) trait Probed: EbpfContext {
    /// One of [`unwind::kind`].
    const KIND: u32;

    /// An address on the stack, at a fixed distance below the probed function's return address.
    fn on_stack(&self) -> u64 {
        self.as_ptr() as u64
    }
}

impl Probed for BtfTracePointContext {
    const KIND: u32 = unwind::kind::BTF_TRACEPOINT;
}
impl Probed for RawTracePointContext {
    const KIND: u32 = unwind::kind::RAW_TRACEPOINT;
}
impl Probed for FEntryContext {
    const KIND: u32 = unwind::kind::FENTRY;
}
impl Probed for FExitContext {
    const KIND: u32 = unwind::kind::FEXIT;
}
impl Probed for RetProbeContext {
    const KIND: u32 = unwind::kind::NONE;

    #[inline(always)]
    fn on_stack(&self) -> u64 {
        // SAFETY: the context is the registers that the kernel saved for this program.
        unsafe { (*self.regs).rsp }
    }
}
impl Probed for ProbeContext {
    const KIND: u32 = unwind::kind::KPROBE;

    #[inline(always)]
    fn on_stack(&self) -> u64 {
        // SAFETY: the context is the registers that the kernel saved for this program.
        unsafe { (*self.regs).rsp }
    }
}

/// Stores the current kernel stack and returns its id, or a negative errno.
#[inline(always)]
pub(crate) fn stack_id<C: Probed>(ctx: &C, task: &mut Task) -> i32 {
    if setting(setting::LOCK_STACKS) == 0 {
        return -1;
    }
    let (mut place, mut code) = (0, 0);
    let distance = DISTANCES.get(C::KIND).copied().unwrap_or(0);
    if C::KIND != unwind::kind::NONE && distance != 0 && task.flags & flag::TELLING == 0 {
        // The verifier takes only a bounded sum with a context.
        let distance = core::hint::black_box(distance - 1) & MAX_DISTANCE;
        let from = ctx.on_stack().wrapping_add(distance);
        (place, code) = if can_cast() {
            known(&mut Shown(from))
        } else if let Some(mut stack) = Copied::head(&mut task.window, from) {
            known(&mut stack)
        } else {
            (0, 0)
        };
    }
    if code != 0 && setting(setting::VERIFY_SHORTCUTS) == 0 {
        return code.wrapping_sub(1) as i32;
    }
    let id = unwound(ctx);
    if code != 0 {
        count(counter::SHORTCUT_CHECKED);
        if code.wrapping_sub(1) as i32 != id {
            count(counter::SHORTCUT_WRONG);
        }
    } else if id >= 0 && C::KIND != unwind::kind::NONE {
        sample(ctx, place, id);
    }
    id
}

/// The place of the shortcuts for the chain that a stack has, and the code of the one that it shows, or 0.
#[inline(always)]
fn known(stack: &mut impl Words) -> (u32, u32) {
    let first = stack.word(0);
    let place = unwind::place(first);
    for way in 0..WAYS {
        let Some(shortcut) = SHORTCUTS_OF.get(place ^ way) else { break };
        if shortcut.frames == 0 || shortcut.sealed_ip[0] ^ SEAL != first {
            continue;
        }
        if stack.reach(shortcut.span) && differs(shortcut, stack) == 0 {
            return (place, shortcut.stack_code);
        }
    }
    (place, 0)
}

/// Words of a stack, by their distance in words from the first return address.
trait Words {
    /// Whether as many words can be asked for from here on.
    fn reach(&mut self, span: u32) -> bool;

    /// `at` is less than [`WINDOW`].
    fn word(&self, at: usize) -> u64;
}

/// Where they lie.
struct Shown(u64);

impl Words for Shown {
    #[inline(always)]
    fn reach(&mut self, _span: u32) -> bool {
        true
    }

    #[inline(always)]
    fn word(&self, at: usize) -> u64 {
        word_at(self.0.wrapping_add(at as u64 * 8))
    }
}

/// Copied, as far as they were asked for.
struct Copied<'a> {
    window: &'a mut [u64; WINDOW_ROOM],
    from: u64,
}

impl<'a> Copied<'a> {
    /// What a short chain needs.
    #[inline(always)]
    fn head(window: &'a mut [u64; WINDOW_ROOM], from: u64) -> Option<Self> {
        // SAFETY: the window is longer; the helper checks the address it reads from.
        let failed =
            unsafe { bpf_probe_read_kernel(window.as_mut_ptr().cast(), (HEAD * 8) as u32, from as *const _) } != 0;
        if failed { None } else { Some(Self { window, from }) }
    }
}

impl Words for Copied<'_> {
    #[inline(always)]
    fn reach(&mut self, span: u32) -> bool {
        if span <= HEAD as u32 {
            return true;
        }
        let rest = core::hint::black_box(span - HEAD as u32) & REST_MASK;
        let from = self.from.wrapping_add((HEAD * 8) as u64);
        // SAFETY: the window has as many words behind the head; the helper checks the address it reads from.
        unsafe { bpf_probe_read_kernel(self.window.as_mut_ptr().add(HEAD).cast(), rest * 8, from as *const _) == 0 }
    }

    #[inline(always)]
    fn word(&self, at: usize) -> u64 {
        // SAFETY: the window has more words.
        unsafe { *self.window.as_ptr().add(at) }
    }
}

/// The bits in which a stack differs from the frames behind the first.
#[inline(always)]
fn differs(shortcut: &Shortcut, stack: &impl Words) -> u64 {
    let mut differs = differing(shortcut, stack, 1, MAX_FRAMES / 4);
    if shortcut.frames > (MAX_FRAMES / 4) as u32 {
        differs |= differing(shortcut, stack, MAX_FRAMES / 4, MAX_FRAMES / 2);
    }
    if shortcut.frames > (MAX_FRAMES / 2) as u32 {
        differs |= differing(shortcut, stack, MAX_FRAMES / 2, MAX_FRAMES);
    }
    differs
}

/// Without a branch, since the verifier follows each.
#[inline(always)]
fn differing(shortcut: &Shortcut, stack: &impl Words, first: usize, end: usize) -> u64 {
    let mut differs = 0;
    for index in first..end {
        // Masked for the verifier.
        let at = shortcut.at[index] as usize & (WINDOW - 1);
        differs |= stack.word(at) ^ shortcut.sealed_ip[index] ^ SEAL;
    }
    differs
}

/// Unwinds.
///
/// Two stacks can meet in one bucket. Without its first frame, which is a probe's own, the second goes to another.
#[inline(always)]
fn unwound(ctx: &impl EbpfContext) -> i32 {
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

/// One acquisition in so many is sampled. A prime: a loop that locks in turns at a few places shows all of them.
const SAMPLE_EVERY: u32 = 1021;

/// Lets the loader learn the chain: the first few times, then now and then. One that is not taken is no loss: the
/// next acquisition is unwound as this one was.
#[inline(always)]
fn sample<C: Probed>(ctx: &C, place: u32, stack_id: i32) {
    let Some(sampled) = SAMPLED.get_ptr_mut(place) else { return };
    // SAFETY: the pointer is into the map; a count that another CPU overwrites does no harm.
    let times = unsafe {
        *sampled = (*sampled).wrapping_add(1);
        *sampled
    };
    if times > 16 && times % SAMPLE_EVERY != 0 {
        return;
    }
    // What is only useful must not take the room of what has to be told.
    let (used, room) = (RECORDS.query(BPF_RB_AVAIL_DATA.into()), RECORDS.query(BPF_RB_RING_SIZE.into()));
    if used + size_of::<Sample>() as u64 > room / 4 {
        return;
    }
    let Some(mut entry) = RECORDS.reserve::<Sample>(0) else { return };
    // SAFETY: every field is written below before the record is submitted.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    record.kind = kind::UNWIND_SAMPLE;
    record.program = C::KIND;
    record.stack_id = stack_id;
    // SAFETY: the buffers are the record's own and have these sizes; what a helper cannot fill it zeroes.
    unsafe {
        record.frames_len =
            bpf_get_stack(ctx.as_ptr(), record.frames.as_mut_ptr().cast(), (SAMPLE_FRAMES * 8) as u32, 0) as i32;
        // In pieces that end where a stack can end, since nothing can be read past that.
        let context = number(ctx.on_stack());
        record.lead = (context & (PIECE as u64 * 8 - 1)) / 8;
        let from = context & !(PIECE as u64 * 8 - 1);
        for piece in 0..SAMPLE_WORDS / PIECE {
            let to: *mut u64 = record.words.as_mut_ptr().add(piece * PIECE);
            let from = from.wrapping_add((piece * PIECE * 8) as u64);
            bpf_probe_read_kernel(to.cast(), (PIECE * 8) as u32, from as *const _);
        }
    }
    entry.submit(0);
}
