//! The cases on the kernel with lockdep, without pagetrace.
//!
//! lockdep switches itself off with its first report, so a guest runs cases until that happens, and the next guest goes on
//! behind that one. What a guest did not run is never taken for silence.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};

use super::splat::{MARK, Splats};
use crate::{
    build::StaticBinaries,
    guest,
    step::note,
    test::carry,
    vm::{self, Outcome, VmFile, VmResult, VmSpec},
};

/// A case gets so many seconds: some hang by intention.
const LIMIT: u32 = 20;
/// Where the guest says how each case ended: `WORDS: CODE`.
const ENDED: &str = "ended";
/// In the arguments: the words of one case each.
const SCRIPT: &str = r#"
for words; do
  echo "<5>$MARK$words" > /dev/kmsg
  timeout -s KILL "$LIMIT" pagetrace-fixture $words >> /out/log 2>&1
  echo "$words: $?" >> /out/ended
  grep -q 'debug_locks: *1$' /proc/lockdep_stats || break
done
echo "<5>${MARK}none" > /dev/kmsg
"#;

/// What came of a case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Judged {
    /// What lockdep said.
    pub(super) said: Vec<String>,
    /// How the fixture ended; 0 when the case took place.
    pub(super) code: i32,
}

/// Runs all cases, given by their words.
pub(super) fn all(
    image: &Path,
    module: &Path,
    binaries: &StaticBinaries,
    cases: &[String],
) -> Result<BTreeMap<String, Judged>> {
    let mut judged = BTreeMap::new();
    let mut rest = cases;
    let mut boots = 0;
    while !rest.is_empty() {
        boots += 1;
        let spec = spec(image, module, binaries, rest)?;
        let mut splats = Splats::default();
        let result = vm::run(&spec, &mut |line| splats.line(line))?;
        ensure!(
            matches!(result.outcome, Outcome::Exited { .. }),
            "the kernel with lockdep: {}; console: {}",
            result.outcome,
            result.console_log.display()
        );
        let mut said = splats.finish();
        let ended = ended(&result)?;
        if ended.is_empty() {
            bail!("the guest ran no case; console: {}", result.console_log.display());
        }
        let last = ended.last().map(|(words, _)| words.clone()).unwrap_or_default();
        let done = ended.len();
        ensure!(done <= rest.len(), "the guest ran more cases than it was given");
        for ((words, code), wanted) in ended.into_iter().zip(rest) {
            ensure!(words == *wanted, "the guest ran {words:?}, not {wanted:?}");
            let said = said.remove(&words).with_context(|| format!("the console has no mark of {words:?}"))?;
            judged.insert(words, Judged { said, code });
        }
        rest = &rest[done..];
        let words = judged.get(&last).map(|judged| judged.said.join(", ")).unwrap_or_default();
        note(&format!("lockdep, guest {boots}: {done} cases, the last {last} ({words}); {} to go", rest.len()));
    }
    Ok(judged)
}

fn spec(image: &Path, module: &Path, binaries: &StaticBinaries, cases: &[String]) -> Result<VmSpec> {
    let mut spec = guest::base(image, &binaries.pagetrace, "lockdep")?;
    // A guest for each report: it must not carry more than it needs.
    spec.files.push(VmFile::executable("/bin/pagetrace-fixture", &binaries.fixture));
    spec.modules = vec![module.to_owned()];
    carry(&mut spec, module);
    spec.command = ["sh", "-c", SCRIPT, "sh"].map(Into::into).to_vec();
    spec.command.extend(cases.iter().map(Into::into));
    spec.env.extend([("MARK".into(), MARK.into()), ("LIMIT".into(), LIMIT.to_string().into())]);
    // All of what the kernel says, with a time by which it is known; and no limit to the marks.
    spec.append = "loglevel=7 printk.time=1 printk.devkmsg=on".into();
    // A report is what is waited for.
    spec.stop_on_complaint = false;
    spec.timeout = Duration::from_secs(600);
    Ok(spec)
}

fn ended(result: &VmResult) -> Result<Vec<(String, i32)>> {
    parse(&result.out_text(ENDED).unwrap_or_default())
}

/// Lines of the form `WORDS: CODE`.
pub(super) fn parse(text: &str) -> Result<Vec<(String, i32)>> {
    text.lines()
        .map(|line| {
            let (words, code) = line.rsplit_once(": ").with_context(|| format!("no end of a case: {line:?}"))?;
            Ok((words.to_owned(), code.parse().with_context(|| format!("no end of a case: {line:?}"))?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_cases() {
        assert_eq!(parse("kmod a: 0\niter-b: 137\n").unwrap(), [("kmod a".into(), 0), ("iter-b".into(), 137)]);
        assert!(parse("kmod a").is_err() && parse("kmod a: x").is_err());
    }
}
