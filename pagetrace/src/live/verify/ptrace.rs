//! The requests of ptrace(2) that following a command takes, and nothing else: one unsafe call each, numbers in and out.
#![expect(unsafe_code, reason = "no crate in the tree has ptrace")]

use std::io;

use rustix::{
    io::Errno,
    process::{Pid, WaitId, WaitIdOptions, WaitOptions, waitid},
};

/// Stops of their own for what makes and ends tasks, and a bit that tells system calls from signals.
const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC
    | libc::PTRACE_O_TRACEVFORKDONE;

/// `AUDIT_ARCH_X86_64` (include/uapi/linux/audit.h).
const X86_64: u32 = 0xc000_003e;

/// `struct ptrace_syscall_info` (include/uapi/linux/ptrace.h), 88 bytes, as words.
const INFO_WORDS: usize = 11;

/// What a stop at a system call tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syscall {
    /// It begins.
    Enters {
        /// Its number.
        number: u64,
        /// Its arguments.
        arguments: [u64; 6],
    },
    /// It ends: the result, or none if that is an error.
    Leaves(Option<u64>),
    /// It is one of another machine's interface, such as that of 32-bit programs.
    Foreign,
    /// Neither.
    Neither,
}

fn request(request: u32, tid: u32, address: usize, data: usize) -> io::Result<()> {
    let pid = libc::pid_t::try_from(tid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the requests that pass here take numbers, or write to memory that `data` points to, which their callers below own,
    // of at least the size that the request writes.
    match unsafe { libc::ptrace(request, pid, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Becomes the tracer of a task, which runs on. Its end is no stop yet: before its first `execve` it is not ours to hold.
pub(super) fn seize(tid: u32) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, OPTIONS as usize)
}

/// From now on its end is a stop as well.
pub(super) fn follow_ends(tid: u32) -> io::Result<()> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, (OPTIONS | libc::PTRACE_O_TRACEEXIT) as usize)
}

/// Lets it run to its next system call, with a signal if that is not 0.
pub(super) fn resume(tid: u32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, usize::try_from(signal).unwrap_or(0))
}

/// Leaves it stopped, as the signal that stopped its process wants it.
pub(super) fn listen(tid: u32) -> io::Result<()> {
    request(libc::PTRACE_LISTEN, tid, 0, 0)
}

/// Stops it where it is.
pub(super) fn interrupt(tid: u32) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// Makes the signal of [`wake`] one that ends a wait and does nothing else; by itself it does nothing at all.
pub(super) fn can_be_woken() -> io::Result<()> {
    extern "C" fn nothing(_signal: libc::c_int) {}
    // SAFETY: an all-zero sigaction is a valid value: no flags, so that waits are not begun anew, and an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler does nothing, which is safe in any thread at any time.
    match unsafe { libc::sigaction(libc::SIGURG, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the wait of a thread of this process. One that does not wait at that moment is not reached.
pub(super) fn wake(tid: u32) {
    // SAFETY: the call takes numbers only; the signal has a handler, see above.
    unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid, libc::SIGURG) };
}

/// What goes with a stop: the new task's id, or the former one's.
pub(super) fn message(tid: u32) -> io::Result<u32> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, tid, 0, (&raw mut message).expose_provenance())?;
    u32::try_from(message).map_err(io::Error::other)
}

/// The address that a signal for a bad access carries.
pub(super) fn bad_address(tid: u32) -> io::Result<u64> {
    // A `siginfo_t` is 128 bytes; the address follows three numbers and their padding.
    let mut info = [0_u64; 16];
    request(libc::PTRACE_GETSIGINFO, tid, 0, info.as_mut_ptr().expose_provenance())?;
    Ok(info[2])
}

/// What a stop at a system call is about.
pub(super) fn syscall(tid: u32) -> io::Result<Syscall> {
    let mut info = [0_u64; INFO_WORDS];
    request(libc::PTRACE_GET_SYSCALL_INFO, tid, size_of_val(&info), info.as_mut_ptr().expose_provenance())?;
    Ok(decode(&info))
}

