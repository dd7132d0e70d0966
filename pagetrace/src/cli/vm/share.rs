//! Directories of this machine that go into a guest, each at the same path.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::vm::{Source, VmFile};

/// What of a directory goes into a guest.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Its files, directories and links.
    pub(super) files: Vec<VmFile>,
    /// How many of its entries are none of these: sockets, pipes and devices mean nothing on another machine.
    pub(super) left_out: usize,
}

/// The files of a directory, at `guest`.
pub(super) fn directory(host: &Path, guest: &Path) -> Result<Shared> {
    let mut shared = Shared::default();
    walk(host, guest, &mut shared)?;
    Ok(shared)
}

fn walk(host: &Path, guest: &Path, shared: &mut Shared) -> Result<()> {
    let list = || format!("cannot list {}", host.display());
    let mode = |meta: &fs::Metadata| meta.permissions().mode() & 0o7777;
    let meta = fs::metadata(host).with_context(list)?;
    shared.files.push(VmFile { path: guest.to_owned(), source: Source::Directory, mode: mode(&meta) | 0o700 });
    let mut entries: Vec<_> = fs::read_dir(host).with_context(list)?.collect::<Result<_, _>>().with_context(list)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (host, guest): (PathBuf, PathBuf) = (entry.path(), guest.join(entry.file_name()));
        let meta = entry.metadata().with_context(|| format!("cannot look at {}", host.display()))?;
        if meta.is_dir() {
            walk(&host, &guest, shared)?;
        } else if meta.is_symlink() {
            let target = fs::read_link(&host).with_context(|| format!("cannot read the link {}", host.display()))?;
            shared.files.push(VmFile::link(guest, target));
        } else if meta.is_file() {
            shared.files.push(VmFile { path: guest, mode: mode(&meta), source: Source::Host(host) });
        } else {
            shared.left_out += 1;
        }
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
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let Shared { files, left_out } = directory(dir.path(), Path::new("/g")).unwrap();
        let paths: Vec<String> = files.iter().map(|file| file.path.display().to_string()).collect();
        assert_eq!((paths.as_slice(), left_out), (&["/g", "/g/link", "/g/sub", "/g/sub/a"].map(str::to_owned)[..], 1));
        assert_eq!(files[3].mode, 0o751);
        assert_eq!(files[1].source, Source::Link("sub/a".into()));
        assert!(directory(Path::new("/no/such/dir"), Path::new("/g")).is_err());
    }
}
