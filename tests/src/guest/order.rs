//! The lock order: what takes locks in both orders is found, once, with the right names; what does not is not.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Asked, Tally,
    report::{self, list, text},
    tool::{Tool, tail},
};
use crate::fixture::{
    cases::{self, CASES, Kind},
    crowd,
};

/// A case, the shape of its cycle, its length, a part of the name of a lock in it, and how that name is found.
const INVERTING: &[(&str, &str, usize, &str, &str)] = &[
    ("ord-mutex-fault", "classes", 2, "pagetrace_fixture:ptf_mutex_fault_lock", "symbol"),
    ("ord-mutex-mmap", "classes", 2, "pagetrace_fixture:ptf_mutex_mmap_lock", "symbol"),
    ("ord-rwsem-fault", "classes", 2, "pagetrace_fixture:ptf_rwsem_fault_lock", "symbol"),
    ("ord-rwsem-mmap", "classes", 2, "pagetrace_fixture:ptf_rwsem_mmap_lock", "symbol"),
    ("ord-heap", "classes", 2, "+0x18 (initialised in ptf_heap_new", "slab-and-site"),
    ("ord-three", "classes", 3, "pagetrace_fixture:ptf_three_second", "symbol"),
    ("ord-abba", "address-spaces", 2, "mmap_lock", "mm-struct"),
    ("ord-recursive", "recursive", 1, "mmap_lock", "mm-struct"),
    ("ord-held-trylock", "classes", 2, "pagetrace_fixture:ptf_tried_outside_lock", "symbol"),
    ("ord-killable", "classes", 2, "pagetrace_fixture:ptf_killable_lock", "symbol"),
    ("ord-driver", "classes", 2, "pagetrace_fixture:ptf_driver_lock", "symbol"),
    ("ord-handler", "classes", 2, "pagetrace_fixture:ptf_handler_lock", "symbol"),
    ("ord-pinning", "classes", 2, "pagetrace_fixture:ptf_pinning_lock", "symbol"),
];

/// Runs the cases: by the attach type that is chosen here, or, if nothing else is asked for, by each there is.
pub fn run(tool: &Tool, asked: &Asked<'_>, module: bool, ways: &[&str], tally: &mut Tally) {
    let Some(first) = ways.first() else { return tally.skip("order", "this kernel shows no locks but mmap locks") };
    if module && asked.rest() {
        tally.case("order/reloaded-recorded", || reloaded_recorded(tool));
    }
    if !asked.kernel() {
        return;
    }
    if asked.only.is_none() {
        return once(tool, module, tally);
    }
    for attach in ways {
        if module {
            match inverting(tool, attach) {
                Ok(report) => {
                    for row in INVERTING {
                        tally.case(&format!("order/{attach}/{}", row.0), || matches(&report, row));
                    }
                    tally.case(&format!("order/{attach}/nothing-else"), || nothing_else(&report));
                }
                Err(error) => tally.case(&format!("order/{attach}"), || Err(error)),
            }
        } else {
            tally.skip(&format!("order/{attach}"), "no fixture module for this kernel");
        }
        tally.case(&format!("order/{attach}/ordered"), || ordered(tool, Some(attach), module));
    }
    if module {
        tally.case("order/silent-without", || silent_without(tool, first));
        tally.case("order/recorded", || recorded(tool, first));
        if ways.contains(&"kprobe") {
            tally.case("order/crowded", || crowded(tool));
        }
    }
}

/// A case that touches memory that is there under the driver's lock.
pub const BY_ACCESS: &str = "ord-resident";

/// Whether it is told: without a fault, only a strict check sees that half of the cycle.
///
/// # Errors
/// The first difference.
pub fn by_access(report: &Value) -> Result<()> {
    matches(report, &(BY_ACCESS, "classes", 2, "pagetrace_fixture:ptf_resident_lock", "symbol"))?;
    let edges = by(report, BY_ACCESS).into_iter().flat_map(|it| list(&it["cycle"]));
    let causes: Vec<_> = edges.map(|edge| text(&edge["cause"])).collect();
    ensure!(causes.contains(&"access") && causes.contains(&"lock"), "the causes are {causes:?}");
    Ok(())
}

