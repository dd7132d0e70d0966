//! What the host tells the guest's init in the initramfs, and what the init answers on the console.
//!
//! The answer's lines carry a token chosen for the run, so nothing the command prints can be taken
//! for one of them.

use std::{
    ffi::OsString,
    fmt,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
};

/// Directory of the init's own files in the guest.
pub const DIR: &str = "/vm";
/// The token of the run.
pub const TOKEN: &str = "/vm/token";
/// The command, NUL after each argument.
pub const COMMAND: &str = "/vm/command";
/// Variables, `NAME=VALUE`, NUL after each.
pub const ENV: &str = "/vm/env";
/// Paths of kernel modules, NUL after each.
pub const MODULES: &str = "/vm/modules";
/// Milliseconds the command may run.
pub const TIMEOUT: &str = "/vm/timeout";
/// Directory the command starts in; root's home where there is no such file.
pub const CWD: &str = "/vm/cwd";
/// Where this file is, what the command prints is kept in [`STDOUT`] and [`STDERR`].
pub const TEE: &str = "/vm/tee";
/// Name of the file below [`OUT`] that keeps the command's stdout.
pub const STDOUT: &str = "stdout";
/// The same for stderr.
pub const STDERR: &str = "stderr";
/// What the command leaves here is sent to the host.
pub const OUT: &str = "/out";

/// One line of the init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The init runs and is about to start the command.
    Ready,
    /// The files of `/out` are on the disk: an archive of this many bytes.
    Out(u64),
    /// The same, sent over the second serial line: this kernel has no driver for the disk.
    Line(u64),
    /// The command exited.
    Exited(i32),
    /// A signal ended the command.
    Signaled(i32),
    /// The command did not end in time.
    Timeout,
    /// The init itself failed.
    Failed(String),
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => write!(f, "ready"),
            Self::Out(bytes) => write!(f, "out {bytes}"),
            Self::Line(bytes) => write!(f, "line {bytes}"),
            Self::Exited(code) => write!(f, "exited {code}"),
            Self::Signaled(signal) => write!(f, "signaled {signal}"),
            Self::Timeout => write!(f, "timeout"),
            // One line, whatever the reason holds.
            Self::Failed(reason) => write!(f, "failed {}", reason.replace(['\n', '\r'], " ")),
        }
    }
}

/// The line for a message, without the line feed.
#[must_use]
pub fn encode(token: &str, message: &Message) -> String {
    format!("<{token} {message}>")
}

/// Finds a message in a console line; the text before it belongs to the command, which may have
/// ended its output without a line feed.
#[must_use]
pub fn decode<'a>(token: &str, line: &'a str) -> Option<(&'a str, Message)> {
    let start = line.find(&format!("<{token} "))?;
    let inner = line[start + 1 + token.len() + 1..].strip_suffix('>')?;
    let (word, rest) = inner.split_once(' ').unwrap_or((inner, ""));
    let message = match word {
        "ready" => Message::Ready,
        "out" => Message::Out(rest.parse().ok()?),
        "line" => Message::Line(rest.parse().ok()?),
        "exited" => Message::Exited(rest.parse().ok()?),
        "signaled" => Message::Signaled(rest.parse().ok()?),
        "timeout" => Message::Timeout,
        "failed" => Message::Failed(rest.to_owned()),
        _ => return None,
    };
    Some((&line[..start], message))
}

/// Strings with a NUL after each.
pub fn join<'a>(items: impl IntoIterator<Item = &'a OsString>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for item in items {
        bytes.extend_from_slice(item.as_bytes());
        bytes.push(0);
    }
    bytes
}

/// The inverse of [`join`].
#[must_use]
pub fn split(bytes: &[u8]) -> Vec<OsString> {
    let mut items: Vec<_> = bytes.split(|b| *b == 0).map(|item| OsString::from_vec(item.to_vec())).collect();
    items.pop();
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive() {
        let all = [
            Message::Ready,
            Message::Out(12),
            Message::Line(13),
            Message::Exited(7),
            Message::Signaled(9),
            Message::Timeout,
            Message::Failed("a > b".into()),
        ];
        for message in all {
            let line = encode("abc", &message);
            assert_eq!(decode("abc", &line), Some(("", message)), "{line}");
        }
    }

    #[test]
    fn output_without_line_feed_stays_output() {
        assert_eq!(decode("abc", "no newline<abc exited 0>"), Some(("no newline", Message::Exited(0))));
    }

    #[test]
    fn other_tokens_and_halves_do_not_count() {
        for line in ["<abd exited 0>", "<abc exited 0", "<abc exited >", "<abc exited 0x>", "exited 0", "<abc>"] {
            assert_eq!(decode("abc", line), None, "{line}");
        }
    }

    #[test]
    fn any_bytes_pass_through_a_list() {
        let items = vec![OsString::from("a b"), OsString::new(), OsString::from_vec(vec![0xff, b'\n'])];
        assert_eq!(split(&join(&items)), items);
        assert!(split(&join(&[])).is_empty());
    }
}
