//! Instruction breakpoints of the processor that run a BPF program, through perf events.
//!
//! Made by hand: a library that asks for precise events gets none with a stack, and none is needed, since the processor
//! stops before the instruction.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

/// `struct perf_event_attr` up to its first extension (include/uapi/linux/perf_event.h, `PERF_ATTR_SIZE_VER1`).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    breakpoint_address: u64,
    breakpoint_length: u64,
}

const PERF_TYPE_BREAKPOINT: u32 = 5;
/// `HW_BREAKPOINT_X`, include/uapi/linux/hw_breakpoint.h.
const EXECUTE: u32 = 4;
/// `disabled` and `pinned`: off until the program is in place, and never taken off the processor for another's.
const FLAGS: u64 = 1 | 1 << 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;

/// Runs `program` whenever `cpu` comes to `address`, until the descriptor is closed.
///
/// # Errors
/// `ENOSPC` when others use the processor's breakpoints, `EINVAL` where the kernel allows none.
#[expect(unsafe_code, reason = "perf events are system calls that no library makes without a precise event")]
pub(super) fn set(program: BorrowedFd<'_>, address: u64, cpu: u32) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        kind: PERF_TYPE_BREAKPOINT,
        size: size_of::<Attributes>() as u32,
        sample_period: 1,
        flags: FLAGS,
        breakpoint_type: EXECUTE,
        breakpoint_address: address,
        // What the kernel asks for with instructions: sizeof(long).
        breakpoint_length: 8,
        ..Attributes::default()
    };
    let cpu = libc::c_int::try_from(cpu).map_err(io::Error::other)?;
    let (no_group, everybody): (RawFd, libc::pid_t) = (-1, -1);
    // SAFETY: the kernel reads as many bytes of the attributes as their size says.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attributes, everybody, cpu, no_group, PERF_FLAG_FD_CLOEXEC)
    };
    let event = match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(fd) if fd >= 0 => unsafe { OwnedFd::from_raw_fd(fd) },
        _ => return Err(io::Error::last_os_error()),
    };
    for (request, argument) in [(PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()), (PERF_EVENT_IOC_ENABLE, 0)] {
        // SAFETY: both requests take a number, no pointer.
        if unsafe { libc::ioctl(event.as_raw_fd(), request, argument) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(event)
}

#[cfg(test)]
mod tests {
    use super::Attributes;

    #[test]
    fn the_attributes_have_the_size_of_the_first_extension() {
        assert_eq!(size_of::<Attributes>(), 72);
        assert_eq!(std::mem::offset_of!(Attributes, breakpoint_address), 56);
    }
}
