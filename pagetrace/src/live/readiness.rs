//! Waiting for descriptors with tokio. Its `register` is unsafe because a type could swap its descriptor; all of ours
//! come through here, so the argument is made once.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers a descriptor for readability. `T` must answer `as_fd` with one and the same open descriptor all its life,
/// as an `OwnedFd`, a borrowed descriptor or a ring buffer map does.
///
/// # Errors
/// Outside of a runtime with I/O, or for a descriptor that cannot be polled.
#[expect(unsafe_code, reason = "tokio cannot know that the descriptor stays the same")]
pub(super) fn readable<T: AsFd + AsRawFd>(source: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the callers in this folder pass owners or borrowers of one descriptor that they never replace or close
    // while the AsyncFd lives; AsyncFd deregisters before it drops its source.
    unsafe { AsyncFd::register_with_interest(source, Interest::READABLE) }.map_err(Into::into)
}
