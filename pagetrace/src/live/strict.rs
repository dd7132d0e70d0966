//! What the strict check needs to know of a kernel: where the preempt count is, and what an iterator describes.
//!
//! What a kernel does not show stays unset; the BPF object counts what it cannot judge without it.

use std::time::Duration;

use pagetrace_ebpf::wire::setting;

use super::settings::Settings;
use crate::kernel::{btf::Btf, kallsyms::Kallsyms};

/// Sets what the strict check reads.
pub(super) fn set(out: &mut Settings, btf: &Btf, kallsyms: Option<&Kallsyms>) {
    let address = |name: &str| kallsyms.and_then(|symbols| symbols.address_of(name));
    out.set_if(setting::PER_CPU_OFFSET, address("__per_cpu_offset").filter(|at| *at != 0))
        .set_if(setting::PREEMPT_COUNT, preempt_count(btf, &address));
    let offset = |names: &[&str]| names.iter().find_map(|name| btf.member_offset("iov_iter", name)).map(u64::from);
    let narrow = offset(&["iter_type"]);
    out.set_if(setting::ITER_TYPE, narrow.or_else(|| offset(&["type"])))
        // A byte since 5.14, before that a number with the direction in its lowest bit.
        .set(setting::ITER_TYPE_SIZE, if narrow.is_some() { 1 } else { 4 })
        .set_if(setting::ITER_OFFSET, offset(&["iov_offset"]))
        .set_if(setting::ITER_BUFFER, offset(&["ubuf"]))
        .set_if(setting::ITER_VECTOR, offset(&["__iov", "iov"]));
    let kind = |name| btf.enum_value("iter_type", name).and_then(|value| u64::try_from(value).ok());
    out.set_if(setting::ITER_IOVEC, kind("ITER_IOVEC")).set_if(setting::ITER_UBUF, kind("ITER_UBUF"));
}

/// A per-CPU variable of its own, or for some releases a member of `pcpu_hot`.
fn preempt_count(btf: &Btf, address: &dyn Fn(&str) -> Option<u64>) -> Option<u64> {
    address("__preempt_count")
        .or_else(|| Some(address("pcpu_hot")? + u64::from(btf.member_offset("pcpu_hot", "preempt_count")?)))
}

/// Accesses that are made after attaching, and the time between them. The kernel turns breakpoints into jumps some
/// hundredths of a second after they were set.
const CALIBRATIONS: u32 = 20;
const CALIBRATION_PAUSE: Duration = Duration::from_millis(10);

/// Lets the probes see accesses of which it is known that they are made in no atomic context: this process's own.
///
/// A probe adds to the preempt count itself, and a breakpoint adds another amount than a jump. Both amounts are learned
/// from these accesses.
pub(super) async fn calibrate() {
    for _ in 0..CALIBRATIONS {
        access();
        tokio::time::sleep(CALIBRATION_PAUSE).await;
    }
}

/// Makes such accesses. Reads and writes of a file in memory pass through most of the functions that have probes, a path is a string to
/// copy, and what is read from `/dev/zero` is cleared.
/// Whether a call succeeds does not matter: the kernel copies its arguments before it looks at them.
pub(super) fn access() {
    let _ = rustix::thread::nanosleep(&rustix::thread::Timespec { tv_sec: 0, tv_nsec: 1 });
    let Ok(file) = rustix::fs::memfd_create("pagetrace", rustix::fs::MemfdFlags::CLOEXEC) else { return };
    let mut bytes = [0; 64];
    let _ = rustix::io::write(&file, &bytes);
    let _ = rustix::io::pread(&file, &mut bytes, 0);
    if let Ok(zero) = rustix::fs::open("/dev/zero", rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty()) {
        let _ = rustix::io::read(&zero, &mut bytes);
    }
}
