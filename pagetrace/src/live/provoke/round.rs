//! One round over one process: what is resident, ask it to leave, look what left.

use std::{
    fs, io,
    num::NonZeroU64,
    ops::Range,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use rustix::fs::{FileType, Mode, OFlags, fadvise, fstat, open};

use super::{
    advice::{Advice, advise},
    process::Process,
};
use crate::{
    output::provocation::Provocation,
    pages::{Backing, Entry, Pagemap, Vma, Vmas, pagemap::BATCH},
};

/// Pages gone through at once, at most: 2 MiB of 4 KiB pages, aligned, so that no huge page is split. It bounds how long
/// one call holds the target's lock.
const PIECE: u64 = BATCH as u64;
/// Pieces of one mapping a round; a larger one is gone through in several, and does not starve the others.
const WINDOW: usize = 64;

/// How to push.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    /// The advice to give.
    pub(super) advice: Advice,
    /// Whether there is swap with room.
    pub(super) swap: bool,
    /// Bytes a page.
    pub(super) page_size: u64,
}

/// Whether to go on after a piece of work of this length; sleeps as long as is due.
pub(super) type Rest<'a> = &'a mut dyn FnMut(Duration) -> bool;

/// Goes through a process once; `false` when told to end.
pub(super) fn push(process: &mut Process, how: How, tally: &mut Provocation, rest: Rest<'_>) -> bool {
    let opened = fs::read(process.dir.join("maps")).and_then(|maps| Ok((maps, Pagemap::open(&process.dir)?)));
    let (maps, pagemap) = match opened {
        Ok(opened) => opened,
        Err(err) => {
            if err.kind() == io::ErrorKind::PermissionDenied {
                tally.note(
                    "the mappings of a process could not be read: CAP_SYS_PTRACE is missing, or a policy forbids it",
                );
            }
            return true;
        }
    };
    // Whose files these are is certain only if the process has not ended meanwhile.
    if !process.lives() {
        return true;
    }
    let vmas = Vmas::parse(&maps);
    process.out.retain(&vmas.list.iter().map(|vma| vma.pages(how.page_size)).collect::<Vec<_>>());
    process.windows.retain(|start, _| vmas.list.binary_search_by_key(start, |vma| vma.start).is_ok());
    let mut pusher = Pusher { process, pagemap, how, tally };
    for vma in &vmas.list {
        let can_leave = match vma.backing() {
            Backing::File => true,
            Backing::Anonymous => how.swap,
            Backing::Special => false,
        };
        if can_leave && !pusher.mapping(vma, rest) {
            return false;
        }
    }
    true
}

/// Whether a mapping's next piece is worth trying.
#[derive(Debug, PartialEq, Eq)]
enum After {
    /// It is.
    GoOn,
    /// This mapping lets no page go, or the process has ended.
    Leave,
}

struct Pusher<'a> {
    process: &'a mut Process,
    pagemap: Pagemap,
    how: How,
    tally: &'a mut Provocation,
}

