//! Reads back what `--format json` wrote: one report, or those of several test kernels. Total.

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::report::{self, Report};

/// Version of the document of several runs.
pub const RUNS: &str = "pagetrace.vm/1";

#[derive(Deserialize)]
struct Head {
    schema: String,
}

#[derive(Deserialize)]
struct Runs {
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    report: Option<Report>,
}

/// The reports in a document.
///
/// # Errors
/// When it is none of ours, or of another version.
pub fn reports(text: &str) -> Result<Vec<Report>> {
    let Head { schema } = serde_json::from_str(text).context("it has no \"schema\"")?;
    match schema.as_str() {
        report::SCHEMA => Ok(vec![serde_json::from_str(text)?]),
        RUNS => {
            let Runs { runs } = serde_json::from_str(text)?;
            Ok(runs.into_iter().filter_map(|run| run.report).collect())
        }
        other => bail!("its schema is {other:?}, and this program reads {:?} and {RUNS:?}", report::SCHEMA),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_none_of_ours_is_refused() {
        for (text, says) in [
            ("", "no \"schema\""),
            ("{}", "no \"schema\""),
            ("{\"schema\": \"pagetrace.report/9\"}", "pagetrace.report/9"),
            ("{\"schema\": \"pagetrace.vm/1\", \"runs\": 3}", "invalid type"),
        ] {
            let err = format!("{:#}", reports(text).unwrap_err());
            assert!(err.contains(says), "{text}: {err}");
        }
        let none = reports("{\"schema\": \"pagetrace.vm/1\", \"runs\": [{\"report\": null}]}").unwrap();
        assert!(none.is_empty());
    }
}
