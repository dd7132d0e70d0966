//! Which members of some types a struct has, through nested structs, with their offsets and dotted paths.

use super::{
    Btf,
    index::Class,
    raw::{Record, kind},
};

/// Structs nested in one another before a search gives up; vmlinux stays under ten.
const MAX_NESTING: usize = 12;
/// Members visited before a search gives up: bounds the work on a blob whose structs contain themselves.
const MAX_VISITS: u32 = 20_000;

impl Btf {
    /// The members of struct `name` whose type is one of the structs `types`: offset in bytes and path. Members of anonymous
    /// structs are found without naming these; arrays and pointers are not followed.
    #[must_use]
    pub fn members_of_type(&self, name: &str, types: &[&str]) -> Vec<(u32, String)> {
        let mut out = Vec::new();
        if let Some((_, record)) = self.find(Class::Aggregate, name).next() {
            let mut visits = MAX_VISITS;
            self.descend(&record, types, 0, &[], MAX_NESTING, &mut visits, &mut out);
        }
        out
    }

    #[expect(clippy::too_many_arguments, reason = "one level of a search, called by itself alone")]
    fn descend(
        &self,
        record: &Record,
        types: &[&str],
        base: u32,
        path: &[&str],
        depth: usize,
        visits: &mut u32,
        out: &mut Vec<(u32, String)>,
    ) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        for i in 0..record.vlen as usize {
            *visits = visits.checked_sub(1)?;
            let at = record.body + i * 12;
            let member = std::str::from_utf8(self.name_bytes(self.word(at)?)?).ok()?;
            let (_, inner) = match self.resolve(self.word(at + 4)?) {
                Some(found) if matches!(found.1.kind, kind::STRUCT | kind::UNION) => found,
                _ => continue,
            };
            let place = self.word(at + 8)?;
            let bits = if record.kind_flag { place & 0x00ff_ffff } else { place };
            let offset = base.checked_add(bits / 8)?;
            let path: Vec<&str> = path.iter().copied().chain((!member.is_empty()).then_some(member)).collect();
            let own = self.name_bytes(inner.name).unwrap_or_default();
            if types.iter().any(|wanted| wanted.as_bytes() == own) {
                out.push((offset, path.join(".")));
            } else {
                self.descend(&inner, types, offset, &path, depth, visits, out);
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf::testing::Builder;

    #[test]
    fn locks_are_found_within_structs_by_path() {
        let mut b = Builder::new();
        let int = b.int("int", 4);
        let mutex = b.record("mutex", 8, &[("owner", int, 0)]);
        let sem = b.record("rw_semaphore", 8, &[("count", int, 0)]);
        let nameless = b.record("", 8, &[("hidden", mutex, 0)]);
        let inode = b.record("inode", 24, &[("i_ino", int, 0), ("i_rwsem", sem, 64), ("", nameless, 128)]);
        let pointer = b.pointer(mutex);
        b.record("ext4_inode_info", 64, &[("elsewhere", pointer, 0), ("own", mutex, 64), ("vfs_inode", inode, 128)]);
        let btf = Btf::parse(b.finish()).unwrap();
        let found = btf.members_of_type("ext4_inode_info", &["mutex", "rw_semaphore"]);
        let expected = [(8, "own"), (24, "vfs_inode.i_rwsem"), (32, "vfs_inode.hidden")];
        assert_eq!(found, expected.map(|(offset, path)| (offset, path.to_owned())));
        assert!(btf.members_of_type("no_such", &["mutex"]).is_empty());
    }
}
