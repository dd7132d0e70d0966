//! `pagemap`: the same as an independent reader says, whole answers in every form, and plain words for what cannot be read.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    run::{Running, Scratch, pagetrace, root, run},
    unprivileged::{NOBODY, public},
};

const FIXTURE: &str = env!("CARGO_BIN_EXE_pagetrace-fixture");

/// A fixture that has said that it is ready; its last line, and what it said before.
struct Held {
    child: Child,
    lines: Vec<String>,
}

impl Held {
    fn start(args: &[&str]) -> Result<Self> {
        let mut command = Command::new(FIXTURE);
        let mut child = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut lines = Vec::new();
        for line in BufReader::new(child.stdout.take().context("stdout is a pipe")?).lines() {
            lines.push(line?);
            if lines.last().is_some_and(|line| line.starts_with("ready")) {
                break;
            }
        }
        ensure!(lines.last().is_some_and(|line| line.starts_with("ready")), "the fixture says {lines:?}");
        Ok(Self { child, lines })
    }

    fn states(scratch: &Scratch) -> Result<Self> {
        let path = scratch.0.join("file");
        Self::start(&["page-states", path.to_str().context("the path is UTF-8")?])
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A reader that shares nothing with pagetrace: every page of every mapping that has an entry of state bits, as `address entry`.
const READER: &str = r#"
import struct, sys
pid = sys.argv[1]
with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
    for line in maps:
        start, end = (int(x, 16) for x in line.split()[0].split("-"))
        pagemap.seek(start // 4096 * 8)
        data = b""
        while len(data) < (end - start) // 4096 * 8:
            part = pagemap.read((end - start) // 4096 * 8 - len(data))
            if not part:
                break
            data += part
        for i in range(len(data) // 8):
            entry, = struct.unpack_from("=Q", data, i * 8)
            if entry >> 62:
                print(start + i * 4096, entry)
"#;

#[test]
fn an_independent_reader_says_the_same() -> Result<()> {
    let scratch = Scratch::new("pagemap-python")?;
    let held = Held::states(&scratch)?;
    let python = match Command::new("python3").args(["-c", READER, &held.pid()]).output() {
        Ok(output) => output,
        Err(err) => {
            eprintln!("skipped: no python3 to compare with: {err}");
            return Ok(());
        }
    };
    ensure!(python.status.success(), "{python:?}");
    let mut theirs: BTreeMap<u64, u64> = String::from_utf8(python.stdout)?
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(address, entry)| Ok((address.parse()?, entry.parse()?)))
        .collect::<Result<_>>()?;
    ensure!(theirs.len() > 600, "{} pages are few", theirs.len());
    for scan in ["auto", "always", "never"] {
        let ran = run(&["pagemap", &held.pid(), "--view", "entries", "--format", "json", "--scan", scan])?;
        if scan == "always" && ran.code() == 3 {
            continue;
        }
        let document = ran.exits(0)?.json()?;
        let mut ours = BTreeMap::new();
        for mapping in document["mappings"].as_array().into_iter().flatten() {
            for page in mapping["pages"].as_array().into_iter().flatten() {
                ours.insert(
                    page["address"].as_u64().context("an address")?,
                    page["entry"].as_u64().context("an entry")?,
                );
            }
        }
        // Whether a page of a file is mapped by one process alone depends on the others, that of this program for one.
        let steady = |entry: &u64| if entry >> 61 & 1 == 1 { entry & !(1 << 56) } else { *entry };
        theirs.values_mut().chain(ours.values_mut()).for_each(|entry| *entry = steady(entry));
        let differs = theirs.iter().find(|(address, entry)| ours.get(address) != Some(entry));
        ensure!(
            differs.is_none() && ours.len() == theirs.len(),
            "{scan}: {differs:x?}, {} and {}",
            ours.len(),
            theirs.len()
        );
        ensure!(
            document["totals"]["matched"].as_u64() == Some(ours.len() as u64),
            "the totals are {}",
            document["totals"]
        );
    }
    Ok(())
}

fn totals(args: &[&str]) -> Result<Value> {
    Ok(run(args)?.exits(0)?.json()?["totals"].take())
}

#[test]
fn every_view_and_way_counts_the_same() -> Result<()> {
    let scratch = Scratch::new("pagemap-views")?;
    let held = Held::states(&scratch)?;
    for condition in ["present", "file | swapped", "!present", "anon & exclusive", "!(anon & exclusive)"] {
        let mut seen = BTreeMap::new();
        for view in ["summary", "runs", "map"] {
            for scan in ["auto", "never"] {
                for pace in [&[][..], &["--pace", "1"]] {
                    let pid = held.pid();
                    let args =
                        ["pagemap", &pid, "--format", "json", "--where", condition, "--view", view, "--scan", scan];
                    let matched = totals(&[&args[..], pace].concat())?["matched"].as_u64();
                    seen.entry(matched).or_insert_with(Vec::new).push((view, scan, pace.len()));
                }
            }
        }
        ensure!(seen.len() == 1 && !seen.contains_key(&None) && !seen.contains_key(&Some(0)), "{condition}: {seen:?}");
    }
    for scan in ["auto", "never"] {
        let sums = |view| -> Result<Value> {
            let mut sums = totals(&["pagemap", &held.pid(), "--format", "json", "--view", view, "--scan", scan])?;
            // That depends on others: on this program, which has pages of the same files.
            sums.as_object_mut().context("the totals")?.remove("exclusive");
            Ok(sums)
        };
        let (summary, map) = (sums("summary")?, sums("map")?);
        ensure!(summary == map, "{scan}: the summary has {summary}, the picture {map}");
    }
    Ok(())
}

#[test]
fn a_terabyte_of_nothing_is_walked_in_bounded_memory() -> Result<()> {
    let held = Held::start(&["sparse", "1024", "17179869184"])?;
    let words: Vec<&str> = held.lines.last().context("a line")?.split(' ').collect();
    let start: u64 = words.get(1).context("where it is")?.parse()?;
    let range = format!("{start:x}-{:x}", start + (1 << 40));
    // What is resident of pagetrace must not grow with the range: less than the program and a few buffers.
    let mut limited = pagetrace(&["pagemap", &held.pid(), "--range", &range, "--format", "json", "--view", "runs"])?;
    // SAFETY: between fork and exec only a limit is set.
    #[expect(unsafe_code, reason = "a limit on the memory of what is started")]
    unsafe {
        limited.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: 192 << 20, rlim_max: 192 << 20 };
            if libc::setrlimit(libc::RLIMIT_AS, &raw const limit) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    let document = Running::start(&mut limited)?.end()?.exits(0)?.json()?;
    ensure!(document["totals"]["present"] == 64, "{}", document["totals"]);
    ensure!(document["totals"]["pages"] == 1_u64 << 28, "{}", document["totals"]);
    let starts: Vec<u64> = document["mappings"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|mapping| mapping["pages"].as_array().cloned().unwrap_or_default())
        .filter_map(|run| run["address"].as_u64())
        .collect();
    let expected: Vec<u64> = (0..64).map(|n| start + (n << 34)).collect();
    ensure!(starts == expected, "{starts:x?}");
    Ok(())
}

#[test]
fn what_cannot_be_asked_is_a_mistake_of_the_caller() -> Result<()> {
    for (args, says) in [
        (&["pagemap"][..], "PID"),
        (&["pagemap", "x"], "neither a process id nor"),
        (&["pagemap", "4294967294"], "no process 4294967294"),
        (&["pagemap", "self", "--range", "3000-1000"], "not behind its start"),
        (&["pagemap", "self", "--range", "1000"], "two addresses"),
        (&["pagemap", "self", "--range", "0-10000000000000000"], "two addresses"),
        (&["pagemap", "self", "--where", "prsent"], "nothing called `prsent` at column 1"),
        (&["pagemap", "self", "--where", "(present"], "`)` is missing"),
        (&["pagemap", "self", "--vma", "no such thing"], "no mapping called `no such thing`; it has: "),
        (&["pagemap", "self", "--vma", "x", "--range", "0-1"], "cannot be used with"),
        (&["pagemap", "self", "--pace", "99999999999"], "at most"),
    ] {
        run(args)?.exits(2)?.silent()?.says(says).with_context(|| format!("{args:?}"))?;
    }
    Ok(())
}

#[test]
fn ranges_without_a_page_are_answered() -> Result<()> {
    // The first page is nobody's; behind the last address of user space there is nothing, or the vsyscall page without entries.
    for range in ["0-1", "ffff800000000000-ffffffffffffffff", "7fffffffe001-fffffffffffffffe"] {
        let ran = run(&["pagemap", "self", "--range", range, "--format", "json"])?.exits(0)?;
        ensure!(ran.json()?["totals"]["present"] == 0, "{range}: {ran:#?}");
    }
    run(&["pagemap", "self", "--range", "1001-2001"])?.exits(0)?.says("widened to whole pages")?;
    Ok(())
}

#[test]
fn a_process_without_an_address_space_is_named() -> Result<()> {
    if std::fs::read_to_string("/proc/2/comm").is_ok_and(|comm| comm == "kthreadd\n") {
        run(&["pagemap", "2"])?.exits(2)?.silent()?.says("kernel thread")?;
    }
    let mut child = Command::new("true").spawn()?;
    let stat = format!("/proc/{}/stat", child.id());
    super::run::eventually("it ends", || std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z ")))?;
    let ran = run(&["pagemap", &child.id().to_string()]);
    child.wait()?;
    ran?.exits(2)?.silent()?.says("has ended")?;
    Ok(())
}

#[test]
fn what_is_kept_from_a_user_is_said_and_not_shown_as_nothing() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scratch = Scratch::new("pagemap-nobody")?;
    let program = public(&scratch)?;
    let as_nobody = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args).uid(NOBODY).gid(NOBODY).current_dir(env::temp_dir());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::start(&mut command)?.end()
    };
    as_nobody(&["pagemap", "1"])?.exits(3)?.silent()?.says("CAP_SYS_PTRACE")?;
    as_nobody(&["pagemap", "self", "--flags"])?.exits(3)?.silent()?.says("kpageflags")?;
    let own = as_nobody(&["pagemap", "self"])?.exits(0)?;
    ensure!(own.stdout.contains("frames not told: ") && own.stdout.contains("CAP_SYS_ADMIN"), "{own:#?}");
    let own =
        as_nobody(&["pagemap", "self", "--format", "json", "--view", "entries", "--vma", "stack"])?.exits(0)?.json()?;
    ensure!(own["kernel"]["bits"]["pfn"]["state"] == "hidden", "{}", own["kernel"]);
    let page = &own["mappings"][0]["pages"][0];
    ensure!(page["is"][0] == "present" && page["pfn"].is_null(), "{page}");
    Ok(())
}

#[test]
fn a_process_that_goes_or_becomes_another_is_noticed() -> Result<()> {
    // Paced, it takes long enough for something to happen meanwhile.
    for options in [&["--scan", "never"][..], &["--view", "map"], &["--where", "present", "--view", "runs"]] {
        for (words, becomes) in [(&["exec-chain", "1"][..], false), (&["exit", "0"], false), (&["becomes"], true)] {
            let script = if becomes { "read x; exec sleep 60" } else { "exec \"$0\" gate \"$@\"" };
            let mut shell = Command::new("sh");
            shell.args(["-c", script, FIXTURE]).args(words).stdin(Stdio::piped()).stdout(Stdio::null());
            let mut target = shell.spawn()?;
            let comm = if becomes { "sh" } else { "pagetrace-fixtu" };
            super::run::eventually("it waits", || super::run::is(target.id(), comm))?;
            // It is called so before it has all of its mappings.
            std::thread::sleep(std::time::Duration::from_millis(100));
            let pid = target.id().to_string();
            let args = [&["pagemap", &pid, "--pace", "20000"][..], options].concat();
            let reader = Running::start(&mut pagetrace(&args)?)?;
            std::thread::sleep(std::time::Duration::from_millis(150));
            target.stdin.as_mut().context("a pipe")?.write_all(b"\n")?;
            let ran = reader.end();
            target.kill()?;
            target.wait()?;
            let ran = ran?.exits(4)?;
            ensure!(ran.stdout.contains("INCOMPLETE: process "), "{args:?}: {ran:#?}");
            let told = if becomes { "began another program" } else { " while it was read" };
            ensure!(ran.stdout.contains(told), "{args:?}: {ran:#?}");
        }
    }
    Ok(())
}

#[test]
fn smaps_agrees_and_its_fields_come_along() -> Result<()> {
    let scratch = Scratch::new("pagemap-smaps")?;
    let held = Held::states(&scratch)?;
    let document = run(&["pagemap", &held.pid(), "--smaps", "--format", "json"])?.exits(0)?.json()?;
    let (mut compared, mut huge) = (0, 0);
    for mapping in document["mappings"].as_array().into_iter().flatten() {
        let bytes = &mapping["smaps"]["bytes"];
        let Some(rss) = bytes["Rss"].as_u64() else { continue };
        let counts = &mapping["counts"];
        // The kernel's sum leaves the page of zeros and driver memory out.
        let present = counts["present"].as_u64().unwrap_or(0) - counts["zero"].as_u64().unwrap_or(0);
        let flags = mapping["smaps"]["flags"].as_array().cloned().unwrap_or_default();
        if flags.iter().any(|flag| flag == "pf" || flag == "mm" || flag == "de") {
            continue;
        }
        ensure!(present * 4096 == rss || counts["zero_untold"] != 0, "{mapping}");
        huge += bytes["AnonHugePages"].as_u64().unwrap_or(0);
        compared += 1;
    }
    ensure!(compared > 10, "{compared} mappings are few");
    ensure!(document["totals"]["huge"].as_u64().unwrap_or(0) * 4096 >= huge, "{}", document["totals"]);
    Ok(())
}
