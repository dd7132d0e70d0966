//! The map of violations that were told once and only counted since.
//!
//! A key holds everything that userspace could make a difference of, so whatever is new comes through as a record.

/// 64-bit words of a key.
pub const KEY_WORDS: usize = 5 + super::lock::MAX_HELD;
/// Word of a key: address of the `task_struct`.
pub const KEY_TASK: usize = 0;

/// 64-bit words of a value.
pub const VALUE_WORDS: usize = 3;
/// Word of a value: time of the record that told it, as in its header.
pub const VALUE_FIRST: usize = 0;
/// Word of a value: times it was seen since.
pub const VALUE_COUNT: usize = 1;
/// Word of a value: last time it was seen, nanoseconds of `CLOCK_MONOTONIC`.
pub const VALUE_LAST: usize = 2;
