//! Writes small BTF blobs for tests. Not a general encoder: only what the tests ask for.

use super::raw::kind;

/// A member or parameter list entry: name, type id, bit offset (members) or 0.
pub(crate) type Entry<'a> = (&'a str, u32, u32);

/// Collects types and strings; [`Builder::finish`] lays them out behind a header.
pub(crate) struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    next: u32,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0], next: 1 }
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = u32::try_from(self.strings.len()).unwrap();
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        at
    }

    pub(crate) fn push(&mut self, name: &str, info: u32, size_or_type: u32, body: &[u32]) -> u32 {
        let name = self.string(name);
        for word in [name, info, size_or_type].iter().chain(body) {
            self.types.extend_from_slice(&word.to_ne_bytes());
        }
        self.next += 1;
        self.next - 1
    }

    pub(crate) fn int(&mut self, name: &str, size: u32) -> u32 {
        self.push(name, kind::INT << 24, size, &[size * 8])
    }

    pub(crate) fn reference(&mut self, kind: u32, name: &str, to: u32) -> u32 {
        self.push(name, kind << 24, to, &[])
    }

    pub(crate) fn pointer(&mut self, to: u32) -> u32 {
        self.reference(kind::PTR, "", to)
    }

    pub(crate) fn array(&mut self, element: u32, count: u32) -> u32 {
        self.push("", kind::ARRAY << 24, 0, &[element, element, count])
    }

    pub(crate) fn aggregate(&mut self, kind: u32, name: &str, size: u32, members: &[Entry<'_>]) -> u32 {
        let body: Vec<u32> = members.iter().flat_map(|&(name, id, bits)| [self.string(name), id, bits]).collect();
        self.push(name, kind << 24 | u32::try_from(members.len()).unwrap(), size, &body)
    }

    pub(crate) fn record(&mut self, name: &str, size: u32, members: &[Entry<'_>]) -> u32 {
        self.aggregate(kind::STRUCT, name, size, members)
    }

    pub(crate) fn proto(&mut self, result: u32, params: &[(&str, u32)]) -> u32 {
        let body: Vec<u32> = params.iter().flat_map(|&(name, id)| [self.string(name), id]).collect();
        self.push("", kind::FUNC_PROTO << 24 | u32::try_from(params.len()).unwrap(), result, &body)
    }

    pub(crate) fn function(&mut self, name: &str, proto: u32) -> u32 {
        self.reference(kind::FUNC, name, proto)
    }

    pub(crate) fn enumeration(&mut self, name: &str, values: &[(&str, u32)]) -> u32 {
        let body: Vec<u32> = values.iter().flat_map(|&(name, value)| [self.string(name), value]).collect();
        self.push(name, kind::ENUM << 24 | u32::try_from(values.len()).unwrap(), 4, &body)
    }

    pub(crate) fn finish(&self) -> Vec<u8> {
        let types = u32::try_from(self.types.len()).unwrap();
        let strings = u32::try_from(self.strings.len()).unwrap();
        let mut blob = 0xeb9f_u16.to_ne_bytes().to_vec();
        blob.extend_from_slice(&[1, 0]);
        for word in [24, 0, types, types, strings] {
            blob.extend_from_slice(&u32::to_ne_bytes(word));
        }
        blob.extend_from_slice(&self.types);
        blob.extend_from_slice(&self.strings);
        blob
    }
}
