//! The kernel module among the fixtures, built for a test kernel.
//!
//! The headers come from Debian's archive and are unpacked into the cache; nothing is installed. Where a
//! series' build tools need a newer C library than this machine may have, the build runs in a small Debian of
//! its own in the cache. A module is built once for the same sources and the same kernel.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    step,
    vm::{apt::AptRoot, cache, mirror},
    workspace,
};

/// Part of the cache key: raise it when the way of building changes.
const RECIPE: u32 = 1;
const MODULE: &str = "pagetrace_fixture.ko";
const FLAVOUR: &str = "-cloud-amd64";
/// The release of Debian for series whose build tools do not run on an older one, and its compiler.
const SUITE: &str = "trixie";
const SUITE_COMPILER: &str = "gcc-14";
/// The compiler of this machine for the others.
pub(crate) const COMPILER: &str = "gcc-12";

/// Where a series' module can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Here,
    Chroot,
}

fn place(series: &str) -> Option<Place> {
    match series {
        "5.10" | "6.1" | "6.12" => Some(Place::Here),
        "7.3" => Some(Place::Chroot),
        // The archive has dropped the headers of this series' last image.
        _ => None,
    }
}

/// Builds the fixture module for a kernel of `series` whose `uname -r` says `release`; `None` where the
/// headers of that series cannot be had.
pub(crate) fn build(series: &str, release: &str) -> Result<Option<PathBuf>> {
    let Some(place) = place(series) else { return Ok(None) };
    let base = cache::dir()?.join("kmod");
    fs::create_dir_all(&base).with_context(|| format!("cannot create {}", base.display()))?;
    let sources = Sources::read(&workspace::root().join("tests/fixtures/kmod"))?;
    let module = base.join(format!("{release}-{:016x}", sources.key())).join(MODULE);
    let _lock = cache::lock(&base, "lock")?;
    if module.is_file() {
        return Ok(Some(module));
    }
    let built = match place {
        Place::Here => build_here(&base, series, release, &sources),
        Place::Chroot => build_in_chroot(&base, release, &sources),
    };
    let built = built.with_context(|| format!("cannot build the fixture module for {release}"))?;
    let dir = module.parent().context("the module has a directory")?;
    fs::create_dir_all(dir)?;
    let partial = dir.join("partial");
    fs::copy(&built, &partial).with_context(|| format!("the build left no {}", built.display()))?;
    fs::rename(&partial, &module)?;
    Ok(Some(module))
}

/// Builds the fixture module for a kernel that was built here, in its build tree `kernel`, where it stays.
pub(crate) fn build_for_tree(kernel: &Path) -> Result<PathBuf> {
    let sources = Sources::read(&workspace::root().join("tests/fixtures/kmod"))?;
    let work = kernel.join(format!("fixture-{:016x}", sources.key()));
    let module = work.join(MODULE);
    if !module.is_file() {
        sources.copy_to(&work)?;
        make_module(&work, kernel, "the kernel with lockdep")?;
    }
    ensure!(module.is_file(), "the build left no {}", module.display());
    Ok(module)
}

/// The module's source files, by name.
struct Sources(Vec<(String, Vec<u8>)>);

impl Sources {
    fn read(dir: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let known = matches!(path.extension().and_then(|ext| ext.to_str()), Some("c" | "h"));
            // Leftovers of a build by hand are not sources.
            if (known && !name.ends_with(".mod.c")) || name == "Kbuild" || name == "Makefile" {
                let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                files.push((name, bytes));
            }
        }
        files.sort();
        ensure!(files.iter().any(|(name, _)| name == "Kbuild"), "{} holds no module", dir.display());
        Ok(Self(files))
    }

    fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (RECIPE, &self.0).hash(&mut hasher);
        hasher.finish()
    }

    /// A fresh copy to build in.
    fn copy_to(&self, dir: &Path) -> Result<()> {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        for (name, bytes) in &self.0 {
            fs::write(dir.join(name), bytes).with_context(|| format!("cannot write {name}"))?;
        }
        Ok(())
    }
}

fn needs(tool: &str, package: &str) -> Result<()> {
    let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    ensure!(found.is_ok(), "{tool} is missing: install {package}");
    Ok(())
}

fn build_here(base: &Path, series: &str, release: &str, sources: &Sources) -> Result<PathBuf> {
    needs("make", "make")?;
    needs(COMPILER, COMPILER)?;
    let headers = headers(base, series, release)?;
    let work = base.join("work");
    sources.copy_to(&work)?;
    make_module(&work, &headers, release)?;
    Ok(work.join(MODULE))
}

fn make_module(work: &Path, kernel: &Path, of: &str) -> Result<()> {
    let mut make = Command::new("make");
    make.arg("-C").arg(work).arg(format!("KDIR={}", kernel.display())).arg(format!("CC={COMPILER}")).arg("modules");
    step::run(&format!("building the fixture module for {of}"), &mut make)?;
    Ok(())
}

/// The packages with the headers of a release, in the order in which their trees are laid over each other.
fn packages(series: &str, release: &str, known: &[String]) -> Result<[String; 3]> {
    let version = release.strip_suffix(FLAVOUR).with_context(|| format!("{release} is no {FLAVOUR} kernel"))?;
    // One package served a whole series before each version had its own.
    let own = format!("linux-kbuild-{version}");
    let kbuild = if known.contains(&own) { own } else { format!("linux-kbuild-{series}") };
    Ok([kbuild, format!("linux-headers-{version}-common"), format!("linux-headers-{release}")])
}

