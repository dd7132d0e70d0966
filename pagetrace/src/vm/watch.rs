//! Follows a guest through its console lines to its outcome.
//!
//! Pure: lines in, text for the caller and finally an [`Outcome`] out.

use std::time::Duration;

use super::{
    console::{Sign, kernel_message, sign},
    outcome::Outcome,
    protocol::{self, Message},
};

/// Why the host stopped reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// QEMU is gone; its exit status and stderr in words.
    Gone(String),
    /// The boot took longer than this.
    Boot(Duration),
    /// The run took longer than this.
    Deadline(Duration),
    /// The guest printed nothing for this long.
    Silence(Duration),
    /// What was waited for after a sign of trouble, or after the guest's last word, is over.
    Grace,
}

/// What is known about a guest so far.
#[derive(Debug)]
pub struct Watch {
    token: String,
    stop_on_complaint: bool,
    /// Whether the guest's init has reported.
    pub booted: bool,
    /// Length of the archive on the disk.
    pub out: Option<u64>,
    /// Length of the archive that came over the line.
    pub line_out: Option<u64>,
    last_word: Option<Message>,
    panic: Option<String>,
    complaint: Option<String>,
    /// What the kernel says of an archive that it could not unpack.
    too_large: Option<String>,
}

impl Watch {
    /// A guest whose init uses `token`.
    #[must_use]
    pub const fn new(token: String, stop_on_complaint: bool) -> Self {
        Self {
            token,
            stop_on_complaint,
            booted: false,
            out: None,
            line_out: None,
            last_word: None,
            panic: None,
            complaint: None,
            too_large: None,
        }
    }

