//! What a BPF program needs to read kernel memory by a load: the kernel's function that gives an address a type, and the type.

use super::btf::Btf;

/// Ids in the kernel's BTF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cast {
    /// `bpf_rdonly_cast` (kernel/bpf/helpers.c, since 6.2).
    pub function: u32,
    /// A struct that begins with a 64-bit number.
    pub structure: u32,
}

impl Cast {
    /// `None` where the kernel has no such function. That it has does not mean that it lets everybody use it.
    #[must_use]
    pub fn from_btf(btf: &Btf) -> Option<Self> {
        const STRUCT: &str = "pt_regs";
        let first = btf.member(STRUCT, "r15")?;
        if first.byte_offset() != Some(0) || btf.member_size(STRUCT, "r15") != Some(8) {
            return None;
        }
        Some(Self { function: btf.func_id("bpf_rdonly_cast")?, structure: btf.struct_id(STRUCT)? })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::btf::testing::Builder, *};

    fn cast(first: (&str, u32), function: &str) -> Option<Cast> {
        let mut types = Builder::new();
        let word = types.int("unsigned long", first.1);
        let registers = types.record("pt_regs", 16, &[(first.0, word, 0), ("ip", word, 64)]);
        let proto = types.proto(0, &[]);
        let id = types.function(function, proto);
        let cast = Cast::from_btf(&Btf::parse(types.finish()).unwrap());
        assert!(cast.is_none_or(|cast| cast == Cast { function: id, structure: registers }), "{cast:?}");
        cast
    }

    #[test]
    fn both_are_needed_and_the_struct_must_begin_with_a_word() {
        assert!(cast(("r15", 8), "bpf_rdonly_cast").is_some());
        assert_eq!(cast(("r15", 8), "bpf_cast_to_kern_ctx"), None);
        assert_eq!(cast(("regs", 8), "bpf_rdonly_cast"), None);
        assert_eq!(cast(("r15", 4), "bpf_rdonly_cast"), None);
    }
}
