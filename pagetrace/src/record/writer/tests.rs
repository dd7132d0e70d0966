//! Tests of the writer: disks that fill up, limits, two recorders.

use super::*;
use crate::record::{
    header::{Clock, KernelId, Target},
    reader::{Entry, Reader},
    user::{End, Symbol},
};

/// A disk that has room for so many bytes.
#[derive(Debug)]
struct Disk<'a> {
    bytes: &'a mut Vec<u8>,
    room: usize,
}

impl Medium for Disk<'_> {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        // A full disk takes what fits and then fails.
        let fits = bytes.len().min(self.room.saturating_sub(self.bytes.len()));
        self.bytes.extend(&bytes[..fits]);
        if fits < bytes.len() { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.bytes.truncate(usize::try_from(length).unwrap());
        Ok(())
    }
    fn overwrite(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(at).unwrap();
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// A header as a run would write it.
pub(crate) fn header() -> FileHeader {
    FileHeader {
        version: "0".to_owned(),
        kernel: KernelId { release: "6.12.0".to_owned(), machine: "x86_64".to_owned(), build_id: None },
        plan: crate::plan::Plan { events: Vec::new() },
        settings: [("TASK_MM".to_owned(), 2304)].into(),
        command: Some(vec!["true".to_owned()]),
        target: Target::default(),
        clock: Clock { monotonic_ns: 1, realtime_ns: 2 },
        boot_id: None,
        ring_bytes: 4096,
        max_tasks: 16,
        attached_at_ns: 1,
        lock_fields: Default::default(),
        recorder_pid: 1,
    }
}

fn symbol(n: u64) -> User {
    User::Symbol { address: n, symbol: Symbol { name: format!("function_{n}"), offset: 0, module: None } }
}

/// Records `count` names to a disk with this much room; the file, and what came of it.
pub(crate) fn record(count: u64, room: usize, limit: u64) -> (Vec<u8>, Option<Written>) {
    let mut bytes = Vec::new();
    let Ok(mut writer) = Writer::begin(Disk { bytes: &mut bytes, room }, &header(), limit) else {
        return (bytes, None);
    };
    (0..count).for_each(|n| writer.user(&symbol(n)));
    let written = writer.finish(&[User::End(End::default())]);
    (bytes, Some(written))
}

fn entries(bytes: &[u8]) -> (Reader<&[u8]>, Vec<Entry>) {
    let mut reader = Reader::open(bytes).expect("it has a header");
    let entries = reader.by_ref().collect();
    (reader, entries)
}

#[test]
fn what_is_written_is_read_and_is_whole() {
    let (bytes, written) = record(10_000, usize::MAX, u64::MAX);
    let written = written.expect("there is room");
    assert!(written.stop.is_none());
    assert_eq!((written.bytes, written.records, written.lost), (bytes.len() as u64, 10_001, 0));
    let (reader, entries) = entries(&bytes);
    assert_eq!((reader.incomplete(), reader.damage()), (false, None));
    assert_eq!(reader.header(), &header());
    assert_eq!(entries.len(), 10_001);
    assert_eq!(entries[77], Entry::User(symbol(77)));
    assert_eq!(entries.last(), Some(&Entry::User(User::End(End::default()))));
    assert!(bytes.len() > 4 * MAX_PAYLOAD, "several blocks");
}

#[test]
fn a_full_disk_leaves_whole_blocks_and_every_record_is_counted() {
    let (whole, _) = record(10_000, usize::MAX, u64::MAX);
    for room in (1000..whole.len()).step_by(9973) {
        let (bytes, written) = record(10_000, room, u64::MAX);
        let written = written.expect("the header fits");
        assert!(matches!(&written.stop, Some(Stop::Failed(err)) if err.raw_os_error() == Some(28)), "room {room}");
        assert_eq!(written.bytes, bytes.len() as u64);
        let (reader, entries) = entries(&bytes);
        assert!(reader.incomplete(), "room {room}");
        assert_eq!(entries.len() as u64, written.records, "room {room}");
        // The end may still have found room.
        assert!((10_000..=10_001).contains(&(written.records + written.lost)), "room {room}: {written:?}");
        assert!(reader.damage().is_none_or(|damage| damage.why.contains("without saying how")), "room {room}");
    }
    assert!(record(10_000, 10, u64::MAX).1.is_none(), "not even the header fits");
}

#[test]
fn a_limit_is_kept_and_the_end_is_still_told() {
    for limit in [MIN_LIMIT, MIN_LIMIT + 12345] {
        let (bytes, written) = record(100_000, usize::MAX, limit);
        let written = written.expect("there is room");
        assert!(matches!(written.stop, Some(Stop::Limit(told)) if told == limit));
        assert!(bytes.len() as u64 <= limit, "{} > {limit}", bytes.len());
        let (reader, entries) = entries(&bytes);
        assert_eq!((reader.incomplete(), reader.damage()), (true, None));
        assert_eq!(entries.last(), Some(&Entry::User(User::End(End::default()))));
        assert_eq!(written.records + written.lost, 100_001);
    }
}

#[test]
fn memory_does_not_grow_with_the_recording() {
    let mut bytes = Vec::new();
    let mut writer = Writer::begin(Disk { bytes: &mut bytes, room: usize::MAX }, &header(), u64::MAX).expect("room");
    let before = writer.block.capacity();
    (0..50_000).for_each(|n| writer.user(&symbol(n)));
    assert_eq!(writer.block.capacity(), before);
    writer.record(&vec![0; MAX_RECORD + 1]);
    assert_eq!(writer.lost, 1, "what no block can hold is counted");
}

#[test]
fn a_second_recorder_is_refused_and_the_first_ones_file_survives() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.ptrace");
    let mut first = open(&path).expect("it is nobody's");
    first.append(b"first").expect("there is room");
    let refused = open(&path).expect_err("it is the first one's");
    assert!(matches!(refused, OpenError::Busy(_)));
    assert!(refused.to_string().contains("another pagetrace is recording to it"), "{refused}");
    assert_eq!(std::fs::read(&path).expect("it is there"), b"first");
    drop(first);
    assert_eq!(open(&path).expect("it is free").metadata().expect("it is there").len(), 0);
}

#[test]
fn only_a_regular_file_will_do() {
    assert!(matches!(open(Path::new("/dev/null")), Err(OpenError::NotAFile(_))));
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(matches!(open(&pipe), Err(OpenError::NotAFile(_))), "and nobody was waited for");
    let missing = open(Path::new("/no/such/directory/a")).expect_err("there is no directory");
    assert!(missing.to_string().contains("/no/such/directory/a"), "{missing}");
}