/// With no room left to see the lock function return, the lock is followed all the same.
fn crowded(tool: &Tool) -> Result<()> {
    let ended = tool.run(tool.check(&["--order", "--attach", "kprobe"], &["crowded", crowd::ORDER_CASE, "1"]))?;
    ended.exercised("crowded: ok")?;
    let report = report::parse(&ended.stdout)?;
    ensure!(report::loss(&report, "order_return_settled") > 0, "no return was missed: {}", report["loss"]);
    ensure!(report::loss(&report, "order_return_missed") == 0, "locks were not followed: {}", report["loss"]);
    let row = INVERTING.iter().find(|row| row.0 == crowd::ORDER_CASE).context("it is one of the cases")?;
    matches(&report, row)
}

/// Everything in one run: guests are slow.
fn once(tool: &Tool, module: bool, tally: &mut Tally) {
    if !module {
        return tally.case("order/ordered", || ordered(tool, None, false));
    }
    let report = match both(tool) {
        Ok(report) => report,
        Err(error) => return tally.case("order", || Err(error)),
    };
    for row in INVERTING {
        tally.case(&format!("order/{}", row.0), || matches(&report, row));
    }
    tally.case("order/nothing-else", || nothing_else(&report));
    tally.case("order/reloaded", || reloaded(&report));
}

/// A lock of a module that was loaded where another was is another lock, and so is its name.
fn reloaded(report: &Value) -> Result<()> {
    const CASE: &str = "ord-reloaded";
    const LOCK: &str = "pagetrace_fixture:ptf_reloaded_lock";
    let comm = cases::comm_of(CASE);
    let edges: Vec<_> =
        list(&report["order"]["edges"]).iter().filter(|edge| text(&edge["task"]["comm"]) == comm).collect();
    let seen = |held: &str, wanted: &str| {
        edges.iter().any(|edge| text(&edge["held"]["text"]) == held && text(&edge["wanted"]["text"]) == wanted)
    };
    ensure!(
        seen("mmap_lock", LOCK) && seen(LOCK, "mmap_lock"),
        "the locks were not seen as they were taken: {edges:?}"
    );
    let found = by(report, CASE);
    ensure!(found.is_empty(), "two locks were taken for one: {found:?}");
    Ok(())
}

/// A recording has both names of an address, and so the report that was made of it live.
fn reloaded_recorded(tool: &Tool) -> Result<()> {
    let path = tool.path("reloaded.ptrace");
    let path = path.to_str().context("a path in UTF-8")?;
    let mut command = tool.command(&["record", "--order", "-o", path, "--format", "json", "--"]);
    command.arg(&tool.fixture).args(["kmod", "ord-reloaded"]);
    let ended = tool.run(command)?;
    ensure!(ended.status.code() == Some(0), "ended with {}: {}", ended.status, tail(&ended.stderr));
    let live = report::parse(&ended.stdout)?;
    reloaded(&live)?;
    let again = report::parse(&tool.run(tool.command(&["report", "--format", "json", path]))?.stdout)?;
    let names = |report: &Value| -> Vec<_> {
        let side = |lock: &Value| format!("{} {}", text(&lock["text"]), lock["stack"]);
        let edges = list(&report["order"]["edges"]).iter();
        edges.map(|edge| format!("{} {}", side(&edge["held"]), side(&edge["wanted"]))).collect()
    };
    let (live, again) = (names(&live), names(&again));
    let other = live.iter().zip(&again).find(|(live, again)| live != again);
    ensure!(live.len() == again.len() && other.is_none(), "{} edges, recorded {}: {other:?}", live.len(), again.len());
    Ok(())
}

fn both(tool: &Tool) -> Result<Value> {
    let ended = tool.run(tool.check(&["--order"], &["all-orders"]))?;
    done(&ended.log, Kind::Inverting)?;
    done(&ended.log, Kind::Ordered)?;
    ensure!(ended.log.contains("all-ordered: ok"), "the storms did not end well: {}", tail(&ended.log));
    ensure!(ended.status.code() == Some(1), "ended with {}, not 1: {}", ended.status, tail(&ended.stderr));
    report::parse(&ended.stdout)
}

