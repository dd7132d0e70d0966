//! A private apt root: Debian's archive read with this machine's apt, but with lists and cache of
//! its own. Nothing is installed, and the machine's own sources and lists stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};

use super::{
    cache,
    mirror::{self, Mirror},
};

/// How old the index may be before it is fetched again.
const INDEX_AGE: Duration = Duration::from_secs(24 * 3600);
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Tells a person what takes a while.
pub type Note<'a> = &'a (dyn Fn(&str) + Sync);

/// A private apt root below the cache directory.
#[derive(Debug, Clone)]
pub struct AptRoot {
    dir: PathBuf,
}

impl AptRoot {
    /// Opens the root, creating it if need be; the index is fetched when it is older than a day.
    ///
    /// # Errors
    /// When apt is missing or there is no index and none can be fetched.
    pub fn open(note: Note<'_>) -> Result<Self> {
        for (tool, package) in [("apt-get", "apt"), ("dpkg-deb", "dpkg")] {
            if Command::new(tool).arg("--version").stdout(Stdio::null()).status().is_err() {
                bail!(
                    "test kernels come from Debian's archive, and {tool} is missing (package {package}): install it, or give the path of a kernel image"
                );
            }
        }
        let root = Self { dir: cache::dir()?.join("apt") };
        for sub in ["lists/partial", "cache/archives/partial", "packages"] {
            let dir = root.dir.join(sub);
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let _lock = cache::lock(&root.dir, "lock")?;
        let sources = sources(&mirror::configured(Path::new("/etc/apt"))?, Path::new(KEYRING).exists());
        if fs::read_to_string(root.sources()).is_ok_and(|old| old == sources) {
            if !root.fresh() {
                // An old index is better than none on a machine that is off the network.
                let _ = root.update(note).inspect_err(|err| note(&format!("using the older package index: {err}")));
            }
        } else {
            fs::write(root.sources(), &sources)
                .with_context(|| format!("cannot write {}", root.sources().display()))?;
            let _ = fs::remove_file(root.stamp());
            root.update(note)?;
        }
        Ok(root)
    }

    fn sources(&self) -> PathBuf {
        self.dir.join("sources.list")
    }

    fn stamp(&self) -> PathBuf {
        self.dir.join("updated")
    }

    fn fresh(&self) -> bool {
        let age = fs::metadata(self.stamp())
            .and_then(|meta| meta.modified())
            .map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        age.is_ok_and(|age| age < INDEX_AGE)
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        let dir = self.dir.display();
        for option in [
            format!("Dir::Etc::sourcelist={dir}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".into(),
            format!("Dir::State::lists={dir}/lists"),
            format!("Dir::Cache={dir}/cache"),
            "APT::Sandbox::User=".into(),
            "APT::Architecture=amd64".into(),
            "APT::Architectures=amd64".into(),
            "Acquire::Languages=none".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
            "Acquire::IndexTargets::deb::CNF::DefaultEnabled=false".into(),
            "Acquire::Retries=2".into(),
        ] {
            command.arg("-o").arg(option);
        }
        command.env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    fn update(&self, note: Note<'_>) -> Result<()> {
        note("fetching the package index of Debian's archive");
        let mut command = self.command("apt-get");
        let out = command.args(["-q", "update"]).output().context("cannot start apt-get")?;
        let text = String::from_utf8_lossy(&out.stderr);
        if !out.status.success() {
            let hint = if text.contains("NO_PUBKEY") { " (install debian-archive-keyring)" } else { "" };
            // One vanished suite must not hide the others, whose lists were fetched.
            if self.names("linux-image-").is_ok_and(|names| !names.is_empty()) {
                note(&format!("a part of the index could not be fetched{hint}: {}", last_line(&text)));
            } else {
                bail!("apt-get update failed{hint}: {}", text.trim());
            }
        }
        let stamp = self.stamp();
        fs::write(&stamp, "").with_context(|| format!("cannot write {}", stamp.display()))
    }

    /// Fetches the index again, whatever its age.
    ///
    /// # Errors
    /// When nothing could be fetched.
    pub fn refresh(&self, note: Note<'_>) -> Result<()> {
        let _lock = cache::lock(&self.dir, "lock")?;
        self.update(note)
    }

    /// Names of all packages that begin with `prefix`.
    ///
    /// # Errors
    /// When apt cannot be run.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let mut command = self.command("apt-cache");
        let out = command.args(["pkgnames", prefix]).output().context("cannot start apt-cache")?;
        if !out.status.success() {
            bail!("apt-cache pkgnames failed: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect())
    }

    /// The directory of an unpacked package, when it was fetched before.
    #[must_use]
    pub fn cached(&self, package: &str) -> Option<PathBuf> {
        let dir = self.dir.join("packages").join(package);
        dir.is_dir().then_some(dir)
    }

    /// Downloads and unpacks a package, once; returns the directory with its files.
    ///
    /// # Errors
    /// When the archive does not have it (any more) or it cannot be unpacked.
    pub fn fetch(&self, package: &str, note: Note<'_>) -> Result<PathBuf> {
        if let Some(dir) = self.cached(package) {
            return Ok(dir);
        }
        let _lock = cache::lock(&self.dir, "lock")?;
        if let Some(dir) = self.cached(package) {
            return Ok(dir); // Another process was faster.
        }
        note(&format!("downloading {package}"));
        let partial = self.dir.join("partial");
        let _ = fs::remove_dir_all(&partial);
        let unpacked = partial.join("root");
        fs::create_dir_all(&unpacked).with_context(|| format!("cannot create {}", unpacked.display()))?;
        let mut command = self.command("apt-get");
        let out =
            command.args(["-q", "download", package]).current_dir(&partial).output().context("cannot start apt-get")?;
        if !out.status.success() {
            bail!("cannot download {package}: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        let deb = fs::read_dir(&partial)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|ext| ext == "deb"))
            .with_context(|| format!("apt-get download {package} left no package"))?;
        let out =
            Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked).output().context("cannot start dpkg-deb")?;
        if !out.status.success() {
            bail!("cannot unpack {}: {}", deb.display(), String::from_utf8_lossy(&out.stderr).trim());
        }
        let dir = self.dir.join("packages").join(package);
        fs::rename(&unpacked, &dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let _ = fs::remove_dir_all(&partial);
        Ok(dir)
    }

    /// Removes an unpacked package.
    pub fn forget(&self, package: &str) {
        let _ = fs::remove_dir_all(self.dir.join("packages").join(package));
    }
}

fn last_line(text: &str) -> &str {
    text.trim().lines().last().unwrap_or("no reason given")
}

/// The suites that hold the kernels of [`super::kernel::SERIES`] and busybox.
fn sources(mirror: &Mirror, keyring: bool) -> String {
    let Mirror { main, security } = mirror;
    let signed = if keyring { format!("[signed-by={KEYRING}] ") } else { String::new() };
    [(security, "bullseye-security"), (main, "bookworm"), (security, "bookworm-security"), (main, "trixie-backports")]
        .map(|(uri, suite)| format!("deb {signed}{uri} {suite} main\n"))
        .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_lines_apt_reads() {
        let mirror = Mirror { main: "http://m/debian".into(), security: "http://s/debian-security".into() };
        let text = sources(&mirror, true);
        let entries = mirror::parse_list(&text);
        assert_eq!(entries.len(), 4);
        assert!(!sources(&mirror, false).contains('['));
        assert_eq!(mirror::choose(&entries), Some(mirror));
    }
}
