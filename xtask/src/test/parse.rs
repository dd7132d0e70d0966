//! Reads the counts of `cargo test` and the lines of the guest's suite. Pure.

use super::report::Suite;

/// Adds up the `test result:` lines of `cargo test` and lists the failed tests.
pub(crate) fn cargo_test(output: &str, suite: &mut Suite) {
    let mut failed = 0;
    for line in output.lines() {
        if let Some(counts) = line.strip_prefix("test result: ") {
            suite.passed += count(counts, "passed");
            failed += count(counts, "failed");
        } else if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            suite.fail(name, panic_message(output, name));
        }
    }
    // A name lost among other output must not make a failure vanish.
    while suite.failures.len() < failed {
        suite.fail("a test", "its name was not found in the output");
    }
}

/// The number before a word: `3` in `ok. 3 passed; 0 failed`.
fn count(text: &str, word: &str) -> usize {
    let words: Vec<_> = text.split([' ', ';', ',']).filter(|part| !part.is_empty()).collect();
    words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

/// What the test harness printed for a failed test, without the backtrace hint.
fn panic_message(output: &str, name: &str) -> String {
    let Some((_, rest)) = output.split_once(&format!("---- {name} stdout ----")) else {
        return "see the log".into();
    };
    let lines = rest.lines().filter(|line| !line.trim().is_empty()).take_while(|line| !line.starts_with("---- "));
    lines.take_while(|line| !line.starts_with("note: ") && *line != "failures:").collect::<Vec<_>>().join("\n")
}

/// Follows the lines of the guest's suite.
#[derive(Debug, Default)]
pub(crate) struct GuestSuite {
    closing: Option<(usize, usize)>,
}

impl GuestSuite {
    /// Takes a line: `case NAME ... ok`, `case NAME ... FAILED: reason`, `case NAME ... skipped: reason`, or
    /// the closing `N passed, N failed`.
    pub(crate) fn line(&mut self, line: &str, suite: &mut Suite) {
        if let Some((name, verdict)) = line.strip_prefix("case ").and_then(|rest| rest.split_once(" ... ")) {
            if verdict == "ok" {
                suite.passed += 1;
            } else if let Some(reason) = verdict.strip_prefix("skipped: ") {
                suite.skipped.push(format!("{name}: {reason}"));
            } else {
                suite.fail(name, verdict.strip_prefix("FAILED: ").unwrap_or(verdict));
            }
        } else if let Some((passed, failed)) = closing(line) {
            self.closing = Some((passed, failed));
        }
    }

    /// Checks the closing line against what was counted; without one the suite died.
    pub(crate) fn finish(&self, suite: &mut Suite) {
        let counted = (suite.passed, suite.failures.len());
        match self.closing {
            Some(said) if said == counted => {}
            Some((passed, failed)) => {
                let (seen_passed, seen_failed) = counted;
                suite.fail(
                    "closing line",
                    format!("says {passed} passed, {failed} failed, but {seen_passed} and {seen_failed} were seen"),
                );
            }
            None => suite.fail("closing line", "the suite ended without it"),
        }
    }
}

fn closing(line: &str) -> Option<(usize, usize)> {
    let (passed, failed) = line.strip_suffix(" failed")?.split_once(" passed, ")?;
    Some((passed.parse().ok()?, failed.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_cargo_test() {
        let output = "test a::b ... ok\ntest a::c ... FAILED\n\nfailures:\n\n---- a::c stdout ----\n\
                      thread 'a::c' panicked at x.rs:1:2:\nboom\nnote: run with\n\n\
                      test result: FAILED. 1 passed; 1 failed; 0 ignored\n\
                      test result: ok. 12 passed; 0 failed; 0 ignored\n";
        let mut suite = Suite::new("unit");
        cargo_test(output, &mut suite);
        assert_eq!(suite.passed, 13);
        assert_eq!(suite.failures.len(), 1);
        assert_eq!(suite.failures[0].reason, "thread 'a::c' panicked at x.rs:1:2:\nboom");
    }

    #[test]
    fn a_failure_without_a_name_still_counts() {
        let mut suite = Suite::new("unit");
        cargo_test("test result: FAILED. 0 passed; 2 failed; 0 ignored\n", &mut suite);
        assert_eq!(suite.failures.len(), 2);
    }

    fn guest(lines: &[&str]) -> Suite {
        let (mut suite, mut parser) = (Suite::new("vm"), GuestSuite::default());
        for line in lines {
            parser.line(line, &mut suite);
        }
        parser.finish(&mut suite);
        suite
    }

    #[test]
    fn a_guest_suite() {
        let suite = guest(&[
            "noise",
            "case a ... ok",
            "case b c ... FAILED: why",
            "case d ... skipped: no",
            "1 passed, 1 failed",
        ]);
        assert_eq!(suite.passed, 1);
        assert_eq!(suite.failures.len(), 1);
        assert_eq!((suite.failures[0].case.as_str(), suite.failures[0].reason.as_str()), ("b c", "why"));
        assert_eq!(suite.skipped, ["d: no"]);
    }

    #[test]
    fn a_guest_suite_that_died_or_miscounts_has_failed() {
        assert_eq!(guest(&["case a ... ok"]).failures.len(), 1);
        assert_eq!(guest(&["case a ... ok", "2 passed, 0 failed"]).failures.len(), 1);
        assert_eq!(guest(&["case a ... ok", "1 passed, 0 failed"]).failures.len(), 0);
    }
}