fn inverting(tool: &Tool, attach: &str) -> Result<Value> {
    let ended = tool.run(tool.check(&["--order", "--attach", attach], &["all-inverting"]))?;
    done(&ended.log, Kind::Inverting)?;
    let report = report::parse(&ended.stdout)?;
    ensure!(ended.status.code() == Some(1), "ended with {}, not 1: {}", ended.status, tail(&ended.stderr));
    ensure!(report["order"]["dropped"] == 0, "edges were dropped: {}", report["order"]["dropped"]);
    Ok(report)
}

fn done(log: &str, kind: Kind) -> Result<()> {
    for case in CASES.iter().filter(|case| case.kind == kind) {
        ensure!(log.contains(&format!("kmod {}: ok", case.name)), "case {} left no line: {}", case.name, tail(log));
    }
    Ok(())
}

/// The findings that are inversions.
fn inversions(report: &Value) -> impl Iterator<Item = &Value> {
    list(&report["findings"]).iter().filter(|it| text(&it["class"]) == "lock-order")
}

fn by<'a>(report: &'a Value, case: &str) -> Vec<&'a Value> {
    let comm = cases::comm_of(case);
    inversions(report).filter(|it| list(&it["cycle"]).iter().any(|edge| text(&edge["task"]["comm"]) == comm)).collect()
}

fn matches(report: &Value, (case, shape, length, lock, found_by): &(&str, &str, usize, &str, &str)) -> Result<()> {
    let found = by(report, case);
    let [inversion] = found.as_slice() else {
        let summaries: Vec<_> = found.iter().map(|it| text(&it["summary"])).collect();
        anyhow::bail!("{} inversions: {summaries:?}", found.len())
    };
    let edges = list(&inversion["cycle"]);
    ensure!(text(&inversion["shape"]) == *shape, "the shape is {}", inversion["shape"]);
    ensure!(edges.len() == *length, "{} edges, {length} expected: {}", edges.len(), inversion["summary"]);
    let is_it = |side: &Value| text(&side["text"]).contains(lock) && text(&side["by"]) == *found_by;
    ensure!(edges.iter().any(|edge| is_it(&edge["held"])), "no lock is called {lock}, by {found_by}: {inversion}");
    for (edge, next) in edges.iter().zip(edges.iter().cycle().skip(1)) {
        ensure!(edge["wanted"]["text"] == next["held"]["text"], "the edges do not meet: {}", inversion["summary"]);
        ensure!(text(&edge["task"]["comm"]) == cases::comm_of(case), "another task's edge: {}", edge["task"]);
        for side in ["held", "wanted"] {
            let stack = list(&edge[side]["stack"]);
            let named = stack.iter().any(|frame| text(&frame["symbol"]).starts_with("ptf_"));
            ensure!(named, "the stack of the lock that is {side} does not name the case: {stack:?}");
        }
    }
    if *case == "ord-abba" {
        let pids: Vec<_> = edges.iter().map(|edge| &edge["task"]["pid"]).collect();
        ensure!(pids.first() != pids.last(), "one process did both: {pids:?}");
        let owners: Vec<_> = edges.iter().map(|edge| &edge["held"]["owner"]["pid"]).collect();
        ensure!(owners.iter().rev().eq(pids.iter()), "the locks are of {owners:?}, the tasks {pids:?}");
    }
    ensure!(!text(&inversion["advice"]).is_empty(), "there is no advice");
    Ok(())
}

fn nothing_else(report: &Value) -> Result<()> {
    let known: Vec<_> = INVERTING.iter().map(|row| cases::comm_of(row.0)).collect();
    let guilty =
        |it: &Value| list(&it["cycle"]).iter().any(|edge| known.iter().any(|comm| text(&edge["task"]["comm"]) == comm));
    let stranger = inversions(report).find(|it| !guilty(it));
    ensure!(
        stranger.is_none(),
        "an inversion that no case made: {}",
        stranger.map_or(&Value::Null, |it| &it["summary"])
    );
    let other = list(&report["findings"]).iter().find(|it| text(&it["class"]) != "lock-order");
    ensure!(other.is_none(), "a finding beside the inversions: {other:?}");
    Ok(())
}

