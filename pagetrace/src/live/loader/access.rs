//! Attaches to the functions that access user memory. They are many, and often closed.
//!
//! The kernel says only when it is asked for a kprobe whether it takes one in a function. So it is asked first, with events that have no
//! program yet: loading the programs for nothing would take longer than all else.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf,
    programs::{KProbe, PerfEvent, ProgramError},
    sys::SyscallError,
};

use super::{super::perf, AttachError, attach_one, program, refusal};
use crate::{
    kernel::kallsyms::Kallsyms,
    plan::{Probe, ProgramType},
};

/// Opens a kprobe for each of these that is one, to be run by [`attach`]; none for the others, nor where sysfs does not tell how.
///
/// # Errors
/// [`AttachError::Closed`] with all that the kernel refused.
pub(super) fn ask(probes: &[&Probe]) -> Result<Vec<Option<OwnedFd>>, AttachError> {
    let kprobes = perf::kprobes();
    let (mut events, mut closed) = (Vec::new(), Vec::new());
    for probe in probes {
        let asked = match (kprobes, probe.kind) {
            (Some(kprobes), ProgramType::Kprobe) => Some(perf::kprobe(kprobes, &probe.target)),
            _ => None,
        };
        match asked.transpose() {
            Ok(event) => events.push(event),
            Err(io_error) => closed.push(refusal(probe, &failed("perf_event_open", io_error))),
        }
    }
    if closed.is_empty() { Ok(events) } else { Err(AttachError::Closed(closed)) }
}

/// Attaches each to its event, or as it can be. All are tried before the refusals are told.
///
/// # Errors
/// As [`ask`].
pub(super) fn attach(
    bpf: &mut Ebpf,
    probes: &[&Probe],
    events: Vec<Option<OwnedFd>>,
    symbols: Option<&Kallsyms>,
) -> Result<Vec<OwnedFd>, AttachError> {
    let (mut kept, mut closed) = (Vec::new(), Vec::new());
    for (probe, event) in probes.iter().zip(events) {
        let attached = match (event, probe.kind) {
            (Some(event), _) => run_by(bpf, probe, event).map(|event| vec![event]),
            (None, ProgramType::Breakpoint) => break_at(bpf, probe, symbols),
            (None, _) => attach_one(bpf, probe).map(|()| Vec::new()),
        };
        match attached {
            Ok(events) => kept.extend(events),
            Err(why) => closed.push(refusal(probe, &why)),
        }
    }
    if closed.is_empty() { Ok(kept) } else { Err(AttachError::Closed(closed)) }
}

fn failed(call: &'static str, io_error: io::Error) -> ProgramError {
    SyscallError { call, io_error }.into()
}

fn run_by(bpf: &mut Ebpf, probe: &Probe, event: OwnedFd) -> Result<OwnedFd, ProgramError> {
    let program: &mut KProbe = program(bpf, &probe.program)?.try_into()?;
    perf::run(&event, program.fd()?.as_fd()).map_err(|err| failed("PERF_EVENT_IOC_SET_BPF", err))?;
    Ok(event)
}

/// Sets the breakpoint on every processor.
fn break_at(bpf: &mut Ebpf, probe: &Probe, symbols: Option<&Kallsyms>) -> Result<Vec<OwnedFd>, ProgramError> {
    let failed = |why: String| ProgramError::IOError(io::Error::other(why));
    let address = symbols.and_then(|symbols| symbols.address_of(&probe.target)).filter(|address| *address != 0);
    let address = address.ok_or_else(|| failed("its address is hidden".to_owned()))?;
    let cpus = aya::util::online_cpus().map_err(|(file, err)| failed(format!("cannot read {file}: {err}")))?;
    let program: &mut PerfEvent = program(bpf, &probe.program)?.try_into()?;
    let program = program.fd()?.as_fd();
    let set = |cpu| {
        let event = perf::breakpoint(address, cpu)?;
        perf::run(&event, program)?;
        Ok(event)
    };
    let set = |cpu| set(cpu).map_err(|err: io::Error| failed(format!("no breakpoint there: {err}")));
    cpus.into_iter().map(set).collect()
}
