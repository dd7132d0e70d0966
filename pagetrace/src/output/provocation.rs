//! What provoking came to, as part of the report. A value; pushing itself is done elsewhere.

use serde::{Deserialize, Serialize};

/// Sums over all rounds. `pages_seen` is `pages_pushed` and `stayed` together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provocation {
    /// Times that the target's pages were gone through.
    pub rounds: u64,
    /// Resident pages that were found and asked to leave.
    pub pages_seen: u64,
    /// Of those, pages that were gone afterwards.
    pub pages_pushed: u64,
    /// Pages pushed out that a later round found resident again.
    pub pages_back: u64,
    /// Pages asked to leave that were still, or already again, resident.
    pub stayed: u64,
    /// Whether there was swap with room: without it anonymous pages cannot leave.
    pub swap: bool,
    /// What limited it.
    pub notes: Vec<String>,
}

impl Provocation {
    /// For people, without the notes.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Self { rounds, pages_pushed, pages_back, stayed, .. } = self;
        format!(
            "{pages_pushed} pages pushed out in {rounds} rounds, {pages_back} came back, {stayed} times a page stayed"
        )
    }

    /// Adds a note that is not there yet.
    pub fn note(&mut self, sentence: &str) {
        if !self.notes.iter().any(|known| known == sentence) {
            self.notes.push(sentence.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_made_once_and_survives_the_pipe() {
        let mut provocation = Provocation { rounds: 2, pages_seen: 5, pages_pushed: 3, ..Provocation::default() };
        provocation.note("a");
        provocation.note("a");
        assert_eq!(provocation.notes, ["a"]);
        let line = serde_json::to_string(&provocation).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Provocation>(&line).unwrap(), provocation);
    }
}
