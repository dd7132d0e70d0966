//! From a name to the ids of the types that may have it. Says "maybe": the caller compares class and name itself.

use std::ops::Range;

use super::{
    BtfError,
    raw::{self, kind},
};
use crate::kernel::names::{self, Names};

/// The name spaces of C that BTF shares one string section for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Aggregate,
    Enum,
    Typedef,
    Func,
}

impl Class {
    pub(super) fn of(kind: u32) -> Option<Self> {
        Some(match kind {
            kind::STRUCT | kind::UNION => Self::Aggregate,
            kind::ENUM | kind::ENUM64 => Self::Enum,
            kind::TYPEDEF => Self::Typedef,
            kind::FUNC => Self::Func,
            _ => return None,
        })
    }
}

/// The types that are found by name; vmlinux has about 80 000 of them.
#[derive(Debug)]
pub(super) struct Index(Names);

impl Index {
    pub(super) fn build(data: &[u8], strings: &Range<usize>, offsets: &[u32]) -> Result<Self, BtfError> {
        let section = data.get(strings.clone()).unwrap_or(&[]);
        for (id, &offset) in (0u32..).zip(offsets).skip(1) {
            let Some(record) = raw::record(data, offset as usize) else { continue };
            if record.name as usize >= section.len() {
                let (offset, name, strings) = (offset as usize, record.name, section.len());
                return Err(BtfError::Name { id, offset, name, strings });
            }
        }
        Ok(Self(Names::build(offsets.len(), |id| {
            let record = raw::record(data, *offsets.get(id)? as usize).filter(|_| id != 0)?;
            let class = Class::of(record.kind)?;
            let name = name_bytes(section, record.name).filter(|name| !name.is_empty())?;
            Some(hash(class, name))
        })))
    }

    /// Ids whose class and name may hash alike, ascending.
    pub(super) fn candidates(&self, class: Class, name: &[u8]) -> impl Iterator<Item = u32> + '_ {
        self.0.candidates(hash(class, name))
    }
}

/// The string at `name`, without its NUL.
pub(super) fn name_bytes(section: &[u8], name: u32) -> Option<&[u8]> {
    let rest = section.get(name as usize..)?;
    rest.get(..rest.iter().position(|&byte| byte == 0)?)
}

fn hash(class: Class, name: &[u8]) -> u64 {
    names::hash(class as u64, name)
}
