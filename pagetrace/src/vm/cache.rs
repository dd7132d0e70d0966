//! Where downloaded images stay between runs.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The cache directory: `$PAGETRACE_CACHE`, else `pagetrace` below `$XDG_CACHE_HOME` or `~/.cache`.
///
/// # Errors
/// When none of the variables is set, or the directory cannot be created.
pub fn dir() -> Result<PathBuf> {
    let dir = choose(|name| env::var_os(name))
        .context("no cache directory: none of PAGETRACE_CACHE, XDG_CACHE_HOME and HOME is set")?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

fn choose(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let var = |name| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    var("PAGETRACE_CACHE")
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("pagetrace")))
        .or_else(|| Some(var("HOME")?.join(".cache/pagetrace")))
}

/// Takes the lock `name` of a directory, waiting for another process if need be; it is held until
/// the file is dropped.
///
/// # Errors
/// When the lock file cannot be created or locked.
pub fn lock(dir: &Path, name: &str) -> Result<File> {
    let path = dir.join(name);
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_the_variables() {
        let with = |set: &'static [&'static str]| {
            choose(move |name| set.contains(&name).then(|| OsString::from(format!("/{name}"))))
        };
        assert_eq!(with(&["HOME", "XDG_CACHE_HOME", "PAGETRACE_CACHE"]), Some("/PAGETRACE_CACHE".into()));
        assert_eq!(with(&["HOME", "XDG_CACHE_HOME"]), Some("/XDG_CACHE_HOME/pagetrace".into()));
        assert_eq!(with(&["HOME"]), Some("/HOME/.cache/pagetrace".into()));
        assert_eq!(with(&[]), None);
    }
}
