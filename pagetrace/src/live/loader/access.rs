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
    programs::{PerfEvent, ProgramError},
};

use super::{
    super::perf,
    AttachError, attach_one,
    kprobes::{self, Kprobes},
    program, refusal,
};
use crate::{
    kernel::kallsyms::Kallsyms,
    plan::{Probe, ProgramType},
};

/// Opens a kprobe for each of these that is one, to be run by [`attach`]; none for the others, nor where sysfs does not tell how.
///
/// # Errors
/// [`AttachError::Closed`] with all that the kernel refused.
pub(super) fn ask(probes: &[&Probe], kprobes: &Kprobes<'_>) -> Result<Vec<Option<OwnedFd>>, AttachError> {
    let (mut events, mut closed) = (Vec::new(), Vec::new());
    for probe in probes {
        match kprobes.open(probe).transpose() {
            Ok(event) => events.push(event),
            Err(why) => closed.push(refusal(probe, &why)),
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
            (Some(event), _) => kprobes::run(bpf, probe, &event).map(|()| vec![event]),
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
