//! Builds the kernel with lockdep: once for the same source and the same configuration. It must not be part of a usual test run.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    kmod::COMPILER,
    source::{self, Source},
    step::{self, note},
    vm::cache,
};

/// What the configuration has besides what nothing can do without.
const CONFIG: &str = include_str!("config");
/// Part of the cache key: raise it when the way of building changes.
const RECIPE: u32 = 1;
/// A file that stands for a build which went to its end.
const DONE: &str = "pagetrace-done";

/// The kernel, and the tree that modules are built in.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) tree: PathBuf,
    pub(super) image: PathBuf,
    pub(super) version: String,
}

/// Builds the kernel of `series`, or finds it in the cache.
pub(super) fn kernel(series: &str) -> Result<Built> {
    let source = source::of(series)?;
    let base = cache::dir()?.join("lockdep");
    fs::create_dir_all(&base).with_context(|| format!("cannot create {}", base.display()))?;
    let _lock = cache::lock(&base, "lock")?;
    let mut hasher = DefaultHasher::new();
    (RECIPE, COMPILER, &source.version, CONFIG).hash(&mut hasher);
    let tree = base.join(format!("{}-{:016x}", source.version, hasher.finish()));
    if !tree.join(DONE).is_file() {
        make(&source, &tree)?;
    }
    let image = tree.join("arch/x86/boot/bzImage");
    ensure!(image.is_file(), "the build left no {}", image.display());
    Ok(Built { tree, image, version: source.version })
}

fn make(source: &Source, tree: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(tree);
    fs::create_dir_all(tree).with_context(|| format!("cannot create {}", tree.display()))?;
    let wanted = tree.join("wanted.config");
    fs::write(&wanted, CONFIG).with_context(|| format!("cannot write {}", wanted.display()))?;
    let command = || {
        // A quarter of an hour of compiling must not be in anybody's way.
        let mut make = Command::new("nice");
        make.args(["-n", "10", "make", "-s", "-C"]).arg(&source.dir);
        make.arg(format!("O={}", tree.display())).arg("ARCH=x86_64").arg(format!("CC={COMPILER}"));
        make
    };
    let mut configure = command();
    configure.arg(format!("KCONFIG_ALLCONFIG={}", wanted.display())).arg("allnoconfig");
    step::run("configuring the kernel with lockdep", &mut configure)?;
    let config = tree.join(".config");
    let text = fs::read_to_string(&config).with_context(|| format!("cannot read {}", config.display()))?;
    let dropped = dropped(&text);
    ensure!(dropped.is_empty(), "Linux {} does not take {}", source.version, dropped.join(", "));
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    note(
        "building the kernel with lockdep takes about a quarter of an hour, and more than a gigabyte in the cache; this is done once",
    );
    step::run("building the kernel with lockdep", command().arg(format!("-j{jobs}")).args(["bzImage", "modules"]))?;
    fs::write(tree.join(DONE), "").with_context(|| format!("cannot write to {}", tree.display()))
}

/// What was asked for and is not in the configuration: the kernel's tools drop it without a word.
fn dropped(config: &str) -> Vec<&'static str> {
    CONFIG.lines().filter(|line| line.starts_with("CONFIG_") && !config.lines().any(|has| has == *line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dropped_is_told() {
        assert_eq!(dropped(CONFIG), Vec::<&str>::new());
        assert_eq!(dropped(&CONFIG.replace("CONFIG_PROVE_LOCKING=y", "")), ["CONFIG_PROVE_LOCKING=y"]);
    }
}
