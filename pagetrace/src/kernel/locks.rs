//! Which field of which struct a sleeping lock is, from the slab cache and the offset in its objects. Pure.
//!
//! A cache is believed to hold a struct only where the table says so, and only if the struct has a lock exactly there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::btf::Btf;

/// Types of locks that sleep.
const LOCKS: [&str; 2] = ["mutex", "rw_semaphore"];

/// Slab caches that hold one type, by name, and the type (the `kmem_cache_create()` of each).
const CACHES: [(&str, &str); 22] = [
    ("mm_struct", "mm_struct"),
    ("anon_vma", "anon_vma"),
    ("vma_lock", "vma_lock"),
    ("task_struct", "task_struct"),
    ("signal_cache", "signal_struct"),
    ("seq_file", "seq_file"),
    ("inode_cache", "inode"),
    ("proc_inode_cache", "proc_inode"),
    ("shmem_inode_cache", "shmem_inode_info"),
    ("sock_inode_cache", "socket_alloc"),
    ("bdev_cache", "bdev_inode"),
    ("hugetlbfs_inode_cache", "hugetlbfs_inode_info"),
    ("mqueue_inode_cache", "mqueue_inode_info"),
    ("ext4_inode_cache", "ext4_inode_info"),
    ("xfs_inode", "xfs_inode"),
    ("btrfs_inode", "btrfs_inode"),
    ("ovl_inode", "ovl_inode"),
    ("fuse_inode", "fuse_inode"),
    ("nfs_inode_cache", "nfs_inode"),
    ("fat_inode_cache", "msdos_inode_info"),
    ("isofs_inode_cache", "iso_inode_info"),
    ("dquot", "dquot"),
];

/// Names of fields, by cache or struct and offset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockFields(BTreeMap<String, BTreeMap<u32, String>>);

impl LockFields {
    /// Those of the running kernel. Types of modules are not in its BTF.
    #[must_use]
    pub fn of(btf: &Btf) -> Self {
        let of = |(cache, name): (&str, &str)| {
            let fields = btf.members_of_type(name, &LOCKS);
            let named = fields.into_iter().map(|(offset, path)| (offset, format!("{name}.{path}")));
            (cache.to_owned(), named.collect::<BTreeMap<_, _>>())
        };
        Self(CACHES.into_iter().map(of).filter(|(_, fields)| !fields.is_empty()).collect())
    }

    /// The field at `offset` in objects of `cache`.
    #[must_use]
    pub fn in_cache(&self, cache: &str, offset: u32) -> Option<&str> {
        self.0.get(cache)?.get(&offset).map(String::as_str)
    }

    /// The field at `offset` in `struct inode`.
    #[must_use]
    pub fn in_inode(&self, offset: u32) -> Option<&str> {
        self.in_cache("inode_cache", offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_s_locks_have_names() {
        let Ok(blob) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let btf = Btf::parse(blob).unwrap();
        let fields = LockFields::of(&btf);
        let offset = |of: &str, path: &str| btf.member_offset(of, path).unwrap();
        assert_eq!(fields.in_cache("mm_struct", offset("mm_struct", "mmap_lock")), Some("mm_struct.mmap_lock"));
        assert_eq!(fields.in_inode(offset("inode", "i_rwsem")), Some("inode.i_rwsem"));
        assert_eq!(fields.in_inode(offset("inode", "i_data.i_mmap_rwsem")), Some("inode.i_data.i_mmap_rwsem"));
        assert_eq!(fields.in_inode(offset("inode", "i_rwsem") + 8), None);
        assert_eq!(fields.in_cache("kmalloc-64", 0), None);
    }
}