/// A tree to build modules in, made of the unpacked packages.
fn headers(base: &Path, series: &str, release: &str) -> Result<PathBuf> {
    let tree = base.join(format!("headers-{release}"));
    let source = |name: &str| tree.join("usr/src").join(format!("linux-headers-{name}"));
    if tree.is_dir() {
        return Ok(source(release));
    }
    let apt = AptRoot::open(&step::note)?;
    let packages = packages(series, release, &apt.names("linux-kbuild-")?)?;
    let partial = base.join("headers.partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    for package in &packages {
        let fetched = apt.fetch(package, &step::note)?;
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(fetched.join(".")).arg(&partial);
        let status = copy.status().context("cannot start cp")?;
        ensure!(status.success(), "{copy:?} failed ({status})");
    }
    let here = partial.join("usr/src").join(format!("linux-headers-{release}"));
    // The package expects the common part at an absolute path.
    let common = source(&format!("{}-common", release.strip_suffix(FLAVOUR).unwrap_or(release)));
    let makefile = here.join("Makefile");
    fs::write(&makefile, format!("include {}/Makefile\n", common.display()))
        .with_context(|| format!("cannot write {}", makefile.display()))?;
    without_module_btf(&here)?;
    fs::rename(&partial, &tree).with_context(|| format!("cannot create {}", tree.display()))?;
    Ok(source(release))
}

/// Takes away what makes the build ask for pahole; the module does without type information of its own.
fn without_module_btf(headers: &Path) -> Result<()> {
    let image = headers.join("vmlinux");
    if image.exists() {
        fs::remove_file(&image).with_context(|| format!("cannot remove {}", image.display()))?;
    }
    Ok(())
}

fn build_in_chroot(base: &Path, release: &str, sources: &Sources) -> Result<PathBuf> {
    let root = chroot(base)?;
    let headers = root.join("usr/src").join(format!("linux-headers-{release}"));
    if !headers.is_dir() {
        let package = format!("linux-headers-{release}");
        install(&root, &["make", SUITE_COMPILER, &package])?;
    }
    without_module_btf(&headers)?;
    sources.copy_to(&root.join("build"))?;
    // objtool reads /proc. In a mount namespace of its own the mount ends with the build, however it ends.
    let mut make = Command::new("unshare");
    make.args(["--mount", "--", "sh", "-c", "mount -t proc proc \"$0/proc\" && exec chroot \"$0\" \"$@\""])
        .arg(&root)
        .args(["make", "-C", "/build", &format!("CC={SUITE_COMPILER}")])
        .args([&format!("KDIR=/usr/src/linux-headers-{release}"), "modules"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    step::run(&format!("building the fixture module for {release}"), &mut make)?;
    Ok(root.join("build").join(MODULE))
}

/// A minimal Debian in the cache.
fn chroot(base: &Path) -> Result<PathBuf> {
    let root = base.join(SUITE);
    if root.is_dir() {
        return Ok(root);
    }
    needs("debootstrap", "debootstrap")?;
    let mirror = mirror::configured(Path::new("/etc/apt"))?;
    let partial = base.join(format!("{SUITE}.partial"));
    let _ = fs::remove_dir_all(&partial);
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", SUITE]).arg(&partial).arg(&mirror.main);
    let made = step::run(&format!("unpacking a minimal Debian ({SUITE})"), &mut command);
    if let Err(error) = made {
        bail!("{error:#}\n(debootstrap needs root: run this with sudo, or build the module elsewhere)");
    }
    let extra = format!("deb {} {SUITE}-backports main\n", mirror.main);
    fs::write(partial.join("etc/apt/sources.list.d/backports.list"), extra)?;
    // No service may start in there.
    let policy = partial.join("usr/sbin/policy-rc.d");
    fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
    fs::set_permissions(&policy, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::rename(&partial, &root).with_context(|| format!("cannot create {}", root.display()))?;
    Ok(root)
}

fn install(root: &Path, packages: &[&str]) -> Result<()> {
    let apt = |title: &str, args: &[&str]| {
        let mut command = Command::new("chroot");
        command.arg(root).arg("apt-get").args(args);
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env_remove("APT_CONFIG");
        step::run(title, &mut command)
    };
    apt("fetching the package index for the module's build", &["-q", "update"])?;
    let args: Vec<_> = ["-q", "-y", "--no-install-recommends", "install"].iter().chain(packages).copied().collect();
    apt("installing the module's build tools into the cache", &args)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packages_of_a_release() {
        let known = ["linux-kbuild-6.1".to_owned(), "linux-kbuild-6.12.117+deb12".to_owned()];
        let names = packages("6.12", "6.12.117+deb12-cloud-amd64", &known).expect("a cloud kernel");
        assert_eq!(names[0], "linux-kbuild-6.12.117+deb12");
        assert_eq!(names[1], "linux-headers-6.12.117+deb12-common");
        assert_eq!(names[2], "linux-headers-6.12.117+deb12-cloud-amd64");
        let names = packages("6.1", "6.1.0-56-cloud-amd64", &known).expect("a cloud kernel");
        assert_eq!(names[0], "linux-kbuild-6.1");
        assert!(packages("6.1", "6.1.0-56-rt-amd64", &known).is_err());
    }

    #[test]
    fn a_change_of_the_sources_changes_the_key() {
        let key = |text: &[u8]| Sources(vec![("device.c".to_owned(), text.to_vec())]).key();
        assert_eq!(key(b"a"), key(b"a"));
        assert_ne!(key(b"a"), key(b"b"));
    }

    #[test]
    fn no_module_where_there_are_no_headers() {
        assert_eq!(place("6.18"), None);
    }
}
