//! JUnit XML, as CI servers collect it: a suite for each run, in it one test for the verdict, one for the command, and one for
//! each finding.
//!
//! Names of tests hold nothing that changes from run to run, since servers follow a test by its name.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::{
    case::{Case, Standing},
    found::Found,
    report::Command,
    text::{self, Style},
};

/// Renders runs.
///
/// # Errors
/// When the document cannot be encoded.
pub fn render(cases: &[Case<'_>]) -> anyhow::Result<String> {
    let mut report = Report::new("pagetrace");
    for case in cases {
        report.add_test_suite(suite(case));
    }
    Ok(report.to_string()?)
}

fn suite(case: &Case<'_>) -> TestSuite {
    let mut suite = TestSuite::new(format!("pagetrace on {}", case.name));
    let mut verdict = TestCase::new(
        "verdict",
        match case.standing() {
            Standing::Passed => TestCaseStatus::success(),
            Standing::Failed(why) => not(NonSuccessKind::Failure, &why, "verdict"),
            Standing::Unknown(why) => not(NonSuccessKind::Error, &why, "verdict"),
        },
    );
    verdict.set_classname("pagetrace");
    if let Some(report) = case.report {
        let took = Duration::from_millis(report.duration_ms);
        verdict.set_time(took);
        suite.set_time(took);
        verdict.set_system_out(text::closing(report, Style { colour: false }));
    }
    suite.add_test_case(verdict);
    suite.add_test_cases(case.report.and_then(|report| report.command.as_ref()).map(command));
    for (index, finding) in case.findings().iter().enumerate() {
        suite.add_test_case(test(index + 1, finding));
    }
    suite
}

/// The command's own end, which the exit code of a run that passes hands on.
fn command(command: &Command) -> TestCase {
    let status = match (command.exit_code, command.signal) {
        (Some(0), _) => TestCaseStatus::success(),
        (Some(code), _) => not(NonSuccessKind::Failure, &format!("it exited with {code}"), "command"),
        (None, Some(signal)) => not(NonSuccessKind::Failure, &format!("signal {signal} killed it"), "command"),
        (None, None) => not(NonSuccessKind::Error, "it has not ended", "command"),
    };
    let mut test = TestCase::new("command", status);
    test.set_classname("pagetrace");
    test
}

fn test(number: usize, finding: &Found) -> TestCase {
    let mut status = match &finding.marks().excused {
        None => not(NonSuccessKind::Failure, finding.summary(), finding.class().name()),
        Some(excuse) => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(excuse.text());
            status
        }
    };
    status.set_description(text::finding(number, finding, Style { colour: false }));
    let mut test = TestCase::new(format!("{} ({})", finding.title(), finding.marks().fingerprint), status);
    test.set_classname(format!("pagetrace.{}", finding.class().name()));
    test
}

fn not(kind: NonSuccessKind, message: &str, class: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(kind);
    status.set_message(message).set_type(class);
    status
}
