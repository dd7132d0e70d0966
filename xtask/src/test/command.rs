//! `pagetrace vm` itself: its codes, and what it brings back, with one stock kernel.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use super::report::Suite;
use crate::{
    build::StaticBinaries,
    step::{self, Finished, note},
    workspace,
};

/// The series it boots.
pub(super) const SERIES: &str = "6.12";

struct Bench<'a> {
    binaries: &'a StaticBinaries,
    image: &'a Path,
    dir: PathBuf,
}

/// Runs the suite.
pub(super) fn suite(image: Option<&Path>, binaries: &StaticBinaries) -> Suite {
    const NAME: &str = "vm command";
    let Some(image) = image else {
        return Suite::broken(NAME, &format!("there is no kernel {SERIES}"));
    };
    note(&format!("{NAME}: pagetrace vm, with kernel {SERIES}"));
    let dir = workspace::target().join("vm").join("command");
    let bench = Bench { binaries, image, dir };
    let mut suite = Suite::new(NAME);
    let begun = Instant::now();
    type Case<'a> = (&'static str, fn(&Bench<'a>) -> Result<()>);
    let cases: [Case<'_>; 3] = [
        ("what a guest found, recorded and printed comes back", finds),
        ("a command that hangs is a failure of the machine", hangs),
        ("a file that is no kernel is a failure of the machine", no_kernel),
    ];
    for (name, case) in cases {
        match bench.fresh().and_then(|()| case(&bench)) {
            Ok(()) => suite.passed += 1,
            Err(err) => suite.fail(name, format!("{err:#}")),
        }
    }
    suite.took = begun.elapsed();
    suite
}

impl Bench<'_> {
    fn fresh(&self) -> Result<()> {
        let _ = fs::remove_dir_all(&self.dir);
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot create {}", self.dir.display()))
    }

    fn run(&self, kernel: &Path, options: &[&str], inner: &[&str], code: i32) -> Result<Finished> {
        let mut command = Command::new(&self.binaries.pagetrace);
        command.arg("vm").arg("--kernel").arg(kernel).args(options).arg("--").args(inner).current_dir(&self.dir);
        let finished = step::capture("vm command", &mut command)?;
        ensure!(
            finished.status.code() == Some(code),
            "{command:?} ended with {} instead of {code}:\n{}",
            finished.status,
            finished.tail()
        );
        Ok(finished)
    }

    fn holds(&self, file: &str, text: &str) -> Result<()> {
        let path = self.dir.join(file);
        let held = fs::read(&path).with_context(|| format!("{file} did not come back"))?;
        let held = String::from_utf8_lossy(&held);
        ensure!(held.contains(text), "{file} does not hold {text:?}:\n{held}");
        Ok(())
    }
}

fn says(finished: &Finished, text: &str) -> Result<()> {
    ensure!(finished.output.contains(text), "it does not say {text:?}:\n{}", finished.output);
    Ok(())
}

fn finds(bench: &Bench<'_>) -> Result<()> {
    let fixture = bench.binaries.fixture.to_string_lossy();
    let options = ["--junit", "out.xml", "--sarif", "out.sarif", "--json", "out.json", "--github", "--out", "kept"];
    let inner = ["record", "-o", "run.ptrace", "--", &fixture, "iter-fault"];
    let finished = bench.run(bench.image, &options, &inner, 1)?;
    says(&finished, "FINDINGS")?;
    says(&finished, "::error title=fault-under-lock")?;
    bench.holds("out.xml", "<failure")?;
    bench.holds("out.sarif", "\"ruleId\": \"fault-under-lock\"")?;
    bench.holds("out.json", "\"schema\": \"pagetrace.vm/1\"")?;
    let kept = fs::read_dir(bench.dir.join("kept"))?.flatten().next().context("nothing was kept")?.file_name();
    for file in ["console.log", "report.json", "recording.ptrace", "stdout", "stderr"] {
        let path = Path::new("kept").join(&kept).join(file);
        ensure!(bench.dir.join(&path).is_file(), "{} did not come back", path.display());
    }
    // The recording is whole, and says here what was said there.
    let mut report = Command::new(&bench.binaries.pagetrace);
    report.args(["report", "run.ptrace"]).current_dir(&bench.dir);
    let told = step::capture("vm command", &mut report)?;
    ensure!(told.status.code() == Some(1), "the recording says something else:\n{}", told.tail());
    Ok(())
}

fn hangs(bench: &Bench<'_>) -> Result<()> {
    let options = ["--timeout", "3", "--junit", "out.xml"];
    let finished = bench.run(bench.image, &options, &["check", "--", "sleep", "1000"], 69)?;
    says(&finished, "not finished after 3 s")?;
    says(&finished, "console log: ")?;
    bench.holds("out.xml", "<error")
}

fn no_kernel(bench: &Bench<'_>) -> Result<()> {
    let file = bench.dir.join("file");
    fs::write(&file, "no kernel")?;
    let finished = bench.run(&file, &["--sarif", "out.sarif"], &["check", "--", "true"], 69)?;
    says(&finished, "is no kernel")?;
    bench.holds("out.sarif", "\"executionSuccessful\": false")
}
