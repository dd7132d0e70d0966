//! `cargo xtask lockdep`: the fixtures on a kernel with lockdep, and what it says of each beside what pagetrace says.
//!
//! It judges pagetrace and is no part of the usual tests: it builds a kernel, and boots one for each report of lockdep.

mod build;
mod judge;
mod splat;
mod table;
mod tracer;

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};

use crate::{
    build as programs,
    cases::{BPF_CASES, CASES, Kind},
    kmod, setup,
    step::note,
    vm::kernel,
};

/// The series that is built, and that pagetrace runs on.
const SERIES: &str = "6.12";

/// What `cargo xtask lockdep` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these cases; may be repeated.
    #[arg(long)]
    case: Vec<String>,
    /// Only say what is missing.
    #[arg(long)]
    no_install: bool,
}

/// Runs the subcommand; 1 when a verdict differs and no reason is known.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let cases = chosen(&options.case)?;
    setup::ensure_for(setup::Purpose::Kernel, !options.no_install)?;
    let built = build::kernel(SERIES)?;
    let module = kmod::build_for_tree(&built.tree)?;
    let binaries = programs::build_static()?;
    let stock = kernel::resolve(SERIES, &note)?;
    let words: Vec<(Kind, String)> = cases.iter().map(|(name, kind)| (*kind, words(name))).collect();
    let traced = tracer::all(&stock, &binaries, &words)?;
    let all: Vec<String> = words.iter().map(|(_, words)| words.clone()).collect();
    let judged = judge::all(&built.image, &module, &binaries, &all)?;
    let mut rows = Vec::new();
    for ((name, kind), (_, words)) in cases.iter().zip(&words) {
        let judged = judged.get(words).with_context(|| format!("lockdep did not see {name}"))?.clone();
        let traced = traced.get(words).with_context(|| format!("pagetrace did not see {name}"))?.clone();
        rows.push(table::Row { name: (*name).to_owned(), kind: *kind, judged, traced });
    }
    println!("lockdep: Linux {} with PROVE_LOCKING and DEBUG_ATOMIC_SLEEP, without pagetrace", built.version);
    println!("pagetrace: check --strict --order on {}\n", stock.release);
    print!("{}", table::render(&rows));
    let count = |wanted: fn(&table::Reading) -> bool| rows.iter().filter(|row| wanted(&row.reading())).count();
    let (agree, known) = (
        count(|reading| *reading == table::Reading::Agree),
        count(|reading| matches!(reading, table::Reading::Known(_))),
    );
    let open = count(|reading| !table::fine(reading));
    println!("\n{} cases: {agree} agree, {known} differ for a known reason, {open} are open", rows.len());
    Ok(if open == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The cases, those first that lockdep should be silent about: they share a guest.
fn chosen(wanted: &[String]) -> Result<Vec<(&'static str, Kind)>> {
    let mut all: Vec<_> = CASES.iter().map(|case| (case.name, case.kind)).chain(BPF_CASES.iter().copied()).collect();
    for name in wanted {
        ensure!(all.iter().any(|(of, _)| of == name), "no case is called {name}");
    }
    all.retain(|(name, _)| wanted.is_empty() || wanted.iter().any(|of| of == name));
    all.sort_by_key(|(_, kind)| !matches!(kind, Kind::Clean | Kind::Ordered));
    Ok(all)
}

/// The fixture program's words for a case.
fn words(name: &str) -> String {
    if BPF_CASES.iter().any(|(of, _)| *of == name) { name.to_owned() } else { format!("kmod {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_should_be_silent_comes_first() {
        let all = chosen(&[]).unwrap();
        assert_eq!(all.len(), CASES.len() + BPF_CASES.len());
        let silent = |(_, kind): &(&str, Kind)| matches!(kind, Kind::Clean | Kind::Ordered);
        assert!(all.iter().skip_while(|case| silent(case)).all(|case| !silent(case)));
        assert_eq!(chosen(&["plain".into()]).unwrap(), [("plain", Kind::Clean)]);
        assert!(chosen(&["nonsense".into()]).is_err());
        assert_eq!((words("plain").as_str(), words("iter-clean").as_str()), ("kmod plain", "iter-clean"));
    }
}
