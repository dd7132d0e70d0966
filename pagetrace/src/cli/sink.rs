//! Where output goes: opened before tracing begins, so that a bad path fails at once.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Write},
    path::Path,
};

use anyhow::{Context as _, Result};

use crate::output::text::Style;

/// Opens the output, and says how it may be styled.
pub(super) fn open(path: Option<&Path>) -> Result<(Box<dyn Write>, Style)> {
    match path {
        Some(path) => {
            let file = File::create(path)
                .with_context(|| format!("cannot write the output to {}: give another --output", path.display()))?;
            Ok((Box::new(file), Style { colour: false }))
        }
        None => {
            let stdout = io::stdout();
            let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let colour = stdout.is_terminal() && !no_colour;
            Ok((Box::new(stdout), Style { colour }))
        }
    }
}

/// Writes data. That nobody reads it is no error.
pub(super) fn write(out: &mut dyn Write, data: &[u8]) -> Result<()> {
    match out.write_all(data).and_then(|()| out.flush()) {
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write the report"),
    }
}

/// Whether an error only says that nobody reads the output any more.
pub(super) fn is_broken_pipe(err: &anyhow::Error) -> bool {
    err.chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|err| err.kind() == io::ErrorKind::BrokenPipe))
}
