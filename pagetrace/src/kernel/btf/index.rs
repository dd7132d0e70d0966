//! From a name to the ids of the types that may have it. Says "maybe": the caller compares the name itself.

use std::ops::Range;

use super::{
    BtfError,
    raw::{self, kind},
};

/// The name spaces of C that BTF shares one string section for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Aggregate,
    Enum,
    Typedef,
    Func,
}

impl Class {
    fn of(kind: u32) -> Option<Self> {
        Some(match kind {
            kind::STRUCT | kind::UNION => Self::Aggregate,
            kind::ENUM | kind::ENUM64 => Self::Enum,
            kind::TYPEDEF => Self::Typedef,
            kind::FUNC => Self::Func,
            _ => return None,
        })
    }
}

/// Sorted pairs of name hash and type id: vmlinux has about 80 000 such names, and a sorted vector is built in a
/// quarter of the time a hash map needs.
#[derive(Debug)]
pub(super) struct Index(Vec<(u32, u32)>);

impl Index {
    pub(super) fn build(data: &[u8], strings: &Range<usize>, offsets: &[u32]) -> Result<Self, BtfError> {
        let section = data.get(strings.clone()).unwrap_or(&[]);
        let mut pairs = Vec::with_capacity(offsets.len());
        for (id, &offset) in (0u32..).zip(offsets).skip(1) {
            let Some(record) = raw::record(data, offset as usize) else { continue };
            let name = name_bytes(section, record.name).ok_or(BtfError::Name {
                id,
                offset: offset as usize,
                name: record.name,
                strings: section.len(),
            })?;
            if let Some(class) = Class::of(record.kind)
                && !name.is_empty()
            {
                pairs.push((hash(class, name), id));
            }
        }
        pairs.sort_unstable();
        Ok(Self(pairs))
    }

    /// Ids whose class and name hash alike, ascending.
    pub(super) fn candidates(&self, class: Class, name: &[u8]) -> impl Iterator<Item = u32> + '_ {
        let wanted = hash(class, name);
        let start = self.0.partition_point(|&(hash, _)| hash < wanted);
        self.0.iter().skip(start).take_while(move |&&(hash, _)| hash == wanted).map(|&(_, id)| id)
    }
}

/// The string at `name`, without its NUL.
pub(super) fn name_bytes(section: &[u8], name: u32) -> Option<&[u8]> {
    let rest = section.get(name as usize..)?;
    rest.get(..rest.iter().position(|&byte| byte == 0)?)
}

/// FNV-1a, 32 bits.
fn hash(class: Class, name: &[u8]) -> u32 {
    let seed = 0x811c_9dc5 ^ class as u32;
    name.iter().fold(seed, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
