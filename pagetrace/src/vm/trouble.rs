//! What a kernel says on its console about its own health, for a report: more than what ends a run. Pure.

use super::console::kernel_message;

/// The kinds, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The kernel died.
    Panic,
    /// A BUG, an oops.
    Bug,
    /// A CPU that does not get on, or RCU that waits for one.
    Stall,
    /// lockdep or another checker of locks.
    Lockdep,
    /// A task that is blocked for long.
    HungTask,
    /// A process killed for want of memory.
    OutOfMemory,
    /// A warning.
    Warning,
}

impl Kind {
    /// As reports spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Bug => "bug",
            Self::Stall => "stall",
            Self::Lockdep => "lockdep",
            Self::HungTask => "hung-task",
            Self::OutOfMemory => "out-of-memory",
            Self::Warning => "warning",
        }
    }
}

/// One sign of trouble, and what the kernel said next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Its kind.
    pub kind: Kind,
    /// The line that tells it.
    pub message: String,
    /// The lines behind it, a few.
    pub more: Vec<String>,
}

/// So many are kept, and of each so many lines: the console log has the rest.
const KEPT: usize = 32;
const LINES: usize = 16;

/// Begins of what lockdep and its relatives print, kernel/locking/lockdep.c and kernel/sched/core.c.
const LOCKDEP: [&str; 12] = [
    "WARNING: possible ",
    "WARNING: inconsistent lock state",
    "WARNING: bad unlock balance",
    "WARNING: bad contention",
    "WARNING: held lock freed",
    "WARNING: lock held when returning",
    "WARNING: Nested lock was not taken",
    "WARNING: suspicious RCU usage",
    "WARNING: HARDIRQ-safe",
    "WARNING: SOFTIRQ-safe",
    "[ BUG: Invalid wait context ]",
    "BUG: sleeping function called from invalid context",
];

/// The kind of a kernel message; `None` for one that says nothing about its health.
#[must_use]
pub fn kind(message: &str) -> Option<Kind> {
    let starts = |words: &[&str]| words.iter().any(|word| message.starts_with(word));
    let holds = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if starts(&["Kernel panic"]) {
        Some(Kind::Panic)
    } else if starts(&LOCKDEP) {
        Some(Kind::Lockdep)
    } else if holds(&["soft lockup", "hard LOCKUP", "self-detected stall", "detected stalls on"]) {
        Some(Kind::Stall)
    } else if holds(&["BUG:", "kernel BUG at", "Oops:", "Unable to handle"]) || starts(&["general protection fault"]) {
        Some(Kind::Bug)
    } else if starts(&["INFO: task "]) && holds(&["blocked for more than"]) {
        Some(Kind::HungTask)
    } else if starts(&["Out of memory: ", "Memory cgroup out of memory: "]) {
        Some(Kind::OutOfMemory)
    } else if starts(&["WARNING: "]) {
        Some(Kind::Warning)
    } else {
        None
    }
}

/// Collects signs of trouble from console lines.
#[derive(Debug, Default)]
pub struct Collector {
    found: Vec<Trouble>,
    open: bool,
}

impl Collector {
    /// Takes a line of the console.
    pub fn line(&mut self, line: &str) {
        let Some(message) = kernel_message(line) else { return };
        if let Some(kind) = kind(message) {
            // An oops says "BUG" and "Oops": one sign with its lines, not three.
            let goes_on =
                self.open && kind == Kind::Bug && self.found.last().is_some_and(|last| last.kind == Kind::Bug);
            if !goes_on {
                self.open = self.found.len() < KEPT;
                if self.open {
                    self.found.push(Trouble { kind, message: message.to_owned(), more: Vec::new() });
                }
                return;
            }
        }
        if let Some(last) = self.found.last_mut().filter(|_| self.open) {
            last.more.push(message.to_owned());
            self.open = last.more.len() < LINES;
        }
    }

    /// What was found, in order.
    #[must_use]
    pub fn finish(self) -> Vec<Trouble> {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        for (message, expected) in [
            ("Kernel panic - not syncing: Attempted to kill init!", Some(Kind::Panic)),
            ("WARNING: possible circular locking dependency detected", Some(Kind::Lockdep)),
            ("BUG: sleeping function called from invalid context at mm/x.c:1", Some(Kind::Lockdep)),
            ("BUG: kernel NULL pointer dereference, address: 0", Some(Kind::Bug)),
            ("watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [a:1]", Some(Kind::Stall)),
            ("INFO: task a:1 blocked for more than 120 seconds.", Some(Kind::HungTask)),
            ("Out of memory: Killed process 9 (a)", Some(Kind::OutOfMemory)),
            ("WARNING: CPU: 0 PID: 1 at mm/x.c:1 f+0x1/0x2", Some(Kind::Warning)),
            ("Linux version 6.12.0", None),
            ("pci 0000:00:1f.2: BAR 4: assigned", None),
        ] {
            assert_eq!(kind(message), expected, "{message}");
        }
    }

    #[test]
    fn a_splat_is_one_sign_with_its_lines_and_the_commands_words_are_none() {
        let mut collector = Collector::default();
        for line in [
            "BUG: said by the command",
            "[    1.000000] quiet",
            "[    2.000000] BUG: kernel NULL pointer dereference",
            "[    2.000001] Oops: Oops: 0002 [#1]",
            "[    2.000002] CPU: 0",
            "[    3.000000] WARNING: possible recursive locking detected",
            "a line of the command",
            "[    3.000001] task is trying to acquire lock:",
        ] {
            collector.line(line);
        }
        let found = collector.finish();
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!((found[0].kind, found[0].more.len()), (Kind::Bug, 2));
        assert_eq!(
            (found[1].kind, found[1].more.as_slice()),
            (Kind::Lockdep, &["task is trying to acquire lock:".to_owned()][..])
        );
    }

    #[test]
    fn a_storm_does_not_fill_the_report() {
        let mut collector = Collector::default();
        for _ in 0..1000 {
            collector.line("[    1.000000] WARNING: CPU: 0");
            for _ in 0..100 {
                collector.line("[    1.000000] more");
            }
        }
        let found = collector.finish();
        assert!(found.len() == KEPT && found.iter().all(|trouble| trouble.more.len() <= LINES));
    }
}
