//! Functions and their parameters. A tracepoint's raw arguments are those of the typedef `btf_trace_NAME`.

use super::{Btf, index::Class, raw::kind};

/// What a function takes and gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proto {
    /// Name (empty where BTF has none, as in typedefs) and type of each parameter, in order.
    pub params: Vec<(String, String)>,
    /// Type of the result.
    pub result: String,
}

impl Proto {
    /// The position of the parameter called `name`.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.params.iter().position(|(own, _)| own == name)
    }
}

impl Btf {
    /// The prototype of function `name`; of several static ones with this name, the first.
    #[must_use]
    pub fn func(&self, name: &str) -> Option<Proto> {
        self.find(Class::Func, name).find_map(|(_, record)| self.proto(record.size_or_type))
    }

    /// The prototype behind typedef `name`, be it of a function or of a pointer to one.
    #[must_use]
    pub fn typedef_func(&self, name: &str) -> Option<Proto> {
        self.find(Class::Typedef, name).find_map(|(_, record)| self.proto(record.size_or_type))
    }

    /// How many arguments tracepoint `name` hands to a raw program, the leading `void *` not counted; `None` if this
    /// kernel has no such tracepoint.
    #[must_use]
    pub fn tracepoint_args(&self, name: &str) -> Option<usize> {
        self.tracepoint(name).map(|proto| proto.params.len())
    }

    /// The raw arguments of tracepoint `name`, the leading `void *` dropped.
    #[must_use]
    pub fn tracepoint(&self, name: &str) -> Option<Proto> {
        let mut proto = self.typedef_func(&format!("btf_trace_{name}"))?;
        if !proto.params.is_empty() {
            proto.params.remove(0);
        }
        Some(proto)
    }

    fn proto(&self, id: u32) -> Option<Proto> {
        let (_, mut record) = self.resolve(id)?;
        if record.kind == kind::PTR {
            (_, record) = self.resolve(record.size_or_type)?;
        }
        if record.kind != kind::FUNC_PROTO {
            return None;
        }
        let param = |i: usize| {
            let at = record.body + i * 8;
            let name = self.name(self.word(at)?)?.into_owned();
            match self.word(at + 4)? {
                0 if name.is_empty() => Some((name, "...".to_owned())),
                id => Some((name, self.type_name(id))),
            }
        };
        let params = (0..record.vlen as usize).map(param).collect::<Option<Vec<_>>>()?;
        Some(Proto { params, result: self.type_name(record.size_or_type) })
    }
}
