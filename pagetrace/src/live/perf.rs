//! Perf events that run a BPF program: instruction breakpoints of the processor, and kprobes.
//!
//! Made by hand. For a breakpoint a library asks for a precise event, and gets none with a stack; none is needed, since the processor
//! stops before the instruction. And a library's kprobe needs a loaded program before the kernel says that it takes none there.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

/// `struct perf_event_attr` up to its first extension (include/uapi/linux/perf_event.h, `PERF_ATTR_SIZE_VER1`).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Attributes {
    kind: u32,
    size: u32,
    /// Of a kprobe: its lowest bit stands for a kretprobe (kernel/events/core.c, `PERF_PROBE_CONFIG_IS_RETPROBE`).
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    /// `bp_addr`, or the address of a function's name.
    place: u64,
    /// `bp_len`, or `kprobe_addr`, which counts when there is no name.
    extent: u64,
}

const PERF_TYPE_BREAKPOINT: u32 = 5;
/// `HW_BREAKPOINT_X`, include/uapi/linux/hw_breakpoint.h.
const EXECUTE: u32 = 4;
/// `disabled` and `pinned`: off until the program is in place, and never taken off the processor for another's.
const FLAGS: u64 = 1 | 1 << 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;

/// A breakpoint at `address` on `cpu`, for [`run`].
///
/// # Errors
/// `ENOSPC` when others use the processor's breakpoints, `EINVAL` where the kernel allows none.
pub(super) fn breakpoint(address: u64, cpu: u32) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        kind: PERF_TYPE_BREAKPOINT,
        sample_period: 1,
        flags: FLAGS,
        breakpoint_type: EXECUTE,
        place: address,
        // What the kernel asks for with instructions: sizeof(long).
        extent: 8,
        ..Attributes::default()
    };
    open(attributes, libc::c_int::try_from(cpu).map_err(io::Error::other)?)
}

/// What the kernel calls its kprobes among the kinds of events; `None` where it has none, or sysfs does not tell.
pub(super) fn kprobes() -> Option<u32> {
    fs::read_to_string("/sys/bus/event_source/devices/kprobe/type").ok()?.trim().parse().ok()
}

/// A kprobe at the entry of `function`, or where it returns, for [`run`]. It is hit on every processor.
///
/// # Errors
/// `EINVAL` where the kernel takes none, as in functions built without ftrace (kernel/trace/trace_kprobe.c, `within_notrace_func`).
pub(super) fn kprobe(kprobes: u32, function: &str, returns: bool) -> io::Result<OwnedFd> {
    let name = CString::new(function)?;
    // The kernel copies the name while it opens the event.
    let place = name.as_ptr() as u64;
    open(Attributes { kind: kprobes, config: u64::from(returns), place, ..Attributes::default() }, 0)
}

/// The same, of the function at `address`.
///
/// # Errors
/// As [`kprobe`].
pub(super) fn kprobe_at(kprobes: u32, address: u64, returns: bool) -> io::Result<OwnedFd> {
    open(Attributes { kind: kprobes, config: u64::from(returns), extent: address, ..Attributes::default() }, 0)
}

/// Opens an event of all tasks.
#[expect(unsafe_code, reason = "perf events are system calls that no library makes without a precise event")]
fn open(attributes: Attributes, cpu: libc::c_int) -> io::Result<OwnedFd> {
    let attributes = Attributes { size: size_of::<Attributes>() as u32, ..attributes };
    let (no_group, everybody): (RawFd, libc::pid_t) = (-1, -1);
    // SAFETY: the kernel reads as many bytes of the attributes as their size says, and a name that the caller keeps meanwhile.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attributes, everybody, cpu, no_group, PERF_FLAG_FD_CLOEXEC)
    };
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs `program` whenever the event happens, until its descriptor is closed.
///
/// # Errors
/// As the kernel says.
#[expect(unsafe_code, reason = "see `open`")]
pub(super) fn run(event: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    for (request, argument) in [(PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()), (PERF_EVENT_IOC_ENABLE, 0)] {
        // SAFETY: both requests take a number, no pointer.
        if unsafe { libc::ioctl(event.as_raw_fd(), request, argument) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Attributes;

    #[test]
    fn the_attributes_have_the_size_of_the_first_extension() {
        assert_eq!(size_of::<Attributes>(), 72);
        assert_eq!(std::mem::offset_of!(Attributes, place), 56);
    }
}
