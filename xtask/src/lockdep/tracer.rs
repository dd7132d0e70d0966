//! The same cases under `pagetrace check --strict --order` on the stock kernel: its findings, by the name of the case's task.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::judge;
use crate::{
    build::StaticBinaries,
    cases::{self, Kind},
    guest, kmod,
    step::note,
    test::assets,
    vm::{self, Outcome, VmSpec, kernel::Kernel},
};

/// What pagetrace said of a case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Traced {
    /// Classes of findings.
    pub(super) found: Vec<String>,
    /// Why silence would not be a verdict.
    pub(super) incomplete: Vec<String>,
    /// How the fixture ended.
    pub(super) code: i32,
}

/// One check: the cases that run under it, by their words. In the arguments: a name for the report, then the cases.
const SCRIPT: &str = r#"
name=$1; shift
pagetrace check --strict --order --json "/out/$name.json" -o "/out/$name.txt" -- \
  sh -c 'for words; do pagetrace-fixture $words >> /out/log 2>&1; echo "$words: $?" >> /out/ended; done' sh "$@"
echo "check: $?" >> /out/checks
"#;

/// Runs all cases.
pub(super) fn all(
    kernel: &Kernel,
    binaries: &StaticBinaries,
    cases: &[(Kind, String)],
) -> Result<BTreeMap<String, Traced>> {
    let module = kmod::build(&kernel.series, &kernel.release)?;
    let module = module.with_context(|| format!("the headers of {} cannot be had", kernel.release))?;
    let mut traced = BTreeMap::new();
    for group in groups(cases) {
        let spec = spec(kernel, &module, binaries, &group)?;
        note(&format!("pagetrace on {}: {} cases from {}", kernel.release, group.len(), group[0]));
        let result = vm::run(&spec, &mut |_| {})?;
        ensure!(
            matches!(result.outcome, Outcome::Exited { .. }),
            "{}: {}; console: {}",
            kernel.release,
            result.outcome,
            result.console_log.display()
        );
        let report = result
            .out_text("report.json")
            .with_context(|| format!("there is no report; console: {}", result.console_log.display()))?;
        let report: Value = serde_json::from_str(&report).context("the report is not JSON")?;
        // A case that hangs is ended together with the shell that would have told its end.
        let ended = judge::parse(&result.out_text("ended").unwrap_or_default())?;
        for words in &group {
            let code = ended.iter().find(|(of, _)| of == words).map_or(137, |(_, code)| *code);
            traced.insert(words.clone(), of(&report, name_of(words), code));
        }
    }
    Ok(traced)
}

/// The cases that share a check: those that are right, those that are not; each that hangs has one of its own.
fn groups(cases: &[(Kind, String)]) -> Vec<Vec<String>> {
    let (mut right, mut wrong, mut groups) = (Vec::new(), Vec::new(), Vec::new());
    for (kind, words) in cases {
        match kind {
            Kind::Hanging | Kind::Standing => groups.push(vec![words.clone()]),
            Kind::Clean | Kind::Ordered => right.push(words.clone()),
            Kind::Violating | Kind::Latent | Kind::Leaking | Kind::Inverting => wrong.push(words.clone()),
        }
    }
    groups.extend([right, wrong]);
    groups.retain(|group| !group.is_empty());
    groups
}

fn spec(kernel: &Kernel, module: &Path, binaries: &StaticBinaries, group: &[String]) -> Result<VmSpec> {
    let mut spec = guest::base(&kernel.image, &binaries.pagetrace, "lockdep-stock")?;
    assets(&mut spec, binaries, Some(module));
    spec.modules = vec![module.to_owned()];
    spec.command = ["sh", "-c", SCRIPT, "sh", "report"].map(Into::into).to_vec();
    spec.command.extend(group.iter().map(Into::into));
    spec.timeout = Duration::from_secs(400);
    Ok(spec)
}

fn name_of(words: &str) -> &str {
    words.rsplit(' ').next().unwrap_or(words)
}

/// What a report says of a case: findings in which its task takes part.
fn of(report: &Value, name: &str, code: i32) -> Traced {
    let comm = cases::comm_of(name);
    let of_case = |finding: &&Value| {
        let tasks = std::iter::once(&finding["task"])
            .chain(list(&finding["cycle"]).iter().map(|edge| &edge["task"]))
            .chain(list(&finding["tasks"]));
        tasks.into_iter().any(|task| task["comm"].as_str() == Some(&comm))
    };
    let mut found: Vec<String> = list(&report["findings"])
        .iter()
        .filter(of_case)
        .filter_map(|finding| finding["class"].as_str().map(str::to_owned))
        .collect();
    found.sort();
    found.dedup();
    let reasons = list(&report["coverage"]["incomplete_because"]).iter();
    Traced { found, incomplete: reasons.map(ToString::to_string).collect(), code }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn findings_belong_to_the_case_whose_task_takes_part() {
        let report = json!({
            "findings": [
                {"class": "fault-under-lock", "task": {"comm": "ptf-read-own"}},
                {"class": "lock-order", "cycle": [{"task": {"comm": "ptf-read-own"}}]},
                {"class": "lock-order", "cycle": [{"task": {"comm": "ptf-read-own"}}]},
                {"class": "deadlock", "tasks": [{"comm": "ptf-other"}]},
            ],
            "coverage": {"incomplete_because": ["a reason"]},
        });
        let traced = of(&report, "read-own", 0);
        assert_eq!(traced.found, ["fault-under-lock", "lock-order"]);
        assert_eq!(traced.incomplete, ["\"a reason\""]);
        assert!(of(&report, "plain", 0).found.is_empty());
    }

    #[test]
    fn what_hangs_runs_alone() {
        let case = |kind, words: &str| (kind, words.to_owned());
        let cases =
            [case(Kind::Clean, "a"), case(Kind::Hanging, "b"), case(Kind::Clean, "c"), case(Kind::Hanging, "d")];
        assert_eq!(groups(&cases), [vec!["b"], vec!["d"], vec!["a", "c"]]);
    }
}
