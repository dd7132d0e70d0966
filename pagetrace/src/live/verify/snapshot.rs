//! Reads what an address space has at a moment when nothing runs in it: its mappings, its page tables, and which frames make one
//! large page. Judges nothing.

use std::{fs, io, ops::Range, path::Path};

use crate::clock::monotonic_ns;
use crate::{
    analysis::presence::{Folios, Occasion, Run, Snapshot},
    pages::{
        Facts, Vmas,
        ability::Ability,
        kpage::{Frame, Frames},
        walk::{Piece, ScanUse, Visit, Walker},
    },
};

/// `fault_around_bytes` where the kernel's own file is not to be had (mm/memory.c).
const USUAL_AROUND: u64 = 65536;

/// Reads snapshots.
pub(super) struct Reader {
    ability: Ability,
    frames: Option<Frames>,
    /// Pages of files that the kernel had taken back by the last look.
    reclaimed: Option<u64>,
    pub(super) page_size: u64,
    /// Pages that the kernel maps around a read fault.
    pub(super) around: u64,
}

/// What could not be read, besides.
pub(super) struct Read {
    pub(super) snapshot: Snapshot,
    pub(super) unreadable_lines: usize,
}

impl Reader {
    /// # Errors
    /// When there is no pagemap.
    pub(super) fn new() -> io::Result<Self> {
        let page_size = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        let around = fs::read_to_string("/sys/kernel/debug/fault_around_bytes");
        let around = around.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL_AROUND);
        Ok(Self {
            ability: Ability::probe(Path::new("/proc"))?,
            frames: Frames::open(Path::new("/proc")).ok(),
            reclaimed: reclaimed(),
            page_size,
            around: (around / page_size).max(1),
        })
    }

    /// What a thread's address space has.
    ///
    /// # Errors
    /// When its files cannot be read.
    pub(super) fn read(&mut self, tid: u32, occasion: Occasion) -> io::Result<Read> {
        let begun = monotonic_ns();
        // A thread has a directory of its own, which outlives that of a first thread that has ended.
        let dir = Path::new("/proc").join(tid.to_string());
        let Vmas { list: vmas, unreadable } = Vmas::parse(&fs::read(dir.join("maps"))?);
        let mut walker = Walker::open(&dir, &self.ability, ScanUse::Auto, None)?;
        let mut runs = Runs(Vec::new());
        for vma in &vmas {
            walker.vma(vma, vma.pages(self.page_size), None, false, &mut runs)?;
        }
        let now = reclaimed();
        let took = now > self.reclaimed;
        self.reclaimed = now;
        let snapshot = Snapshot { begun, occasion, vmas, runs: runs.0, reclaimed: took };
        Ok(Read { snapshot, unreadable_lines: unreadable })
    }
}

/// Pages that the kernel has taken back since it booted.
fn reclaimed() -> Option<u64> {
    let text = fs::read_to_string("/proc/vmstat").ok()?;
    // Reclaim on behalf of a cgroup's limit counts here as well.
    let lines = text.lines().filter(|line| line.starts_with("pgsteal_"));
    Some(lines.filter_map(|line| line.split_once(' ')?.1.parse::<u64>().ok()).sum())
}

/// Collects runs.
struct Runs(Vec<Run>);

impl Visit for Runs {
    fn piece(&mut self, piece: Piece<'_>) -> io::Result<()> {
        // A guard region is a mark and no page.
        if piece.facts.any(Facts::GUARD) {
            return Ok(());
        }
        for (page, entry) in (piece.first..).zip(piece.entries) {
            let (present, frame) = (entry.present(), entry.pfn());
            match self.0.last_mut() {
                Some(run) if continues(run, page, present, frame) => run.count += 1,
                _ => self.0.push(Run { first: page, count: 1, present, frame }),
            }
        }
        Ok(())
    }

    fn hole(&mut self, _first: u64, _count: u64) -> io::Result<()> {
        Ok(())
    }
}

fn continues(run: &Run, page: u64, present: bool, frame: Option<u64>) -> bool {
    run.first.checked_add(run.count) == Some(page)
        && run.present == present
        && frame == run.frame.and_then(|first| first.checked_add(run.count))
}

impl Folios for Reader {
    fn folio(&mut self, frame: u64) -> Option<Range<u64>> {
        folio(frame, &mut |first, count, out| self.frames.as_mut()?.read(first, count, out).ok())
    }
}

/// Frames that are asked about at once.
const STEP: u64 = 512;
/// No large page has more: 1 GiB.
const MOST: u64 = 1 << 18;

/// Reads so many frames from one on.
type ReadFrames<'a> = dyn FnMut(u64, usize, &mut Vec<Frame>) -> Option<()> + 'a;

/// The large page of a frame: from the head before it to the last tail behind it.
fn folio(frame: u64, read: &mut ReadFrames<'_>) -> Option<Range<u64>> {
    const HEAD: u64 = 1 << 15;
    const TAIL: u64 = 1 << 16;
    let mut found = Vec::new();
    read(frame, 1, &mut found)?;
    let flags = found.first()?.flags;
    let mut start = frame;
    if flags & HEAD == 0 {
        if flags & TAIL == 0 {
            return None;
        }
        let mut end = frame;
        start = loop {
            let from = end.saturating_sub(STEP);
            read(from, usize::try_from(end - from).ok()?, &mut found)?;
            if let Some(back) = found.iter().rposition(|frame| frame.flags & TAIL == 0) {
                let head = found.get(back).filter(|frame| frame.flags & HEAD != 0);
                head?;
                break from + back as u64;
            }
            end = from;
            if end == 0 || frame - end > MOST {
                return None;
            }
        };
    }
    let mut end = frame + 1;
    while end - start < MOST {
        read(end, usize::try_from(STEP).ok()?, &mut found)?;
        let tails = found.iter().take_while(|frame| frame.flags & TAIL != 0).count() as u64;
        end += tails;
        if tails < STEP {
            break;
        }
    }
    Some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_page_is_found_from_any_of_its_frames() {
        let flags = |frame: u64| match frame {
            1024 | 4096 => 1 << 15,
            1025..=2047 | 4097..=4099 => 1 << 16,
            _ => 0,
        };
        let mut read = |first: u64, count: usize, out: &mut Vec<Frame>| {
            out.clear();
            out.extend((first..first + count as u64).map(|frame| Frame { flags: flags(frame), count: 1 }));
            Some(())
        };
        for frame in [1024, 1025, 1700, 2047] {
            assert_eq!(folio(frame, &mut read), Some(1024..2048), "{frame}");
        }
        assert_eq!(folio(4098, &mut read), Some(4096..4100));
        assert_eq!(folio(1023, &mut read), None);
        assert_eq!(folio(5, &mut |_, _, _| None), None);
    }

    #[test]
    fn this_process_is_read() {
        let mut reader = Reader::new().unwrap();
        let read = reader.read(std::process::id(), Occasion::Exit).unwrap();
        let here = std::ptr::from_ref(&reader).addr() as u64 / reader.page_size;
        let run = read.snapshot.runs.iter().find(|run| (run.first..run.first + run.count).contains(&here));
        assert!(run.is_some_and(|run| run.present));
        assert!(read.snapshot.runs.windows(2).all(|pair| pair[0].first + pair[0].count <= pair[1].first));
    }
}
