//! Where output goes: opened before tracing begins, so that a bad path fails at once.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal as _, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::output::text::Style;

/// Opens the output, and says how it may be styled.
pub(super) fn open(path: Option<&Path>) -> Result<(Box<dyn Write>, Style)> {
    match path {
        Some(path) => {
            let file = keep(path)
                .with_context(|| format!("cannot write the output to {}: give another --output", path.display()))?;
            Ok((Box::new(Output { file, path: path.to_owned(), begun: false }), Style { colour: false }))
        }
        None => {
            let stdout = io::stdout();
            let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let colour = stdout.is_terminal() && !no_colour;
            Ok((Box::new(stdout), Style { colour }))
        }
    }
}

/// Opens a file to write to, and leaves what is in it for now.
pub(super) fn keep(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).open(path)
}

/// Empties a file that was opened so. A pipe or a device has no length to cut.
pub(super) fn empty(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() { file.set_len(0) } else { Ok(()) }
}

/// A file that is emptied when there is something to say: a command that is refused must not destroy anything.
struct Output {
    file: File,
    path: PathBuf,
    begun: bool,
}

impl Output {
    /// What is done to the file, with its name where that fails.
    fn with<T>(&mut self, act: impl FnOnce(&mut File) -> io::Result<T>) -> io::Result<T> {
        let begun = std::mem::replace(&mut self.begun, true);
        let ready = if begun { Ok(()) } else { empty(&self.file) };
        ready
            .and_then(|()| act(&mut self.file))
            .map_err(|err: io::Error| io::Error::new(err.kind(), format!("{}: {err}", self.path.display())))
    }
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.with(|file| file.write(data))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.with(Write::flush)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_emptied_by_what_is_said_and_by_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        std::fs::write(&path, "an older report").unwrap();
        drop(open(Some(&path)).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "an older report");
        write(&mut open(Some(&path)).unwrap().0, b"new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        open(Some(&path)).unwrap().0.flush().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "", "what says nothing leaves nothing");
    }

    #[test]
    fn a_failure_names_the_file() {
        let mut out = open(Some(Path::new("/dev/full"))).unwrap().0;
        let err = write(&mut out, b"x").unwrap_err();
        assert!(format!("{err:#}").contains("/dev/full: "), "{err:#}");
    }
}
