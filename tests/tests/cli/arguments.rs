//! What is wrong with the arguments is said before anything else happens.

use anyhow::{Result, ensure};

use super::run::{Scratch, pagetrace, run};

#[test]
fn help_and_version_are_no_errors() -> Result<()> {
    for args in [&["--help"][..], &["-h"], &["--version"], &["check", "--help"], &["trace", "-h"], &["help", "probes"]]
    {
        let ran = run(args)?.exits(0)?;
        ensure!(!ran.stdout.is_empty() && ran.stderr.is_empty(), "{args:?}: {ran:#?}");
    }
    let help = run(&["--help"])?.stdout;
    for word in ["check", "trace", "probes", "Exit codes"] {
        ensure!(help.contains(word), "no {word} in {help}");
    }
    Ok(())
}

#[test]
fn wrong_arguments_are_usage_errors_on_stderr() -> Result<()> {
    let cases: [(&[&str], &str); 18] = [
        (&[], "Usage"),
        (&["chekc"], "chekc"),
        (&["check", "--no-such-flag"], "--no-such-flag"),
        (&["check", "--ring-bytes", "5000"], "power of two"),
        (&["check", "--ring-bytes", "x"], "not a number of bytes"),
        (&["check", "--attach", "uprobe"], "kprobe"),
        (&["check", "--format", "xml"], "json"),
        (&["check", "--duration=-1"], "duration"),
        (&["check", "--duration", "nan"], "duration"),
        (&["check", "--max-tasks", "1"], "16"),
        (&["check", "-p", "x"], "invalid"),
        (&["trace", "--min-us=-5"], "min-us"),
        (&["check", "--provoke"], "give a command"),
        (&["check", "--provoke", "-t", "1"], "whole processes"),
        (&["check", "--provoke", "-c", "x"], "whole processes"),
        (&["check", "--provoke=0", "--", "true"], "from 5 to 60000"),
        (&["check", "--provoke=x", "--", "true"], "not a number of milliseconds"),
        (&["trace", "--provoke", "--", "true"], "--provoke"),
    ];
    for (args, word) in cases {
        let ran = run(args)?.exits(2)?.silent()?;
        ensure!(ran.stderr.contains(word), "{args:?} does not say {word}: {ran:#?}");
    }
    Ok(())
}

#[test]
fn an_output_that_cannot_be_written_stops_before_the_command_starts() -> Result<()> {
    let scratch = Scratch::new("output")?;
    let mark = scratch.0.join("started");
    for command in ["check", "trace"] {
        let touch = mark.to_string_lossy();
        let ran = run(&[command, "-o", "/nonexistent/report", "--", "touch", &touch])?;
        ran.exits(5)?.says("/nonexistent/report")?.silent()?;
        ensure!(!mark.exists(), "{command}: the command was started");
    }
    Ok(())
}

#[test]
fn without_a_terminal_nothing_is_coloured() -> Result<()> {
    for args in [&["--help"][..], &["check", "--no-such-flag"], &["check", "-p", "4194305"], &["probes", "--dry"]] {
        for no_colour in [false, true] {
            let mut command = pagetrace(args)?;
            if no_colour {
                command.env("NO_COLOR", "1");
            }
            let ran = super::run::Running::start(&mut command)?.end()?;
            ensure!(!ran.stdout.contains('\x1b') && !ran.stderr.contains('\x1b'), "{args:?}: {ran:#?}");
        }
    }
    Ok(())
}
