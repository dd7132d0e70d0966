//! What came of runs on test kernels: a document, a text, and for several kernels a table with a column each. Values in, text out.

use std::fmt::{self, Write};

use serde::Serialize;

use crate::{
    cli::exit::Exit,
    output::{
        case::Case,
        console::Sign,
        document::RUNS,
        found::Found,
        report::Report,
        text::{self, Style},
    },
};

/// One run.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Column {
    /// The kernel as it was asked for.
    pub(super) kernel: String,
    /// What it calls itself, as far as that is known.
    pub(super) release: Option<String>,
    /// How the guest ended: `exited`, `signaled`, `panic`, `hung`, `timeout`, `no-boot`, `machine`.
    pub(super) outcome: &'static str,
    /// The code that this run alone would end with.
    pub(super) exit_code: u8,
    /// Why there is no report, in a sentence; null when there is one, or none was to be made.
    pub(super) failure: Option<String>,
    /// What the kernel said about its own health.
    pub(super) console: Vec<Sign>,
    /// Where everything is that the console showed, if it was kept.
    pub(super) console_log: Option<String>,
    /// Milliseconds until the guest's init ran.
    pub(super) boot_ms: Option<u64>,
    /// Milliseconds from the start of the machine to its end.
    pub(super) duration_ms: u64,
    /// The report.
    pub(super) report: Option<Report>,
    /// The same code.
    #[serde(skip)]
    pub(super) exit: Exit,
    /// What the guest printed, and what `trace` wrote.
    #[serde(skip)]
    pub(super) streams: Streams,
    /// The command.
    #[serde(skip)]
    pub(super) command: Vec<String>,
}

/// Bytes of a guest.
#[derive(Debug, Clone, Default)]
pub(super) struct Streams {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) events: Option<Vec<u8>>,
}

/// The document.
#[derive(Debug, Serialize)]
pub(super) struct Document<'a> {
    schema: &'static str,
    runs: &'a [Column],
}

impl<'a> Document<'a> {
    /// Of these runs.
    pub(super) const fn of(runs: &'a [Column]) -> Self {
        Self { schema: RUNS, runs }
    }
}

impl Column {
    /// What tells it from the others.
    pub(super) fn name(&self) -> &str {
        self.release.as_deref().unwrap_or(&self.kernel)
    }

    fn verdict(&self) -> &'static str {
        match &self.report {
            Some(report) => report.verdict.name(),
            None if self.failure.is_none() => "ran",
            None => "no report",
        }
    }
}

/// The runs as the outputs for machines see them.
pub(super) fn cases(columns: &[Column]) -> Vec<Case<'_>> {
    let twice = |column: &Column| columns.iter().filter(|other| other.name() == column.name()).count() > 1;
    columns
        .iter()
        .map(|column| Case {
            name: if twice(column) {
                format!("{} ({})", column.name(), column.kernel)
            } else {
                column.name().to_owned()
            },
            command: column.command.clone(),
            report: column.report.as_ref(),
            failure: column.failure.clone(),
        })
        .collect()
}

/// How several runs end: what was found stands whatever else went wrong; then machines that failed; then what could not be said.
pub(super) fn worst(columns: &[Column]) -> Exit {
    let rank = |exit: Exit| match exit {
        Exit::Findings => 7,
        Exit::Machine => 6,
        Exit::Internal => 5,
        Exit::Cannot => 4,
        Exit::Usage => 3,
        Exit::Incomplete => 2,
        Exit::Command(code) if code != 0 => 1,
        Exit::Command(_) | Exit::Clean => 0,
    };
    columns.iter().map(|column| column.exit).max_by_key(|exit| rank(*exit)).unwrap_or(Exit::Clean)
}

/// For people.
pub(super) fn render(columns: &[Column], style: Style) -> String {
    let mut out = String::new();
    for column in columns {
        // Writing to a String cannot fail.
        let _ = write_column(&mut out, column, columns.len() > 1, style);
    }
    if columns.len() > 1 {
        out.push_str(&table(columns));
    }
    out
}

fn write_column(out: &mut String, column: &Column, headed: bool, style: Style) -> fmt::Result {
    if headed {
        writeln!(out, "== {} ({})", column.name(), column.kernel)?;
    }
    if let Some(report) = &column.report {
        out.push_str(&text::render(report, style));
    }
    if let Some(failure) = &column.failure {
        writeln!(out, "NO REPORT: {failure}")?;
        writeln!(out, "  kernel {}", column.name())?;
        for Sign { kind, message, more } in &column.console {
            writeln!(out, "  console: {kind}: {message}")?;
            for line in more {
                writeln!(out, "    {line}")?;
            }
        }
        if let Some(log) = &column.console_log {
            writeln!(out, "  console log: {log}")?;
        }
    }
    if headed { writeln!(out) } else { Ok(()) }
}