    /// Takes a line and returns what of it the caller should see.
    pub fn line<'a>(&mut self, line: &'a str) -> Option<&'a str> {
        if let Some((before, message)) = protocol::decode(&self.token, line) {
            match message {
                Message::Ready => self.booted = true,
                Message::Out(bytes) => self.out = Some(bytes),
                Message::Line(bytes) => self.line_out = Some(bytes),
                last => {
                    self.last_word.get_or_insert(last);
                }
            }
            return (!before.is_empty()).then_some(before);
        }
        if let Some(message) = kernel_message(line) {
            if self.last_word.is_some() {
                return None; // The machine goes off.
            }
            // init/initramfs.c, `do_populate_rootfs`. What was unpacked until then is there, the init as the first.
            if message.contains("Initramfs unpacking failed") {
                self.too_large.get_or_insert_with(|| message.to_owned());
            }
            match sign(message) {
                Some(Sign::Panic) => {
                    self.panic.get_or_insert_with(|| message.to_owned());
                }
                Some(Sign::Complaint) => {
                    self.complaint.get_or_insert_with(|| message.to_owned());
                }
                None => {}
            }
        }
        Some(line)
    }

    /// How long to read on before the machine is stopped, once nothing new is to be expected.
    #[must_use]
    pub const fn grace(&self) -> Option<Duration> {
        if self.panic.is_some() || self.last_word.is_some() || self.too_large.is_some() {
            Some(Duration::from_secs(5))
        } else if self.complaint.is_some() && self.stop_on_complaint {
            // The rest of the kernel's report is worth having.
            Some(Duration::from_secs(8))
        } else {
            None
        }
    }

    /// The outcome.
    #[must_use]
    pub fn outcome(&self, end: &End, timeout: Duration) -> Outcome {
        let Self { token: _, stop_on_complaint, booted, out: _, line_out: _, last_word, panic, complaint, too_large } =
            self;
        // The command may have run, or not have been there: either way it says nothing.
        if let Some(line) = too_large {
            let reason =
                format!("what goes into the guest does not fit into its memory ({line}): give it more, by --mem");
            return Outcome::InfraError { reason };
        }
        if let (Some(line), true) = (panic, *booted) {
            return Outcome::Panic { line: line.clone() };
        }
        if let (Some(line), true, true) = (complaint, *stop_on_complaint, *booted) {
            return Outcome::Hung { line: line.clone() };
        }
        if let Some(word) = last_word {
            return match word {
                Message::Exited(code) => Outcome::Exited { code: *code },
                Message::Signaled(signal) => Outcome::Signaled { signal: *signal },
                Message::Timeout => Outcome::Timeout { after: timeout },
                Message::Failed(reason) => Outcome::InfraError { reason: reason.clone() },
                Message::Ready | Message::Out(_) | Message::Line(_) => {
                    Outcome::InfraError { reason: "the init is confused".into() }
                }
            };
        }
        if !booted {
            let seen = panic.as_ref().or(complaint.as_ref());
            let reason = match (seen, end) {
                (Some(line), _) => line.clone(),
                (None, End::Gone(how)) => format!("QEMU {how}"),
                (None, End::Boot(limit) | End::Deadline(limit) | End::Silence(limit)) => {
                    format!("the init did not report within {} s", limit.as_secs())
                }
                (None, End::Grace) => "the init did not report".into(),
            };
            return Outcome::NoBoot { reason };
        }
        match end {
            End::Gone(how) => Outcome::InfraError { reason: format!("QEMU {how} before the guest had reported") },
            End::Silence(limit) => Outcome::Hung { line: format!("no output for {} s", limit.as_secs()) },
            // The init ends an overdue command by itself; if it could not, the kernel is stuck.
            End::Boot(_) | End::Deadline(_) | End::Grace => Outcome::Timeout { after: timeout },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(9);

    fn after(lines: &[&str], end: &End) -> Outcome {
        let mut watch = Watch::new("t".into(), true);
        for line in lines {
            watch.line(line);
        }
        watch.outcome(end, LIMIT)
    }

    fn gone() -> End {
        End::Gone("exited with 0".into())
    }

    #[test]
    fn the_command_ended() {
        assert_eq!(after(&["<t ready>", "<t exited 7>"], &gone()), Outcome::Exited { code: 7 });
        assert_eq!(after(&["<t ready>", "x<t signaled 9>"], &gone()), Outcome::Signaled { signal: 9 });
        assert_eq!(after(&["<t ready>", "<t timeout>"], &gone()), Outcome::Timeout { after: LIMIT });
    }

    #[test]
    fn the_first_last_word_counts() {
        assert_eq!(after(&["<t ready>", "<t exited 1>", "<t exited 0>"], &gone()), Outcome::Exited { code: 1 });
    }

    #[test]
    fn panic_before_and_after_boot() {
        let panic = "[    1.000000] Kernel panic - not syncing: no init";
        assert!(matches!(after(&[panic], &gone()), Outcome::NoBoot { .. }));
        assert!(matches!(after(&["<t ready>", panic], &gone()), Outcome::Panic { .. }));
        // The command printing the words is not the kernel panicking.
        let said = ["<t ready>", "Kernel panic - not syncing: no init", "<t exited 0>"];
        assert_eq!(after(&said, &gone()), Outcome::Exited { code: 0 });
    }

    #[test]
    fn a_complaint_spoils_success() {
        let lines = ["<t ready>", "[    1.000000] BUG: unable to handle page fault", "<t exited 0>"];
        assert!(matches!(after(&lines, &gone()), Outcome::Hung { .. }));
    }

    #[test]
    fn an_archive_that_does_not_fit_is_no_command_s_end() {
        let failed = "[    0.412345] Initramfs unpacking failed: write error";
        let outcome = after(&[failed, "<t ready>", "<t exited 127>"], &gone());
        assert!(outcome.infrastructure() && format!("{outcome:?}").contains("--mem"), "{outcome:?}");
        // The command printing the words is not the kernel.
        assert_eq!(
            after(&["<t ready>", "Initramfs unpacking failed", "<t exited 3>"], &gone()),
            Outcome::Exited { code: 3 }
        );
    }

    #[test]
    fn silence_and_deadline() {
        assert!(matches!(after(&["<t ready>"], &End::Silence(LIMIT)), Outcome::Hung { .. }));
        assert!(matches!(after(&["<t ready>"], &End::Deadline(LIMIT)), Outcome::Timeout { .. }));
        assert!(matches!(after(&[], &End::Boot(LIMIT)), Outcome::NoBoot { .. }));
    }

    #[test]
    fn a_vanished_qemu_is_nobodys_test_failure() {
        assert!(after(&["<t ready>"], &gone()).infrastructure());
        assert!(after(&[], &gone()).infrastructure());
    }

    #[test]
    fn the_caller_sees_output_only() {
        let mut watch = Watch::new("t".into(), true);
        assert_eq!(watch.line("<t ready>"), None);
        assert_eq!(watch.line("hello"), Some("hello"));
        assert_eq!(watch.line("<t out 12>"), None);
        assert_eq!(watch.line("tail<t exited 0>"), Some("tail"));
        assert_eq!(watch.line("[    1.234567] reboot: Power down"), None);
        assert_eq!(watch.out, Some(12));
    }
}
