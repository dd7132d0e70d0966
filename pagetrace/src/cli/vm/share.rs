//! Directories of this machine that go into a guest, each at the same path.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::vm::{Source, VmFile};

/// The files of a directory, at `guest`; and how many bytes they have.
pub(super) fn directory(host: &Path, guest: &Path) -> Result<(Vec<VmFile>, u64)> {
    let mut files = Vec::new();
    let mut bytes = 0;
    walk(host, guest, &mut files, &mut bytes)?;
    Ok((files, bytes))
}

fn walk(host: &Path, guest: &Path, files: &mut Vec<VmFile>, bytes: &mut u64) -> Result<()> {
    let list = || format!("cannot list {}", host.display());
    let mode = |meta: &fs::Metadata| meta.permissions().mode() & 0o7777;
    let meta = fs::metadata(host).with_context(list)?;
    files.push(VmFile { path: guest.to_owned(), source: Source::Directory, mode: mode(&meta) | 0o700 });
    let mut entries: Vec<_> = fs::read_dir(host).with_context(list)?.collect::<Result<_, _>>().with_context(list)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (host, guest): (PathBuf, PathBuf) = (entry.path(), guest.join(entry.file_name()));
        let meta = entry.metadata().with_context(|| format!("cannot look at {}", host.display()))?;
        if meta.is_dir() {
            walk(&host, &guest, files, bytes)?;
        } else if meta.is_symlink() {
            let target = fs::read_link(&host).with_context(|| format!("cannot read the link {}", host.display()))?;
            files.push(VmFile::link(guest, target));
        } else if meta.is_file() {
            *bytes += meta.len();
            files.push(VmFile { path: guest, mode: mode(&meta), source: Source::Host(host) });
        }
        // Sockets, pipes and devices mean nothing on another machine.
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_directories_and_links_keep_their_places_and_modes() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/a"), "abc").unwrap();
        fs::set_permissions(dir.path().join("sub/a"), fs::Permissions::from_mode(0o751)).unwrap();
        std::os::unix::fs::symlink("sub/a", dir.path().join("link")).unwrap();
        let (files, bytes) = directory(dir.path(), Path::new("/g")).unwrap();
        let paths: Vec<String> = files.iter().map(|file| file.path.display().to_string()).collect();
        assert_eq!((paths.as_slice(), bytes), (&["/g", "/g/link", "/g/sub", "/g/sub/a"].map(str::to_owned)[..], 3));
        assert_eq!(files[3].mode, 0o751);
        assert_eq!(files[1].source, Source::Link("sub/a".into()));
        assert!(directory(Path::new("/no/such/dir"), Path::new("/g")).is_err());
    }
}