fn ordered(tool: &Tool, attach: Option<&str>, module: bool) -> Result<()> {
    let words: &[&str] = if module { &["all-ordered"] } else { &["all-ordered", "storms"] };
    let by: &[&str] = &attach.map_or(vec!["--order"], |attach| vec!["--order", "--attach", attach]);
    let ended = tool.run(tool.check(by, words))?;
    if module {
        done(&ended.log, Kind::Ordered)?;
    }
    ensure!(ended.log.contains("all-ordered: ok"), "the storms did not end well: {}", tail(&ended.log));
    let report = report::parse(&ended.stdout)?;
    ensure!(list(&report["findings"]).is_empty(), "found in what is right: {}", report["findings"]);
    if module {
        reloaded(&report)?;
    }
    // Something must have been seen, or silence says nothing.
    let mmap =
        |edge: &&Value| text(&edge["held"]["text"]) == "mmap_lock" || text(&edge["wanted"]["text"]) == "mmap_lock";
    let seen = list(&report["order"]["edges"]).iter().filter(mmap).count();
    ensure!(seen > 3, "only {seen} edges were seen around mmap_lock");
    let reasons = list(&report["coverage"]["incomplete_because"]);
    let told = attach != Some("kprobe") && report::only_skipped(&report);
    ensure!(told || reasons.is_empty(), "incomplete: {reasons:?}");
    Ok(())
}

fn silent_without(tool: &Tool, attach: &str) -> Result<()> {
    let ended = tool.run(tool.check(&["--attach", attach], &["kmod", "ord-mutex-fault"]))?;
    let report = report::parse(&ended.stdout)?;
    ensure!(report["order"].is_null(), "an order that nobody asked for");
    report::is_clean(&report)
}

/// A recording tells the same inversions.
fn recorded(tool: &Tool, attach: &str) -> Result<()> {
    let path = tool.path("order.ptrace");
    let path = path.to_str().context("a path in UTF-8")?;
    let mut command = tool.command(&["record", "--order", "--attach", attach, "-o", path, "--format", "json", "--"]);
    command.arg(&tool.fixture).args(["kmod", "ord-three"]);
    let ended = tool.run(command)?;
    let live = report::parse(&ended.stdout)?;
    let again = tool.run(tool.command(&["report", "--format", "json", path]))?;
    let again = report::parse(&again.stdout)?;
    for report in [&live, &again] {
        let row = INVERTING.iter().find(|row| row.0 == "ord-three").context("the row is there")?;
        matches(report, row)?;
    }
    let dot = tool.run(tool.command(&["report", "--format", "dot", path]))?;
    ensure!(dot.stdout.starts_with("digraph") && dot.stdout.contains("color=red"), "no graph: {}", tail(&dot.stdout));
    Ok(())
}

/// Two threads that wait for each other, in what `words` start: pagetrace must tell while they do, end them, and end itself.
///
/// # Errors
/// The first difference.
pub fn standing(tool: &Tool, options: &[&str], words: &[&str]) -> Result<()> {
    let args = [&["--order"], options].concat();
    let ended = tool.run_hanging(|| tool.check(&args, words))?;
    ensure!(ended.status.code() == Some(1), "ended with {}, not 1: {}", ended.status, tail(&ended.stderr));
    let report = report::parse(&ended.stdout)?;
    let mut found = list(&report["findings"]).iter().filter(|it| text(&it["class"]) == "deadlock");
    let missing = || format!("no deadlock in {}; the fixture: {}", report["findings"], tail(&ended.log));
    let deadlock = found.next().with_context(missing)?;
    ensure!(found.next().is_none(), "more than one deadlock: {}", report["findings"]);
    let [one, two] = list(&deadlock["tasks"]) else { anyhow::bail!("the tasks are {}", deadlock["tasks"]) };
    ensure!(one["tid"] != two["tid"] && one["pid"] == two["pid"], "one task twice: {one} {two}");
    for (task, other) in [(one, two), (two, one)] {
        ensure!(text(&task["because"]) == "holds", "it waits because of {}", task["because"]);
        let wants = &task["waits_for"]["address"];
        let held = list(&other["holds"]).iter().find(|lock| lock["address"] == *wants);
        let held = held.with_context(|| format!("{wants} is not among {}", other["holds"]))?;
        let named = |stack: &Value| list(stack).iter().any(|frame| text(&frame["symbol"]).starts_with("ptf_stands_"));
        ensure!(named(&held["stack"]), "the stack does not name the case: {held}");
        // On 5.10 the kernel's unwinding ends at the return probe of a function that can fail.
        let waits_at = list(&task["waits_at"]);
        let waits = waits_at.len() <= 2 || waits_at.iter().any(|line| text(line).starts_with("ptf_stands_"));
        ensure!(waits, "the wait does not name the case: {}", task["waits_at"]);
    }
    let mutex =
        [one, two].iter().any(|task| text(&task["waits_for"]["name"]) == "mutex pagetrace_fixture:ptf_stands_lock");
    ensure!(mutex, "the mutex is not named: {deadlock}");
    ensure!(report["command"]["hung"] == true, "the command does not hang: {}", report["command"]);
    // The order that led here is told as well.
    let inversion = inversions(&report).any(|it| text(&it["shape"]) == "classes");
    ensure!(inversion, "no inversion beside the deadlock: {}", report["findings"]);
    Ok(())
}