/// Byte 0 is what it is, bytes 4 to 7 the architecture, two addresses follow, and from byte 24 on what depends on the first.
fn decode(info: &[u64; INFO_WORDS]) -> Syscall {
    let [head, _ip, _sp, first, arguments @ ..] = info;
    let [a, b, c, d, e, f, _] = *arguments;
    match (head & 0xff, head >> 32) {
        (1 | 2, arch) if arch != u64::from(X86_64) => Syscall::Foreign,
        (1, _) => Syscall::Enters { number: *first, arguments: [a, b, c, d, e, f] },
        (2, _) => Syscall::Leaves((a & 0xff == 0).then_some(*first)),
        _ => Syscall::Neither,
    }
}

/// The next stop or end of a task that this thread traces, of one in particular or of any: its id and the status of wait(2). `None`
/// when there is none to wait for, or a signal came in between.
pub(super) fn wait(of: Option<u32>) -> io::Result<Option<(u32, i32)>> {
    let options = WaitOptions::from_bits_retain((libc::__WALL | libc::__WNOTHREAD).cast_unsigned());
    let waited = match of.map(|tid| i32::try_from(tid).ok().and_then(Pid::from_raw)) {
        // Of whatever process group: a command's child may lead its own (`setsid`, job control).
        None => rustix::process::wait(options),
        Some(Some(pid)) => rustix::process::waitpid(Some(pid), options),
        Some(None) => return Err(io::ErrorKind::InvalidInput.into()),
    };
    match waited {
        Ok(Some((pid, status))) => Ok(Some((pid.as_raw_nonzero().get().cast_unsigned(), status.as_raw()))),
        Ok(None) | Err(Errno::INTR) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

/// Waits until a task that this thread traces has stopped or ended, and takes neither: an end is told with its status of wait(2), for
/// a stop, or a signal that came in between, `None`.
pub(super) fn peek(tid: u32) -> io::Result<Option<i32>> {
    let pid = i32::try_from(tid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let here = WaitIdOptions::from_bits_retain((libc::__WALL | libc::__WNOTHREAD).cast_unsigned());
    let options = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT | here;
    match waitid(WaitId::Pid(pid), options) {
        Ok(Some(status)) => {
            let exited = status.exit_status().map(|code| (code & 0xff) << 8);
            Ok(exited.or(status.terminating_signal()))
        }
        Ok(None) | Err(Errno::INTR) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

/// Whether two tasks have one address space; `None` where the kernel does not tell.
pub(super) fn same_memory(one: u32, other: u32) -> Option<bool> {
    const KCMP_VM: libc::c_int = 1;
    // SAFETY: the call takes numbers only.
    match unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) } {
        -1 => None,
        order => Some(order == 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_are_told_apart() {
        let arch = u64::from(X86_64) << 32;
        assert_eq!(
            decode(&[arch | 1, 0, 0, 9, 1, 2, 3, 4, 5, 6, 0]),
            Syscall::Enters { number: 9, arguments: [1, 2, 3, 4, 5, 6] }
        );
        assert_eq!(decode(&[arch | 2, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]), Syscall::Leaves(Some(7)));
        assert_eq!(decode(&[arch | 2, 0, 0, u64::MAX, 1, 0, 0, 0, 0, 0, 0]), Syscall::Leaves(None));
        assert_eq!(decode(&[0x4000_0003 << 32 | 1, 0, 0, 9, 1, 2, 3, 4, 5, 6, 0]), Syscall::Foreign);
        assert_eq!(decode(&[arch; INFO_WORDS]), Syscall::Neither);
    }

    #[test]
    fn a_process_has_its_own_memory() {
        let this = std::process::id();
        assert!(same_memory(this, this).is_none_or(|same| same));
        assert!(same_memory(this, 1).is_none_or(|same| !same));
    }
}
