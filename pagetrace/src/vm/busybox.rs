//! A static busybox from Debian's archive: a shell and small tools for the guest.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use super::{
    apt::{AptRoot, Note},
    spec::VmFile,
};

/// Guest files for busybox and a link for each of its applets.
///
/// # Errors
/// When the package cannot be fetched.
pub fn files(note: Note<'_>) -> Result<Vec<VmFile>> {
    const PACKAGE: &str = "busybox-static";
    let apt = AptRoot::open(note)?;
    let dir = match apt.fetch(PACKAGE, note) {
        Ok(dir) => dir,
        Err(_) => {
            apt.refresh(note)?;
            apt.fetch(PACKAGE, note)?
        }
    };
    let binary = ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .map(|path| dir.join(path))
        .find(|path| path.is_file())
        .with_context(|| format!("{PACKAGE} holds no busybox"))?;
    let mut files = vec![VmFile::executable("/bin/busybox", &binary)];
    files.extend(applets(&binary)?.iter().map(|applet| VmFile::link(format!("/bin/{applet}"), "busybox")));
    Ok(files)
}

fn applets(binary: &Path) -> Result<Vec<String>> {
    let out =
        Command::new(binary).arg("--list").output().with_context(|| format!("cannot run {}", binary.display()))?;
    if !out.status.success() {
        bail!("{} --list failed: {}", binary.display(), out.status);
    }
    let list = String::from_utf8_lossy(&out.stdout).into_owned();
    Ok(list.lines().filter(|name| *name != "busybox" && !name.contains('/')).map(str::to_owned).collect())
}
