//! Named counters of what was lost or could not be judged. Append only.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $index:literal, $text:literal;)*) => {
        $($(#[$doc])* pub const $name: u32 = $index;)*
        /// Names of the counters as reports spell them, by number.
        pub const NAMES: &[&str] = &[$($text),*];
        /// Number of counters.
        pub const LEN: usize = NAMES.len();
    };
}

counters! {
    /// A record found no room in the ring buffer.
    RING_FULL = 0, "ring_full";
    /// A violation found no room in the ring buffer.
    VIOLATION_LOST = 1, "violation_lost";
    /// No room for a task's state: its locks were not tracked.
    TASK_MAP_FULL = 2, "task_map_full";
    /// A stack could not be read or stored.
    STACK_UNREADABLE = 3, "stack_unreadable";
    /// A task held more locks than its state has room for.
    HELD_OVERFLOW = 4, "held_overflow";
    /// A release by a task that was not seen acquiring.
    UNMATCHED_RELEASE = 5, "unmatched_release";
    /// A task that held a lock before tracing began took a kernel-mode fault before it released it.
    FAULT_BEFORE_KNOWN = 6, "fault_before_known";
    /// A hold turned out to be over although its release was not seen by the holder.
    STALE_HOLD = 7, "stale_hold";
    /// The return of a lock function was not seen.
    RETURN_MISSED = 8, "return_missed";
    /// A violation whose only locks may have been given away or never taken.
    UNCERTAIN_VIOLATION = 9, "uncertain_violation";
    /// No room to remember a release by a task that did not hold the lock.
    ORPHAN_MAP_FULL = 10, "orphan_map_full";
    /// No room for a followed child.
    TARGET_MAP_FULL = 11, "target_map_full";
    /// A kernel structure could not be read.
    READ_FAILED = 12, "kernel_read_failed";
    /// A release with another mode than the acquisition.
    MODE_MISMATCH = 13, "mode_mismatch";
    /// Shortcuts that were compared with unwinding, where that was asked for.
    SHORTCUT_CHECKED = 14, "shortcut_checked";
    /// Of these, the ones that named another stack.
    SHORTCUT_WRONG = 15, "shortcut_wrong";
    /// A record of a recording's stream found no room in the ring buffer.
    STREAM_LOST = 16, "stream_lost";
    /// No room to remember a violation that was told: the next of its kind is told again.
    SEEN_MAP_FULL = 17, "seen_map_full";
    /// A copy under a lock of which it cannot be told whether it touches user memory, or whether it may sleep.
    ACCESS_UNKNOWN = 18, "access_unknown";
    /// No room for the held locks of a task, for the lock order.
    ORDER_TASK_MAP_FULL = 19, "order_task_map_full";
    /// A task held more sleeping locks than there is room for, of classes that it did not hold already.
    ORDER_HELD_OVERFLOW = 20, "order_held_overflow";
    /// No room to remember an edge of the lock order: it was not told.
    ORDER_EDGE_MAP_FULL = 21, "order_edge_map_full";
    /// An edge of the lock order found no room in the ring buffer; it is told the next time.
    ORDER_EDGE_LOST = 22, "order_edge_lost";
    /// The return of a lock function was not seen: the lock was not tracked.
    ORDER_RETURN_MISSED = 23, "order_return_missed";
    /// A hold was over by the lock's own words although its release was not seen.
    ORDER_STALE_HOLD = 24, "order_stale_hold";
    /// The return of a lock function was not seen, and the lock's words told what it came to.
    RETURN_SETTLED = 25, "return_settled";
    /// The return of a lock function was not seen, and the lock's words told what it came to, for the lock order.
    ORDER_RETURN_SETTLED = 26, "order_return_settled";
    /// The end of a page fault was not seen, or it came within more others than there is room for: it was not told.
    FAULT_END_MISSED = 27, "fault_end_missed";
    /// That a module was unloaded found no room in the ring buffer: what came in its place may bear its names.
    UNLOAD_LOST = 28, "module_unload_lost";
    /// A program found none to go on to: what it was about to tell was not told.
    HANDOVER_FAILED = 29, "handover_failed";
}
