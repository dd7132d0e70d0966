//! Tells whether a lock was taken in an interrupt: then it is not the interrupted task's, on whose stack it lies.
//!
//! Interrupts may only try. What they hold is given up by an interrupt as well, which waits for no task: the interrupted one may fault
//! meanwhile as any other may.

use super::Stacks;

/// What only runs in an interrupt, a soft one, or an NMI. Their entries are no sign: on the way out of one to user mode the task's own
/// work is done below them (kernel/entry/common.c, `exit_to_user_mode_loop`).
const HANDLERS: &[&str] = &[
    // arch/x86/kernel/apic/apic.c, kernel/time/hrtimer.c
    "__sysvec_apic_timer_interrupt",
    "hrtimer_interrupt",
    // kernel/irq/handle.c
    "handle_irq_event",
    "__handle_irq_event_percpu",
    // kernel/irq_work.c, kernel/smp.c
    "irq_work_run_list",
    "irq_work_single",
    "__flush_smp_call_function_queue",
    "generic_smp_call_function_single_interrupt",
    // kernel/softirq.c; the third is another name of the first
    "__do_softirq",
    "handle_softirqs",
    "__softirqentry_text_start",
    // arch/x86/kernel/nmi.c
    "default_do_nmi",
    "nmi_handle",
];

/// Whether a stack is that of an interrupt on top of whatever ran.
pub(super) fn is_one(stack: &[u64], stacks: &dyn Stacks) -> bool {
    stack.iter().any(|address| stacks.is_function(*address, HANDLERS))
}
