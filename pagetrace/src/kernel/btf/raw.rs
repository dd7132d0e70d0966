//! The bytes of BTF: header, sections and record sizes. Knows the format, not what a type means.
//!
//! Format: `include/uapi/linux/btf.h`. Every read is checked against its section; nothing here panics.

use std::ops::Range;

use super::BtfError;

/// `BTF_KIND_*` numbers of `include/uapi/linux/btf.h`.
pub(super) mod kind {
    pub(crate) const INT: u32 = 1;
    pub(crate) const PTR: u32 = 2;
    pub(crate) const ARRAY: u32 = 3;
    pub(crate) const STRUCT: u32 = 4;
    pub(crate) const UNION: u32 = 5;
    pub(crate) const ENUM: u32 = 6;
    pub(crate) const FWD: u32 = 7;
    pub(crate) const TYPEDEF: u32 = 8;
    pub(crate) const VOLATILE: u32 = 9;
    pub(crate) const CONST: u32 = 10;
    pub(crate) const RESTRICT: u32 = 11;
    pub(crate) const FUNC: u32 = 12;
    pub(crate) const FUNC_PROTO: u32 = 13;
    pub(crate) const VAR: u32 = 14;
    pub(crate) const DATASEC: u32 = 15;
    pub(crate) const FLOAT: u32 = 16;
    pub(crate) const DECL_TAG: u32 = 17;
    pub(crate) const TYPE_TAG: u32 = 18;
    pub(crate) const ENUM64: u32 = 19;
}

/// Bytes of the header up to and including `str_len`.
const HEADER_LEN: usize = 24;
/// Bytes of `struct btf_type`.
pub(super) const RECORD_LEN: usize = 12;

pub(super) fn u32_at(data: &[u8], offset: usize) -> Option<u32> {
    let bytes = data.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn header_u32(data: &[u8], offset: usize) -> Result<u32, BtfError> {
    u32_at(data, offset).ok_or(BtfError::Truncated {
        what: "the header",
        offset,
        end: offset.saturating_add(4),
        len: data.len(),
    })
}

/// Where the sections lie in the blob.
#[derive(Debug)]
pub(super) struct Sections {
    pub(super) types: Range<usize>,
    pub(super) strings: Range<usize>,
    /// Describes record sizes of kinds; empty in blobs made before the header grew for it.
    layout: Range<usize>,
}

pub(super) fn sections(data: &[u8]) -> Result<Sections, BtfError> {
    let Some(&[m0, m1, version, _flags]) = data.get(..4) else {
        return Err(BtfError::Truncated { what: "the header", offset: 0, end: HEADER_LEN, len: data.len() });
    };
    match u16::from_ne_bytes([m0, m1]) {
        0xeb9f => {}
        0x9feb => return Err(BtfError::ForeignEndian),
        found => return Err(BtfError::Magic { found }),
    }
    if version != 1 {
        return Err(BtfError::Version { found: version });
    }
    let header_len = header_u32(data, 4)?;
    let section = |name, offset_at, len_at| {
        let offset = u64::from(header_len) + u64::from(header_u32(data, offset_at)?);
        let len = u64::from(header_u32(data, len_at)?);
        let outside = BtfError::Section { section: name, offset, len, blob: data.len() };
        let range = usize::try_from(offset).ok().zip(usize::try_from(offset + len).ok());
        match range {
            Some((start, end)) if end <= data.len() && header_len as usize >= HEADER_LEN => Ok(start..end),
            _ => Err(outside),
        }
    };
    let types = section("type", 8, 12)?;
    let strings = section("string", 16, 20)?;
    match data.get(strings.clone()) {
        Some([0, .., 0] | [0]) => {
            let grown = header_len as usize >= HEADER_LEN + 8;
            let layout = if grown { section("layout", 24, 28)? } else { 0..0 };
            Ok(Sections { types, strings, layout })
        }
        _ => Err(BtfError::Strings { offset: strings.start }),
    }
}

/// One `struct btf_type`, decoded; what follows it begins at `body`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    pub(super) name: u32,
    pub(super) kind: u32,
    pub(super) vlen: u32,
    pub(super) kind_flag: bool,
    /// The `size` or `type` member, as the kind has it.
    pub(super) size_or_type: u32,
    /// Offset in the blob of the kind's own data.
    pub(super) body: usize,
}

pub(super) fn record(data: &[u8], offset: usize) -> Option<Record> {
    let name = u32_at(data, offset)?;
    let info = u32_at(data, offset.checked_add(4)?)?;
    let size_or_type = u32_at(data, offset.checked_add(8)?)?;
    Some(Record {
        name,
        // Bits 16..24 and 29..31 were reserved as zero before they were given to the count and the kind.
        vlen: info & 0x00ff_ffff,
        kind: (info >> 24) & 0x7f,
        kind_flag: info >> 31 == 1,
        size_or_type,
        body: offset.checked_add(RECORD_LEN)?,
    })
}

/// Bytes that follow the record of a kind this reader knows.
fn body_len(kind: u32, vlen: u32) -> Option<usize> {
    let vlen = vlen as usize;
    Some(match kind {
        kind::PTR | kind::FWD | kind::TYPEDEF | kind::VOLATILE | kind::CONST => 0,
        kind::RESTRICT | kind::FUNC | kind::FLOAT | kind::TYPE_TAG => 0,
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => vlen.saturating_mul(12),
        kind::ENUM | kind::FUNC_PROTO => vlen.saturating_mul(8),
        _ => return None,
    })
}

/// Bytes that follow the record of a kind which only the blob's layout section knows (`struct btf_layout`).
fn described_body_len(data: &[u8], layout: &Range<usize>, kind: u32, vlen: u32) -> Option<usize> {
    let at = (kind as usize).checked_mul(4)?;
    let &[info, element, ..] = data.get(layout.clone())?.get(at..at.checked_add(4)?)? else { return None };
    usize::from(element).checked_mul(vlen as usize)?.checked_add(usize::from(info))
}

/// Where each type's record begins; index 0 is `void`, which has none.
pub(super) fn type_offsets(data: &[u8], sections: &Sections) -> Result<Vec<u32>, BtfError> {
    let Sections { types, strings: _, layout } = sections;
    // A vmlinux record is about 30 bytes with its list; growing twice at most is cheaper than a first pass.
    let mut offsets = Vec::with_capacity(types.len() / 32 + 1);
    offsets.push(0);
    let section = data.get(..types.end).unwrap_or(data);
    let mut offset = types.start;
    while offset < types.end {
        let truncated = |what, end| BtfError::Truncated { what, offset, end, len: types.end };
        let id = u32::try_from(offsets.len()).unwrap_or(u32::MAX);
        let at = u32::try_from(offset).map_err(|_| truncated("a type beyond 4 GiB", offset))?;
        let record = record(section, offset).ok_or_else(|| truncated("a type record", offset + RECORD_LEN))?;
        let body = body_len(record.kind, record.vlen)
            .or_else(|| described_body_len(data, layout, record.kind, record.vlen))
            .ok_or(BtfError::UnknownKind { kind: record.kind, offset, id })?;
        let end = record.body.saturating_add(body);
        if end > types.end {
            return Err(truncated("a type's list", end));
        }
        offsets.push(at);
        offset = end;
    }
    Ok(offsets)
}
