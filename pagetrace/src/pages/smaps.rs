//! `/proc/PID/smaps`: sums for each mapping, as the kernel makes them. Reading it walks the whole page table. Pure and total;
//! [`read`] goes through a file of any length in a bounded buffer.

use std::{
    collections::BTreeMap,
    io::{self, BufRead},
};

use super::vma::Vma;

/// What the kernel sums up of one mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smaps {
    /// The mapping.
    pub vma: Vma,
    /// Each `Name: N kB`, in bytes, under its name; which there are depends on the kernel.
    pub sizes: BTreeMap<String, u64>,
    /// Of `VmFlags`, two letters each.
    pub flags: Vec<String>,
}

impl Smaps {
    /// A size by name; 0 where the kernel has none such.
    #[must_use]
    pub fn size(&self, name: &str) -> u64 {
        self.sizes.get(name).copied().unwrap_or(0)
    }

    /// Bytes that are mapped by entries of 2 MiB or more, hugetlb left out.
    #[must_use]
    pub fn mapped_huge(&self) -> u64 {
        ["AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"]
            .iter()
            .fold(0, |sum, name| sum.saturating_add(self.size(name)))
    }

    /// Whether it has this of `VmFlags`.
    #[must_use]
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|have| have == flag)
    }

    /// Memory of hugetlb.
    #[must_use]
    pub fn hugetlb(&self) -> bool {
        self.has("ht")
    }
}

/// Longest line that is read; the rest of a longer one is dropped. A path has 4096 bytes at most, four times that escaped.
const LINE: usize = 20_000;

/// Hands on a mapping after the other; returns how many lines were none of this file's.
///
/// # Errors
/// When the file cannot be read.
pub fn read(mut from: impl BufRead, mut take: impl FnMut(Smaps)) -> io::Result<usize> {
    let mut unreadable = 0;
    let mut current: Option<Smaps> = None;
    let mut line = Vec::new();
    while next_line(&mut from, &mut line)? {
        if line.is_empty() {
            continue;
        }
        // A mapping begins with an address in lower case, a field with a capital letter.
        if let Some(vma) = Vma::parse(&line) {
            let before = current.replace(Smaps { vma, sizes: BTreeMap::new(), flags: Vec::new() });
            before.into_iter().for_each(&mut take);
            continue;
        }
        if !current.as_mut().is_some_and(|current| field(current, &line)) {
            unreadable += 1;
        }
    }
    current.into_iter().for_each(&mut take);
    Ok(unreadable)
}

fn field(current: &mut Smaps, line: &[u8]) -> bool {
    let Some((name, value)) = std::str::from_utf8(line).ok().and_then(|line| line.split_once(':')) else {
        return false;
    };
    if name == "VmFlags" {
        current.flags = value.split_ascii_whitespace().map(str::to_owned).collect();
        return true;
    }
    let mut words = value.split_ascii_whitespace();
    let Some(number) = words.next().and_then(|word| word.parse::<u64>().ok()) else { return false };
    if words.next() == Some("kB") {
        let Some(bytes) = number.checked_mul(1024) else { return false };
        current.sizes.insert(name.to_owned(), bytes);
    }
    true
}

/// Reads a line without its end into `line`; false at the end.
fn next_line(from: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut any = false;
    loop {
        let chunk = match from.fill_buf() {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if chunk.is_empty() {
            return Ok(any);
        }
        any = true;
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let part = chunk.get(..end.unwrap_or(chunk.len())).unwrap_or_default();
        let room = LINE.saturating_sub(line.len());
        line.extend_from_slice(part.get(..room.min(part.len())).unwrap_or_default());
        let used = part.len() + usize::from(end.is_some());
        from.consume(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;

    use super::*;

    const TEXT: &[u8] = b"\
7f0000000000-7f0000400000 rw-p 00000000 00:00 0 
Size:               4096 kB
KernelPageSize:        4 kB
Rss:                2048 kB
AnonHugePages:      2048 kB
THPeligible:           1
ProtectionKey:         0
VmFlags: rd wr mr mw me ac hg 
7fff00000000-7fff00001000 r--p 00000000 00:00 0                          [vvar]
Size:                  4 kB
VmFlags: rd mr pf io de dd 
";

    fn all(text: &[u8]) -> (Vec<Smaps>, usize) {
        let mut found = Vec::new();
        // A small buffer, so that lines lie across its end.
        let unreadable = read(BufReader::with_capacity(7, text), |smaps| found.push(smaps)).unwrap();
        (found, unreadable)
    }

    #[test]
    fn sizes_and_flags_belong_to_the_mapping_above_them() {
        let (found, unreadable) = all(TEXT);
        assert_eq!((found.len(), unreadable), (2, 0));
        assert_eq!((found[0].size("Rss"), found[0].mapped_huge(), found[0].size("Swap")), (2 << 20, 2 << 20, 0));
        assert!(found[0].has("hg") && !found[0].hugetlb() && !found[0].sizes.contains_key("THPeligible"));
        assert!(found[1].has("pf") && found[1].vma.name == b"[vvar]");
    }

    #[test]
    fn what_is_no_field_is_counted() {
        assert_eq!(all(b"Size: 4 kB\nnonsense\n").1, 2, "a field without a mapping");
        assert_eq!(
            all(b"1000-2000 rw-p 00000000 00:00 0 \nSize: x kB\n\xff: 1 kB\nRss: 99999999999999999999 kB\n").1,
            3
        );
    }

    #[test]
    fn this_process_is_read_whole() {
        let file = BufReader::new(std::fs::File::open("/proc/self/smaps").unwrap());
        let mut pages = 0;
        let unreadable = read(file, |smaps| pages += smaps.size("Rss")).unwrap();
        assert_eq!(unreadable, 0);
        assert!(pages > 0);
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_answer(bytes: Vec<u8>) {
            all(&bytes);
        }

        #[test]
        fn a_line_of_any_length_is_bounded(length in 0_usize..50_000) {
            let mut text = b"1000-2000 rw-p 00000000 00:00 0 /".to_vec();
            text.extend(std::iter::repeat_n(b'x', length));
            let (found, _) = all(&text);
            prop_assert!(found.iter().all(|smaps| smaps.vma.name.len() <= LINE));
            prop_assert_eq!(found.len(), 1);
        }
    }
}
