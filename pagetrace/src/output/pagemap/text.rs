//! For people.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use super::{Head, Render, Sums, Tail, View, name, permissions, seen};
use crate::pages::{
    Entry, Facts, Vma,
    ability::{Ability, Told},
    gather::Line,
    kpage,
    summary::Counts,
};

/// A column of the summary.
struct Column {
    title: &'static str,
    of: fn(&Counts) -> u64,
    /// The fact that it counts, where that may be one that this kernel does not tell.
    fact: Facts,
    /// Pages that it cannot be told of.
    untold: fn(&Counts) -> u64,
}

const fn column(title: &'static str, of: fn(&Counts) -> u64, fact: Facts) -> Column {
    Column { title, of, fact, untold: |_| 0 }
}

const COLUMNS: [Column; 11] = [
    column("PAGES", |counts| counts.pages, Facts::NONE),
    column("PRESENT", |counts| counts.present, Facts::NONE),
    column("SWAPPED", |counts| counts.swapped, Facts::NONE),
    column("EXCL", |counts| counts.exclusive, Facts::EXCLUSIVE),
    column("FILE", |counts| counts.file, Facts::NONE),
    column("ANON", |counts| counts.anon, Facts::NONE),
    Column { title: "HUGE", of: |counts| counts.huge, fact: Facts::NONE, untold: |counts| counts.huge_untold },
    Column { title: "ZERO", of: |counts| counts.zero, fact: Facts::NONE, untold: |counts| counts.zero_untold },
    column("DIRTY", |counts| counts.soft_dirty, Facts::SOFT_DIRTY),
    column("UFFD-WP", |counts| counts.uffd_wp, Facts::UFFD_WP),
    column("GUARD", |counts| counts.guard, Facts::GUARD),
];

/// Characters of the picture of a mapping.
pub const WIDTH: usize = 64;

/// The writer.
pub struct Text<W> {
    out: W,
    view: View,
    page_size: u64,
    filtered: bool,
    frames: bool,
    untold: Facts,
    begun: Option<String>,
    marks: bool,
}

impl<W: Write> Text<W> {
    /// Writes there.
    pub fn new(out: W) -> Self {
        let untold = Facts::NONE;
        Self {
            out,
            view: View::Summary,
            page_size: 4096,
            filtered: false,
            frames: false,
            untold,
            begun: None,
            marks: false,
        }
    }

    fn row(&mut self, counts: &Counts, what: &str) -> io::Result<()> {
        for Column { title, of, fact, untold } in &COLUMNS {
            let cell = match () {
                () if self.untold.any(*fact) => "-".to_owned(),
                () if untold(counts) != 0 => {
                    self.marks = true;
                    format!("{}?", of(counts))
                }
                () => of(counts).to_string(),
            };
            write!(self.out, "{cell:>width$} ", width = title.len().max(8))?;
        }
        if self.filtered {
            write!(self.out, "{:>9} ", counts.matched)?;
        }
        writeln!(self.out, " {what}")
    }
}

fn address(page: u64, page_size: u64) -> u64 {
    page.saturating_mul(page_size)
}

fn place(vma: &Vma) -> String {
    format!("{:012x}-{:012x} {} {}", vma.start, vma.end, permissions(vma), name(vma)).trim_end().to_owned()
}

/// What is said of pages, without where they are in the address space.
fn said(line: &Line) -> String {
    let mut out = line.facts.names().collect::<Vec<_>>().join(" ");
    if line.facts.is_empty() {
        out.push_str("nothing");
    }
    let Line { entry, count, contiguous, .. } = line;
    // Writing to a String cannot fail.
    let _ = match (entry.pfn(), entry.swap_slot()) {
        (Some(pfn), _) if *count == 1 => write!(out, ", frame {pfn:#x}"),
        (Some(pfn), _) if *contiguous => write!(out, ", frames from {pfn:#x} on, in a row"),
        // The kernel writes its marks as slots of areas that do not exist.
        (_, Some(slot)) if *count == 1 && !entry.guard() => {
            write!(out, ", swap area {} slot {:#x}", slot.area, slot.offset)
        }
        _ => Ok(()),
    };
    if entry.unknown() != 0 {
        let _ = write!(out, ", unknown bits {:#x}", entry.unknown());
    }
    if let Some(frame) = line.frame {
        let flags = kpage::names(frame.flags).collect::<Vec<_>>().join(" ");
        let _ = write!(out, ", mapped {} times: {flags}", frame.count);
    }
    out
}

fn bits(ability: &Ability) -> impl Iterator<Item = (&'static str, &str)> {
    let Ability { pfn, soft_dirty, exclusive, uffd_wp, guard, .. } = ability;
    let all: [(&str, &Told); 5] =
        [("frames", pfn), ("DIRTY", soft_dirty), ("EXCL", exclusive), ("UFFD-WP", uffd_wp), ("GUARD", guard)];
    all.into_iter().filter(|(_, told)| !told.believable()).filter_map(|(name, told)| Some((name, told.why()?)))
}

