//! Records: what the kernel said, decoded; and files of them. Total functions: what is unknown, too short or damaged
//! is counted or told, never a panic. Nothing here judges a record.

pub mod format;
pub mod header;
pub mod reader;
pub mod user;
pub mod writer;

use pagetrace_ebpf::wire::{
    Field as _, Wire,
    fault::{Fault, Page, Violation, Vma},
    kind,
    lock::{Hold, Wait},
    module::Unloaded,
    order, stream,
    walk::Walk,
};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A user access faulted while the task held an mmap lock.
    Violation(Box<Violation>),
    /// The VMA of the violation before it.
    Vma(Vma),
    /// The page table's entry for the violation before it.
    Page(Page),
    /// A page fault.
    Fault(Fault),
    /// A page walk.
    Walk(Walk),
    /// A wait for an mmap lock.
    Wait(Wait),
    /// A hold of an mmap lock.
    Hold(Hold),
    /// Stream of a recording: a hook on an mmap lock fired.
    Lock(stream::Lock),
    /// Stream: a kernel-mode exception.
    Exception(stream::Exception),
    /// Stream: the fault handler goes for the lock.
    Handler(stream::Handler),
    /// Stream: who a task is.
    Task(stream::Task),
    /// Stream: whose an address space is.
    Mm(stream::Mm),
    /// Stream: the words of a lock that counts as held.
    Words(stream::Words),
    /// A kernel module is unloaded.
    Unloaded(Unloaded),
    /// An edge of the lock order.
    Edge(Box<order::Edge>),
    /// How often an edge of the lock order was seen.
    EdgeCount(order::EdgeCount),
    /// A kind that this program does not know, or a record that ends too early.
    Unknown {
        /// The kind, when there were enough bytes to tell.
        kind: Option<u32>,
    },
}

impl Record {
    /// Decodes one record.
    pub fn decode(bytes: &[u8]) -> Self {
        let kind = u32::read(bytes, 0);
        let unknown = Self::Unknown { kind };
        match kind {
            Some(kind::VIOLATION) => Violation::decode(bytes).map(|v| Self::Violation(Box::new(v))),
            Some(kind::VMA) => Vma::decode(bytes).map(Self::Vma),
            Some(kind::PAGE) => Page::decode(bytes).map(Self::Page),
            Some(kind::FAULT) => Fault::decode(bytes).map(Self::Fault),
            Some(kind::WALK) => Walk::decode(bytes).map(Self::Walk),
            Some(kind::WAIT) => Wait::decode(bytes).map(Self::Wait),
            Some(kind::HOLD) => Hold::decode(bytes).map(Self::Hold),
            Some(kind::LOCK) => stream::Lock::decode(bytes).map(Self::Lock),
            Some(kind::EXCEPTION) => stream::Exception::decode(bytes).map(Self::Exception),
            Some(kind::HANDLER) => stream::Handler::decode(bytes).map(Self::Handler),
            Some(kind::TASK) => stream::Task::decode(bytes).map(Self::Task),
            Some(kind::MM) => stream::Mm::decode(bytes).map(Self::Mm),
            Some(kind::EDGE) => order::Edge::decode(bytes).map(|edge| Self::Edge(Box::new(edge))),
            Some(kind::EDGE_COUNT) => order::EdgeCount::decode(bytes).map(Self::EdgeCount),
            Some(kind::WORDS) => stream::Words::decode(bytes).map(Self::Words),
            Some(kind::UNLOADED) => Unloaded::decode(bytes).map(Self::Unloaded),
            _ => None,
        }
        .unwrap_or(unknown)
    }

    /// When it was written, nanoseconds of `CLOCK_MONOTONIC`; `None` where that is not known.
    pub fn time(&self) -> Option<u64> {
        Some(match self {
            Self::Violation(record) => record.header.ts,
            Self::Vma(record) => record.header.ts,
            Self::Page(record) => record.header.ts,
            Self::Fault(record) => record.header.ts,
            Self::Walk(record) => record.header.ts,
            Self::Wait(record) => record.header.ts,
            Self::Hold(record) => record.header.ts,
            Self::Edge(record) => record.header.ts,
            Self::Unloaded(record) => record.header.ts,
            Self::Lock(record) => record.brief.ts,
            Self::Exception(record) => record.brief.ts,
            Self::Handler(record) => record.brief.ts,
            Self::Task(record) => record.brief.ts,
            Self::Mm(record) => record.brief.ts,
            Self::Words(record) => record.brief.ts,
            Self::EdgeCount(_) | Self::Unknown { .. } => return None,
        })
    }
}

/// A name from the kernel up to its first NUL, with everything a terminal would act on escaped.
pub fn name(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default());
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use pagetrace_ebpf::wire::Header;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_characters_of_a_name_never_reach_a_terminal() {
        assert_eq!(name(b"a\x1b[31mb\0junk"), "a\\u{1b}[31mb");
        assert_eq!(name(b"sixteen-byte-name"), "sixteen-byte-name");
    }

    proptest! {
        #[test]
        fn any_bytes_decode(bytes in proptest::collection::vec(any::<u8>(), 0..2048), kind in 0_u32..40) {
            let mut bytes = bytes;
            for (at, byte) in kind.to_le_bytes().into_iter().enumerate() {
                if let Some(slot) = bytes.get_mut(at) {
                    *slot = byte;
                }
            }
            let record = Record::decode(&bytes);
            if bytes.len() >= Violation::SIZE && kind == kind::VIOLATION {
                prop_assert!(matches!(record, Record::Violation(_)));
            }
            if bytes.len() < 4 {
                prop_assert_eq!(record, Record::Unknown { kind: None });
            } else if bytes.len() < Header::SIZE && kind <= kind::HOLD {
                prop_assert_eq!(record, Record::Unknown { kind: Some(kind) });
            }
        }
    }
}
