//! From a series ("6.1"), "newest" or a path to a kernel image on this machine.
//!
//! Exact package versions leave Debian's archive as it moves on, so the newest package of a series
//! is looked up at run time.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{
    apt::{AptRoot, Note},
    cache, package,
};

/// The series that the suites in the private apt root hold and the tests run on.
pub const SERIES: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "7.3"];

/// A kernel image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// "6.1", or the file name of an image given by path.
    pub series: String,
    /// What `uname -r` will say, or the file name.
    pub release: String,
    /// The image.
    pub image: PathBuf,
}

/// A package that may hold an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The package's name.
    pub package: String,
    /// "6.1".
    pub series: String,
    /// What `uname -r` will say.
    pub release: String,
    version: Vec<u32>,
    rank: u8,
}

fn candidate(package: &str) -> Option<Candidate> {
    let (rest, rank) = match package.strip_suffix("-unsigned") {
        Some(rest) => (rest, 2),
        None => (package, 0),
    };
    // From 6.19 on the image lies in linux-binary-*, and linux-image-* only depends on it.
    let (release, rank) = match rest.strip_prefix("linux-binary-") {
        Some(release) => (release, rank),
        None => (rest.strip_prefix("linux-image-")?, rank + 1),
    };
    let version = release.strip_suffix("-cloud-amd64")?;
    // A backport to an older Debian (6.1.0-0.deb11.52) loses against the release's own package.
    let upstream = version.split('+').next()?;
    let version: Vec<u32> =
        upstream.split(['.', '-']).map(|part| part.trim_start_matches("deb").parse().ok()).collect::<Option<_>>()?;
    let [major, minor, _, ..] = version.as_slice() else {
        return None; // linux-image-6.1-cloud-amd64 is an empty package.
    };
    Some(Candidate {
        package: package.to_owned(),
        series: format!("{major}.{minor}"),
        release: release.to_owned(),
        version,
        rank,
    })
}

/// The packages of a series, or of all series for "newest": best first.
#[must_use]
pub fn candidates<'a>(names: impl IntoIterator<Item = &'a str>, wanted: &str) -> Vec<Candidate> {
    let mut found: Vec<_> =
        names.into_iter().filter_map(candidate).filter(|c| wanted == "newest" || c.series == wanted).collect();
    found.sort_by(|a, b| b.version.cmp(&a.version).then(a.rank.cmp(&b.rank)).then(a.package.cmp(&b.package)));
    found.dedup();
    found
}

/// Finds or fetches a kernel image. A word with a slash, or which names something here, is a path: of an image, a package, or a
/// build tree.
///
/// # Errors
/// When the path does not exist, or the archive has no such series, or it cannot be fetched.
pub fn resolve(wanted: &str, note: Note<'_>) -> Result<Kernel> {
    if wanted.contains('/') || Path::new(wanted).exists() {
        return package::at(Path::new(wanted), &cache::dir()?.join("unpacked"));
    }
    let apt = AptRoot::open(note)?;
    fetch_best(&apt, wanted, note).or_else(|first| {
        // The index may name what the archive has since dropped.
        apt.refresh(note).with_context(|| format!("after: {first:#}"))?;
        fetch_best(&apt, wanted, note)
    })
}

fn fetch_best(apt: &AptRoot, wanted: &str, note: Note<'_>) -> Result<Kernel> {
    const TRIES: usize = 4;
    let mut names = apt.names("linux-image-")?;
    names.extend(apt.names("linux-binary-")?);
    let all = candidates(names.iter().map(String::as_str), wanted);
    if all.is_empty() {
        let known = SERIES.join(", ");
        bail!("Debian's archive has no kernel of series {wanted}; those the tests run on are {known}");
    }
    let mut failures = Vec::new();
    for candidate in all.into_iter().take(TRIES) {
        match fetch_image(apt, &candidate, note) {
            Ok(kernel) => return Ok(kernel),
            Err(err) => failures.push(format!("{err:#}")),
        }
    }
    bail!("no kernel of series {wanted} could be fetched: {}", failures.join("; "))
}

fn fetch_image(apt: &AptRoot, candidate: &Candidate, note: Note<'_>) -> Result<Kernel> {
    let Candidate { package, series, release, .. } = candidate;
    let dir = apt.fetch(package, note)?;
    let file = format!("vmlinuz-{release}");
    let image = [dir.join("boot").join(&file), dir.join("usr/lib/modules").join(release).join("vmlinuz")]
        .into_iter()
        .find(|path| path.is_file());
    let Some(image) = image else {
        apt.forget(package);
        bail!("{package} holds no {file}");
    };
    Ok(Kernel { series: series.clone(), release: release.clone(), image })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 15] = [
        "linux-image-5.10.0-9-cloud-amd64",
        "linux-image-5.10.0-46-cloud-amd64",
        "linux-image-5.10.0-46-cloud-amd64-dbg",
        "linux-image-5.10.0-46-cloud-amd64-unsigned",
        "linux-image-6.1-cloud-amd64",
        "linux-image-6.1.0-0.deb11.52-cloud-amd64",
        "linux-image-6.1.0-56-cloud-amd64",
        "linux-image-6.12.101+deb12-cloud-amd64",
        "linux-image-6.12.99+deb12-cloud-amd64",
        "linux-image-6.12.117+deb12-cloud-amd64-unsigned",
        "linux-image-7.3.4+deb13-cloud-amd64",
        "linux-binary-7.3.4+deb13-cloud-amd64",
        "linux-binary-7.3.4+deb13-rt-amd64",
        "linux-binary-unsigned-7.3.4+deb13-cloud-amd64",
        "linux-image-cloud-amd64",
    ];

    fn packages(wanted: &str) -> Vec<String> {
        candidates(NAMES, wanted).into_iter().map(|c| c.package).collect()
    }

    #[test]
    fn newest_first_and_signed_before_unsigned() {
        assert_eq!(
            packages("5.10"),
            [
                "linux-image-5.10.0-46-cloud-amd64",
                "linux-image-5.10.0-46-cloud-amd64-unsigned",
                "linux-image-5.10.0-9-cloud-amd64"
            ]
        );
        assert_eq!(packages("6.12")[0], "linux-image-6.12.117+deb12-cloud-amd64-unsigned");
    }

    #[test]
    fn own_release_before_backport() {
        assert_eq!(packages("6.1"), ["linux-image-6.1.0-56-cloud-amd64", "linux-image-6.1.0-0.deb11.52-cloud-amd64"]);
    }

    #[test]
    fn split_packages() {
        let found = candidates(NAMES, "newest");
        assert_eq!(found[0].package, "linux-binary-7.3.4+deb13-cloud-amd64");
        assert_eq!((found[0].series.as_str(), found[0].release.as_str()), ("7.3", "7.3.4+deb13-cloud-amd64"));
        assert_eq!(packages("7.3").len(), 2);
    }

    #[test]
    fn unknown_series() {
        assert!(packages("4.4").is_empty());
    }
}
