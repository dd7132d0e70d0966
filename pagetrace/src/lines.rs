//! Source lines of kernel functions, from the DWARF of an image or module that is the one that ran.
//!
//! A frame is looked up by function and offset, so no load address is needed. A file that belongs to another release is
//! passed over: a wrong line is worse than none.

mod image;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{output::report::Report, symbolize::Frame};
use image::Image;

/// A line of a source file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Path, relative to the tree that the kernel was built in where it lies below it.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
}

/// Directories are searched this deep for modules: a build tree's deepest drivers are less.
const DEPTH: usize = 12;

/// Where debug information may lie.
#[derive(Debug, Clone)]
pub struct DebugInfo {
    given: Vec<PathBuf>,
}

impl DebugInfo {
    /// With files and directories to look into before the usual places of this machine.
    ///
    /// # Errors
    /// When one of them does not exist.
    pub fn new(given: &[PathBuf]) -> Result<Self> {
        for path in given {
            ensure!(path.exists(), "there is no debug information at {}: it does not exist", path.display());
        }
        Ok(Self { given: given.to_vec() })
    }

    /// The lines of all frames in a report, by their addresses; and sentences about files that were no use.
    pub fn sources(&self, report: &Report) -> (BTreeMap<String, Source>, Vec<String>) {
        let mut found = BTreeMap::new();
        let mut notes = Vec::new();
        let mut images: HashMap<Option<String>, Option<Image>> = HashMap::new();
        for finding in &report.findings {
            for stack in finding.stacks() {
                for frame in stack.frames {
                    let Some(name) = frame.symbol.as_deref().filter(|_| frame.module.as_deref() != Some("bpf")) else {
                        continue;
                    };
                    let image = images
                        .entry(frame.module.clone())
                        .or_insert_with(|| self.open(frame.module.as_deref(), &report.kernel.release, &mut notes));
                    if let Some(source) = image.as_ref().and_then(|image| image.line(name, call_site(frame))) {
                        found.insert(frame.addr.clone(), source);
                    }
                }
            }
        }
        (found, notes)
    }

    fn open(&self, module: Option<&str>, release: &str, notes: &mut Vec<String>) -> Option<Image> {
        for path in self.given.iter().flat_map(|path| candidates(path, module)) {
            match read(&path, Some(release)) {
                Ok(image) => return Some(image),
                Err(err) => notes.push(format!("no source lines from {}: {err:#}", path.display())),
            }
        }
        // These places are the release's own, and files stripped to their debug information no longer say it.
        for path in usual(module, release).iter().flat_map(|path| candidates(path, module)) {
            match read(&path, None) {
                Ok(image) => return Some(image),
                Err(err) => log::debug!("no source lines from {}: {err:#}", path.display()),
            }
        }
        None
    }
}

/// A return address is the instruction behind the call.
fn call_site(frame: &Frame) -> u64 {
    frame.offset.saturating_sub(1)
}

fn read(path: &Path, release: Option<&str>) -> Result<Image> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Image::parse(&bytes, release)
}

/// Where distributions and kernel builds put it.
fn usual(module: Option<&str>, release: &str) -> Vec<PathBuf> {
    let debug = PathBuf::from(format!("/usr/lib/debug/lib/modules/{release}"));
    let modules = PathBuf::from(format!("/lib/modules/{release}"));
    match module {
        None => vec![
            PathBuf::from(format!("/usr/lib/debug/boot/vmlinux-{release}")),
            debug.join("vmlinux"),
            modules.join("build/vmlinux"),
        ],
        Some(_) => vec![debug, modules],
    }
}

/// The files at a path that may be the image or the module.
fn candidates(path: &Path, module: Option<&str>) -> Vec<PathBuf> {
    let Some(module) = module else {
        return if path.is_dir() { vec![path.join("vmlinux")] } else { vec![path.to_owned()] }
            .into_iter()
            .filter(|path| path.is_file() && !is_module(path, None))
            .collect();
    };
    let mut found = Vec::new();
    if path.is_dir() {
        search(path, module, DEPTH, &mut found);
        found.sort();
    } else if is_module(path, Some(module)) {
        found.push(path.to_owned());
    }
    found
}

/// Whether a file is called like the module, or like any.
fn is_module(path: &Path, module: Option<&str>) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".debug").unwrap_or(&name).strip_suffix(".ko");
    stem.is_some_and(|stem| module.is_none_or(|module| stem.replace('-', "_") == module))
}

fn search(dir: &Path, module: &str, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth > 0 {
            search(&entry.path(), module, depth - 1, found);
        } else if kind.is_file() && is_module(&entry.path(), Some(module)) {
            found.push(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_known_by_their_file_names() {
        assert!(is_module(Path::new("/a/my-driver.ko"), Some("my_driver")));
        assert!(is_module(Path::new("/a/my_driver.ko.debug"), Some("my_driver")));
        assert!(!is_module(Path::new("/a/my_driver.ko.xz"), Some("my_driver")));
        assert!(!is_module(Path::new("/a/vmlinux"), None));
    }

    #[test]
    fn what_does_not_exist_is_refused() {
        let err = DebugInfo::new(&[PathBuf::from("/no/such/tree")]).unwrap_err();
        assert!(err.to_string().contains("/no/such/tree"), "{err}");
    }
}
