//! The command line: arguments to a run, a run to output and exit code. Decides nothing about events.

mod args;
mod baseline;
mod check;
mod ci;
mod exit;
mod outputs;
mod pagemap;
mod probes;
mod record;
mod report;
mod sink;
mod trace;
mod verify;
mod vm;

use std::process::ExitCode;

use clap::Parser as _;

pub use args::{Args, Command};
pub use exit::Exit;

/// Parses the arguments and does what they say.
pub fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(err) => {
            // Help and version are no errors; clap knows which stream each belongs to.
            let _ = err.print();
            return if err.use_stderr() { Exit::Usage.into() } else { Exit::Clean.into() };
        }
    };
    let result = match args.command {
        Command::Check(args) => check::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Record(args) => record::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Vm(args) => vm::run(&args),
        Command::Baseline(args) => baseline::run(&args),
        Command::Probes(args) => probes::run(&args),
        Command::Pagemap(args) => pagemap::run(&args),
        Command::Verify(args) => verify::run(&args),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(err) => {
            if sink::is_broken_pipe(&err) {
                return Exit::Clean.into();
            }
            eprintln!("pagetrace: {}", told(&err));
            Exit::of_error(&err).into()
        }
    }
}

/// An error and its causes, each once: some messages have their cause in the middle of a sentence.
fn told(err: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in err.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::told;

    #[test]
    fn a_cause_is_told_once() {
        let inner = || anyhow::anyhow!("no space left");
        assert_eq!(told(&inner().context("cannot write")), "cannot write: no space left");
        assert_eq!(told(&inner().context("cannot write (no space left) to x")), "cannot write (no space left) to x");
    }
}
