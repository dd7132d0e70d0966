//! Where `struct module` tells what addresses a module has (include/linux/module.h).

use super::btf::Btf;

/// Offsets of an address in `struct module`, and of the 32-bit size that goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Of the address.
    pub base: u64,
    /// Of the size.
    pub size: u64,
}

/// The code of a module, and its variables where they are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Regions {
    /// `mem[MOD_TEXT]`; before 6.4 `core_layout`, which is all of the module.
    pub text: Region,
    /// `mem[MOD_DATA]`, since 6.4.
    pub data: Option<Region>,
}

impl Regions {
    /// Reads them from BTF; `None` where this kernel has them in no way that is known.
    pub fn from_btf(btf: &Btf) -> Option<Self> {
        let offset = |of: &str, path: &str| btf.member_offset(of, path).map(u64::from);
        if let (Some(base), Some(size)) = (offset("module", "core_layout.base"), offset("module", "core_layout.size")) {
            return Some(Self { text: Region { base, size }, data: None });
        }
        let (all, each) = (offset("module", "mem")?, u64::from(btf.struct_size("module_memory")?));
        let (base, size) = (offset("module_memory", "base")?, offset("module_memory", "size")?);
        let region = |kind: &str| {
            let at = all + each * u64::try_from(btf.enum_value("mod_mem_type", kind)?).ok()?;
            Some(Region { base: at + base, size: at + size })
        };
        Some(Self { text: region("MOD_TEXT")?, data: region("MOD_DATA") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf::testing::Builder;

    #[test]
    fn both_layouts_are_understood() {
        let mut b = Builder::new();
        let int = b.int("unsigned int", 4);
        let long = b.int("unsigned long", 8);
        let layout = b.record("module_layout", 24, &[("base", long, 0), ("size", int, 64)]);
        b.record("module", 64, &[("core_layout", layout, 128)]);
        let old = Regions::from_btf(&Btf::parse(b.finish()).unwrap());
        assert_eq!(old, Some(Regions { text: Region { base: 16, size: 24 }, data: None }));

        let mut b = Builder::new();
        let int = b.int("unsigned int", 4);
        let long = b.int("unsigned long", 8);
        let memory = b.record("module_memory", 32, &[("base", long, 0), ("size", int, 96)]);
        b.enumeration("mod_mem_type", &[("MOD_TEXT", 0), ("MOD_DATA", 1)]);
        b.record("module", 128, &[("mem", memory, 64)]);
        let new = Regions::from_btf(&Btf::parse(b.finish()).unwrap());
        let (text, data) = (Region { base: 8, size: 20 }, Region { base: 40, size: 52 });
        assert_eq!(new, Some(Regions { text, data: Some(data) }));
    }

    #[test]
    fn the_running_kernel_has_them() {
        let Ok(blob) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        assert!(Regions::from_btf(&Btf::parse(blob).unwrap()).is_some());
    }
}
