//! A small reader of BTF, the kernel's own description of its types (`/sys/kernel/btf/vmlinux`).
//!
//! Answers by name: where a member lies, how big a struct is, which parameters a function takes. It does
//! no I/O and never panics, whatever the bytes are. Format: `Documentation/bpf/btf.rst`.

mod error;
mod index;
mod member;
mod proto;
mod raw;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod within;

use std::{borrow::Cow, ops::Range};

pub use self::{error::BtfError, member::Member, proto::Proto};
use self::{
    index::{Class, Index},
    raw::{Record, kind},
};

/// Modifiers followed before a type is given up as a cycle; vmlinux needs fewer than ten.
const MAX_CHAIN: usize = 32;

/// The types of one kernel or module.
#[derive(Debug)]
pub struct Btf {
    data: Vec<u8>,
    strings: Range<usize>,
    /// Byte offset of each type's record, by id; id 0 is `void`.
    offsets: Vec<u32>,
    index: Index,
}

impl Btf {
    /// Checks the blob's frame (header, sections, that each record and name lies inside) and indexes its names.
    ///
    /// # Errors
    /// [`BtfError`] with the byte offset and what was expected there.
    pub fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        let sections = raw::sections(&data)?;
        let offsets = raw::type_offsets(&data, &sections)?;
        let index = Index::build(&data, &sections.strings, &offsets)?;
        Ok(Self { data, strings: sections.strings, offsets, index })
    }

    /// How many types there are, `void` not counted.
    #[must_use]
    pub fn type_count(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// `sizeof` of a struct or union, in bytes.
    #[must_use]
    pub fn struct_size(&self, name: &str) -> Option<u32> {
        self.find(Class::Aggregate, name).map(|(_, record)| record.size_or_type).next()
    }

    /// Id of a struct or union.
    #[must_use]
    pub fn struct_id(&self, name: &str) -> Option<u32> {
        self.find(Class::Aggregate, name).map(|(id, _)| id).next()
    }

    /// Id of a function.
    #[must_use]
    pub fn func_id(&self, name: &str) -> Option<u32> {
        self.find(Class::Func, name).map(|(id, _)| id).next()
    }

    /// Whether the kernel has a function of this name in its BTF. That does not make it attachable: from 6.1 on BTF
    /// also names functions that ftrace cannot reach.
    #[must_use]
    pub fn has_func(&self, name: &str) -> bool {
        self.func_id(name).is_some()
    }

    /// The value of `value` in `enum name`.
    #[must_use]
    pub fn enum_value(&self, name: &str, value: &str) -> Option<i64> {
        self.find(Class::Enum, name).find_map(|(_, record)| self.value_in(&record, value))
    }

    /// The value of an enumerator in whichever enum has it, anonymous ones included. Reads every enum.
    #[must_use]
    pub fn any_enum_value(&self, value: &str) -> Option<i64> {
        (1..self.offsets.len())
            .filter_map(|id| self.record(u32::try_from(id).ok()?))
            .filter(|record| matches!(record.kind, kind::ENUM | kind::ENUM64))
            .find_map(|record| self.value_in(&record, value))
    }

    fn value_in(&self, record: &Record, value: &str) -> Option<i64> {
        let step = if record.kind == kind::ENUM { 8 } else { 12 };
        let entry = (0..record.vlen as usize)
            .map(|i| record.body + i * step)
            .find(|&at| self.word(at).and_then(|name| self.name_bytes(name)) == Some(value.as_bytes()))?;
        let low = self.word(entry + 4)?;
        Some(match (record.kind, record.kind_flag) {
            (kind::ENUM, true) => i64::from(low.cast_signed()),
            (kind::ENUM, false) => i64::from(low),
            _ => (u64::from(self.word(entry + 8)?) << 32 | u64::from(low)).cast_signed(),
        })
    }

    /// A type as C would write it, `struct mm_struct *` for one; function pointers are cut to `ret (*)(…)`.
    #[must_use]
    pub fn type_name(&self, id: u32) -> String {
        self.render(id, MAX_CHAIN)
    }

    fn render(&self, id: u32, depth: usize) -> String {
        if id == 0 {
            return "void".to_owned();
        }
        let (Some(record), Some(depth)) = (self.record(id), depth.checked_sub(1)) else {
            return "?".to_owned();
        };
        let own = || self.name(record.name).unwrap_or(Cow::Borrowed("?"));
        let tagged = |tag: &str| match own() {
            name if name.is_empty() => format!("{tag} (anonymous)"),
            name => format!("{tag} {name}"),
        };
        let inner = || self.render(record.size_or_type, depth);
        match record.kind {
            kind::STRUCT => tagged("struct"),
            kind::UNION => tagged("union"),
            kind::FWD => tagged(if record.kind_flag { "union" } else { "struct" }),
            kind::ENUM | kind::ENUM64 => tagged("enum"),
            kind::CONST => format!("const {}", inner()),
            kind::VOLATILE => format!("volatile {}", inner()),
            kind::RESTRICT | kind::TYPE_TAG => inner(),
            kind::PTR => match inner() {
                name if name.ends_with(")(…)") => name,
                name if name.ends_with('*') => format!("{name}*"),
                name => format!("{name} *"),
            },
            kind::FUNC_PROTO => format!("{} (*)(…)", inner()),
            kind::ARRAY => match (self.word(record.body), self.word(record.body + 8)) {
                (Some(element), Some(count)) => format!("{}[{count}]", self.render(element, depth)),
                _ => "?".to_owned(),
            },
            _ => own().into_owned(),
        }
    }

    /// The id and record behind typedefs, qualifiers and tags; `None` for `void`, a bad id or a cycle.
    fn resolve(&self, mut id: u32) -> Option<(u32, Record)> {
        for _ in 0..MAX_CHAIN {
            let record = self.record(id)?;
            match record.kind {
                kind::TYPEDEF | kind::CONST | kind::VOLATILE | kind::RESTRICT | kind::TYPE_TAG => {
                    id = record.size_or_type;
                }
                _ => return Some((id, record)),
            }
        }
        None
    }

    fn find<'a>(&'a self, class: Class, name: &'a str) -> impl Iterator<Item = (u32, Record)> + 'a {
        self.index
            .candidates(class, name.as_bytes())
            .filter_map(|id| Some((id, self.record(id)?)))
            .filter(move |(_, record)| Class::of(record.kind) == Some(class))
            .filter(move |(_, record)| self.name_bytes(record.name) == Some(name.as_bytes()))
    }

    fn record(&self, id: u32) -> Option<Record> {
        if id == 0 {
            return None;
        }
        raw::record(&self.data, *self.offsets.get(id as usize)? as usize)
    }

    fn word(&self, offset: usize) -> Option<u32> {
        raw::u32_at(&self.data, offset)
    }

    fn name_bytes(&self, name: u32) -> Option<&[u8]> {
        index::name_bytes(self.data.get(self.strings.clone())?, name)
    }

    fn name(&self, name: u32) -> Option<Cow<'_, str>> {
        self.name_bytes(name).map(String::from_utf8_lossy)
    }
}