/// A row for what each run came to, and one for each finding that any had.
fn table(columns: &[Column]) -> String {
    let mut findings: Vec<(&str, String)> = Vec::new();
    for finding in columns.iter().flat_map(reported) {
        if findings.iter().all(|(known, _)| *known != finding.marks().fingerprint) {
            findings
                .push((&finding.marks().fingerprint, format!("{} ({})", finding.title(), finding.marks().fingerprint)));
        }
    }
    let mut rows: Vec<Vec<String>> = vec![row("kernel", columns, |column| column.name().to_owned())];
    rows.push(row("verdict", columns, |column| column.verdict().to_owned()));
    if columns.iter().any(|column| column.report.as_ref().is_some_and(|report| report.policy.is_some())) {
        rows.push(row("policy", columns, |column| {
            let policy = column.report.as_ref().and_then(|report| report.policy.as_ref());
            policy.map_or("-", |policy| policy.result.name()).to_owned()
        }));
    }
    for (fingerprint, title) in &findings {
        rows.push(row(title, columns, |column| {
            match reported(column).iter().find(|one| one.marks().fingerprint == *fingerprint) {
                Some(finding) if finding.marks().excused.is_some() => format!("{} (excused)", finding.count()),
                Some(finding) => finding.count().to_string(),
                None => "-".to_owned(),
            }
        }));
    }
    rows.push(row("console", columns, |column| match column.console.as_slice() {
        [] => "-".to_owned(),
        signs => signs
            .iter()
            .fold(Vec::new(), |mut kinds, sign| {
                if !kinds.contains(&sign.kind.as_str()) {
                    kinds.push(sign.kind.as_str());
                }
                kinds
            })
            .join(", "),
    }));
    rows.push(row("exit code", columns, |column| column.exit_code.to_string()));
    aligned(&rows)
}

fn reported(column: &Column) -> &[Found] {
    column.report.as_ref().map_or(&[], |report| &report.findings)
}

fn row(title: &str, columns: &[Column], cell: impl Fn(&Column) -> String) -> Vec<String> {
    std::iter::once(title.to_owned()).chain(columns.iter().map(cell)).collect()
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|at| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(kernel: &str, exit: Exit, failure: Option<&str>) -> Column {
        Column {
            kernel: kernel.to_owned(),
            release: None,
            outcome: "exited",
            exit_code: 0,
            failure: failure.map(str::to_owned),
            console: Vec::new(),
            console_log: Some("/tmp/console.log".to_owned()),
            boot_ms: None,
            duration_ms: 0,
            report: None,
            exit,
            streams: Streams::default(),
            command: Vec::new(),
        }
    }

    #[test]
    fn what_was_found_stands_and_a_failed_machine_is_no_pass() {
        let of = |exits: &[Exit]| worst(&exits.iter().map(|exit| column("k", *exit, None)).collect::<Vec<_>>());
        assert_eq!(of(&[Exit::Clean, Exit::Clean]), Exit::Clean);
        assert_eq!(of(&[Exit::Clean, Exit::Machine, Exit::Incomplete]), Exit::Machine);
        assert_eq!(of(&[Exit::Machine, Exit::Findings]), Exit::Findings);
        assert_eq!(of(&[Exit::Command(7), Exit::Clean]), Exit::Command(7));
        assert_eq!(of(&[Exit::Command(7), Exit::Incomplete]), Exit::Incomplete);
    }

    #[test]
    fn a_failure_says_where_the_console_log_is() {
        let mut failed = column("6.1", Exit::Machine, Some("the kernel panicked: x"));
        failed.console.push(Sign {
            kind: "panic".into(),
            message: "Kernel panic - x".into(),
            more: vec!["CPU: 0".into()],
        });
        let text = render(&[failed], Style { colour: false });
        for says in ["NO REPORT: the kernel panicked", "console: panic: Kernel panic - x", "CPU: 0", "/tmp/console.log"]
        {
            assert!(text.contains(says), "{text}");
        }
    }

    #[test]
    fn a_table_has_a_column_a_kernel() {
        let text = render(
            &[column("5.10", Exit::Clean, None), column("6.12", Exit::Machine, Some("no"))],
            Style { colour: false },
        );
        assert!(text.contains("kernel     5.10  6.12\n") && text.contains("verdict    ran   no report\n"), "{text}");
    }

    #[test]
    fn runs_of_one_release_are_told_apart() {
        let mut two = [column("a/bzImage", Exit::Clean, None), column("b/bzImage", Exit::Clean, None)];
        for column in &mut two {
            column.release = Some("6.12.0".into());
        }
        let names: Vec<String> = cases(&two).into_iter().map(|case| case.name).collect();
        assert_eq!(names, ["6.12.0 (a/bzImage)", "6.12.0 (b/bzImage)"]);
    }
}
