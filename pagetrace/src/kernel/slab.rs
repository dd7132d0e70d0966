//! How to tell from an address alone whether it lies in an object of a slab cache, on the running kernel.
//!
//! The way: direct map address, its page, the head of its compound page, "is it slab?", the cache, the cache's name.
//! Each step changed between 5.10 and 7.3; this says which shape each has here, and reads no kernel memory itself.

use serde::{Deserialize, Serialize};

use super::btf::Btf;

/// How a tail page names its head, `include/linux/page-flags.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Head {
    /// The word with its bit 0 set is the head's address plus one.
    Pointer,
    /// With bit 0 set the word is either the head's address plus one, or, if all its upper bits are ones, a mask for
    /// the page's own address.
    PointerOrMask,
}

/// How a page tells that it belongs to the slab allocator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IsSlab {
    /// This bit of `page.flags`, up to 6.9.
    FlagBit(u32),
    /// The top byte of the 32-bit `page.page_type` has this value.
    TypeByte(u32),
}

/// Offsets in bytes, and shapes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slab {
    /// `sizeof(struct page)`, the step of the array at `vmemmap_base`.
    pub page_size_of: u32,
    /// `page.flags`.
    pub page_flags: u32,
    /// `page.page_type`.
    pub page_type: Option<u32>,
    /// Where a tail page names its head.
    pub head: u32,
    /// What stands there.
    pub head_form: Head,
    /// How a slab page is recognised.
    pub is_slab: IsSlab,
    /// `slab_cache` in `struct slab`, or in `struct page` before that existed; a pointer.
    pub slab_cache: u32,
    /// `kmem_cache.name`, a pointer.
    pub cache_name: u32,
    /// `kmem_cache.size`: distance between objects, 32 bits.
    pub cache_size: u32,
    /// `kmem_cache.object_size`, 32 bits.
    pub cache_object_size: Option<u32>,
    /// `kmem_cache.red_left_pad`, 32 bits; counts only with red zones on.
    pub cache_red_left_pad: Option<u32>,
    /// `kmem_cache.oo`: page order in the upper 16 bits, objects in the lower.
    pub cache_oo: Option<u32>,
}

impl Slab {
    /// `None` if any step has a shape that is not understood: then only the kernel itself can say
    /// (`bpf_get_kmem_cache()`).
    #[must_use]
    pub fn from_btf(btf: &Btf) -> Option<Self> {
        let page = |path| btf.member_offset("page", path);
        let cache = |path| btf.member_offset("kmem_cache", path);
        let (head, head_form) = match (page("compound_head"), page("compound_info")) {
            (Some(head), _) => (head, Head::Pointer),
            (None, Some(head)) => (head, Head::PointerOrMask),
            (None, None) => return None,
        };
        Some(Self {
            page_size_of: btf.struct_size("page")?,
            page_flags: page("flags")?,
            page_type: page("page_type"),
            head,
            head_form,
            is_slab: is_slab(btf)?,
            slab_cache: btf.member_offset("slab", "slab_cache").or_else(|| page("slab_cache"))?,
            cache_name: cache("name")?,
            cache_size: cache("size")?,
            cache_object_size: cache("object_size"),
            cache_red_left_pad: cache("red_left_pad"),
            cache_oo: cache("oo"),
        })
    }
}

fn is_slab(btf: &Btf) -> Option<IsSlab> {
    // 6.10 and 6.11 had a third form, a cleared bit of page_type; it is not supported.
    if let Some(byte) = btf.enum_value("pagetype", "PGTY_slab") {
        return Some(IsSlab::TypeByte(u32::try_from(byte).ok()?));
    }
    let bit = btf.enum_value("pageflags", "PG_slab")?;
    Some(IsSlab::FlagBit(u32::try_from(bit).ok()?))
}
