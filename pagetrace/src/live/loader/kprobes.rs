//! Kprobes and kretprobes, by their addresses where those are known.
//!
//! By name the kernel searches its symbols several times for each probe. Until 6.2 such a search unpacks every name there is
//! (kernel/kallsyms.c, `kallsyms_lookup_name`), and took nine tenths of attaching.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf,
    programs::{KProbe, ProgramError},
    sys::SyscallError,
};

use super::{super::perf, program};
use crate::{
    kernel::kallsyms::Kallsyms,
    plan::{Probe, ProgramType},
};

/// How this kernel is asked for them.
pub(super) struct Kprobes<'a> {
    /// What it calls them among the kinds of events; `None` where sysfs does not tell.
    kind: Option<u32>,
    symbols: Option<&'a Kallsyms>,
}

impl<'a> Kprobes<'a> {
    pub(super) fn new(symbols: Option<&'a Kallsyms>) -> Self {
        Self { kind: perf::kprobes(), symbols }
    }

    /// Opens the event of a probe, to be [`run`]; `None` when it is no kprobe, or sysfs does not tell how.
    pub(super) fn open(&self, probe: &Probe) -> Option<Result<OwnedFd, ProgramError>> {
        let returns = match probe.kind {
            ProgramType::Kprobe => false,
            ProgramType::Kretprobe => true,
            _ => return None,
        };
        let event = match self.address_of(&probe.target) {
            Some(address) => perf::kprobe_at(self.kind?, address, returns),
            None => perf::kprobe(self.kind?, &probe.target, returns),
        };
        Some(event.map_err(|err| failed("perf_event_open", err)))
    }

    /// The address of the only function of that name. Which of several is meant is left to the kernel.
    fn address_of(&self, name: &str) -> Option<u64> {
        let symbols = self.symbols.filter(|symbols| symbols.function_count(name) == 1)?;
        symbols.address_of(name)
    }
}

/// Has the probe's program run by the event, until that is closed.
pub(super) fn run(bpf: &mut Ebpf, probe: &Probe, event: &OwnedFd) -> Result<(), ProgramError> {
    let program: &mut KProbe = program(bpf, &probe.program)?.try_into()?;
    perf::run(event, program.fd()?.as_fd()).map_err(|err| failed("PERF_EVENT_IOC_SET_BPF", err))
}

fn failed(call: &'static str, io_error: io::Error) -> ProgramError {
    SyscallError { call, io_error }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_function_of_a_name_is_meant_by_its_address() {
        let table = "ffffffff81000000 T down_read\nffffffff81000100 t reset\nffffffff81000200 t reset\n\
                     ffffffff82000000 D down_read_data\n0000000000000000 T hidden\n";
        let symbols = Kallsyms::parse(table.to_owned());
        let kprobes = Kprobes { kind: None, symbols: Some(&symbols) };
        assert_eq!(kprobes.address_of("down_read"), Some(0xffff_ffff_8100_0000));
        for other in ["reset", "down_read_data", "hidden", "none"] {
            assert_eq!(kprobes.address_of(other), None, "{other}");
        }
    }
}
