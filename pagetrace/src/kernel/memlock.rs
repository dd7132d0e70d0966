//! The limit on locked memory, which kernels before 5.11 charge BPF maps to. Changes this process's limit only.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What became of the attempt to lift the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memlock {
    /// There is no limit now.
    Unlimited,
    /// The limit stays at so many bytes. That is fatal only where [`super::features::charges_memlock`].
    Limited(u64, rustix::io::Errno),
}

/// Tries to lift `RLIMIT_MEMLOCK` for this process, soft and hard; needs `CAP_SYS_RESOURCE` unless it is lifted already.
#[must_use]
pub fn lift() -> Memlock {
    let now = getrlimit(Resource::Memlock);
    if now.current.is_none() {
        return Memlock::Unlimited;
    }
    match setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }) {
        Ok(()) => Memlock::Unlimited,
        Err(errno) => {
            // The soft limit may always go up to the hard one; if even that fails, the limit stays what it was.
            let raised = Rlimit { current: now.maximum, maximum: now.maximum };
            let current = if setrlimit(Resource::Memlock, raised).is_ok() { now.maximum } else { now.current };
            current.map_or(Memlock::Unlimited, |bytes| Memlock::Limited(bytes, errno))
        }
    }
}
