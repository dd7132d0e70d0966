//! Whether this kernel and this user can push another process's pages out. Asked before the command starts.

use std::{fs, io, path::Path};

use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::advice::{Advice, advise};
use crate::kernel::caps::{Cap, Privileges};

/// Why they cannot; the text has been made for people.
#[derive(Debug, thiserror::Error)]
#[error("cannot provoke faults: {0}")]
pub struct Unable(String);

/// The best advice that the kernel takes.
///
/// # Errors
/// [`Unable`] with what is missing.
pub fn able() -> Result<Advice, Unable> {
    if !Path::new("/proc/self/pagemap").exists() {
        return Err(Unable("this kernel has no /proc/PID/pagemap (CONFIG_PROC_PAGE_MONITOR)".to_owned()));
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(privileges) = Privileges::parse(&status, None) {
        let needed = [(Cap::CapSysNice, "CAP_SYS_NICE"), (Cap::CapSysPtrace, "CAP_SYS_PTRACE")];
        let missing: Vec<_> = needed.iter().filter(|(cap, _)| !privileges.has(*cap)).map(|(_, name)| *name).collect();
        if !missing.is_empty() {
            return Err(Unable(format!(
                "advising another process about its memory needs {}: run it with sudo, or give it the capabilities",
                missing.join(" and ")
            )));
        }
    }
    let this = pidfd_open(getpid(), PidfdFlags::empty())
        .map_err(|errno| Unable(format!("pidfd_open on this process failed ({errno})")))?;
    choose(|advice| advise(&this, 0, 0, advice))
}

/// Asks for nothing to be done, which tells what would be refused.
fn choose(ask: impl Fn(Advice) -> io::Result<usize>) -> Result<Advice, Unable> {
    for advice in [Advice::Pageout, Advice::Cold] {
        match ask(advice) {
            Ok(_) => return Ok(advice),
            Err(err) if err.raw_os_error() == Some(libc::ENOSYS) => {
                return Err(Unable(
                    "this kernel has no process_madvise (5.10 and later have it), or a seccomp filter hides it"
                        .to_owned(),
                ));
            }
            Err(err) if err.raw_os_error() == Some(libc::EPERM) => {
                return Err(Unable(format!(
                    "process_madvise is not allowed ({err}): a container's seccomp filter may forbid it"
                )));
            }
            Err(_) => {}
        }
    }
    Err(Unable("process_madvise takes neither MADV_PAGEOUT nor MADV_COLD on this kernel".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(errno: i32) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn the_best_advice_that_is_taken_is_used() {
        assert_eq!(choose(|_| Ok(0)).unwrap(), Advice::Pageout);
        let old = |advice| if advice == Advice::Cold { Ok(0) } else { answer(libc::EINVAL) };
        assert_eq!(choose(old).unwrap(), Advice::Cold);
    }

    #[test]
    fn what_is_missing_is_said() {
        for (errno, word) in [(libc::ENOSYS, "5.10"), (libc::EPERM, "seccomp"), (libc::EINVAL, "MADV_COLD")] {
            let text = choose(|_| answer(errno)).unwrap_err().to_string();
            assert!(text.starts_with("cannot provoke faults") && text.contains(word), "{text}");
        }
    }
}