impl Pusher<'_> {
    fn mapping(&mut self, vma: &Vma, rest: Rest<'_>) -> bool {
        let pages = vma.pages(self.how.page_size);
        let from = self.process.windows.get(&vma.start).copied().filter(|page| pages.contains(page));
        let from = from.unwrap_or(pages.start);
        let mut file = File::Unopened;
        let mut page = from;
        for _ in 0..WINDOW {
            let begun = Instant::now();
            let end = (page / PIECE + 1).saturating_mul(PIECE).min(pages.end);
            let after = self.piece(vma, page..end, &mut file);
            page = if end >= pages.end { pages.start } else { end };
            if !rest(begun.elapsed()) {
                return false;
            }
            if after == After::Leave || page == from {
                break;
            }
        }
        self.process.windows.insert(vma.start, page);
        true
    }

    fn entries(&mut self, pages: &Range<u64>) -> Option<Vec<Entry>> {
        let count = usize::try_from(pages.end.saturating_sub(pages.start)).ok()?;
        self.pagemap.read(pages.start, count).ok().map(Iterator::collect)
    }

    fn piece(&mut self, vma: &Vma, pages: Range<u64>, file: &mut File) -> After {
        let Some(before) = self.entries(&pages) else { return After::Leave };
        let resident: Vec<u64> =
            pages.clone().zip(&before).filter(|(_, entry)| entry.present()).map(|(page, _)| page).collect();
        for page in &resident {
            self.tally.pages_back += u64::from(self.process.out.remove(*page));
        }
        let (Some(first), Some(last)) = (resident.first(), resident.last()) else { return After::GoOn };
        let range = *first..last.saturating_add(1);
        if let Err(err) = self.ask(&range) {
            return match err.raw_os_error() {
                // The mapping has changed meanwhile; the next piece may be there.
                Some(libc::ENOMEM | libc::EAGAIN | libc::EINTR) => After::GoOn,
                Some(libc::EPERM) => {
                    self.tally.note("a process could not be advised about its memory: CAP_SYS_NICE is missing, or a policy forbids it");
                    After::Leave
                }
                _ => After::Leave,
            };
        }
        if vma.backing() == Backing::File {
            self.drop_cached(vma, &range, file);
        }
        let Some(after) = self.entries(&pages) else { return After::Leave };
        let mut later = pages.zip(after).filter(|(page, _)| resident.binary_search(page).is_ok());
        later.by_ref().for_each(|(page, entry)| self.count(vma, page, entry));
        After::GoOn
    }

    fn ask(&self, pages: &Range<u64>) -> io::Result<usize> {
        let size = self.how.page_size;
        let bytes = usize::try_from((pages.end - pages.start).saturating_mul(size)).unwrap_or(usize::MAX);
        advise(&*self.process, pages.start.saturating_mul(size), bytes, self.how.advice)
    }

    /// What became of a page that was resident. One that is neither here nor in swap has left only if a file keeps it;
    /// otherwise the program itself gave it up, and that is not our doing.
    fn count(&mut self, vma: &Vma, page: u64, now: Entry) {
        if now.present() {
            self.tally.stayed += 1;
        } else if now.swapped() || vma.backing() == Backing::File {
            self.tally.pages_pushed += 1;
            self.process.out.insert(page);
        } else {
            return;
        }
        self.tally.pages_seen += 1;
    }

    /// Drops what the file's cache still has of these pages. It drops only clean pages that nobody has mapped.
    fn drop_cached(&self, vma: &Vma, pages: &Range<u64>, file: &mut File) {
        if matches!(file, File::Unopened) {
            *file = open_mapped(&self.process.dir, vma).map_or(File::None, File::Open);
        }
        let File::Open(file) = file else { return };
        let size = self.how.page_size;
        let Some(offset) = vma.file_offset(pages.start, size) else { return };
        let length = NonZeroU64::new((pages.end - pages.start).saturating_mul(size));
        // A file system that cannot is no reason to stop: the pages have left the address space already.
        let _ = fadvise(file, offset, length, rustix::fs::Advice::DontNeed);
    }
}

/// The file of a mapping, opened when it is first needed.
enum File {
    Unopened,
    None,
    Open(OwnedFd),
}

/// Opens a mapping's file for reading if it is a regular one: opening anything else can do something. By way of
/// `map_files`, so that it is the mapped file wherever it lies and even if it was deleted. A watch on the file sees that
/// it was opened.
fn open_mapped(process: &Path, vma: &Vma) -> Option<OwnedFd> {
    let link = process.join("map_files").join(format!("{:x}-{:x}", vma.start, vma.end));
    let place = open(&link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let stat = fstat(&place).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_ino != vma.inode {
        return None;
    }
    let same = format!("/proc/self/fd/{}", place.as_raw_fd());
    open(same, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).ok()
}
