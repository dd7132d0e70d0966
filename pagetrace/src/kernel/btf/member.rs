//! Where a member lies in a struct or union, through anonymous members and dotted paths. Pointers are not followed:
//! a path that crosses one is two look-ups and a load.

use super::{
    Btf,
    index::Class,
    raw::{Record, kind},
};

/// Structs nested in one another before a look-up gives up; vmlinux stays under ten.
const MAX_NESTING: usize = 16;
/// Members visited before a look-up gives up: bounds the work on a blob whose structs contain themselves.
const MAX_VISITS: u32 = 100_000;

/// One member, as found from the outermost struct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Offset from the start of the outermost struct, in bits.
    pub bit_offset: u32,
    /// Width in bits if it is a bit field.
    pub bitfield_bits: Option<u32>,
    /// BTF id of the member's type.
    pub type_id: u32,
}

impl Member {
    /// Offset in bytes, unless the member is a bit field.
    #[must_use]
    pub fn byte_offset(&self) -> Option<u32> {
        (self.bitfield_bits.is_none() && self.bit_offset.is_multiple_of(8)).then_some(self.bit_offset / 8)
    }
}

impl Btf {
    /// Finds `path` in struct or union `name`. A path is a member name, or several joined by dots, each in the struct
    /// before it; members of anonymous structs and unions are found without naming these.
    ///
    /// C allows several structs of one name in different files: the first that has the path answers.
    #[must_use]
    pub fn member(&self, name: &str, path: &str) -> Option<Member> {
        self.find(Class::Aggregate, name).find_map(|(_, record)| self.member_at(record, path))
    }

    /// [`Btf::member`] as a byte offset; `None` too for a bit field.
    #[must_use]
    pub fn member_offset(&self, name: &str, path: &str) -> Option<u32> {
        self.member(name, path)?.byte_offset()
    }

    /// The type of a member as C would write it.
    #[must_use]
    pub fn member_type(&self, name: &str, path: &str) -> Option<String> {
        self.member(name, path).map(|member| self.type_name(member.type_id))
    }

    /// The size of a member's type in bytes; `None` for a bit field or a type without a size.
    #[must_use]
    pub fn member_size(&self, name: &str, path: &str) -> Option<u32> {
        let member = self.member(name, path)?;
        member.byte_offset()?;
        self.size_of(member.type_id)
    }

    fn size_of(&self, id: u32) -> Option<u32> {
        let (_, record) = self.resolve(id)?;
        match record.kind {
            kind::INT | kind::FLOAT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 => {
                Some(record.size_or_type)
            }
            kind::PTR => Some(8),
            kind::ARRAY => {
                let (_, element) = self.resolve(self.word(record.body)?)?;
                let element = match element.kind {
                    kind::PTR => 8,
                    kind::ARRAY => return None,
                    _ => element.size_or_type,
                };
                element.checked_mul(self.word(record.body + 8)?)
            }
            _ => None,
        }
    }

    fn member_at(&self, outer: Record, path: &str) -> Option<Member> {
        let mut record = outer;
        let mut base = 0u32;
        let mut parts = path.split('.').take(MAX_NESTING).peekable();
        while let Some(part) = parts.next() {
            let mut visits = MAX_VISITS;
            let found = self.search(&record, part.as_bytes(), MAX_NESTING, &mut visits)?;
            base = base.checked_add(found.bit_offset)?;
            if parts.peek().is_none() {
                return Some(Member { bit_offset: base, ..found });
            }
            record = self.aggregate(found.type_id)?;
        }
        None
    }

    fn aggregate(&self, id: u32) -> Option<Record> {
        let (_, record) = self.resolve(id)?;
        matches!(record.kind, kind::STRUCT | kind::UNION).then_some(record)
    }

    fn search(&self, record: &Record, wanted: &[u8], depth: usize, visits: &mut u32) -> Option<Member> {
        let depth = depth.checked_sub(1)?;
        for i in 0..record.vlen as usize {
            *visits = visits.checked_sub(1)?;
            let at = record.body + i * 12;
            let name = self.name_bytes(self.word(at)?).unwrap_or(b"");
            let type_id = self.word(at + 4)?;
            let place = self.word(at + 8)?;
            // With the flag the word is 8 bits of width and 24 of offset; without it, all offset.
            let (bits, bit_offset) = if record.kind_flag { (place >> 24, place & 0x00ff_ffff) } else { (0, place) };
            if name == wanted {
                return Some(Member { bit_offset, bitfield_bits: (bits != 0).then_some(bits), type_id });
            }
            if name.is_empty()
                && let Some(inner) = self.aggregate(type_id)
                && let Some(found) = self.search(&inner, wanted, depth, visits)
            {
                return Some(Member { bit_offset: bit_offset.checked_add(found.bit_offset)?, ..found });
            }
        }
        None
    }
}
