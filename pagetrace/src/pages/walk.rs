//! Goes through the pages of a mapping: by reading pagemap, by `PAGEMAP_SCAN`, or by asking one where to look in the other. In
//! memory that does not depend on the range, and with pauses if the target is to be spared.
//!
//! Each call holds the target's `mmap_lock` for reading: a read for 2 MiB of addresses at a time, a scan for all it goes through.
//! So scans are given pieces, as large as the kernel goes through in a millisecond.

use std::{
    collections::HashMap,
    fs::File,
    io,
    io::BufReader,
    ops::Range,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{
    ability::Ability,
    entry::Entry,
    expr::{Expr, Known},
    facts::Facts,
    kpage::{Frame, Frames},
    pagemap::{BATCH, Pagemap},
    parts::{self, BLOCK, Part, Split},
    runs,
    scan::{Query, Region, Scanner, category},
    smaps,
    span::Span,
    vma::{Backing, Vma},
};

/// Entries read at once: what stays in a processor's cache.
const LARGE: usize = 32 * 1024;

/// Whether to use `PAGEMAP_SCAN`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ScanUse {
    /// Where it is faster.
    #[default]
    Auto,
    /// To find every page that is read.
    Always,
    /// Not at all.
    Never,
}

/// Pages of equal state.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Number of the first page.
    pub first: u64,
    /// Their entries; at least one, and populated.
    pub entries: &'a [Entry],
    /// What holds of each.
    pub facts: Facts,
    /// Which facts are known.
    pub told: Facts,
}

/// Takes what a walk meets, by rising address.
pub trait Visit {
    /// Pages that the page table has.
    ///
    /// # Errors
    /// Ends the walk.
    fn piece(&mut self, piece: Piece<'_>) -> io::Result<()>;
    /// So many pages from this number on that it does not have.
    ///
    /// # Errors
    /// Ends the walk.
    fn hole(&mut self, first: u64, count: u64) -> io::Result<()>;
    /// All before this page has been looked at.
    ///
    /// # Errors
    /// Ends the walk.
    fn reached(&mut self, _page: u64) -> io::Result<()> {
        Ok(())
    }
}

/// Where the answer to "is it huge?" comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Huge {
    /// Nobody asks.
    Unasked,
    /// The mapping has none.
    None,
    /// It is one of hugetlb.
    All,
    /// Blocks that look like it are asked about by a scan.
    Ask,
    /// All blocks that look like it are.
    Alike,
    /// Those of zeros are, which their frames tell.
    Zeros,
    /// It cannot be told of blocks that look like it.
    Untold,
}

/// How many calls were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Effort {
    /// Reads of pagemap.
    pub reads: u64,
    /// Entries they gave.
    pub entries: u64,
    /// Calls of `PAGEMAP_SCAN`.
    pub scans: u64,
}

/// What walks.
#[derive(Debug)]
pub struct Walker {
    pagemap: Pagemap,
    /// The same file, for scans while entries are at hand.
    file: File,
    parts: Vec<Part>,
    scanner: Scanner,
    frames: Option<Frames>,
    scratch: Vec<Frame>,
    smaps: Option<HashMap<u64, (u64, bool)>>,
    directory: std::path::PathBuf,
    use_scan: ScanUse,
    categories: u64,
    scanned: Facts,
    zero_pfn: Option<u64>,
    page_size: u64,
    pause: Option<Duration>,
    span: Span,
    effort: Effort,
}

