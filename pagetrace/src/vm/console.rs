//! Reads a guest's console: lines out of chunks, the kernel's own messages, the signs of a hang.
//!
//! Pure: bytes and lines in, values out.

/// Cuts a stream into lines.
#[derive(Debug, Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes a chunk and returns the lines it completes, without their line ends.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(chunk);
        let Some(end) = self.rest.iter().rposition(|b| *b == b'\n') else {
            return Vec::new();
        };
        let complete: Vec<u8> = self.rest.drain(..=end).collect();
        complete[..complete.len() - 1].split(|b| *b == b'\n').map(text).collect()
    }

    /// What is left without a line feed.
    pub fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.rest);
        (!rest.is_empty()).then(|| text(&rest))
    }
}

/// A console line as text; the terminal's carriage returns are not part of it.
fn text(line: &[u8]) -> String {
    let end = line.iter().rposition(|b| *b != b'\r').map_or(0, |last| last + 1);
    String::from_utf8_lossy(&line[..end]).into_owned()
}

/// The message of a line that the kernel printed: `[    1.234567] text`, perhaps with the caller
/// (`[    1.234567][  T123] text`). A command's own output is not mistaken for it unless it
/// imitates the time stamp.
#[must_use]
pub fn kernel_message(line: &str) -> Option<&str> {
    let (stamp, rest) = line.strip_prefix('[')?.split_once(']')?;
    let (seconds, fraction) = stamp.trim_start().split_once('.')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(seconds) || fraction.len() != 6 || !digits(fraction) {
        return None;
    }
    let rest = match rest.strip_prefix('[').and_then(|caller| caller.split_once(']')) {
        Some((_, after)) => after,
        None => rest,
    };
    Some(rest.strip_prefix(' ').unwrap_or(rest))
}

/// A sign in a kernel message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// The kernel is dead.
    Panic,
    /// The kernel may go on, but nothing it does from here on can be trusted.
    Complaint,
}

/// What a kernel message says about the kernel's health.
#[must_use]
pub fn sign(message: &str) -> Option<Sign> {
    const COMPLAINTS: [&str; 7] = [
        "BUG:",
        "kernel BUG at",
        "Oops:",
        "soft lockup",
        "Unable to handle",
        "self-detected stall",
        "detected stalls on",
    ];
    if message.starts_with("Kernel panic") {
        Some(Sign::Panic)
    } else if message.starts_with("rcu: INFO") || COMPLAINTS.iter().any(|sign| message.contains(sign)) {
        Some(Sign::Complaint)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_do_not_depend_on_the_chunks() {
        let bytes = b"one\r\n\ntwo\nthree";
        for cut in 0..bytes.len() {
            let mut lines = Lines::default();
            let mut seen = lines.push(&bytes[..cut]);
            seen.extend(lines.push(&bytes[cut..]));
            seen.extend(lines.finish());
            assert_eq!(seen, ["one", "", "two", "three"], "cut at {cut}");
        }
        assert_eq!(Lines::default().finish(), None);
    }

    #[test]
    fn kernel_messages() {
        assert_eq!(kernel_message("[    1.234567] hello"), Some("hello"));
        assert_eq!(kernel_message("[   12.234567][  T123] hello"), Some("hello"));
        assert_eq!(kernel_message("[1234567.234567] hello"), Some("hello"));
        for line in ["hello", "[ok] hello", "[1.5] hello", "[ 1.2345678] x", "[", "BUG: mine"] {
            assert_eq!(kernel_message(line), None, "{line}");
        }
    }

    #[test]
    fn signs() {
        assert_eq!(sign("Kernel panic - not syncing: sysrq triggered crash"), Some(Sign::Panic));
        for message in [
            "BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [a:1]",
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "Unable to handle kernel paging request at virtual address 0",
        ] {
            assert_eq!(sign(message), Some(Sign::Complaint), "{message}");
        }
        // A task blocked for long is what some test cases provoke on purpose.
        assert_eq!(sign("INFO: task a:1 blocked for more than 120 seconds."), None);
    }
}
