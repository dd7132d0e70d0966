//! The records that userspace adds to a recording: stacks, names, counters, notes, the end.

use pagetrace_ebpf::wire::Field;
use serde::{Deserialize, Serialize};

use super::format::kind;
use crate::output::deadlock::ReportedDeadlock;

/// Most frames of a stack: the kernel's own limit (`PERF_MAX_STACK_DEPTH`) is 127.
pub const MAX_FRAMES: usize = 1024;

/// A record of userspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// The stack behind an id, innermost first.
    Stack {
        /// Its id in lock records.
        id: i32,
        /// Addresses.
        frames: Vec<u64>,
    },
    /// The name at an address.
    Symbol {
        /// The address.
        address: u64,
        /// What is there.
        symbol: Symbol,
    },
    /// A counter.
    Counter(Counter),
    /// Something that happened.
    Note(Note),
    /// The end.
    End(End),
    /// A kind that this program does not know, or a record that does not have its form.
    Unknown,
}

/// What is at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbol {
    /// Function or variable.
    pub name: String,
    /// Bytes into it.
    pub offset: u64,
    /// Module, or `bpf`.
    pub module: Option<String>,
}

/// One counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// Its name.
    pub name: String,
    /// Nanoseconds of `CLOCK_MONOTONIC` when it was read.
    pub time_ns: u64,
    /// Its value on each CPU; a single one where the kernel does not tell them apart.
    pub by_cpu: Vec<u64>,
}

/// Something that happened outside the kernel's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Note {
    /// A task was found stuck on an mmap lock.
    Hung {
        /// Its process id.
        pid: u32,
        /// Its thread id.
        tid: u32,
    },
}

/// How a run ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The command, when one was run.
    pub command: Option<CommandEnd>,
    /// Nanoseconds watched.
    pub watched_ns: u64,
    /// Why nothing can be called clean.
    pub reasons: Vec<String>,
    /// Deadlocks that stood, with names: they are of a moment, and cannot be derived again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deadlocks: Vec<ReportedDeadlock>,
}

/// How the command ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandEnd {
    /// Its words.
    pub argv: Vec<String>,
    /// Its process id.
    pub pid: u32,
    /// Exit code, when it exited.
    pub exit_code: Option<i32>,
    /// Signal, when one killed it.
    pub signal: Option<i32>,
    /// One of its tasks was found stuck.
    pub hung: bool,
    /// It could not be ended.
    pub left_behind: bool,
}

impl User {
    /// Decodes a record whose kind is one of userspace's.
    pub fn decode(bytes: &[u8]) -> Self {
        Self::try_decode(bytes).unwrap_or(Self::Unknown)
    }

    fn try_decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.get(4..)?;
        Some(match u32::read(bytes, 0)? {
            kind::STACK => {
                let id = i32::read(bytes, 4)?;
                let frames = bytes.get(8..)?;
                if frames.len() > MAX_FRAMES * 8 || !frames.len().is_multiple_of(8) {
                    return None;
                }
                Self::Stack { id, frames: frames.chunks_exact(8).filter_map(|word| u64::read(word, 0)).collect() }
            }
            kind::SYMBOL => {
                let (address, offset) = (u64::read(bytes, 4)?, u64::read(bytes, 12)?);
                let name_len = usize::try_from(u32::read(bytes, 20)?).ok()?;
                let (name, module) = bytes.get(24..)?.split_at_checked(name_len)?;
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
                let module = if module.is_empty() { None } else { Some(text(module)?) };
                Self::Symbol { address, symbol: Symbol { name: text(name)?, offset, module } }
            }
            kind::COUNTER => Self::Counter(serde_json::from_slice(rest).ok()?),
            kind::NOTE => Self::Note(serde_json::from_slice(rest).ok()?),
            kind::END => Self::End(serde_json::from_slice(rest).ok()?),
            _ => return None,
        })
    }

    /// The record's bytes; `None` for [`User::Unknown`].
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let mut put = |kind: u32, parts: &[&[u8]]| {
            out.extend(kind.to_le_bytes());
            parts.iter().for_each(|part| out.extend(*part));
        };
        match self {
            Self::Stack { id, frames } => {
                let frames: Vec<u8> = frames.iter().take(MAX_FRAMES).flat_map(|frame| frame.to_le_bytes()).collect();
                put(kind::STACK, &[&id.to_le_bytes(), &frames]);
            }
            Self::Symbol { address, symbol: Symbol { name, offset, module } } => {
                let name_len = u32::try_from(name.len()).ok()?.to_le_bytes();
                let module = module.as_deref().unwrap_or_default().as_bytes();
                let parts: [&[u8]; 5] =
                    [&address.to_le_bytes(), &offset.to_le_bytes(), &name_len, name.as_bytes(), module];
                put(kind::SYMBOL, &parts);
            }
            Self::Counter(counter) => put(kind::COUNTER, &[&serde_json::to_vec(counter).ok()?]),
            Self::Note(note) => put(kind::NOTE, &[&serde_json::to_vec(note).ok()?]),
            Self::End(end) => put(kind::END, &[&serde_json::to_vec(end).ok()?]),
            Self::Unknown => return None,
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(id: i32, frames in proptest::collection::vec(any::<u64>(), 0..130), name in ".{0,40}",
            module in proptest::option::of("[a-z]{1,9}"), address: u64, offset: u64, tid: u32) {
            for user in [
                User::Stack { id, frames },
                User::Symbol { address, symbol: Symbol { name: name.clone(), offset, module } },
                User::Counter(Counter { name, time_ns: offset, by_cpu: vec![address, 0] }),
                User::Note(Note::Hung { pid: tid / 2, tid }),
                User::End(End { watched_ns: offset, ..End::default() }),
            ] {
                let bytes = user.encode().expect("it is known");
                prop_assert_eq!(User::decode(&bytes), user);
                prop_assert_eq!(User::decode(&bytes[..3]), User::Unknown);
            }
        }

        #[test]
        fn any_bytes_decode(kind in 999_u32..1006, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = [kind.to_le_bytes().to_vec(), bytes].concat();
            let _ = User::decode(&bytes);
        }
    }
}
