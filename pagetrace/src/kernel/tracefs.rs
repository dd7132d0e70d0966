//! What the tracing file system offers: where it is mounted, which events it has. Writes nothing there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

/// What can be said about something that needs a file to be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// It is there.
    Present,
    /// It is not there.
    Absent,
    /// It could not be looked at.
    Unknown,
}

impl Presence {
    /// Of a path: only "no such file" means absent.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        match fs::symlink_metadata(path) {
            Ok(_) => Self::Present,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Self::Absent
            }
            Err(_) => Self::Unknown,
        }
    }
}

/// Where tracefs is, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "path")]
pub enum Tracefs {
    /// Mounted and readable here.
    Mounted(PathBuf),
    /// The kernel has it, but it is mounted at neither of its two usual places.
    NotMounted,
    /// It is there but this user may not look into it.
    Denied(PathBuf),
    /// The kernel has no tracefs.
    Unsupported,
}

impl Tracefs {
    /// Looks below `sys` (`/sys`), and into `filesystems` (`/proc/filesystems`) when nothing is mounted there.
    #[must_use]
    pub fn find(sys: &Path, filesystems: &str) -> Self {
        let places = [sys.join("kernel/tracing"), sys.join("kernel/debug/tracing")];
        let mut denied = None;
        for place in places {
            match Presence::of(&place.join("events")) {
                Presence::Present if fs::read_dir(place.join("events")).is_ok() => return Self::Mounted(place),
                Presence::Present | Presence::Unknown => denied = denied.or(Some(place)),
                Presence::Absent => {}
            }
        }
        let known = filesystems.lines().any(|line| line.split_ascii_whitespace().last() == Some("tracefs"));
        match denied {
            // It may be a debugfs without tracing; without the right to look, that comes second.
            Some(place) => Self::Denied(place),
            None if known => Self::NotMounted,
            None => Self::Unsupported,
        }
    }

    /// The mount point, if it can be read.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Mounted(path) => Some(path),
            Self::NotMounted | Self::Denied(_) | Self::Unsupported => None,
        }
    }

    /// Whether event `name` of `system` exists, `page_fault_kernel` of `exceptions` for one.
    #[must_use]
    pub fn event(&self, system: &str, name: &str) -> Presence {
        match self {
            Self::Mounted(path) => Presence::of(&path.join("events").join(system).join(name).join("format")),
            Self::NotMounted | Self::Denied(_) => Presence::Unknown,
            Self::Unsupported => Presence::Absent,
        }
    }

    /// Text of an event's `format` file, which lists its fields.
    ///
    /// # Errors
    /// If tracefs or the file cannot be read.
    pub fn event_format(&self, system: &str, name: &str) -> io::Result<String> {
        let path = self.path().ok_or(io::ErrorKind::NotFound)?;
        fs::read_to_string(path.join("events").join(system).join(name).join("format"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Presence, Tracefs};

    #[test]
    fn the_first_mount_with_events_counts() {
        let sys = tempfile::tempdir().unwrap();
        fs::create_dir_all(sys.path().join("kernel/tracing")).unwrap();
        assert_eq!(Tracefs::find(sys.path(), "nodev\ttracefs\n"), Tracefs::NotMounted);
        assert_eq!(Tracefs::find(sys.path(), "nodev\tsysfs\n"), Tracefs::Unsupported);
        let debug = sys.path().join("kernel/debug/tracing");
        fs::create_dir_all(debug.join("events/exceptions/page_fault_user")).unwrap();
        fs::write(debug.join("events/exceptions/page_fault_user/format"), "ID: 1").unwrap();
        let found = Tracefs::find(sys.path(), "");
        assert_eq!(found, Tracefs::Mounted(debug));
        assert_eq!(found.event("exceptions", "page_fault_user"), Presence::Present);
        assert_eq!(found.event("mmap_lock", "mmap_lock_released"), Presence::Absent);
        assert_eq!(found.event_format("exceptions", "page_fault_user").unwrap(), "ID: 1");
        assert_eq!(Tracefs::NotMounted.event("a", "b"), Presence::Unknown);
    }
}
