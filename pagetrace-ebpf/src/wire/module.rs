//! Kernel modules that are unloaded: what their addresses meant is over then.

use super::{Header, codec::wire};

/// Where kernel modules and BPF programs lie on x86-64, from here on (Documentation/arch/x86/x86_64/mm.rst).
pub const MODULES: u64 = 0xffff_ffff_a000_0000;

wire! {
    /// Addresses, from the first to the one behind the last; both 0 where there are none.
    pub struct Range {
        /// First address.
        pub start: u64,
        /// First address after it.
        pub end: u64,
    }
}

impl Range {
    /// Whether the address lies in it.
    #[inline(always)]
    pub fn contains(&self, address: u64) -> bool {
        address >= self.start && address < self.end
    }
}

wire! {
    /// A module is about to be freed (kernel/module/main.c, `free_module`): nothing of it runs any more.
    pub struct Unloaded {
        /// Common part.
        pub header: Header,
        /// Its code; before 6.4 its variables as well.
        pub text: Range,
        /// Its variables.
        pub data: Range,
    }
}

impl Unloaded {
    /// Whether the address was the module's.
    pub fn contains(&self, address: u64) -> bool {
        self.text.contains(address) || self.data.contains(address)
    }
}
