//! The sentences of a finding: what happened, why it is dangerous, what to do.

use crate::analysis::{Class, Finding, HeldLock, Relation, Severity};

fn whose(lock: &HeldLock) -> String {
    match (lock.relation, &lock.mm.owner) {
        (Relation::Own, _) => "the same address space's mmap_lock".to_owned(),
        (Relation::Foreign, Some((pid, comm))) => format!("the mmap_lock of process {pid} ({comm})"),
        (Relation::Foreign, None) => format!("the mmap_lock of another address space ({:#x})", lock.mm.address),
    }
}

/// What happened.
pub fn summary(finding: &Finding) -> String {
    let access = match finding.access.write {
        Some(true) => "wrote to",
        Some(false) => "read",
        None => "accessed",
    };
    let locks: Vec<String> =
        finding.locks.iter().map(|lock| format!("{} (held for {})", whose(lock), lock.mode.name())).collect();
    let locks = if locks.is_empty() { "mmap locks".to_owned() } else { locks.join(" and ") };
    let fault = match finding.class {
        Class::FaultUnderLock | Class::LockOrder | Class::Deadlock => " and took a page fault",
        Class::UaccessUnderLock => "",
        Class::LockLeak => {
            // A task that has ended has no address space any more.
            let how = if finding.access.mm.address == 0 { "ended" } else { "went back to user mode" };
            return format!(
                "{} (pid {}, tid {}) {how} and still held {locks}",
                finding.task.comm, finding.task.pid, finding.task.tid
            );
        }
    };
    format!(
        "{} (pid {}, tid {}) {access} user memory at {:#x}{fault} while it held {locks}",
        finding.task.comm, finding.task.pid, finding.task.tid, finding.access.address
    )
}

/// Why it is dangerous, and the way out.
pub fn advice(finding: &Finding) -> String {
    let danger = match finding.severity {
        Severity::Leak => {
            return "Nobody else can release the lock now. Whoever wants it for writing waits for ever, and behind that \
                    writer every reader, the page faults of the address space among them. Release it on every way out \
                    of the function that took it, the error paths above all."
                .to_owned();
        }
        Severity::Latent => {
            "The page was there this time. It can be reclaimed, migrated, unmapped or write-protected at any moment, \
             pinned or not; then the fault handler takes the mmap_lock for reading while this one is held, and that is \
             a deadlock, at once or with the next writer."
        }
        Severity::Deadlock => {
            "The fault handler needs this mm's mmap_lock for reading while this task holds it for writing: the task \
             waits for itself, for ever."
        }
        Severity::RecursiveRead if finding.locks.iter().any(|lock| lock.writer_queued == Some(true)) => {
            "The fault handler takes the same mmap_lock for reading again, and a writer is queued for it: the reader \
             waits behind the writer and the writer for the reader. This is the deadlock, not only its possibility."
        }
        Severity::RecursiveRead => {
            "The fault handler takes the same mmap_lock for reading again. That succeeds only as long as no writer \
             queues between the two: with one (any mmap, munmap, brk or mprotect of another thread), reader and writer \
             wait for each other."
        }
        // What has this severity is no violation of one task, and has advice of its own.
        Severity::CrossMm | Severity::Inversion => {
            "The fault handler takes the faulting mm's mmap_lock while another mm's is held: a second task that does \
             the same the other way round, with writers queued, completes an ABBA deadlock across the two."
        }
    };
    format!(
        "{danger} Copy to or from a kernel buffer under the lock, and touch user memory only after mmap_read_unlock() or \
         mmap_write_unlock(). Where that is impossible, disable page faults around the access \
         (pagefault_disable(), copy_from_user_nofault()) and retry without the lock when it fails. Pinning or touching \
         the pages first only makes the fault rare."
    )
}
