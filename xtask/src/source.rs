//! A kernel's source from Debian's archive, unpacked into the cache once. Builds have directories of their own; only the makefile of
//! the kernel's own tests writes two small files beside itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    step::{self, note},
    vm::{apt::AptRoot, cache},
};

/// An unpacked source tree.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// Where it is.
    pub(crate) dir: PathBuf,
    /// Its own word about its version, such as 6.12.117.
    pub(crate) version: String,
}

/// The source of a series' newest kernel, as it was when it was first asked for.
pub(crate) fn of(series: &str) -> Result<Source> {
    let name = format!("linux-source-{series}");
    let base = cache::dir()?.join("source");
    fs::create_dir_all(&base).with_context(|| format!("cannot create {}", base.display()))?;
    let _lock = cache::lock(&base, "lock")?;
    let dir = base.join(&name);
    if !dir.is_dir() {
        unpack(&base, &name)?;
    }
    let makefile = dir.join("Makefile");
    let text = fs::read_to_string(&makefile).with_context(|| format!("cannot read {}", makefile.display()))?;
    let version = version(&text).with_context(|| format!("{} tells no version", makefile.display()))?;
    Ok(Source { dir, version })
}

fn unpack(base: &Path, name: &str) -> Result<()> {
    let apt = AptRoot::open(&note)?;
    let package = match apt.fetch(name, &note) {
        Ok(package) => package,
        Err(_) => {
            // The index may name what the archive has since dropped.
            apt.refresh(&note)?;
            apt.fetch(name, &note)?
        }
    };
    let archive = package.join("usr/src").join(format!("{name}.tar.xz"));
    let partial = base.join("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&partial).arg("-xf").arg(&archive);
    step::run(&format!("unpacking {name}, 1.5 GB"), &mut tar)?;
    let unpacked = partial.join(name);
    ensure!(unpacked.is_dir(), "{} holds no {name}", archive.display());
    fs::rename(&unpacked, base.join(name)).with_context(|| format!("cannot create {name} in {}", base.display()))
}

fn version(makefile: &str) -> Option<String> {
    let field = |name: &str| {
        let value = |line: &str| Some(line.strip_prefix(name)?.trim_start().strip_prefix('=')?.trim().to_owned());
        makefile.lines().find_map(value)
    };
    Some(format!("{}.{}.{}", field("VERSION")?, field("PATCHLEVEL")?, field("SUBLEVEL")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_makefile_tells_the_version() {
        let text = "# a comment\nVERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 117\nEXTRAVERSION =\n";
        assert_eq!(version(text).as_deref(), Some("6.12.117"));
        assert_eq!(version("VERSION = 6\n"), None);
    }
}
