//! What `pagetrace pagemap` says, as it comes: nothing is kept but sums, so that any process fits. Values in, text or JSON out.

pub mod json;
pub mod text;

use std::io;

use serde::Serialize;

use crate::pages::{
    Vma,
    ability::Ability,
    gather::{FlagCounts, Line},
    kpage,
    smaps::Smaps,
    summary::{Counts, Density},
    walk::Effort,
};

/// Form of the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum View {
    /// Sums for each mapping
    #[default]
    Summary,
    /// A line for pages in a row of equal state
    Runs,
    /// A line for each page
    Entries,
    /// A picture of each mapping: where its pages are
    Map,
}

/// What is known before the first page.
#[derive(Debug)]
pub struct Head<'a> {
    /// The process.
    pub pid: u32,
    /// Its name, escaped.
    pub comm: &'a str,
    /// The kernel's release.
    pub release: &'a str,
    /// What its bits can say.
    pub ability: &'a Ability,
    /// Bytes in a page.
    pub page_size: u64,
    /// The condition, as it was given.
    pub filter: Option<&'a str>,
    /// The form.
    pub view: View,
    /// Mappings that are looked at.
    pub mappings: usize,
    /// Whether frames are asked about.
    pub flags: bool,
}

/// What came of a mapping.
#[derive(Debug)]
pub struct Sums<'a> {
    /// Its pages.
    pub counts: Counts,
    /// The flags of its frames.
    pub flags: Option<FlagCounts>,
    /// Its picture.
    pub density: Option<Density>,
    /// The kernel's own sums.
    pub smaps: Option<&'a Smaps>,
    /// Pages that the kernel gives no entries for.
    pub unreadable: u64,
}

/// What is known behind the last page.
#[derive(Debug, Serialize)]
pub struct Tail {
    /// Everything.
    pub totals: Counts,
    /// Pages that the kernel gives no entries for, in all mappings.
    pub unreadable: u64,
    /// How it was done.
    pub effort: Effort,
    /// Lines of maps that are no mapping.
    pub unreadable_lines: usize,
    /// Why this is not all, if it is not.
    pub incomplete_because: Vec<String>,
}

/// Writes an answer.
pub trait Render {
    /// Before everything.
    ///
    /// # Errors
    /// When it cannot be written, as for all of these.
    fn head(&mut self, head: &Head<'_>) -> io::Result<()>;
    /// Before the lines of a mapping.
    ///
    /// # Errors
    /// As above.
    fn begin(&mut self, vma: &Vma) -> io::Result<()>;
    /// A run or a page.
    ///
    /// # Errors
    /// As above.
    fn line(&mut self, line: &Line) -> io::Result<()>;
    /// After the lines of a mapping.
    ///
    /// # Errors
    /// As above.
    fn end(&mut self, vma: &Vma, sums: &Sums<'_>) -> io::Result<()>;
    /// After everything.
    ///
    /// # Errors
    /// As above.
    fn finish(&mut self, tail: &Tail) -> io::Result<()>;
}

/// A name for a terminal or a document: whatever a file may be called.
#[must_use]
pub fn name(vma: &Vma) -> String {
    String::from_utf8_lossy(&vma.name)
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect()
}

/// `rw-p`.
#[must_use]
pub fn permissions(vma: &Vma) -> String {
    vma.permissions.iter().map(|byte| char::from(*byte)).collect()
}

/// Names and numbers of the flags that were seen.
fn seen(flags: &FlagCounts) -> impl Iterator<Item = (&'static str, u64)> {
    kpage::FLAGS.into_iter().filter_map(|(bit, name)| {
        let count = flags.0.get(usize::try_from(bit).ok()?).copied()?;
        (count != 0).then_some((name, count))
    })
}
