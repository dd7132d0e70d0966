//! Learns shortcuts for unwinding from samples of the kernel side. Pure: it never reads or writes a map.
//!
//! A chain is learnt only when no doubt is left about where each return address lies: a word of the stack that merely
//! looks like one, left over from an earlier call, would let another chain pass for this one. The right place holds the
//! address in every sample of the chain; what is left over comes and goes, since system calls begin at random depths.

use std::{collections::HashMap, ops::Range};

use pagetrace_ebpf::wire::{
    Wire as _,
    unwind::{MAX_FRAMES, SAMPLE_FRAMES, SAMPLE_WORDS, SEAL, Sample, Shortcut, WAYS, WINDOW, kind, place},
};

use crate::kernel::kallsyms::Kallsyms;

/// Functions that stand between a program and the place where the lock is taken. They are the same for every
/// acquisition, so the chain begins above them.
const BETWEEN: [&str; 23] = [
    "bpf_trace_run1",
    "bpf_trace_run2",
    "bpf_trace_run3",
    "bpf_trace_run4",
    "bpf_trace_run5",
    "bpf_trace_run6",
    "bpf_trace_run7",
    "bpf_trace_run8",
    "bpf_trace_run9",
    "bpf_trace_run10",
    "bpf_trace_run11",
    "bpf_trace_run12",
    "__bpf_trace_mmap_lock_acquire_returned",
    "__traceiter_mmap_lock_acquire_returned",
    "__mmap_lock_do_trace_acquire_returned",
    "down_read",
    "down_write",
    "down_read_interruptible",
    "down_read_killable",
    "down_write_killable",
    "down_read_trylock",
    "down_write_trylock",
    "downgrade_write",
];

/// Samples after which a chain is learnt: there are few places, and they are for what happens often.
const ENOUGH: u32 = 4;

/// Chains whose samples are kept in mind.
const MAX_CANDIDATES: usize = 4096;

/// Where a system call enters. Its frame has a random size (`randomize_kstack_offset`), but what lies above it is the
/// same for every system call (arch/x86/entry/common.c).
const ROOTS: [&str; 1] = ["do_syscall_64"];

/// Where a kernel thread begins: nothing lies above it.
const BOTTOMS: [&str; 2] = ["ret_from_fork", "ret_from_fork_asm"];

/// Where a page fault enters. Above it lies user mode, or the kernel code that faulted: only the saved registers tell.
const FAULTS: [&str; 1] = ["asm_exc_page_fault"];

/// Words from the return address into the fault's entry to the saved code segment (`struct pt_regs`).
const TO_CS: u32 = 18;

/// `__USER_CS`, arch/x86/include/asm/segment.h.
const USER_CS: u64 = 0x33;

// Places are bits of a u128, and what a sample shows fits into a window.
const _: () = assert!(SAMPLE_WORDS <= 128 && SAMPLE_WORDS <= WINDOW);

/// What has been learnt.
#[derive(Debug, Default)]
pub(crate) struct Learner {
    roots: Vec<Range<u64>>,
    bottoms: Vec<Range<u64>>,
    faults: Vec<Range<u64>>,
    between: Vec<Range<u64>>,
    text: Range<u64>,
    /// Where each return address of a chain may lie, as far as the samples of that chain agree.
    candidates: HashMap<Vec<u64>, Candidate>,
    taken: HashMap<u32, Shortcut>,
    /// Where the first return address of any chain may lie, by kind of program.
    starts: [Candidate; kind::LEN as usize],
    distances: [Option<u64>; kind::LEN as usize],
}

/// A chain that may be learnt, or the start of all.
#[derive(Debug, Default)]
struct Candidate {
    samples: u32,
    /// Words that held each return address in every sample, as bits.
    places: Vec<u128>,
}

/// What the kernel side is to be told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Lesson {
    /// A kind of program, and the bytes from its context to the first return address. Until it knows them, the kernel side cannot
    /// tell chains apart, and samples all of them as one.
    pub(crate) distance: Option<(u32, u64)>,
    /// A shortcut, and where it goes.
    pub(crate) shortcut: Option<(u32, Shortcut)>,
}

impl Candidate {
    /// Another sample, which has each return address in these words.
    fn agree(&mut self, seen: Vec<u128>) -> &Self {
        if self.samples == 0 {
            self.places = seen;
        } else {
            self.places.iter_mut().zip(seen).for_each(|(places, seen)| *places &= seen);
        }
        self.samples += 1;
        self
    }

