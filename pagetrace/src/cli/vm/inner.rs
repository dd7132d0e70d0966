//! The command line behind the first `--` of `pagetrace vm`: what runs in the guest. Syntax only.

use std::{ffi::OsString, path::PathBuf};

use anyhow::Result;
use clap::Parser as _;

use crate::cli::{
    args::{Args, Command, Output, Target},
    exit::{Misuse, Refused},
};
use crate::output::Format;

/// What runs in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inner {
    /// Which command of pagetrace.
    pub(super) kind: Kind,
    /// Its options.
    pub(super) options: Vec<OsString>,
    /// The command it watches.
    pub(super) argv: Vec<OsString>,
}

/// The commands that a guest is booted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// `check`.
    Check,
    /// `trace`; the format of its events.
    Trace(Format),
    /// `record`; where the recording goes on this machine.
    Record(PathBuf),
}

/// Where things lie in the guest, below the directory whose files come back.
pub(super) const REPORT: &str = "report.json";
pub(super) const TEXT: &str = "report.txt";
pub(super) const RECORDING: &str = "recording.ptrace";
pub(super) const EVENTS: &str = "events";

impl Inner {
    /// Takes the words apart.
    pub(super) fn parse(words: &[OsString]) -> Result<Self> {
        let program = OsString::from("pagetrace vm … --");
        let args = Args::try_parse_from(std::iter::once(&program).chain(words)).map_err(|err| {
            Refused(format!(
                "what is to run in the guest is not understood: {}",
                err.to_string().trim_start_matches("error: ").trim()
            ))
        })?;
        let cut = words.iter().position(|word| word == "--").unwrap_or(words.len());
        let options = words.get(1..cut).unwrap_or_default();
        let (kind, target) = match args.command {
            Command::Check(args) => {
                elsewhere(&args.run.output)?;
                host_only(args.ci.is_default())?;
                (Kind::Check, args.run.target)
            }
            Command::Trace(args) => {
                let format = args.run.output.format;
                elsewhere(&Output { format: Format::Text, ..args.run.output })?;
                (Kind::Trace(format), args.run.target)
            }
            Command::Record(args) => {
                elsewhere(&Output { format: args.format, output: None })?;
                host_only(args.ci.is_default())?;
                (Kind::Record(args.output), args.target)
            }
            _ => return Err(Misuse("a guest runs check, trace or record").into()),
        };
        let Target { pid, tid, comm, cgroup, argv, .. } = target;
        if argv.is_empty() {
            return Err(Misuse("a guest runs a command: give it after a second `--`").into());
        }
        if !pid.is_empty() || !tid.is_empty() || comm.is_some() || cgroup.is_some() {
            return Err(Misuse(
                "nothing runs in the guest but the command: -p, -t, -c and --cgroup name nothing there",
            )
            .into());
        }
        let options = match kind {
            Kind::Record(_) => without_output(options),
            Kind::Check | Kind::Trace(_) => options.to_vec(),
        };
        Ok(Self { kind, options, argv })
    }

    /// The words for the guest's init, the command being `program` there. Files go below `out`.
    pub(super) fn guest(&self, program: &OsString, out: &str) -> Vec<OsString> {
        let at = |name: &str| OsString::from(format!("{out}/{name}"));
        let name = match self.kind {
            Kind::Check => "check",
            Kind::Trace(_) => "trace",
            Kind::Record(_) => "record",
        };
        let mut words: Vec<OsString> = vec!["/bin/pagetrace".into(), name.into()];
        words.extend(self.options.iter().cloned());
        match self.kind {
            Kind::Check => words.extend(["--json".into(), at(REPORT), "-o".into(), at(TEXT)]),
            Kind::Record(_) => words.extend(["--json".into(), at(REPORT), "-o".into(), at(RECORDING)]),
            Kind::Trace(_) => words.extend(["-o".into(), at(EVENTS)]),
        }
        words.push("--".into());
        words.push(program.clone());
        words.extend(self.argv.iter().skip(1).cloned());
        words
    }
}

fn elsewhere(output: &Output) -> Result<()> {
    if output.output.is_some() || output.format != Format::Text {
        return Err(Misuse("the report goes to this machine: give --output and --format before the first `--`").into());
    }
    Ok(())
}

fn host_only(default: bool) -> Result<()> {
    if default {
        return Ok(());
    }
    Err(Misuse("outputs and policy are this machine's: give --junit, --baseline and the like before the first `--`")
        .into())
}

/// The options without that of the recording, which has another place in the guest.
fn without_output(options: &[OsString]) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut words = options.iter();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        if text == "-o" || text == "--output" {
            words.next();
        } else if !text.starts_with("--output=") && !text.starts_with("-o") {
            kept.push(word.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Inner> {
        Inner::parse(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    fn guest(line: &str) -> String {
        let words = parse(line).unwrap().guest(&"/g/prog".into(), "/out");
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn options_go_along_and_files_come_back() {
        assert_eq!(
            guest("check --strict --provoke=20 -- prog -o x -- y"),
            "/bin/pagetrace check --strict --provoke=20 --json /out/report.json -o /out/report.txt -- /g/prog -o x -- y"
        );
        for record in ["-o f", "-of", "--output f", "--output=f"] {
            assert_eq!(
                guest(&format!("record --max-tasks 99 {record} --ring-bytes 4096 -- prog")),
                "/bin/pagetrace record --max-tasks 99 --ring-bytes 4096 --json /out/report.json -o /out/recording.ptrace -- /g/prog"
            );
        }
        assert_eq!(parse("record -o f -- prog").unwrap().kind, Kind::Record("f".into()));
        assert_eq!(guest("trace --min-us 5 -- prog"), "/bin/pagetrace trace --min-us 5 -o /out/events -- /g/prog");
    }

    #[test]
    fn what_makes_no_sense_in_a_guest_is_refused() {
        for (line, says) in [
            ("check", "second `--`"),
            ("check -p 1 -- prog", "-p, -t, -c"),
            ("check --no-such -- prog", "--no-such"),
            ("probes", "check, trace or record"),
            ("vm --kernel 6.1 -- check -- true", "check, trace or record"),
            ("check --junit f -- prog", "before the first"),
            ("check --fail-on any -- prog", "before the first"),
            ("check -o f -- prog", "--output and --format"),
            ("record -o f --format json -- prog", "--output and --format"),
            ("", "not understood"),
        ] {
            let err = parse(line).unwrap_err().to_string();
            assert!(err.contains(says), "{line}: {err}");
        }
    }
}
