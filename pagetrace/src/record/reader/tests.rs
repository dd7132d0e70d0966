//! Tests of the reader: whatever a file holds, it is read up to its damage, and the damage is told.

use proptest::prelude::*;

use super::*;
use crate::record::{
    format::{FLAGS_AT, flags},
    writer::tests::{header, record},
};

/// Reads everything; whether it is whole, and how many records there were.
fn read(bytes: &[u8]) -> Result<(bool, u64, Option<Damage>), OpenError> {
    let mut reader = Reader::open(bytes)?;
    let count = reader.by_ref().count() as u64;
    assert_eq!(count, reader.records());
    assert!(reader.offset() <= bytes.len() as u64);
    assert!(reader.block.capacity() <= MAX_PAYLOAD, "no block is longer");
    let whole = !reader.incomplete() && reader.damage().is_none();
    Ok((whole, count, reader.damage().cloned()))
}

fn small() -> Vec<u8> {
    let (bytes, written) = record(40, usize::MAX, u64::MAX);
    assert!(written.is_some_and(|written| written.stop.is_none()));
    bytes
}

#[test]
fn truncated_at_any_byte_it_is_never_whole_and_says_where() {
    let bytes = small();
    assert!(matches!(read(&bytes), Ok((true, 41, None))));
    for end in 0..bytes.len() {
        match read(&bytes[..end]) {
            Ok((whole, _, damage)) => {
                let damage = damage.expect("something is missing");
                assert!(!whole && damage.offset <= end as u64, "{end}: {damage:?}");
            }
            Err(OpenError::Empty) => assert_eq!(end, 0),
            Err(OpenError::Truncated(at)) => assert_eq!(at, end as u64),
            Err(other) => panic!("{end}: {other}"),
        }
    }
}

#[test]
fn any_flipped_bit_is_noticed() {
    let mut bytes = small();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(!matches!(read(&bytes), Ok((true, ..))), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn blocks_before_the_damage_are_read() {
    let (mut bytes, _) = record(10_000, usize::MAX, u64::MAX);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let (whole, count, damage) = read(&bytes).expect("the header is sound");
    let damage = damage.expect("the last block is damaged");
    assert!(!whole && count > 5_000, "{count}");
    assert!(damage.offset > 4 * MAX_PAYLOAD as u64 && damage.why.contains("checksum"), "{damage:?}");
}

#[test]
fn what_cannot_be_read_is_refused_with_a_sentence() {
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = small();
        change(&mut bytes);
        read(&bytes).expect_err("it must be refused").to_string()
    };
    assert!(refused(&|bytes| bytes.clear()).contains("empty"));
    assert!(refused(&|bytes| bytes[0] = b'X').contains("no recording of pagetrace"));
    assert!(refused(&|bytes| bytes[8..12].reverse()).contains("big-endian"));
    assert!(refused(&|bytes| bytes[12] = 2).contains("version 2.0"));
    assert!(refused(&|bytes| bytes[40] ^= 1).contains("checksum"));
    assert!(refused(&|bytes| bytes[16..20].fill(0xff)).contains("impossible"));
}

#[test]
fn a_newer_minor_version_is_read_and_unknown_kinds_are_skipped() {
    use crate::record::format::{BLOCK_MAGIC, prelude};
    // As a newer program would write it: another minor version, another field, another kind.
    let mut json = serde_json::to_value(header()).expect("it is JSON");
    json["news"] = 1.into();
    let json = serde_json::to_vec(&json).expect("it is JSON");
    let mut bytes = prelude(&json).to_vec();
    bytes[14] = 9;
    let crc = header_crc(&bytes[..20], &json);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    bytes.extend(flags(0));
    bytes.extend(&json);
    let mut payload = Vec::new();
    let end = User::End(crate::record::user::End::default()).encode().expect("it is known");
    for body in [777_u32.to_le_bytes().to_vec(), 1999_u32.to_le_bytes().to_vec(), end] {
        payload.extend(u32::try_from(body.len()).expect("it is short").to_le_bytes());
        payload.extend(body);
    }
    let length = u32::try_from(payload.len()).expect("it is short");
    for word in [BLOCK_MAGIC, length, 3, block_crc(length, 3, &payload)] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(payload);
    let mut reader = Reader::open(bytes.as_slice()).expect("it can be read");
    assert_eq!(reader.by_ref().count(), 3);
    assert_eq!((reader.minor(), reader.unknown(), reader.damage()), (9, 2, None));
}

#[test]
fn an_unfinished_recording_says_so() {
    let mut bytes = small();
    let at = usize::try_from(FLAGS_AT).expect("it is small");
    bytes[at..at + 8].copy_from_slice(&flags(INCOMPLETE));
    assert!(Reader::open(bytes.as_slice()).expect("it can be read").incomplete());
    assert!(matches!(read(&bytes), Ok((false, 41, None))));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = read(&bytes);
    }

    #[test]
    fn any_bytes_behind_a_sound_head(tail in proptest::collection::vec(any::<u8>(), 0..600), magic: bool) {
        let whole = small();
        let head = PRELUDE + serde_json::to_vec(&header()).expect("it is JSON").len();
        let mut bytes = whole[..head].to_vec();
        if magic {
            bytes.extend(BLOCK_MAGIC.to_le_bytes());
        }
        bytes.extend(&tail);
        let (whole, ..) = read(&bytes).expect("the head is sound");
        prop_assert!(!whole);
    }

    #[test]
    fn many_flipped_bits(flips in proptest::collection::vec(any::<proptest::sample::Index>(), 1..40)) {
        let mut bytes = small();
        let sound = bytes.clone();
        for flip in flips {
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        if bytes != sound {
            prop_assert!(!matches!(read(&bytes), Ok((true, ..))));
        }
    }
}