    /// The word that holds each, when no doubt is left.
    fn places(&self) -> Option<Vec<u32>> {
        let certain = self.samples >= ENOUGH && self.places.iter().all(|places| places.count_ones() == 1);
        certain.then(|| self.places.iter().map(|places| places.trailing_zeros()).collect())
    }
}

impl Learner {
    /// Learns with the help of the kernel's symbols.
    pub(crate) fn new(symbols: &Kallsyms) -> Self {
        let range = |name: &&str| {
            let start = symbols.address_of(name)?;
            Some(start..start + symbols.resolve(start)?.size?)
        };
        let text = symbols.address_of("_stext").zip(symbols.address_of("_etext"));
        Self {
            roots: ROOTS.iter().filter_map(range).collect(),
            bottoms: BOTTOMS.iter().filter_map(range).collect(),
            faults: FAULTS.iter().filter_map(range).collect(),
            between: BETWEEN.iter().filter_map(range).collect(),
            text: text.map_or(0..0, |(start, end)| start..end),
            ..Self::default()
        }
    }

    /// Takes a sample, and tells what is new.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Lesson {
        let Some(sample) = Sample::decode(bytes) else { return Lesson::default() };
        let known = |learner: &Self| learner.distances.get(sample.program as usize).copied().flatten();
        let before = known(self);
        let learnt = self.learn(&sample);
        let shortcut = learnt.and_then(|(distance, shortcut)| self.place(sample.program, distance, shortcut));
        let distance = known(self).filter(|_| before.is_none()).map(|distance| (sample.program, distance));
        Lesson { distance, shortcut }
    }

    /// Where a shortcut goes; `None` when it is not new, or has no use.
    fn place(&mut self, program: u32, distance: u64, shortcut: Shortcut) -> Option<(u32, Shortcut)> {
        let known = self.distances.get_mut(program as usize)?;
        // Another distance for the same kind: the kernel side looks at one place only, and would never find it.
        if *known.get_or_insert(distance) != distance {
            return None;
        }
        let first = place(*shortcut.ip().first()?);
        let free = (0..WAYS).map(|way| first ^ way).find(|at| !self.taken.contains_key(at))?;
        if self.taken.values().any(|taken| taken.frames == shortcut.frames && taken.sealed_ip == shortcut.sealed_ip) {
            return None;
        }
        self.taken.insert(free, shortcut);
        Some((free, shortcut))
    }

    /// How many frames come before the place where the lock is taken; `None` when that cannot be told.
    fn own_frames(&self, program: u32, frames: &[u64]) -> Option<usize> {
        if program == kind::KPROBE {
            // The innermost frame is the probed function.
            return Some(1);
        }
        // Programs and trampolines lie outside the kernel's text. So do modules, but a module does not stand between a
        // program and the function that called it.
        let jited = frames.iter().take_while(|frame| !self.text.contains(frame)).count();
        let named = |frame: &&u64| self.between.iter().any(|range| range.contains(frame));
        let between = frames.iter().skip(jited).take_while(named).count();
        (between != 0).then_some(jited + between)
    }

    /// The return addresses from the place where the lock is taken to where nothing can differ any more.
    fn chain<'a>(&self, program: u32, frames: &'a [u64]) -> Option<&'a [u64]> {
        let chain = frames.get(self.own_frames(program, frames)?..)?;
        let chain = match chain.iter().position(|frame| is_in(*frame, &self.roots)) {
            Some(root) => chain.get(..=root)?,
            // A stack cut off before its end says nothing about what called the last frame, nor does one that goes on
            // another time.
            None if frames.len() < SAMPLE_FRAMES && is_in(*chain.last()?, &self.bottoms) => chain,
            None if frames.len() < SAMPLE_FRAMES && is_in(*chain.last()?, &self.faults) => chain,
            None => return None,
        };
        (!chain.is_empty() && chain.len() <= MAX_FRAMES).then_some(chain)
    }

    /// Learns where chains begin: every sample of a program's kind has the first return address at the same distance.
    fn start(&mut self, program: u32, first: u128) -> Option<()> {
        if program == kind::KPROBE {
            // The stack pointer is known, and points there.
            return None;
        }
        let word = *self.starts.get_mut(program as usize)?.agree(vec![first]).places()?.first()?;
        self.distances.get_mut(program as usize)?.get_or_insert(u64::from(word) * 8);
        Some(())
    }

    /// The bytes from the context to the chain's first return address, and the chain with its places.
    fn learn(&mut self, sample: &Sample) -> Option<(u64, Shortcut)> {
        let len = usize::try_from(sample.frames_len).ok()? / 8;
        let frames: Vec<u64> = sample.frames.iter().take(len).copied().take_while(|frame| *frame != 0).collect();
        let chain = self.chain(sample.program, &frames)?.to_vec();
        let places = |ip: &u64| {
            (0_u32..)
                .zip(sample.above())
                .filter(|(_, word)| *word == ip)
                .fold(0_u128, |places, (at, _)| places | 1 << at)
        };
        let seen: Vec<u128> = chain.iter().map(places).collect();
        if self.candidates.len() >= MAX_CANDIDATES && !self.candidates.contains_key(&chain) {
            return None;
        }
        self.start(sample.program, *seen.first()?);
        let mut at = self.candidates.entry(chain.clone()).or_default().agree(seen).places()?;
        let mut chain = chain;
        if is_in(*chain.last()?, &self.faults) {
            // The fault of a system call's copy has the same chain so far, and more above it.
            let cs = at.last()? + TO_CS;
            if sample.above().get(cs as usize) != Some(&USER_CS) || chain.len() == MAX_FRAMES {
                return None;
            }
            at.push(cs);
            chain.push(USER_CS);
        }
        let first = *at.first()?;
        let in_order = at.iter().zip(at.iter().skip(1)).all(|(inner, outer)| inner < outer);
        if !in_order || (sample.program == kind::KPROBE && first != 0) {
            return None;
        }
        let span = at.last()? - first + 1;
        let mut shortcut = Shortcut {
            stack_code: u32::try_from(sample.stack_id).ok()?.checked_add(1)?,
            frames: u32::try_from(chain.len()).ok()?,
            span,
            sealed_ip: [*chain.first()? ^ SEAL; MAX_FRAMES],
            ..Shortcut::default()
        };
        for (slot, at) in shortcut.at.iter_mut().zip(at) {
            *slot = at - first;
        }
        for (slot, ip) in shortcut.sealed_ip.iter_mut().zip(chain) {
            *slot = ip ^ SEAL;
        }
        Some((u64::from(first) * 8, shortcut))
    }
}

