//! What lockdep said of each case, out of a guest's console. Pure.

use std::collections::BTreeMap;

use crate::vm::console::kernel_message;

/// Begins the kernel message that the guest writes before each case.
pub(super) const MARK: &str = "pagetrace-case: ";

/// Parts of messages of lockdep and its relatives, and the words for them in the table.
const SAYS: [(&str, &str); 8] = [
    ("possible circular locking dependency", "circular dependency"),
    ("possible recursive locking", "recursive locking"),
    ("lock held when returning to user space", "held when returning to user space"),
    ("still has locks held", "held at the task's end"),
    ("sleeping function called from invalid context", "sleeping function in atomic context"),
    ("bad unlock balance", "bad unlock balance"),
    ("held lock freed", "held lock freed"),
    ("Invalid wait context", "invalid wait context"),
];

/// Collects what is said between one mark and the next.
#[derive(Debug, Default)]
pub(super) struct Splats {
    case: Option<String>,
    said: BTreeMap<String, Vec<String>>,
}

impl Splats {
    /// Takes a line of the console.
    pub(super) fn line(&mut self, line: &str) {
        let Some(message) = kernel_message(line) else { return };
        if let Some(case) = message.strip_prefix(MARK) {
            self.said.entry(case.to_owned()).or_default();
            self.case = Some(case.to_owned());
            return;
        }
        let Some(case) = &self.case else { return };
        let Some(says) = says(message) else { return };
        let said = self.said.entry(case.clone()).or_default();
        if !said.contains(&says) {
            said.push(says);
        }
    }

    /// What was said, by case; a case that began and of which nothing was said has an empty list.
    pub(super) fn finish(self) -> BTreeMap<String, Vec<String>> {
        self.said
    }
}

/// The words for a message; a warning that is not known is told by its own.
fn says(message: &str) -> Option<String> {
    if let Some((_, words)) = SAYS.iter().find(|(part, _)| message.contains(part)) {
        return Some((*words).to_owned());
    }
    let strange = ["WARNING: ", "BUG: ", "DEBUG_LOCKS_WARN_ON"].iter().any(|begin| message.starts_with(begin));
    strange.then(|| message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_case_has_what_was_said_after_its_mark() {
        let mut splats = Splats::default();
        for line in [
            "[    1.000000] WARNING: of the boot",
            "[    1.500000] pagetrace-case: kmod plain",
            "[    2.000000] pagetrace-case: kmod read-own",
            "[    2.000001] WARNING: possible recursive locking detected",
            "[    2.000002] pagetrace-fixtu/71 is trying to acquire lock:",
            "WARNING: possible circular locking dependency, says the command",
            "[    2.000003] WARNING: possible recursive locking detected",
            "[    3.000000] pagetrace-case: kmod odd",
            "[    3.000001] BUG: something new",
        ] {
            splats.line(line);
        }
        let said = splats.finish();
        assert_eq!(said.len(), 3);
        assert!(said["kmod plain"].is_empty());
        assert_eq!(said["kmod read-own"], ["recursive locking"]);
        assert_eq!(said["kmod odd"], ["BUG: something new"]);
    }
}
