//! `pagetrace baseline update`: adds the findings of reports and recordings to a baseline.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args as ClapArgs, Subcommand};

use super::{
    ci,
    exit::{Exit, Refused},
    report,
};
use crate::{
    output::{document, found::Found},
    policy::baseline::{Baseline, is_json},
};

/// `baseline`.
#[derive(Debug, ClapArgs)]
pub struct BaselineArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub action: Action,
}

/// What can be done with a baseline.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Add the findings of reports and recordings; entries that are there keep their reasons and dates
    Update {
        /// The baseline; made where there is none, as JSON if it ends in .json
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Reports in JSON, or recordings
        #[arg(value_name = "REPORT", required = true)]
        sources: Vec<PathBuf>,
    },
}

/// Does it.
pub(super) fn run(args: &BaselineArgs) -> Result<Exit> {
    let Action::Update { file, sources } = &args.action;
    let old = match fs::read_to_string(file) {
        Ok(text) => Some(text),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => None,
        Err(err) => return Err(Refused(format!("cannot read the baseline {}: {err}", file.display())).into()),
    };
    let json = old.as_deref().map_or_else(|| file.extension().is_some_and(|ext| ext == "json"), is_json);
    let mut baseline = match &old {
        Some(_) => ci::read(file, "baseline", Baseline::parse)?,
        None => Baseline::default(),
    };
    let mut found = Vec::new();
    for source in sources {
        found.extend(findings(source)?);
    }
    let new = baseline.update(found.iter().map(|finding| (finding.marks().fingerprint.as_str(), finding.title())));
    let text = baseline.encode(json)?;
    replace(file, &text)?;
    eprintln!(
        "pagetrace: {}: {} entries, {new} of them new{}",
        file.display(),
        baseline.findings.len(),
        if new == 0 { "" } else { ": give each a reason" }
    );
    Ok(Exit::Clean)
}

/// The findings of a report or recording, told apart by how the file begins.
fn findings(path: &Path) -> Result<Vec<Found>> {
    let shown = path.display();
    let mut first = [0];
    let read = fs::File::open(path).and_then(|mut file| file.read(&mut first));
    let read = read.with_context(|| format!("cannot read the report {shown}"))?;
    if read == 1 && first[0] != b'{' && !first[0].is_ascii_whitespace() {
        return Ok(report::read(path)?.report.findings);
    }
    let text = fs::read_to_string(path).with_context(|| format!("cannot read the report {shown}"))?;
    let findings = document::findings(&text).with_context(|| format!("{shown} is no report of pagetrace"))?;
    if let Some(finding) = findings.iter().find(|finding| finding.marks().fingerprint.is_empty()) {
        bail!("{shown} was made by a pagetrace that gave no fingerprints: {}", finding.title());
    }
    Ok(findings)
}

/// Writes beside the file and renames, so that reasons people wrote are never lost half-way.
fn replace(file: &Path, text: &str) -> Result<()> {
    let mut name = file.file_name().context("a baseline needs a file name")?.to_owned();
    name.push(".new");
    let beside = file.with_file_name(name);
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, file))
        .with_context(|| format!("cannot write the baseline {}", file.display()))
}