fn is_in(frame: u64, functions: &[Range<u64>]) -> bool {
    functions.iter().any(|function| function.contains(&frame))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TABLE: &str = "ffffffff81000000 T _stext\nffffffff81000100 T bpf_trace_run2\nffffffff81000200 T vm_mmap\n\
                         ffffffff81000300 T ksys_mmap\nffffffff81000400 T do_syscall_64\nffffffff81000500 T entry\n\
                         ffffffff81000600 T asm_exc_page_fault\nffffffff81000700 T ret_from_fork\n\
                         ffffffff81000800 T _etext\n";
    const PROGRAM: u64 = 0xffff_ffff_c000_0010;
    const RUN: u64 = 0xffff_ffff_8100_0110;
    const VM_MMAP: u64 = 0xffff_ffff_8100_0210;
    const KSYS_MMAP: u64 = 0xffff_ffff_8100_0310;
    const SYSCALL: u64 = 0xffff_ffff_8100_0410;
    const ENTRY: u64 = 0xffff_ffff_8100_0510;
    const FAULT: u64 = 0xffff_ffff_8100_0610;
    const FORK: u64 = 0xffff_ffff_8100_0710;

    fn learner() -> Learner {
        Learner::new(&Kallsyms::parse(TABLE.to_owned()))
    }

    fn sample(program: u32, frames: &[u64], words: &[(usize, u64)]) -> Sample {
        let mut sample = Sample { kind: 64, program, stack_id: 7, ..Sample::default() };
        for (slot, frame) in sample.frames.iter_mut().zip(frames) {
            *slot = *frame;
        }
        sample.frames_len = i32::try_from(frames.len() * 8).expect("few frames");
        for (at, word) in words {
            sample.words[*at] = *word;
        }
        sample
    }

    /// What is learnt when the same sample comes often.
    fn often(learner: &mut Learner, sample: &Sample) -> Option<(u64, Shortcut)> {
        (0..ENOUGH).map(|_| learner.learn(sample)).last().flatten()
    }

    fn by_tracepoint(words: &[(usize, u64)]) -> Option<(u64, Shortcut)> {
        let frames = [PROGRAM, RUN, VM_MMAP, KSYS_MMAP, SYSCALL, ENTRY];
        often(&mut learner(), &sample(kind::BTF_TRACEPOINT, &frames, words))
    }

    #[test]
    fn a_chain_is_learnt_up_to_the_system_call() {
        let (distance, shortcut) =
            by_tracepoint(&[(9, VM_MMAP), (20, KSYS_MMAP), (24, SYSCALL), (60, ENTRY)]).expect("unambiguous");
        assert_eq!(distance, 72);
        assert_eq!(shortcut.stack_code, 8);
        assert_eq!((shortcut.frames, &shortcut.at[..3]), (3, [0, 11, 15].as_slice()));
        assert_eq!(&shortcut.ip()[..4], [VM_MMAP, KSYS_MMAP, SYSCALL, VM_MMAP].as_slice());
        assert!(shortcut.at[3..].iter().all(|at| *at == 0), "what is not used repeats the first");
    }

    #[test]
    fn what_looks_like_a_return_address_but_may_be_left_over_teaches_nothing() {
        let left_over = [(9, VM_MMAP), (15, KSYS_MMAP), (20, KSYS_MMAP), (24, SYSCALL)];
        assert_eq!(by_tracepoint(&left_over), None);
        assert_eq!(by_tracepoint(&[(9, VM_MMAP), (20, KSYS_MMAP), (24, SYSCALL), (80, VM_MMAP)]), None);
        assert_eq!(by_tracepoint(&[(20, VM_MMAP), (9, KSYS_MMAP), (24, SYSCALL)]), None, "out of order");
        assert_eq!(by_tracepoint(&[(9, VM_MMAP), (24, SYSCALL)]), None, "one is not there");
        assert_eq!(by_tracepoint(&[(20, KSYS_MMAP), (24, SYSCALL)]), None, "the first is not there");
    }

    #[test]
    fn samples_of_one_chain_agree_on_the_right_places() {
        let mut learner = learner();
        let frames = [PROGRAM, RUN, VM_MMAP, SYSCALL];
        let mut learn = |words: &[(usize, u64)]| often(&mut learner, &sample(kind::BTF_TRACEPOINT, &frames, words));
        assert_eq!(learn(&[(9, VM_MMAP), (12, SYSCALL), (24, SYSCALL)]), None);
        assert_eq!(learn(&[(9, VM_MMAP), (24, SYSCALL), (44, SYSCALL)]).map(|(_, shortcut)| shortcut.at[1]), Some(15));
    }

    #[test]
    fn a_chain_that_is_cut_off_teaches_nothing() {
        let frames: Vec<u64> = (0..SAMPLE_FRAMES as u64).map(|at| VM_MMAP + at).collect();
        let words: Vec<(usize, u64)> = frames.iter().copied().enumerate().collect();
        assert_eq!(often(&mut learner(), &sample(kind::BTF_TRACEPOINT, &frames, &words)), None);
    }

    #[test]
    fn a_chain_must_end_where_no_stack_goes_on() {
        let learn = |last: u64, words: &[(usize, u64)]| {
            let words = [&[(9, VM_MMAP), (20, last)], words].concat();
            let shortcut = often(&mut learner(), &sample(kind::BTF_TRACEPOINT, &[PROGRAM, RUN, VM_MMAP, last], &words));
            shortcut.map(|(_, shortcut)| shortcut.frames)
        };
        assert_eq!(learn(FORK, &[]), Some(2));
        assert_eq!(learn(SYSCALL, &[]), Some(2));
        assert_eq!(learn(KSYS_MMAP, &[]), None, "something called it, and something else will");
        assert_eq!(learn(FAULT, &[]), None, "nothing says that it came from user mode");
        assert_eq!(learn(FAULT, &[(38, 0x10)]), None, "a fault of the kernel's own");
        assert_eq!(learn(FAULT, &[(38, USER_CS)]), Some(3));
        let words = [(9, VM_MMAP), (20, FAULT), (38, USER_CS)];
        let (_, shortcut) =
            often(&mut learner(), &sample(kind::BTF_TRACEPOINT, &[PROGRAM, RUN, VM_MMAP, FAULT], &words)).unwrap();
        assert_eq!((&shortcut.at[..3], shortcut.ip()[2], shortcut.span), ([0, 11, 29].as_slice(), USER_CS, 30));
    }

    #[test]
    fn words_below_the_context_do_not_count() {
        let mut sample = sample(
            kind::BTF_TRACEPOINT,
            &[PROGRAM, RUN, VM_MMAP, SYSCALL],
            &[(1, VM_MMAP), (9, VM_MMAP), (24, SYSCALL)],
        );
        assert_eq!(often(&mut learner(), &sample), None, "two places");
        sample.lead = 3;
        let (distance, shortcut) = often(&mut learner(), &sample).expect("one place");
        assert_eq!((distance, shortcut.at[1]), (48, 15));
        sample.lead = SAMPLE_WORDS as u64 + 1;
        assert_eq!(often(&mut learner(), &sample), None, "nonsense");
    }

    #[test]
    fn a_kprobe_needs_the_return_address_where_the_stack_pointer_points() {
        let chain = |at| {
            let words = [(at, KSYS_MMAP), (9, SYSCALL)];
            often(&mut learner(), &sample(kind::KPROBE, &[VM_MMAP, KSYS_MMAP, SYSCALL], &words))
        };
        assert_eq!(chain(0).map(|(distance, shortcut)| (distance, shortcut.frames)), Some((0, 2)));
        assert_eq!(chain(1), None, "a return probe has put its own address there");
    }

    fn encode(sample: &Sample) -> Vec<u8> {
        let mut out = Vec::new();
        for word in [sample.kind, sample.program, sample.stack_id.cast_unsigned(), sample.frames_len.cast_unsigned()] {
            out.extend(word.to_le_bytes());
        }
        for word in [sample.lead].iter().chain(&sample.frames).chain(&sample.words) {
            out.extend(word.to_le_bytes());
        }
        out
    }

    #[test]
    fn chains_of_one_site_fit_and_none_is_taken_twice() {
        let mut learner = learner();
        let mut teach = |top: u64| {
            let sample = sample(kind::RAW_TRACEPOINT, &[PROGRAM, RUN, VM_MMAP, top], &[(9, VM_MMAP), (20, top)]);
            let lessons = (0..ENOUGH).map(|_| learner.take(&encode(&sample)).shortcut.map(|(place, _)| place));
            lessons.last().flatten()
        };
        let first = teach(SYSCALL).expect("new");
        assert_eq!(teach(SYSCALL), None, "known");
        for way in 1..WAYS {
            assert_eq!(teach(SYSCALL + u64::from(way)), Some(first ^ way));
        }
        assert_eq!(teach(SYSCALL + u64::from(WAYS)), None, "no room");
    }

    #[test]
    fn where_chains_begin_is_learnt_from_different_ones() {
        let chain = |nth: u64, at: usize| {
            let (first, top) = (VM_MMAP + nth, SYSCALL + nth);
            encode(&sample(kind::BTF_TRACEPOINT, &[PROGRAM, RUN, first, top], &[(at, first), (20, top)]))
        };
        let mut agreeing = learner();
        let lessons: Vec<Lesson> = (0..6).map(|nth| agreeing.take(&chain(nth, 9))).collect();
        let told: Vec<_> = lessons.iter().map(|lesson| lesson.distance).collect();
        assert_eq!(told, [None, None, None, Some((kind::BTF_TRACEPOINT, 72)), None, None], "once, when it is certain");
        assert!(lessons.iter().all(|lesson| lesson.shortcut.is_none()), "none came often enough");
        // Functions with more arguments have larger frames below them: no distance is that of all.
        let mut differing = learner();
        assert!((0..6).all(|nth| differing.take(&chain(nth, 9 + nth as usize % 2)) == Lesson::default()));
    }

    proptest! {
        /// Whatever lies on the stack: a learnt chain matches the sample it was learnt from, at one place only.
        #[test]
        fn a_learnt_chain_is_the_samples_own(
            frames in proptest::collection::vec(0_u64..12, 0..10),
            words in proptest::collection::vec(0_u64..24, SAMPLE_WORDS),
            program in 0..kind::LEN,
        ) {
            let frames: Vec<u64> = frames.iter().map(|at| VM_MMAP + at * 64).collect();
            let words: Vec<(usize, u64)> = words.iter().map(|at| VM_MMAP + at * 64).enumerate().collect();
            let sample = sample(program, &frames, &words);
            if let Some((distance, shortcut)) = often(&mut learner(), &sample) {
                let from = usize::try_from(distance / 8).expect("small");
                for (at, ip) in shortcut.at.iter().zip(shortcut.ip()).take(shortcut.frames as usize) {
                    prop_assert_eq!(sample.words[from + *at as usize], ip);
                    prop_assert_eq!(sample.words.iter().filter(|word| **word == ip).count(), 1);
                }
            }
        }
    }
}
