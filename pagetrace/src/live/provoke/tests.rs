//! Pushes this process's own pages, of which the test knows what they hold.
#![expect(unsafe_code, reason = "mappings are made by the system call itself")]

use std::{fs::File, io::Write as _, os::fd::AsRawFd as _, path::Path, ptr, slice, time::Duration};

use super::{
    able::able,
    helper::Cpus,
    process::Process,
    round::{How, push},
};
use crate::{
    output::provocation::Provocation,
    pages::{Pagemap, swaps},
};

const PAGES: usize = 64;

/// A mapping of known contents, gone with the value.
struct Mapping {
    start: *mut libc::c_void,
    page_size: usize,
}

impl Mapping {
    fn of(file: Option<&File>) -> Self {
        let page_size = rustix::param::page_size();
        let (flags, descriptor) = match file {
            Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, at a place of the kernel's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), PAGES * page_size, access, flags, descriptor, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        Self { start, page_size }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the range is mapped while the value lives, and nothing writes to it meanwhile.
        unsafe { slice::from_raw_parts(self.start.cast(), PAGES * self.page_size) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range is mapped while the value lives, and borrowed through it alone.
        unsafe { slice::from_raw_parts_mut(self.start.cast(), PAGES * self.page_size) }
    }

    fn resident(&self) -> usize {
        let first = self.start.addr() / self.page_size;
        let mut pagemap = Pagemap::open(Path::new("/proc/self")).unwrap();
        pagemap.read(first as u64, PAGES).unwrap().filter(|entry| entry.present()).count()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own.
        unsafe { libc::munmap(self.start, PAGES * self.page_size) };
    }
}

fn contents(page_size: usize) -> Vec<u8> {
    (0..PAGES * page_size).map(|at| (at * 7 % 251) as u8).collect()
}

/// Rounds over this process until `done`, from every CPU in turn.
fn rounds(tally: &mut Provocation, done: impl Fn() -> bool) {
    let advice = able().unwrap();
    let swap = swaps::has_room(&std::fs::read_to_string("/proc/swaps").unwrap_or_default());
    let how = How { advice, swap, page_size: rustix::param::page_size() as u64 };
    let mut process = Process::open(Path::new("/proc"), std::process::id()).unwrap();
    let mut cpus = Cpus::allowed();
    for _ in 0..200 {
        cpus.next();
        assert!(push(&mut process, how, tally, &mut |_| true));
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("not in 200 rounds: {tally:?}");
}

/// A file of these contents where the program itself is, which is a file system with a disk below it.
fn file(contents: &[u8]) -> Option<File> {
    const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
    let dir = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let kind = rustix::fs::statfs(&dir).unwrap().f_type;
    if IN_MEMORY.iter().any(|memory| u64::try_from(kind) == Ok(*memory)) {
        eprintln!("skipped: {} lies in memory, and its pages have nowhere to go", dir.display());
        return None;
    }
    let mut file = tempfile::tempfile_in(dir).unwrap();
    file.write_all(contents).unwrap();
    file.sync_all().unwrap();
    Some(file)
}

#[test]
fn pages_of_a_file_leave_come_back_and_hold_what_they_held() {
    if let Err(unable) = able() {
        return eprintln!("skipped: {unable}");
    }
    let expected = contents(rustix::param::page_size());
    let Some(file) = file(&expected) else { return };
    let mapping = Mapping::of(Some(&file));
    assert_eq!(mapping.bytes(), expected);
    assert_eq!(mapping.resident(), PAGES);
    let mut tally = Provocation::default();
    rounds(&mut tally, || mapping.resident() == 0);
    assert!(tally.pages_pushed >= PAGES as u64, "{tally:?}");
    assert_eq!(tally.pages_seen, tally.pages_pushed + tally.stayed);
    assert_eq!(mapping.bytes(), expected);
    assert_eq!(mapping.resident(), PAGES);
}

#[test]
fn what_comes_back_is_counted() {
    if let Err(unable) = able() {
        return eprintln!("skipped: {unable}");
    }
    let expected = contents(rustix::param::page_size());
    let Some(file) = file(&expected) else { return };
    let mapping = Mapping::of(Some(&file));
    let mut tally = Provocation::default();
    let advice = able().unwrap();
    let how = How { advice, swap: false, page_size: rustix::param::page_size() as u64 };
    let mut process = Process::open(Path::new("/proc"), std::process::id()).unwrap();
    let mut cpus = Cpus::allowed();
    for _ in 0..200 {
        assert_eq!(mapping.bytes(), expected);
        cpus.next();
        assert!(push(&mut process, how, &mut tally, &mut |_| true));
        if tally.pages_back >= PAGES as u64 {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("not in 200 rounds: {tally:?}");
}

#[test]
fn anonymous_pages_keep_their_contents_and_leave_only_for_swap() {
    if let Err(unable) = able() {
        return eprintln!("skipped: {unable}");
    }
    let mut mapping = Mapping::of(None);
    let expected = contents(mapping.page_size);
    mapping.bytes_mut().copy_from_slice(&expected);
    let swap = swaps::has_room(&std::fs::read_to_string("/proc/swaps").unwrap_or_default());
    let mut tally = Provocation::default();
    let mut seen = 0;
    if swap {
        rounds(&mut tally, || mapping.resident() == 0);
    } else {
        for _ in 0..10 {
            rounds(&mut tally, || true);
            seen += usize::from(mapping.resident() == PAGES);
        }
        assert_eq!(seen, 10, "without swap they stay");
    }
    assert_eq!(mapping.bytes(), expected);
}

#[test]
fn a_round_ends_at_once_when_told() {
    if let Err(unable) = able() {
        return eprintln!("skipped: {unable}");
    }
    let how = How { advice: able().unwrap(), swap: true, page_size: rustix::param::page_size() as u64 };
    let mut process = Process::open(Path::new("/proc"), std::process::id()).unwrap();
    let mut pieces = 0;
    let went_on = push(&mut process, how, &mut Provocation::default(), &mut |_| {
        pieces += 1;
        false
    });
    assert_eq!((went_on, pieces), (false, 1));
}
