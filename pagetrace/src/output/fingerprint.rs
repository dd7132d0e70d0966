//! A finding's fingerprint: the same for the same class and functions, whatever the addresses, offsets, tasks and times.
//!
//! It is what a baseline knows a finding by, so what goes into it may not change without another [`VERSION`]. Pure.

use sha2::{Digest as _, Sha256};

/// What goes in front of everything else: a change of the rules changes all fingerprints at once, and openly.
pub const VERSION: &str = "pagetrace.fingerprint/1";

/// Sixteen hexadecimal digits, of a text that says what is the same in every run.
pub(super) fn hash(identity: &str) -> String {
    let digest = Sha256::digest(format!("{VERSION}\n{identity}"));
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a text has the form of a fingerprint.
pub fn is_one(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_what_they_were() {
        // `printf 'pagetrace.fingerprint/1\nlock-leak\nlock f g\n' | sha256sum`
        assert_eq!(hash("lock-leak\nlock f g\n"), "ff30bbf3aba03506");
        assert!(is_one(&hash("")));
        for bad in ["", "0123456789abcde", "0123456789ABCDEF", "0123456789abcdefa", "0123456789abcdeg"] {
            assert!(!is_one(bad), "{bad}");
        }
    }
}
