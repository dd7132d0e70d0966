//! Sends what the command left in `/out` to the host: an archive on the raw disk, or over the second serial line where the
//! kernel has no driver for the disk.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::termios::{self, OptionalActions};

use crate::vm::{
    cpio::{Head, Writer, kind},
    protocol,
};

const DISK: &str = "/dev/nvme0n1";
const LINE: &str = "/dev/ttyS1";
/// A driver that is there is registered before the init starts.
const DRIVER: &str = "/sys/bus/pci/drivers/nvme";

/// How many bytes went which way.
pub(super) enum Sent {
    /// To the disk.
    Disk(u64),
    /// Over the line.
    Line(u64),
}

/// Writes the archive and returns its length; `None` when there is nothing to send.
pub(super) fn send() -> Result<Option<Sent>> {
    let mut files = Vec::new();
    list(Path::new(protocol::OUT), &mut files)?;
    if files.is_empty() {
        return Ok(None);
    }
    let by_disk = Path::new(DRIVER).exists();
    let to = if by_disk { open_disk()? } else { open_line()? };
    let mut cpio = Writer::new(BufWriter::with_capacity(1 << 20, to));
    for path in files {
        let name = path.strip_prefix(protocol::OUT).unwrap_or(&path).as_os_str().as_bytes();
        let context = || format!("cannot send {}", path.display());
        let meta = fs::metadata(&path).with_context(context)?;
        let mut head = Head { name, mode: meta.mode(), ..Head::default() };
        if meta.is_file() {
            head.size = u32::try_from(meta.len()).with_context(context)?;
            let mut file = File::open(&path).with_context(context)?;
            cpio.append(head, &mut file).with_context(context)?;
        } else {
            cpio.append(Head { mode: kind::DIRECTORY | 0o755, ..head }, &mut io::empty()).with_context(context)?;
        }
    }
    let (to, bytes) = cpio.finish()?;
    let to = to.into_inner().map_err(io::IntoInnerError::into_error)?;
    if by_disk {
        to.sync_all()?;
        Ok(Some(Sent::Disk(bytes)))
    } else {
        termios::tcdrain(&to)?;
        Ok(Some(Sent::Line(bytes)))
    }
}

/// Directories and regular files, parents first.
fn list(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries: Vec<_> =
        fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_file() || kind.is_dir() {
            files.push(entry.path());
        }
        if kind.is_dir() {
            list(&entry.path(), files)?;
        }
    }
    Ok(())
}

/// A line that changes no byte.
fn open_line() -> Result<File> {
    let line = OpenOptions::new().read(true).write(true).open(LINE);
    let line =
        line.with_context(|| format!("this kernel has no NVMe built in for the disk, and cannot open {LINE}"))?;
    let mut settings = termios::tcgetattr(&line).with_context(|| format!("{LINE} is no terminal"))?;
    settings.make_raw();
    termios::tcsetattr(&line, OptionalActions::Now, &settings).with_context(|| format!("cannot set {LINE}"))?;
    Ok(line)
}

/// The kernel finds the disk in its own time.
fn open_disk() -> Result<File> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match OpenOptions::new().write(true).open(DISK) {
            Ok(disk) => return Ok(disk),
            Err(err) if Instant::now() > deadline => {
                return Err(err).with_context(|| format!("cannot open {DISK} (does this kernel have NVMe built in?)"));
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}
