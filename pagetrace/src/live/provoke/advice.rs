//! `process_madvise(2)`, which rustix does not have. Only advice that keeps contents.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
};

/// What may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Reclaim the pages now: anonymous ones to swap, those of files back to the file.
    Pageout,
    /// Make them the first to go when memory is short.
    Cold,
}

impl Advice {
    const fn number(self) -> libc::c_int {
        match self {
            Self::Pageout => libc::MADV_PAGEOUT,
            Self::Cold => libc::MADV_COLD,
        }
    }
}

/// Advises about `length` bytes at `start` of the process, and returns how many bytes were gone through.
///
/// # Errors
/// `EINVAL` for a mapping of which no page may leave (locked, huge, a device's), `ENOMEM` where nothing is mapped, `ESRCH`
/// when the process has ended, `EPERM` without `CAP_SYS_NICE` and the right to trace it.
#[expect(unsafe_code, reason = "neither rustix nor libc has a function for this system call")]
pub(super) fn advise(process: impl AsFd, start: u64, length: usize, advice: Advice) -> io::Result<usize> {
    let range = libc::iovec { iov_base: std::ptr::without_provenance_mut(start as usize), iov_len: length };
    let descriptor = process.as_fd().as_raw_fd();
    // SAFETY: the kernel reads one live iovec. The range it names is never dereferenced here; in the other process, or
    // in this one, both kinds of advice leave every byte as it is.
    let result = unsafe {
        libc::syscall(libc::SYS_process_madvise, descriptor, &raw const range, 1_usize, advice.number(), 0_u32)
    };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