impl Walker {
    /// Opens the pagemap in `process`, a directory below `/proc`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(process: &Path, ability: &Ability, use_scan: ScanUse, pause: Option<Duration>) -> io::Result<Self> {
        let categories = if use_scan == ScanUse::Never { 0 } else { ability.scan.unwrap_or(0) };
        let pagemap = Pagemap::with_batch(process, if pause.is_some() { BATCH } else { LARGE })?;
        Ok(Self {
            file: pagemap.file().try_clone()?,
            pagemap,
            parts: Vec::new(),
            scanner: Scanner::default(),
            // Only root has them; they tell a huge page of zeros.
            frames: process.parent().and_then(|proc| Frames::open(proc).ok()),
            scratch: Vec::new(),
            smaps: None,
            directory: process.to_owned(),
            use_scan,
            categories,
            scanned: if categories == 0 { Facts::NONE } else { ability.scanned() },
            zero_pfn: ability.zero_pfn,
            page_size: u64::try_from(rustix::param::page_size()).unwrap_or(4096),
            pause,
            span: Span::new(pause.is_some()),
            effort: Effort::default(),
        })
    }

    /// Calls so far.
    #[must_use]
    pub fn effort(&self) -> Effort {
        self.effort
    }

    /// Whether a scan sees all that a read sees of it: it leaves out what is mapped without `struct page`, as drivers do.
    fn scannable(&self, vma: &Vma) -> bool {
        let strange = vma.name.starts_with(b"/sys/") || vma.name.starts_with(b"/proc/");
        self.categories != 0 && vma.backing() != Backing::Special && !strange
    }

    /// Goes through the pages `wanted` of a mapping, looking only where `filter` may hold if there is one. The visitor still has
    /// to ask it: what it is shown may be more. Returns the page at which it ended: before the end only where the address
    /// space does, or is gone.
    ///
    /// # Errors
    /// What the kernel or the visitor answers.
    pub fn vma(
        &mut self,
        vma: &Vma,
        wanted: Range<u64>,
        filter: Option<&Expr>,
        huge: bool,
        visit: &mut dyn Visit,
    ) -> io::Result<u64> {
        let within = vma.pages(self.page_size);
        let wanted = wanted.start.max(within.start)..wanted.end.min(within.end);
        if wanted.is_empty() {
            return Ok(wanted.end);
        }
        let scannable = self.scannable(vma);
        // A filter is worth a scan if the scan can tell more than that a page is there.
        let decidable = |filter: &Expr| !filter.asks_frames() && filter.facts().without(self.scanned).is_empty();
        let locate = scannable
            && match self.use_scan {
                ScanUse::Never => false,
                ScanUse::Always => true,
                ScanUse::Auto => filter.is_some_and(decidable),
            };
        if locate {
            return self.located(wanted, filter, visit);
        }
        let huge = self.huge(vma, &within, huge, scannable)?;
        // Whole blocks are looked at, and what is not wanted is left out.
        let around =
            (wanted.start / BLOCK * BLOCK).max(within.start)..(wanted.end.next_multiple_of(BLOCK)).min(within.end);
        self.read(around, &wanted, huge, scannable, None, visit)
    }

    /// By a scan: only the runs of pages of which `filter` holds. `None` where a scan cannot tell.
    ///
    /// # Errors
    /// What the kernel or the visitor answers.
    pub fn matching(
        &mut self,
        vma: &Vma,
        wanted: &Range<u64>,
        filter: &Expr,
        found: &mut dyn FnMut(u64, u64) -> io::Result<()>,
    ) -> io::Result<Option<()>> {
        let facts = filter.facts();
        if !self.scannable(vma)
            || filter.asks_frames()
            || !facts.without(self.scanned).is_empty()
            || facts.any(Facts::ZERO)
        {
            return Ok(None);
        }
        let within = vma.pages(self.page_size);
        let wanted = wanted.start.max(within.start)..wanted.end.min(within.end);
        let told = self.scanned;
        self.scan(wanted, Some(filter), &mut |_, first, count, facts| match filter.holds(&Known {
            facts,
            told,
            frame: None,
        }) {
            Some(true) => found(first, count),
            _ => Ok(()),
        })?;
        Ok(Some(()))
    }

    /// What answers whether a page is huge in this mapping.
    fn huge(&mut self, vma: &Vma, within: &Range<u64>, asked: bool, scannable: bool) -> io::Result<Huge> {
        if !asked {
            return Ok(Huge::Unasked);
        }
        if within.end - within.start < BLOCK || vma.backing() == Backing::Special {
            // Devices map large pages too, but nothing tells.
            return Ok(if within.end - within.start < BLOCK { Huge::None } else { Huge::Untold });
        }
        if scannable {
            return Ok(Huge::Ask);
        }
        if self.smaps.is_none() {
            let mut sums = HashMap::new();
            let file = BufReader::new(File::open(self.directory.join("smaps"))?);
            smaps::read(file, |of| {
                sums.insert(of.vma.start, (of.mapped_huge(), of.hugetlb()));
            })?;
            self.smaps = Some(sums);
        }
        let sums = self.smaps.as_ref().and_then(|sums| sums.get(&vma.start)).copied();
        match sums {
            None => Ok(Huge::Untold),
            Some((_, true)) => Ok(Huge::All),
            // A huge page of zeros is in none of the kernel's sums.
            Some((0, false)) if vma.backing() == Backing::Anonymous => Ok(Huge::Zeros),
            Some((0, false)) => Ok(Huge::None),
            // The kernel says how much of it is huge. If as much looks like it, that is it.
            Some((bytes, false)) => {
                let mut alike = 0;
                let mut at = within.start.next_multiple_of(BLOCK);
                while at + BLOCK <= within.end {
                    let entries =
                        self.pagemap.batch(at, LARGE.min(usize::try_from(within.end - at).unwrap_or(LARGE)))?;
                    let blocks = entries.chunks_exact(BLOCK as usize);
                    if entries.len() < BLOCK as usize {
                        break;
                    }
                    at += (entries.len() as u64) / BLOCK * BLOCK;
                    for block in blocks.filter(|block| runs::may_be_huge(block)) {
                        let pfn = block.first().filter(|first| !first.exclusive()).and_then(|first| first.pfn());
                        let zero =
                            pfn.and_then(|pfn| parts::zero_by_flags(self.frames.as_mut()?, pfn, &mut self.scratch));
                        // A huge page of zeros is always mapped as a whole, and in none of the kernel's sums.
                        alike += u64::from(zero != Some(true));
                    }
                    self.effort.reads += 1;
                    pause(self.pause);
                }
                let agree = alike * BLOCK * self.page_size == bytes;
                Ok(if agree { Huge::Alike } else { Huge::Untold })
            }
        }
    }

    /// Scans for what to read, and reads it.
    fn located(&mut self, wanted: Range<u64>, filter: Option<&Expr>, visit: &mut dyn Visit) -> io::Result<u64> {
        let told = self.scanned.and(Facts::HUGE.with(Facts::ZERO));
        let end = wanted.end;
        let mut reached = end;
        self.scan(wanted, filter, &mut |walker, first, count, facts| {
            if !facts.any(Facts::PRESENT.with(Facts::SWAPPED)) {
                return visit.hole(first, count);
            }
            let range = first..first + count;
            let extra = (facts.and(Facts::HUGE.with(Facts::ZERO)), told);
            let until = walker.read(range.clone(), &range, Huge::Unasked, false, Some(extra), visit)?;
            if until < range.end {
                reached = reached.min(until);
            }
            Ok(())
        })?;
        if reached == end {
            visit.reached(end)?;
        }
        Ok(reached)
    }

    /// Scans a range, piece by piece; hands on every region.
    fn scan(
        &mut self,
        wanted: Range<u64>,
        filter: Option<&Expr>,
        found: &mut dyn FnMut(&mut Self, u64, u64, Facts) -> io::Result<()>,
    ) -> io::Result<()> {
        let populated = category::PRESENT | category::SWAPPED;
        let (all, none) = filter.map_or((0, 0), Expr::required);
        // A category that the kernel does not have filters nothing; the visitor decides.
        let (all, none) = (all & self.categories, none & self.categories);
        let any = if filter.is_some_and(Expr::takes_holes) { 0 } else { populated };
        let query = Query { all: all | none, inverted: none, any, returned: self.categories };
        let mut at = wanted.start;
        let mut regions: Vec<Region> = Vec::new();
        while at < wanted.end {
            let to = self.span.end(at, wanted.end);
            let since = Instant::now();
            let scanned = self.scanner.scan(&self.file, at * self.page_size, to * self.page_size, query, 0)?;
            self.span.took(since.elapsed());
            self.effort.scans += 1;
            regions.clear();
            regions.extend_from_slice(scanned.regions);
            let until = (scanned.until / self.page_size).clamp(at + 1, to);
            pause(self.pause);
            for region in &regions {
                let (start, end) = (region.start / self.page_size, region.end / self.page_size);
                let (start, end) = (start.clamp(at, until), end.clamp(at, until));
                let facts = Facts::of_categories(region.categories);
                if start < end {
                    found(self, start, end - start, facts)?;
                }
            }
            at = until;
        }
        Ok(())
    }

    /// Reads a range.
    fn read(
        &mut self,
        range: Range<u64>,
        wanted: &Range<u64>,
        huge: Huge,
        may_skip: bool,
        extra: Option<(Facts, Facts)>,
        visit: &mut dyn Visit,
    ) -> io::Result<u64> {
        let largest = if self.pause.is_some() { BATCH } else { LARGE };
        let smallest = if may_skip { BATCH } else { largest };
        let (mut at, mut size, mut leap) = (range.start, smallest, false);
        while at < range.end {
            let Self {
                pagemap,
                file,
                scanner,
                effort,
                page_size,
                zero_pfn,
                frames,
                scratch,
                parts,
                span,
                pause: pause_for,
                ..
            } = self;
            if leap {
                size = smallest;
                effort.scans += 1;
                let since = Instant::now();
                let to = span.end(at, range.end);
                let next = scanner.skip(file, at * *page_size, to * *page_size)? / *page_size;
                span.took(since.elapsed());
                pause(*pause_for);
                hole(at..next, wanted, visit)?;
                at = next;
                if at >= range.end {
                    break;
                }
            }
            let to = at.saturating_add(size as u64);
            let to = if to < range.end { (to / BLOCK * BLOCK).max(at + 1) } else { range.end };
            let entries = pagemap.batch(at, usize::try_from(to - at).unwrap_or(size))?;
            effort.reads += 1;
            effort.entries += entries.len() as u64;
            if entries.is_empty() {
                return Ok(at.clamp(wanted.start, wanted.end));
            }
            let first = at;
            at += entries.len() as u64;
            // What ends with nothing is likely to go on with it.
            leap = may_skip && runs::empty(entries.get(entries.len() / 2..).unwrap_or_default());
            if runs::empty(entries) {
                hole(first..at, wanted, visit)?;
            } else {
                parts::parts(first, entries, huge, parts);
                if huge == Huge::Ask {
                    let query = Query { all: category::HUGE, returned: category::HUGE, ..Query::default() };
                    parts::decide(first, parts, |pages| {
                        let (mut from, end) = (pages.start * *page_size, pages.end * *page_size);
                        let mut pages = 0;
                        while from < end {
                            effort.scans += 1;
                            let scanned = scanner.scan(file, from, end, query, 0)?;
                            pages += scanned
                                .regions
                                .iter()
                                .map(|region| region.end.saturating_sub(region.start))
                                .sum::<u64>();
                            from = scanned.until;
                        }
                        Ok(pages / *page_size)
                    })?;
                }
                if huge == Huge::Zeros {
                    parts::zeros(entries, parts, |pfn| parts::zero_by_flags(frames.as_mut()?, pfn, scratch))?;
                }
                let split = Split { wanted, zero: *zero_pfn, extra };
                split.pieces(first, entries, parts, (frames, scratch), visit)?;
                size = (size * 2).min(largest);
            }
            visit.reached(at.clamp(wanted.start, wanted.end))?;
            pause(*pause_for);
        }
        Ok(wanted.end)
    }
}

fn hole(pages: Range<u64>, wanted: &Range<u64>, visit: &mut dyn Visit) -> io::Result<()> {
    let (start, end) = (pages.start.max(wanted.start), pages.end.min(wanted.end));
    if start < end { visit.hole(start, end - start) } else { Ok(()) }
}

fn pause(time: Option<Duration>) {
    if let Some(time) = time {
        thread::sleep(time);
    }
}