/// A deadlock of a reader, a writer that queues, and the reader's fault, made of nothing but what a stock kernel has.
///
/// # Errors
/// The first difference.
pub fn by_uprobe(tool: &Tool) -> Result<()> {
    let ended = tool.run_hanging(|| tool.check(&[], &["uprobe-deadlock"]))?;
    ensure!(ended.log.contains("hangs soon"), "the fixture did not begin: {}", tail(&ended.log));
    ensure!(ended.status.code() == Some(1), "ended with {}, not 1: {}", ended.status, tail(&ended.stderr));
    let report = report::parse(&ended.stdout)?;
    let of = |class: &str| list(&report["findings"]).iter().find(|it| text(&it["class"]) == class);
    let fault = of("fault-under-lock").context("the fault was not found")?;
    ensure!(fault["severity"] == "recursive-read" && fault["hung"] == true, "the fault is {}", fault["summary"]);
    let deadlock = of("deadlock").with_context(|| format!("no deadlock was told: {}", tail(&ended.stderr)))?;
    let [task] = list(&deadlock["tasks"]) else { anyhow::bail!("the tasks are {}", deadlock["tasks"]) };
    ensure!(task["because"] == "queued-unknown", "it waits because of {}", task["because"]);
    ensure!(list(&deadlock["beside"]).len() == 1, "the writer is not beside it: {}", deadlock["beside"]);
    ensure!(report["command"]["hung"] == true, "the command does not hang: {}", report["command"]);
    Ok(())
}

/// Whether a report tells of the deadlock that task `case` got into while it held a lock in this mode.
///
/// # Errors
/// The first difference.
pub fn stands(report: &Value, case: &str, mode: &str) -> Result<()> {
    let comm = cases::comm_of(case);
    let mut all = list(&report["findings"]).iter().filter(|it| text(&it["class"]) == "deadlock");
    let found = all.find(|it| list(&it["tasks"]).iter().any(|task| text(&task["comm"]) == comm));
    let found = found.with_context(|| format!("no deadlock of {comm} was told: {}", report["findings"]))?;
    let [task] = list(&found["tasks"]) else { anyhow::bail!("{} tasks in it", list(&found["tasks"]).len()) };
    let because = if mode == "write" { "holds" } else { "queued-unknown" };
    ensure!(text(&task["because"]) == because, "it waits because of {}", task["because"]);
    ensure!(text(&task["holds"][0]["mode"]) == mode, "it holds {}", task["holds"]);
    ensure!(text(&task["waits_for"]["mode"]) == "read", "it waits for {}", task["waits_for"]);
    let taken = list(&task["holds"][0]["stack"]).iter().any(|frame| text(&frame["symbol"]).starts_with("ptf_"));
    ensure!(taken, "the stack of the lock does not name the case: {}", task["holds"]);
    let waits = list(&task["waits_at"]).iter().any(|line| text(line).starts_with("ptf_touch"));
    ensure!(waits, "the stack of the wait does not name the access: {}", task["waits_at"]);
    let beside = list(&found["beside"]).len();
    ensure!(beside == usize::from(mode == "read"), "{beside} threads wait beside it");
    Ok(())
}
