//! `pagetrace verify` of a program whose pages come and go in every way on purpose: all of it has to be explained, each way by what it
//! is; and a fault that is kept from the comparison, or lost, has to show.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Tally, report,
    tool::{self, Ended, LIMIT, Tool, tail},
};
use crate::fixture::{presence::TOUCHED, unwatched};

/// Explanations that the fixture's pages must have, with the least number of each.
const PRESENT: [(&str, u64); 6] = [
    ("fault", TOUCHED as u64),
    ("kernel-fault", 1),
    ("fault-around", 16),
    ("populate", 32),
    ("exec", 4),
    ("inherited", TOUCHED as u64),
];

/// Where pages must have gone that were faulted in. The heap's are among the unmapped ones.
const GONE: [(&str, u64); 2] = [("unmapped", 16 + 64), ("discarded", 64 + 7 * 64)];

/// Runs the part.
pub fn run(tool: &Tool, tally: &mut Tally) {
    tally.case("verify/explained", || explained(tool));
    tally.case("verify/withheld", || withheld(tool));
    tally.case("verify/lost", || lost(tool));
}

/// `pagetrace verify OPTIONS -- pagetrace-fixture`, and more to come.
fn command(tool: &Tool, options: &[&str]) -> Command {
    let mut command = tool.command(&["verify", "--format", "json"]);
    command.args(options).arg("--").arg(&tool.fixture);
    command
}

fn verify(tool: &Tool, options: &[&str]) -> Result<(Value, Ended)> {
    let mut command = command(tool, options);
    command.arg("presence").arg(tool.path("presence"));
    judged(tool.run(command)?)
}

fn judged(ended: Ended) -> Result<(Value, Ended)> {
    let document: Value = serde_json::from_str(&ended.stdout)
        .with_context(|| format!("no JSON; ended with {}: {}", ended.status, tail(&ended.stderr)))?;
    ensure!(report::text(&document["schema"]) == "pagetrace.verify/1", "the schema is {}", document["schema"]);
    Ok((document, ended))
}

fn exercised(ended: &Ended) -> Result<()> {
    ended.exercised("presence: ok")?;
    Ok(())
}

/// What a failure is told with.
fn short(document: &Value) -> String {
    let lists = ["unexplained", "missing"].map(|key| report::list(&document[key]).iter().take(4).collect::<Vec<_>>());
    let sums = [&document["present"], &document["faulted"], &document["incomplete_because"], &document["faults_by"]];
    format!("{sums:?} {lists:?}")
}

fn explained(tool: &Tool) -> Result<()> {
    let (document, ended) = verify(tool, &["--at-least", "99.9"])?;
    exercised(&ended)?;
    let (present, faulted) = (&document["present"], &document["faulted"]);
    ensure!(
        ended.status.code() == Some(0) && document["outcome"] == "explained",
        "ended with {}, {}: {}",
        ended.status,
        document["outcome"],
        short(&document)
    );
    for (share, of) in [(present, "pages"), (faulted, "faults")] {
        ensure!(share["percent"].as_f64().is_some_and(|percent| percent >= 99.9), "{of}: {}", short(&document));
    }
    for (class, least) in PRESENT {
        // The kernel may be asked to populate, and be seen doing it.
        let also = if class == "populate" { "get-user-pages" } else { class };
        let pages = [class, also].map(|class| present["by_explanation"][class].as_u64().unwrap_or(0));
        ensure!(
            pages.into_iter().max() >= Some(least),
            "{class} explains less than {least} pages: {}",
            short(&document)
        );
    }
    for (why, least) in GONE {
        let pages = faulted["gone"][why].as_u64().unwrap_or(0);
        ensure!(pages >= least, "{pages} pages are {why}, less than {least}: {}", short(&document));
    }
    // The parent, its child, and another program.
    for (occasion, least) in [("exec", 2), ("fork", 1), ("exit", 3)] {
        let looks = document["looks"][occasion].as_u64().unwrap_or(0);
        ensure!(looks >= least, "{looks} looks {occasion}, less than {least}");
    }
    println!(
        "verify: {:.3} % of {} pages, {:.3} % of {} faulted in, by {}: {}",
        present["percent"].as_f64().unwrap_or(0.0),
        present["pages"],
        faulted["percent"].as_f64().unwrap_or(0.0),
        faulted["pages"],
        report::text(&document["faults_by"]),
        present["by_explanation"]
    );
    Ok(())
}

/// A page whose one fault is kept back has no explanation. Those of files may have one nearby.
fn withheld(tool: &Tool) -> Result<()> {
    let (document, ended) = verify(tool, &["--withhold", "20"])?;
    exercised(&ended)?;
    let code = ended.status.code();
    ensure!(code == Some(1) && document["outcome"] == "unexplained", "ended with {code:?}: {}", short(&document));
    let withheld = document["withheld"].as_u64().unwrap_or(0);
    let touched = report::list(&document["unexplained"])
        .iter()
        .filter(|it| it["address"].as_u64().is_some_and(|at| at >> 32 == 0x1b00) && it["occasion"] == "exit");
    let found: u64 = touched.filter_map(|it| it["pages"].as_u64()).sum();
    // Of the pages that are touched one by one, every twentieth, give or take the ends; again in the child's.
    let every = TOUCHED as u64 / 20;
    ensure!(withheld > every && found + 2 >= every, "{found} pages of {withheld} are found: {}", short(&document));
    Ok(())
}

/// What finds no room must not look like a page without an explanation, nor like an explained one.
fn lost(tool: &Tool) -> Result<()> {
    let word = tool.path("word");
    fs::write(&word, [0]).with_context(|| format!("cannot write {}", word.display()))?;
    let mut command = command(tool, &["--ring-bytes", "4096"]);
    command.arg("unwatched").arg(&word).arg("1000");
    let child = tool.start(command)?;
    let unwatched = stand_still(&child, &word);
    let (document, ended) = judged(tool.finish(child, LIMIT)?)?;
    unwatched.with_context(|| format!("stderr: {}", tail(&ended.stderr)))?;
    ended.exercised("unwatched: ok")?;
    let code = ended.status.code();
    let lost = document["loss"]["ring_full"].as_u64().unwrap_or(0);
    // A page of ring has no room for a hundred of them.
    ensure!(lost >= 900, "only {lost} of 1000 faults were lost: {}", short(&document));
    ensure!(code == Some(4) && document["outcome"] == "incomplete", "ended with {code:?}: {}", short(&document));
    Ok(())
}

/// Stops pagetrace while its command takes its faults. It goes on in any case.
fn stand_still(pagetrace: &Child, word: &Path) -> Result<()> {
    await_word(word, unwatched::READY)?;
    tool::signal(pagetrace, libc::SIGSTOP)?;
    let faulted = tool::await_stopped(pagetrace.id(), LIMIT).and_then(|()| {
        // In place: cut to nothing, even for a moment, the file would be gone under the fixture's mapping.
        let file = OpenOptions::new().write(true).open(word).context("cannot open the word")?;
        file.write_all_at(&[unwatched::GO], 0).context("cannot write the word")?;
        await_word(word, unwatched::DONE)
    });
    tool::signal(pagetrace, libc::SIGCONT)?;
    faulted
}

fn await_word(path: &Path, wanted: u8) -> Result<()> {
    tool::until(Duration::from_secs(60), &format!("the fixture did not say {wanted}"), || {
        let word = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok((word == [wanted]).then_some(()))
    })
}
