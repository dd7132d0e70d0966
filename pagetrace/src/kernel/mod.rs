//! Facts about the running kernel and about what this process may do with it.
//!
//! Parsing is pure; only [`KernelFacts::gather`] and the `gather` functions below it read files, all below [`Roots`].
//! Nothing here decides what to attach, and nothing compares version numbers.

pub mod btf;
pub mod build_id;
pub mod caps;
pub mod cast;
pub mod features;
pub mod kallsyms;
pub mod locks;
pub mod memlock;
pub mod module;
mod names;
pub mod offsets;
mod preflight;
pub mod slab;
pub mod threads;
pub mod tracefs;

use std::{fs, io, path::PathBuf, thread, time::Instant};

pub use self::preflight::{Problem, preflight};
use self::{btf::Btf, caps::Privileges, features::Features, kallsyms::Kallsyms, tracefs::Presence};

/// Where the kernel's file systems are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// procfs.
    pub proc: PathBuf,
    /// sysfs.
    pub sys: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { proc: PathBuf::from("/proc"), sys: PathBuf::from("/sys") }
    }
}

/// Why not even a list of problems can be made.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// A file of procfs that every kernel has.
    #[error("cannot read {}, without which nothing can be said about this process: {source}; is procfs mounted?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was read, but has not the form that `proc(5)` describes.
    #[error("{} has no line Uid or CapEff as proc(5) describes them", path.display())]
    Form {
        /// The file.
        path: PathBuf,
    },
}

/// A piece that could not be had, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    /// The file that was tried.
    pub path: PathBuf,
    /// Why it could not be read or understood.
    pub why: String,
    /// Whether there is no such file, which speaks of the kernel; otherwise it speaks of the user or the file.
    pub absent: bool,
}

impl Unavailable {
    fn io(path: PathBuf, error: &io::Error) -> Self {
        Self { path, why: error.to_string(), absent: error.kind() == io::ErrorKind::NotFound }
    }
}

/// What is known about the running kernel.
#[derive(Debug)]
pub struct KernelFacts {
    /// Its types.
    pub btf: Result<Btf, Unavailable>,
    /// Its symbols.
    pub kallsyms: Result<Kallsyms, Unavailable>,
    /// Its settings and abilities.
    pub features: Features,
    /// What this process may do.
    pub privileges: Privileges,
}

fn btf(roots: &Roots) -> Result<Btf, Unavailable> {
    let path = roots.sys.join("kernel/btf/vmlinux");
    match fs::read(&path) {
        Ok(blob) => Btf::parse(blob).map_err(|error| Unavailable { path, why: error.to_string(), absent: false }),
        Err(error) => Err(Unavailable::io(path, &error)),
    }
}

fn kallsyms(roots: &Roots) -> Result<Kallsyms, Unavailable> {
    let path = roots.proc.join("kallsyms");
    fs::read_to_string(&path).map(Kallsyms::parse).map_err(|error| Unavailable::io(path, &error))
}

impl KernelFacts {
    /// Looks at everything once. A missing piece is kept as a fact; [`preflight`] says what it means.
    ///
    /// # Errors
    /// Only if the process cannot even find out who it is.
    pub fn gather(roots: &Roots) -> Result<Self, FactsError> {
        let begun = Instant::now();
        let status = roots.proc.join("self/status");
        let text = fs::read_to_string(&status).map_err(|source| FactsError::Read { path: status.clone(), source })?;
        let uid_map = fs::read_to_string(roots.proc.join("self/uid_map")).ok();
        let privileges = Privileges::parse(&text, uid_map.as_deref()).ok_or(FactsError::Form { path: status })?;

        // Each takes about as long as the other: side by side they are half a start's time.
        let (kallsyms, btf, features) = thread::scope(|scope| {
            let kallsyms = scope.spawn(|| kallsyms(roots));
            let (btf, features) = (btf(roots), Features::gather(roots));
            (kallsyms.join(), btf, features)
        });
        let kallsyms = kallsyms.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        log::debug!("the kernel's types and symbols were read in {:?}", begun.elapsed());
        Ok(Self { btf, kallsyms, features, privileges })
    }

    /// Whether tracepoint `system:name` exists: BTF knows by its typedef, tracefs by its directory. What neither
    /// can tell is unknown.
    #[must_use]
    pub fn tracepoint(&self, system: &str, name: &str) -> Presence {
        let by_btf = self.btf.as_ref().is_ok_and(|btf| btf.tracepoint_args(name).is_some());
        match self.features.tracefs.event(system, name) {
            Presence::Present => Presence::Present,
            _ if by_btf => Presence::Present,
            Presence::Unknown if self.btf.is_ok() => Presence::Absent,
            other => other,
        }
    }
}

#[cfg(test)]
mod tests;
