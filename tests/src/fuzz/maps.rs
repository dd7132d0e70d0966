//! Damaged texts: maps and smaps, stat, conditions and ranges.

use pagetrace::pages::{Vmas, expr::Expr, process::Life, range::Addresses, smaps};

use super::{
    Target,
    mutate::{Dice, damage},
};

/// Reads texts.
pub(super) struct Texts;

const MAPS: &[u8] = b"\
5600c6cc5000-5600c6cc6000 r--p 00000000 fe:00 393289                     /usr/bin/a b
7f0d48800000-7f0d88800000 rw-p 00000000 00:00 0 
7f0d89771000-7f0d89772000 rw-s 00001000 00:01 1040                       /memfd:x\\012y (deleted)
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";
const SMAPS: &[u8] = b"\
7f0d48800000-7f0d88800000 rw-p 00000000 00:00 0 
Size:            1048576 kB
Rss:                4096 kB
AnonHugePages:      4096 kB
THPeligible:           1
VmFlags: rd wr mr mw me nr hg sd 
5600c6cc5000-5600c6cc6000 r--p 00000000 fe:00 393289                     /usr/bin/a b
Rss:                   4 kB
VmFlags: rd mr mw me sd 
";
const STAT: &[u8] =
    b"42 (a) b) S 1 42 42 0 -1 4194304 90 0 0 0 0 0 0 0 20 0 1 0 5566 8192 1 18446744073709551615 94 95 96 0 0 0";
const WHERE: &[u8] = b"present & (file | !huge) && kpf_lru || soft-dirty";
const RANGE: &[u8] = b"0x7f0000000000-7f0000400000";

impl Target for Texts {
    fn case(&self, dice: &mut Dice) -> Result<(), String> {
        let mut damaged = |text: &[u8]| {
            let mut bytes = text.to_vec();
            damage(&mut bytes, dice);
            bytes
        };
        let (maps, sums, stat) = (damaged(MAPS), damaged(SMAPS), damaged(STAT));
        let (condition, range) = (damaged(WHERE), damaged(RANGE));
        let lines = maps.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
        let found = Vmas::parse(&maps);
        if found.list.len() + found.unreadable != lines {
            return Err(format!("{lines} lines are {} mappings and {} others", found.list.len(), found.unreadable));
        }
        for vma in &found.list {
            let pages = vma.pages(4096);
            if vma.start >= vma.end || pages.start > pages.end {
                return Err(format!("a mapping ends before it begins: {vma:?}"));
            }
            let _ = vma.backing();
        }
        let mut mappings = 0;
        smaps::read(sums.as_slice(), |of| {
            mappings += 1;
            let _ = (of.mapped_huge(), of.hugetlb());
        })
        .map_err(|err| err.to_string())?;
        if mappings > sums.len() / 10 {
            return Err(format!("{mappings} mappings in {} bytes", sums.len()));
        }
        let _ = Life::parse(&stat);
        if let Ok(expr) = Expr::parse(&String::from_utf8_lossy(&condition)) {
            let _ = (expr.required(), expr.takes_holes(), expr.facts());
        }
        match String::from_utf8_lossy(&range).parse::<Addresses>() {
            Ok(range) if range.pages(4096).is_empty() => Err(format!("an empty range: {range:?}")),
            _ => Ok(()),
        }
    }
}
