//! Keeps others off the processor while this thread reads or writes a BPF map. Must not do anything that takes long.
//!
//! While a system call works on a map, the kernel runs no kprobe program on that processor (kernel/bpf/syscall.c,
//! `bpf_disable_instrumentation`). Where the kernel is preemptible, another task may get the processor meanwhile, and what it does
//! goes unseen. A real-time thread is not preempted by ordinary tasks.
#![expect(unsafe_code, reason = "the C library's wrapper is a stub in musl, so these are bare system calls")]

use std::sync::OnceLock;

/// The lowest real-time priority: above every ordinary task, below what asked for more.
const PRIORITY: libc::c_int = 1;

/// While it lives, ordinary tasks do not preempt this thread, if the kernel allows that.
struct Undisturbed(bool);

/// Runs `work` without ordinary tasks coming in between.
pub(super) fn undisturbed<T>(work: impl FnOnce() -> T) -> T {
    let _guard = Undisturbed::new();
    work()
}

impl Undisturbed {
    fn new() -> Self {
        // Who started this process under another policy meant it.
        static ORDINARY: OnceLock<bool> = OnceLock::new();
        // SAFETY: no pointers; thread 0 is the calling one.
        let ordinary = || unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) } == i64::from(libc::SCHED_OTHER);
        Self(*ORDINARY.get_or_init(ordinary) && schedule(libc::SCHED_FIFO, PRIORITY))
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        if self.0 {
            schedule(libc::SCHED_OTHER, 0);
        }
    }
}

/// Puts the calling thread under a policy; false when the kernel refuses, as it does without CAP_SYS_NICE.
fn schedule(policy: libc::c_int, priority: libc::c_int) -> bool {
    // SAFETY: the kernel reads one number through the pointer, `sched_param.sched_priority`; thread 0 is the calling one.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> i64 {
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) }
    }

    #[test]
    fn the_policy_is_as_it_was_afterwards() {
        let before = policy();
        let within = undisturbed(policy);
        assert_eq!(policy(), before);
        // Root may do it nearly everywhere; nobody else may.
        assert!(within == i64::from(libc::SCHED_FIFO) || within == before, "{within}");
    }
}
