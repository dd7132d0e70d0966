//! Pushes the target's resident pages out again and again, so that a fault which is rare becomes common.
//!
//! The work is done by a process of its own. Listing mappings, reading pagemap and advising take the target's
//! `mmap_lock` for reading, and a target that deadlocks takes whoever does so with it, in part uninterruptibly: a stuck
//! thread would keep pagetrace from ending, a stuck process does not. It is therefore never waited for without a limit.
//!
//! Nothing here may change what the target computes: pages are only asked to leave (`MADV_PAGEOUT`, `MADV_COLD`, and
//! `POSIX_FADV_DONTNEED` on files, which drops clean cached pages); contents are never discarded.

pub mod able;
mod advice;
mod helper;
mod orders;
mod pace;
mod process;
mod round;
mod set;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

pub use self::helper::{is_helper, main as helper_main};
use self::orders::Order;
use crate::output::provocation::Provocation;

/// Shortest pause between rounds that may be asked for.
pub const SHORTEST: Duration = Duration::from_millis(5);
/// Longest one.
pub const LONGEST: Duration = Duration::from_secs(60);
/// The usual pause between rounds; `default_missing_value` of the argument says the same.
pub const USUAL: Duration = Duration::from_millis(50);
/// How long the helper gets to end: once by itself, once more when killed.
const PATIENCE: Duration = Duration::from_millis(700);

/// The helper process, seen from pagetrace.
#[derive(Debug)]
pub struct Provoker {
    child: Child,
    orders: Option<ChildStdin>,
    latest: Arc<Mutex<Provocation>>,
    order: Order,
    held_back: u64,
}

impl Provoker {
    /// Starts a helper for these processes and their descendants. It waits until [`Provoker::mind`] lets it begin.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(interval: Duration, roots: &BTreeSet<u32>) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0(helper::NAME).arg(interval.as_millis().to_string()).args(roots.iter().map(u32::to_string));
        // A group of its own, since Ctrl-C is for the command and for pagetrace; no standard error, since a helper that
        // is stuck would keep it open for whoever reads it.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("cannot start the process that pushes pages out (--provoke)")?;
        let latest = Arc::new(Mutex::new(Provocation::default()));
        if let Some(stdout) = child.stdout.take() {
            let latest = Arc::clone(&latest);
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if let Ok(state) = serde_json::from_str(&line) {
                        *latest.lock().unwrap_or_else(PoisonError::into_inner) = state;
                    }
                }
            });
        }
        let orders = child.stdin.take();
        Ok(Self { child, orders, latest, order: Order::Pause, held_back: 0 })
    }

    /// Lets it push, or holds it back while a task is suspected to be stuck on an mmap lock: what it does needs that
    /// lock. Returns at once.
    pub fn mind(&mut self, suspected: bool) {
        let order = if suspected { Order::Pause } else { Order::Push };
        if order == self.order {
            return;
        }
        self.order = order;
        self.held_back += u64::from(suspected);
        // A pipe holds far more orders than are given before the helper reads them; one that ended needs none.
        if let Some(orders) = &mut self.orders {
            let _ = orders.write_all(&[order.byte()]);
        }
    }

    /// Ends the helper, and says what it came to. Takes a second and a half at most.
    #[must_use]
    pub fn finish(mut self) -> Provocation {
        drop(self.orders.take());
        if !self.ends() {
            let _ = self.child.kill();
        }
        let left = !self.ends();
        let mut out = self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if left {
            out.note(&format!(
                "the process that pushes pages out (pid {}) is stuck on the target's mmap_lock; it ends when the lock \
                 is released",
                self.child.id()
            ));
        }
        if self.held_back != 0 {
            out.note(&format!("held back {} times, while a task could be stuck on an mmap lock", self.held_back));
        }
        if out.rounds == 0 {
            out.note("no round was completed: the run was too short, a hang was suspected, or the target's memory could not be read");
        }
        out
    }

    fn ends(&mut self) -> bool {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for Provoker {
    fn drop(&mut self) {
        // Where a run ends by an error nobody calls `finish`. A process that was waited for is not signalled again.
        let _ = self.child.kill();
        let _ = self.child.try_wait();
    }
}
