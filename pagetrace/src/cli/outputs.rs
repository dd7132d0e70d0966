//! Further outputs beside the normal one: files for machines, and annotations. Opened before anything runs.

use std::{
    fs::File,
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::Args as ClapArgs;

use super::{exit::Refused, sink};
use crate::{
    lines::DebugInfo,
    output::{
        case::{Case, Render},
        github, junit,
        report::Report,
        sarif,
    },
};

/// Where else the report goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, ClapArgs)]
#[command(next_help_heading = "Further outputs")]
pub struct Outputs {
    /// Write the report as JUnit XML to this file as well
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write the report as SARIF 2.1.0 to this file as well
    #[arg(long, value_name = "FILE")]
    pub sarif: Option<PathBuf>,
    /// Write the report as JSON to this file as well
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Print findings as annotations for GitHub Actions, on stderr
    #[arg(long)]
    pub github: bool,
    /// Take source lines from this vmlinux, module, or build tree, besides the usual places (repeatable)
    #[arg(long, value_name = "PATH")]
    pub debug_info: Vec<PathBuf>,
}

/// A file that is open, and what will go into it.
struct Sink {
    path: PathBuf,
    file: File,
    render: Option<Render>,
}

/// All that were asked for, open.
pub(super) struct Open {
    sinks: Vec<Sink>,
    github: bool,
    debug_info: DebugInfo,
}

impl Outputs {
    /// Opens all of them. `taken` are other files of the command, by the name of their option.
    ///
    /// # Errors
    /// When one cannot be written, or two are one file.
    pub(super) fn open(&self, taken: &[(&str, Option<&Path>)]) -> Result<Open> {
        let debug_info = DebugInfo::new(&self.debug_info).map_err(|err| Refused(err.to_string()))?;
        let wanted: [(&str, &Option<PathBuf>, Option<Render>); 3] = [
            ("--junit", &self.junit, Some(junit::render)),
            ("--sarif", &self.sarif, Some(sarif::render)),
            ("--json", &self.json, None),
        ];
        let mut used: Vec<(String, PathBuf)> =
            taken.iter().filter_map(|(option, path)| Some(((*option).to_owned(), (*path)?.to_owned()))).collect();
        let mut sinks = Vec::new();
        for (option, path, render) in wanted {
            let Some(path) = path else { continue };
            if let Some((other, _)) = used.iter().find(|(_, other)| same(other, path)) {
                return Err(Refused(format!("{other} and {option} name the same file, {}", path.display())).into());
            }
            used.push((option.to_owned(), path.clone()));
            // Emptied when all are open: arguments that are refused must not destroy anything.
            let file = sink::keep(path)
                .with_context(|| format!("cannot write to {}: give another {option}", path.display()))?;
            sinks.push(Sink { path: path.clone(), file, render });
        }
        for Sink { path, file, .. } in &sinks {
            // A run that ends early must not leave what an earlier one said.
            sink::empty(file).with_context(|| format!("cannot write to {}", path.display()))?;
        }
        Ok(Open { sinks, github: self.github, debug_info })
    }
}

impl Open {
    /// Adds to a report what other files know of it: source lines.
    pub(super) fn complete(&self, report: &mut Report) {
        let (sources, notes) = self.debug_info.sources(report);
        report.sources = sources;
        for note in notes {
            eprintln!("pagetrace: {note}");
        }
    }

    /// Writes them all; `json` is the document of `--json`.
    pub(super) fn write(self, cases: &[Case<'_>], json: &impl serde::Serialize) -> Result<()> {
        for Sink { path, mut file, render } in self.sinks {
            let text = match render {
                Some(render) => render(cases)?,
                None => serde_json::to_string_pretty(json).context("cannot encode the report")? + "\n",
            };
            file.write_all(text.as_bytes()).with_context(|| format!("cannot write to {}", path.display()))?;
        }
        if self.github {
            eprint!("{}", github::render(cases)?);
        }
        Ok(())
    }
}

/// Whether two paths are one file, or would be once both are made.
fn same(a: &Path, b: &Path) -> bool {
    if a == b {
        return true;
    }
    if let (Ok(a), Ok(b)) = (a.metadata(), b.metadata()) {
        // Two formats to a terminal or to /dev/null are nobody's loss.
        return a.is_file() && (a.dev(), a.ino()) == (b.dev(), b.ino());
    }
    let whole = |path: &Path| {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(dir.canonicalize().ok()?.join(path.file_name()?))
    };
    whole(a).is_some_and(|a| whole(b) == Some(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_names_of_one_file_are_seen_through() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("./b/../a"));
        std::fs::create_dir(dir.path().join("b")).unwrap();
        assert!(same(&a, &a) && same(&a, &b) && !same(&a, &dir.path().join("c")));
        std::fs::write(&a, "").unwrap();
        std::fs::hard_link(&a, dir.path().join("c")).unwrap();
        assert!(same(&a, &dir.path().join("c")));
        assert!(!same(Path::new("/dev/null"), Path::new("/dev/zero")));
    }
}
