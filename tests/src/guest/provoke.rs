//! `check --provoke`: pages leave and come back unharmed, and a violation that is otherwise too rare to see is found.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Fixtures, Tally,
    expect::MODULE,
    report,
    swap::Swap,
    symbols,
    tool::{Tool, tail},
};
use crate::fixture::{keep::PAGES, kmod::PINNED};

/// Runs these cases, with swap while they last.
pub fn run(tool: &Tool, fixtures: Fixtures, tally: &mut Tally) {
    let swap = match Swap::on() {
        Ok(swap) => swap,
        Err(error) => return tally.case("provoke/swap", || Err(error)),
    };
    tally.case("provoke/pages", || pages(tool));
    if fixtures.module {
        tally.case("provoke/silent-without", || silent(tool));
        tally.case("provoke/found", || found(tool));
    } else {
        tally.skip("provoke/found", "no fixture module for this kernel");
    }
    drop(swap);
}

fn count(report: &Value, name: &str) -> u64 {
    report["provocation"][name].as_u64().unwrap_or(0)
}

fn pages(tool: &Tool) -> Result<()> {
    let file = std::env::temp_dir().join(format!("pagetrace-keep-pages.{}", std::process::id()));
    let path = file.to_str().context("the path of the temporary directory is UTF-8")?;
    let ended = tool.run(tool.check(&["--provoke=10"], &["keep-pages", path, "5"]));
    std::fs::remove_file(&file).context("the fixture made no file")?;
    let ended = ended?;
    // The fixture fails when a page comes back with other contents than it left with.
    ended.exercised("keep-pages: ok")?;
    let report = report::parse(&ended.stdout)?;
    report::is_clean(&report)?;
    let provocation = &report["provocation"];
    ensure!(provocation["swap"] == true, "swap is not seen: {provocation}");
    let both = 2 * PAGES as u64;
    ensure!(count(&report, "pages_pushed") >= both, "fewer than {both} pages were pushed: {provocation}");
    ensure!(count(&report, "pages_back") >= both, "fewer than {both} pages came back: {provocation}");
    let sum = count(&report, "pages_pushed") + count(&report, "stayed");
    ensure!(count(&report, "pages_seen") == sum, "the sums do not agree: {provocation}");
    Ok(())
}

/// The same program as in [`found`]: while nothing takes its page away, there is nothing to see.
fn silent(tool: &Tool) -> Result<()> {
    let ended = tool.run(tool.check(&[], &["kmod-pinned", "2"]))?;
    ended.exercised("kmod-pinned: ok")?;
    ensure!(ended.log.contains("gone 0 times"), "something else took the page: {}", tail(&ended.log));
    let report = report::parse(&ended.stdout)?;
    ensure!(report.get("provocation").is_none(), "provoked without being asked: {}", report["provocation"]);
    report::is_clean(&report)
}

fn found(tool: &Tool) -> Result<()> {
    let ended = tool.run(tool.check(&["--provoke=10"], &["kmod-pinned", "10"]))?;
    ended.exercised("kmod-pinned: ok")?;
    let report = report::parse(&ended.stdout)?;
    let expected = MODULE.iter().find(|row| row.case == PINNED).context("the case has a row")?;
    report::matches(&report, expected, false)
        .with_context(|| format!("{}; {}", report["provocation"], tail(&ended.log)))?;
    ensure!(ended.status.code() == Some(1), "ended with {}, not 1: {}", ended.status, tail(&ended.stderr));
    if symbols::shows_page_tables()? {
        let page = report::list(&report["findings"]).iter().map(|finding| &finding["fault"]["page"]).next();
        ensure!(page.is_some_and(|page| page["state"] == "swapped"), "the page went to swap, and is told as {page:?}");
    }
    Ok(())
}
