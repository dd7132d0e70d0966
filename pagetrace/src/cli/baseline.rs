//! `pagetrace baseline update`: adds the findings and the lock order of reports and recordings to a baseline.

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
    output::{document, report::Report},
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
    /// Add the findings and the edges of the lock order of reports and recordings; entries that are there keep their reasons and dates
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
    let mut all = Vec::new();
    for source in sources {
        all.extend(reports(source)?);
    }
    let found = all.iter().flat_map(|report| &report.findings);
    let new = baseline.update(found.map(|finding| (finding.marks().fingerprint.as_str(), finding.title())));
    let mut edges = None;
    for order in all.iter().filter_map(|report| report.order.as_ref()) {
        // What is known to be right needs no baseline.
        let found = order.edges.iter().filter(|edge| edge.known.is_none());
        *edges.get_or_insert(0) += baseline.add_edges(found.map(|edge| (edge.fingerprint.as_str(), edge.title())));
    }
    let text = baseline.encode(json)?;
    replace(file, &text)?;
    eprintln!(
        "pagetrace: {}: {} entries, {new} of them new{}",
        file.display(),
        baseline.findings.len(),
        if new == 0 { "" } else { ": give each a reason" }
    );
    if let Some(new) = edges {
        let known = baseline.edges.as_ref().map_or(0, Vec::len);
        eprintln!("pagetrace: {}: {known} edges of the lock order, {new} of them new", file.display());
    }
    Ok(Exit::Clean)
}

/// What a file has: a report, those of several kernels, or a recording; they are told apart by how the file begins.
fn reports(path: &Path) -> Result<Vec<Report>> {
    let shown = path.display();
    let mut first = [0];
    let read = fs::File::open(path).and_then(|mut file| file.read(&mut first));
    let read = read.with_context(|| format!("cannot read the report {shown}"))?;
    if read == 1 && first[0] != b'{' && !first[0].is_ascii_whitespace() {
        return Ok(vec![report::read(path)?.report]);
    }
    let text = fs::read_to_string(path).with_context(|| format!("cannot read the report {shown}"))?;
    let reports = document::reports(&text).with_context(|| format!("{shown} is no report of pagetrace"))?;
    for report in &reports {
        if let Some(finding) = report.findings.iter().find(|finding| finding.marks().fingerprint.is_empty()) {
            bail!("{shown} was made by a pagetrace that gave no fingerprints: {}", finding.title());
        }
        let mut edges = report.order.iter().flat_map(|order| &order.edges);
        if let Some(edge) = edges.find(|edge| edge.fingerprint.is_empty()) {
            bail!("{shown} was made by a pagetrace that gave edges no fingerprints: {}", edge.title());
        }
    }
    Ok(reports)
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
