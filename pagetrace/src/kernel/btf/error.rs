//! What can be wrong with BTF bytes, as values a caller can match on. No reading happens here.

/// Why a blob is not BTF that this reader understands. Offsets count bytes from the blob's start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// The blob ends inside something.
    #[error("BTF ends at byte {len}, but {what} needs bytes {offset}..{end}")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it begins.
        offset: usize,
        /// Where it would end, exclusive.
        end: usize,
        /// How long the blob, or the section, is.
        len: usize,
    },
    /// The first two bytes are not the BTF magic.
    #[error("expected the BTF magic 0xeb9f at byte 0, found {found:#06x}")]
    Magic {
        /// The two bytes, read in this machine's byte order.
        found: u16,
    },
    /// The blob was made for a machine of the other byte order.
    #[error("the BTF was written for a machine of the other byte order (magic 0x9feb at byte 0)")]
    ForeignEndian,
    /// A version other than 1.
    #[error("expected BTF version 1 at byte 2, found {found}")]
    Version {
        /// The version byte.
        found: u8,
    },
    /// A section lies outside the blob, or its boundaries overflow.
    #[error("the {section} section of the BTF is {len} bytes from byte {offset}, outside a blob of {blob} bytes")]
    Section {
        /// `type` or `string`.
        section: &'static str,
        /// Where it begins.
        offset: u64,
        /// Its length.
        len: u64,
        /// The blob's length.
        blob: usize,
    },
    /// The string section does not begin and end with a NUL byte.
    #[error("expected the BTF string section at byte {offset} to begin and end with a NUL byte")]
    Strings {
        /// Where the section begins.
        offset: usize,
    },
    /// A type kind younger than this reader, without a description of its size in the blob.
    #[error("unknown BTF kind {kind} at byte {offset} (type {id}), and the blob does not say how long it is")]
    UnknownKind {
        /// The kind number.
        kind: u32,
        /// Where the record begins.
        offset: usize,
        /// The type's id.
        id: u32,
    },
    /// A name that lies outside the string section.
    #[error("the name of BTF type {id} at byte {offset} is string {name}, outside a string section of {strings} bytes")]
    Name {
        /// The type's id.
        id: u32,
        /// Where the record begins.
        offset: usize,
        /// The offset in the string section.
        name: u32,
        /// The string section's length.
        strings: usize,
    },
}
