//! Swap for a test VM, on the disk that a run's files are sent over at its end: until then nobody uses it.
#![expect(unsafe_code, reason = "swapon and swapoff are system calls")]

use std::{
    ffi::CStr,
    fs::OpenOptions,
    io,
    os::unix::fs::FileExt as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::fixture::pages::PAGE_SIZE;

const DISK: &CStr = c"/dev/nvme0n1";
/// Pages of the area, the header among them.
const PAGES: u32 = 16384;

/// Swap that is on while the value lives.
#[derive(Debug)]
pub struct Swap(());

impl Swap {
    /// Writes an area's header and switches it on.
    ///
    /// # Errors
    /// When there is no disk, or the kernel refuses.
    pub fn on() -> Result<Self> {
        let path = DISK.to_str()?;
        // The kernel finds the disk in its own time.
        let deadline = Instant::now() + Duration::from_secs(10);
        let disk = loop {
            match OpenOptions::new().write(true).open(path) {
                Ok(disk) => break disk,
                Err(err) if Instant::now() > deadline => {
                    return Err(err).with_context(|| format!("cannot open {path}"));
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        };
        disk.write_all_at(&header(), 0).with_context(|| format!("cannot write {path}"))?;
        disk.sync_all()?;
        drop(disk);
        // SAFETY: the kernel reads a string that ends with zero; the disk is the suite's own.
        let result = unsafe { libc::swapon(DISK.as_ptr(), 0) };
        ensure!(result == 0, "cannot swap on {path}: {}", io::Error::last_os_error());
        Ok(Self(()))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // SAFETY: as above. Where it fails the disk stays in use, and a run that sends files says so.
        unsafe { libc::swapoff(DISK.as_ptr()) };
    }
}

/// The first page of an area (`union swap_header` in include/linux/swap.h): version 1, the last page's number, no bad
/// pages, and the magic at the page's end.
fn header() -> [u8; PAGE_SIZE] {
    const INFO: usize = 1024;
    const MAGIC: &[u8; 10] = b"SWAPSPACE2";
    let mut page = [0; PAGE_SIZE];
    let info = [1_u32, PAGES - 1].into_iter().flat_map(u32::to_ne_bytes);
    let magic = page.len() - MAGIC.len();
    for (to, from) in page.iter_mut().skip(INFO).zip(info) {
        *to = from;
    }
    for (to, from) in page.iter_mut().skip(magic).zip(MAGIC) {
        *to = *from;
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_where_the_kernel_looks() {
        let page = header();
        assert_eq!(page.get(4086..), Some(b"SWAPSPACE2".as_slice()));
        assert_eq!(page.get(1024..1036), Some([1_u32, PAGES - 1, 0].map(u32::to_ne_bytes).as_flattened()));
        assert!(page.iter().take(1024).all(|byte| *byte == 0));
    }
}
