//! Users who may not trace learn what to do.

use std::{env, os::unix::process::CommandExt as _, path::PathBuf};

use anyhow::{Result, ensure};

use super::run::{Running, Scratch, binary, pagetrace, root};

pub(super) const NOBODY: u32 = 65534;

/// A copy of the program where every user can reach it.
pub(super) fn public(scratch: &Scratch) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&scratch.0, PermissionsExt::from_mode(0o755))?;
    scratch.program(&binary()?, "pagetrace")
}

#[test]
fn a_user_without_privileges_is_told_what_to_do() -> Result<()> {
    let scratch = Scratch::new("nobody")?;
    for args in [&["check", "--", "true"][..], &["trace", "--", "true"], &["probes"]] {
        let mut command = pagetrace(args)?;
        if root() {
            let mut other = std::process::Command::new(public(&scratch)?);
            other.args(args).uid(NOBODY).gid(NOBODY).current_dir(env::temp_dir());
            other.stdin(std::process::Stdio::null());
            other.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            command = other;
        }
        let ran = Running::start(&mut command)?.end()?.exits(3)?.silent()?;
        for word in ["CAP_BPF", "CAP_PERFMON", "sudo"] {
            ensure!(ran.stderr.contains(word), "{args:?} does not say {word}: {ran:#?}");
        }
    }
    Ok(())
}
