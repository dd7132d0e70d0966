//! How far a long read is, for who waits at a terminal.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// What takes less is not worth a line.
const PATIENCE: Duration = Duration::from_millis(500);
const STEP: Duration = Duration::from_millis(200);

/// A line on stderr that is written over again and again; none where stderr is no terminal.
#[derive(Debug)]
pub(super) struct Progress {
    pages: u64,
    done: u64,
    next: Option<Instant>,
    shown: bool,
}

impl Progress {
    pub(super) fn new(pages: u64) -> Self {
        let next = io::stderr().is_terminal().then(|| Instant::now() + PATIENCE);
        Self { pages, done: 0, next, shown: false }
    }

    /// So many pages of the present mapping have been gone through.
    pub(super) fn within(&mut self, pages: u64) -> io::Result<()> {
        let Some(next) = self.next else { return Ok(()) };
        let now = Instant::now();
        if now < next {
            return Ok(());
        }
        self.next = Some(now + STEP);
        self.shown = true;
        let share = u128::from(self.done.saturating_add(pages)) * 100 / u128::from(self.pages.max(1));
        // Nobody is served by an end for want of a progress line.
        let _ = write!(io::stderr(), "\rpagetrace: {share:>3} % of {} pages", self.pages);
        Ok(())
    }

    /// The present mapping is done.
    pub(super) fn done(&mut self, pages: u64) {
        self.done = self.done.saturating_add(pages);
    }

    /// Removes the line.
    pub(super) fn clear(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
