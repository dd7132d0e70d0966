//! A control group by its directory: its id as BPF sees it, and its depth, which the ancestor helper needs.
//!
//! Only the second version counts: BPF's cgroup helpers know no other. Changes nothing in the hierarchy.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Component, Path, PathBuf},
};

use serde::Serialize;

/// A control group of the second version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cgroup {
    /// What `bpf_get_current_cgroup_id()` gives: the inode number of the directory, on 64-bit machines.
    pub id: u64,
    /// Depth below the root, which has 0; the argument of `bpf_get_current_ancestor_cgroup_id()`.
    pub level: u32,
    /// The directory.
    pub path: PathBuf,
}

/// Why a control group cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The list of mounts cannot be read.
    #[error("cannot read {}, which says where cgroups are mounted: {source}", path.display())]
    Mounts {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The second version is not mounted.
    #[error("no cgroup2 is mounted; run `mount -t cgroup2 none /sys/fs/cgroup`, or select tasks by -p instead")]
    NoHierarchy,
    /// There is no such directory.
    #[error("{} is not a directory in a cgroup2 hierarchy ({})", path.display(), mounts.join(", "))]
    NotFound {
        /// The path given.
        path: PathBuf,
        /// Where hierarchies are mounted.
        mounts: Vec<String>,
    },
    /// The mount shows only a part that begins above the process's own cgroup namespace.
    #[error("{} is seen through a cgroup namespace, so its depth is not known; run pagetrace on the host", path.display())]
    Namespace {
        /// The path given.
        path: PathBuf,
    },
}

/// A mount of a cgroup2 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Which directory of the hierarchy is shown there.
    pub(super) root: PathBuf,
    pub(super) point: PathBuf,
}

/// The cgroup2 mounts in `/proc/self/mountinfo`.
pub(super) fn parse_mounts(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (fields, source) = line.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(3);
        let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
        (source.split(' ').next() == Some("cgroup2")).then_some(Mount { root, point })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// Undoes the octal escapes of space, tab, newline and backslash.
fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let octal = after.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) => {
                out.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = after.get(3..).unwrap_or(&[]);
            }
            None => out.push(byte),
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

pub(super) fn find(path: &Path, proc: &Path) -> Result<Cgroup, CgroupError> {
    let file = proc.join("self/mountinfo");
    let text = fs::read_to_string(&file).map_err(|source| CgroupError::Mounts { path: file, source })?;
    find_in(path, &parse_mounts(&text))
}

/// As a path of the file system if that is in one of the mounts, else as a path within each.
fn find_in(path: &Path, mounts: &[Mount]) -> Result<Cgroup, CgroupError> {
    if mounts.is_empty() {
        return Err(CgroupError::NoHierarchy);
    }
    let below = path.strip_prefix("/").unwrap_or(path);
    let places = std::iter::once(path.to_owned()).chain(mounts.iter().map(|mount| mount.point.join(below)));
    for place in places {
        let Ok(place) = fs::canonicalize(place) else { continue };
        let Some((mount, inside)) = innermost(&place, mounts) else { continue };
        let Ok(found) = fs::metadata(&place) else { continue };
        if !found.is_dir() {
            continue;
        }
        if mount.root.components().any(|part| part == Component::ParentDir) {
            return Err(CgroupError::Namespace { path: path.to_owned() });
        }
        let depth = [mount.root.as_path(), inside.as_path()]
            .iter()
            .flat_map(|path| path.components())
            .filter(|part| matches!(part, Component::Normal(_)))
            .count();
        return Ok(Cgroup { id: found.ino(), level: u32::try_from(depth).unwrap_or(u32::MAX), path: place });
    }
    let mounts = mounts.iter().map(|mount| mount.point.display().to_string()).collect();
    Err(CgroupError::NotFound { path: path.to_owned(), mounts })
}

fn innermost<'a>(place: &Path, mounts: &'a [Mount]) -> Option<(&'a Mount, PathBuf)> {
    mounts
        .iter()
        .filter_map(|mount| Some((mount, place.strip_prefix(&mount.point).ok()?.to_owned())))
        .min_by_key(|(_, inside)| inside.components().count())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

    use super::{CgroupError, Mount, find_in, parse_mounts, unescape};

    #[test]
    fn mounts_of_the_second_version_are_found() {
        let text = "24 1 0:21 / /sys rw shared:7 - sysfs sysfs rw\n\
                    30 24 0:26 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n\
                    31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(parse_mounts(text), [Mount { root: "/".into(), point: "/sys/fs/cgroup/unified".into() }]);
        assert_eq!(unescape(r"/a\040b\134c\9"), Path::new(r"/a b\c\9"));
    }

    #[test]
    fn id_and_depth_come_from_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let point = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(point.join("system.slice/db.service")).unwrap();
        let mounts = |root: &str| [Mount { root: root.into(), point: point.clone() }];
        let absolute = find_in(&point.join("system.slice"), &mounts("/")).unwrap();
        assert_eq!(absolute.level, 1);
        assert_eq!(absolute.id, fs::metadata(point.join("system.slice")).unwrap().ino());
        assert_eq!(find_in(Path::new("/system.slice/db.service"), &mounts("/")).unwrap().level, 2);
        assert_eq!(find_in(Path::new("/system.slice"), &mounts("/outer")).unwrap().level, 2);
        assert_eq!(find_in(&point, &mounts("/")).unwrap().level, 0);
        assert!(matches!(find_in(&point, &mounts("/../..")), Err(CgroupError::Namespace { .. })));
        assert!(matches!(find_in(Path::new("/absent"), &mounts("/")), Err(CgroupError::NotFound { .. })));
        assert!(matches!(find_in(&point, &[]), Err(CgroupError::NoHierarchy)));
    }
}
