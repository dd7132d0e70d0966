//! Loads what programs go on to, and puts it where they find it.

use std::time::Instant;

use aya::{Btf, Ebpf, maps::ProgramArray};
use pagetrace_ebpf::wire::body::Body;

use super::{AttachError, log_cost, program, refused};
use crate::plan::Probe;

/// Loads a body for this probe, whose program goes on to it, unless another has had it loaded.
///
/// # Errors
/// [`AttachError::Refused`] names the probe.
pub(super) fn load(bpf: &mut Ebpf, body: &Body, probe: &Probe, btf: &Btf) -> Result<(), AttachError> {
    if program(bpf, body.program).is_ok_and(|program| program.fd().is_ok()) {
        return Ok(());
    }
    let begun = Instant::now();
    // Of the type that the probe's program has: only such may go on to it.
    let own = Probe { program: body.program.to_owned(), ..probe.clone() };
    let fd = super::load(bpf, &own, btf).and_then(|()| Ok(program(bpf, body.program)?.fd()?.try_clone()?));
    let fd = fd.map_err(|why| refused(probe, &why))?;
    log_cost(bpf, body.program, begun);
    let map = bpf.map_mut(body.map).ok_or_else(|| AttachError::Incomplete(format!("map {}", body.map)))?;
    ProgramArray::try_from(map)?.set(body.slot, &fd, 0)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};
    use pagetrace_ebpf::wire::body::{self, ALL};

    use super::super::OBJECT;

    /// `call bpf_tail_call` (include/uapi/linux/bpf.h).
    const TAIL_CALL: [u8; 8] = [0x85, 0, 0, 0, 12, 0, 0, 0];

    #[test]
    fn who_goes_on_has_a_body_and_nobody_else() {
        let file = object::File::parse(OBJECT).unwrap();
        let mut programs = 0;
        for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() != 0) {
            let section = file.section_by_index(symbol.section_index().unwrap()).unwrap();
            let code = section.data_range(symbol.address(), symbol.size()).unwrap().unwrap();
            let goes_on = code.chunks_exact(8).any(|instruction| instruction == TAIL_CALL);
            let name = symbol.name().unwrap();
            assert_eq!(goes_on, body::of(name).is_some(), "{name}");
            programs += usize::from(goes_on);
        }
        assert!(programs > 20, "{programs}");
        for body in ALL {
            assert!(file.symbol_by_name(body.program).is_some(), "{}", body.program);
            assert!(file.symbol_by_name(body.map).is_some(), "{}", body.map);
        }
    }
}