impl<W: Write> Render for Text<W> {
    fn head(&mut self, head: &Head<'_>) -> io::Result<()> {
        self.view = head.view;
        self.page_size = head.page_size;
        self.filtered = head.filter.is_some();
        self.frames = head.flags;
        self.untold = head.ability.untold().into_iter().fold(Facts::NONE, |sum, (fact, _)| sum.with(fact));
        let filter = head.filter.map_or_else(String::new, |filter| format!(", pages of which holds: {filter}"));
        writeln!(self.out, "process {} ({}), {} mappings{filter}", head.pid, head.comm, head.mappings)?;
        for (bit, why) in bits(head.ability) {
            writeln!(self.out, "  {bit} not told: {why}")?;
        }
        if head.view == View::Summary {
            for Column { title, .. } in &COLUMNS {
                write!(self.out, "{title:>width$} ", width = title.len().max(8))?;
            }
            if self.filtered {
                write!(self.out, "{:>9} ", "MATCHED")?;
            }
            writeln!(self.out, " MAPPING")?;
        }
        Ok(())
    }

    fn begin(&mut self, vma: &Vma) -> io::Result<()> {
        self.begun = Some(place(vma));
        Ok(())
    }

    fn line(&mut self, line: &Line) -> io::Result<()> {
        if let Some(place) = self.begun.take() {
            writeln!(self.out, "{place}")?;
        }
        let start = address(line.first, self.page_size);
        if self.view == View::Entries && line.count == 1 {
            return writeln!(self.out, "  {start:012x} {:016x} {}", line.entry.raw(), said(line));
        }
        let end = address(line.first.saturating_add(line.count), self.page_size);
        writeln!(self.out, "  {start:012x}-{end:012x} {:>9} {}", line.count, said(line))
    }

    fn end(&mut self, vma: &Vma, sums: &Sums<'_>) -> io::Result<()> {
        let Sums { counts, flags, density, smaps, unreadable } = sums;
        match (self.view, density) {
            (View::Summary, _) => self.row(counts, &place(vma))?,
            (View::Map, Some(density)) if counts.matched != 0 || !self.filtered => {
                writeln!(
                    self.out,
                    "{:012x} |{:<WIDTH$}| {:>9} of {:>9} {}",
                    vma.start,
                    density.picture(),
                    counts.matched,
                    counts.pages,
                    name(vma)
                )?;
            }
            _ => {}
        }
        if *unreadable != 0 && self.view == View::Summary {
            writeln!(self.out, "    {unreadable} pages of {} lie where the kernel gives no entries", place(vma))?;
        }
        if let (Some(flags), View::Summary) = (flags, self.view) {
            let seen: Vec<String> = seen(flags).map(|(name, count)| format!("{name} {count}")).collect();
            if !seen.is_empty() {
                writeln!(self.out, "    frames: {}", seen.join(", "))?;
            }
        }
        if let Some(smaps) = smaps {
            let sizes = smaps.sizes.iter().filter(|(_, bytes)| **bytes != 0);
            let sizes: Vec<String> = sizes.map(|(name, bytes)| format!("{name} {} kB", bytes / 1024)).collect();
            writeln!(self.out, "    smaps: {}; {}", sizes.join(", "), smaps.flags.join(" "))?;
        }
        Ok(())
    }

    fn finish(&mut self, tail: &Tail) -> io::Result<()> {
        if self.view == View::Summary {
            self.row(&tail.totals, "total")?;
        } else {
            let Counts { pages, matched, .. } = tail.totals;
            writeln!(self.out, "{matched} of {pages} pages")?;
        }
        if self.marks {
            writeln!(
                self.out,
                "?: there may be more; of some pages it cannot be told, most likely because frame numbers are hidden"
            )?;
        }
        for why in &tail.incomplete_because {
            writeln!(self.out, "INCOMPLETE: {why}")?;
        }
        self.out.flush()
    }
}

/// An entry, for who looks at one alone.
#[must_use]
pub fn entry(entry: Entry) -> String {
    let facts = Facts::of_entry(entry);
    said(&Line { first: 0, count: 1, entry, contiguous: true, facts, told: Facts::OF_ENTRY, frame: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_told_in_words() {
        assert_eq!(entry(Entry::from_raw(1 << 63 | 1 << 56 | 0x1234)), "present exclusive, frame 0x1234");
        assert_eq!(entry(Entry::from_raw(1 << 62 | 7 << 5 | 3)), "swapped, swap area 3 slot 0x7");
        assert_eq!(entry(Entry::from_raw(1 << 62 | 1 << 58 | 31)), "swapped guard");
        assert_eq!(entry(Entry::default()), "nothing");
        assert_eq!(entry(Entry::from_raw(1 << 59)), "nothing, unknown bits 0x800000000000000");
    }
}
