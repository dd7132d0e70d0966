//! Kernels by path: an image, a Debian or RPM package, or a build tree.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    image::{self, Image},
    kernel::Kernel,
};

/// The kernel at a path. Packages are unpacked below `scratch`.
///
/// # Errors
/// When there is no kernel that boots here.
pub fn at(path: &Path, scratch: &Path) -> Result<Kernel> {
    let shown = path.display();
    let path = path.canonicalize().with_context(|| format!("no kernel image {shown}"))?;
    let found = if path.is_dir() {
        in_tree(&path)?
    } else {
        match path.extension().and_then(|ext| ext.to_str()) {
            Some("deb") => in_deb(&path, scratch)?,
            Some("rpm") => in_rpm(&path, scratch)?,
            _ => path.clone(),
        }
    };
    let release = match image::identify(&beginning(&found)?) {
        Image::X86 { release } => release,
        Image::Other(what) => bail!("{shown} is no kernel that boots on x86-64: it is {what}"),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Kernel { series: name.clone(), release: release.unwrap_or(name), image: found })
}

fn beginning(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(image::ENOUGH as u64).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

/// A build tree has the image where the build puts it, an unpacked package in `boot` or beside its modules.
fn in_tree(dir: &Path) -> Result<PathBuf> {
    let built = dir.join("arch/x86/boot/bzImage");
    if built.is_file() {
        return Ok(built);
    }
    let mut found = Vec::new();
    for boot in [dir.to_owned(), dir.join("boot")] {
        found.extend(entries(&boot).into_iter().filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            path.is_file() && (name.starts_with("vmlinuz") || name == "bzImage")
        }));
    }
    for modules in ["lib/modules", "usr/lib/modules"] {
        found.extend(
            entries(&dir.join(modules)).into_iter().map(|dir| dir.join("vmlinuz")).filter(|path| path.is_file()),
        );
    }
    found.sort();
    found.dedup();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => bail!("{} holds no kernel: neither arch/x86/boot/bzImage nor a vmlinuz", dir.display()),
        many => bail!("{} holds {} kernels; give the path of one", dir.display(), many.len()),
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn fresh(scratch: &Path, package: &Path) -> Result<PathBuf> {
    let dir = scratch.join(package.file_stem().unwrap_or_default());
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

fn in_deb(package: &Path, scratch: &Path) -> Result<PathBuf> {
    let dir = fresh(scratch, package)?;
    let out = Command::new("dpkg-deb").arg("-x").arg(package).arg(&dir).output();
    let out = out.context("a .deb is unpacked with dpkg-deb (package dpkg), which cannot be started")?;
    ensure!(
        out.status.success(),
        "cannot unpack {}: {}",
        package.display(),
        String::from_utf8_lossy(&out.stderr).trim()
    );
    in_tree(&dir)
}

fn in_rpm(package: &Path, scratch: &Path) -> Result<PathBuf> {
    let dir = fresh(scratch, package)?;
    let mut unpack = Command::new("rpm2cpio")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("a .rpm is unpacked with rpm2cpio and cpio; rpm2cpio cannot be started")?;
    let archive = unpack.stdout.take().context("rpm2cpio has no output")?;
    let out = Command::new("cpio")
        .args(["-idm", "--quiet", "--no-absolute-filenames"])
        .stdin(archive)
        .current_dir(&dir)
        .output();
    let unpacked = unpack.wait().context("cannot wait for rpm2cpio")?;
    let out = out.context("a .rpm is unpacked with rpm2cpio and cpio; cpio cannot be started")?;
    ensure!(
        unpacked.success() && out.status.success(),
        "cannot unpack {}: {}",
        package.display(),
        String::from_utf8_lossy(&out.stderr).trim()
    );
    in_tree(&dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_no_kernel_is_said() {
        let dir = std::env::temp_dir().join(format!("pagetrace-package-{}", std::process::id()));
        fs::create_dir_all(dir.join("boot")).unwrap();
        let says = |path: &Path| format!("{:#}", at(path, &dir.join("scratch")).unwrap_err());
        assert!(says(&dir).contains("holds no kernel"), "{}", says(&dir));
        assert!(says(Path::new("/no/such/kernel")).contains("/no/such/kernel"));
        fs::write(dir.join("boot/vmlinuz-1"), "text").unwrap();
        assert!(says(&dir).contains("no kernel that boots"), "{}", says(&dir));
        fs::write(dir.join("boot/vmlinuz-2"), "text").unwrap();
        assert!(says(&dir).contains("holds 2 kernels"), "{}", says(&dir));
        fs::write(dir.join("a.deb"), "no package").unwrap();
        assert!(says(&dir.join("a.deb")).contains("a.deb"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
