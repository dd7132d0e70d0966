//! What is looked up once, by walking all tasks: address spaces, and which of them are locked when tracing begins.

use std::{
    io::{self, Read as _},
    thread,
    time::Duration,
};

use aya::{
    Btf, Ebpf,
    maps::{Array, HashMap},
    programs::{Iter, ProgramError},
};
use pagetrace_ebpf::wire::lock::LOCKED_BEFORE_ROOM;

use super::{AttachError, map, program, refused};
use crate::{
    live::undisturbed::undisturbed,
    plan::{Probe, ProgramType, Stage},
};

/// Programs that walk tasks, whatever the plan is.
pub(super) const PROGRAMS: [&str; 2] = [OF_ADDRESS_SPACES, OF_LOCKED];

const OF_ADDRESS_SPACES: &str = "it_task";
const OF_LOCKED: &str = "it_locked";

/// Passes after which a lock counts as one that was held before and still is. Those taken and released meanwhile, as
/// page faults do, are sorted out by then: a pass takes less than a pause.
const PASSES: u64 = 5;
/// Between two passes.
const PAUSE: Duration = Duration::from_millis(1);

/// Walks all tasks with a program of the object.
struct Walk {
    probe: Probe,
}

impl Walk {
    fn with(program: &str) -> Self {
        let (kind, target, stage) = (ProgramType::BtfTracepoint, "task".to_owned(), Stage::TaskLife);
        Self { probe: Probe { program: program.to_owned(), kind, target, stage } }
    }

    fn load(&self, bpf: &mut Ebpf, btf: &Btf) -> Result<(), AttachError> {
        let load = |bpf: &mut Ebpf| <&mut Iter>::try_from(program(bpf, &self.probe.program)?)?.load("task", btf);
        load(bpf).map_err(|why| refused(&self.probe, &why))
    }

    fn once(&self, bpf: &mut Ebpf) -> Result<(), AttachError> {
        let walk = |bpf: &mut Ebpf| -> Result<(), ProgramError> {
            let iter: &mut Iter = program(bpf, &self.probe.program)?.try_into()?;
            let id = iter.attach()?;
            let link = iter.take_link(id)?;
            let mut file = link.into_file().map_err(|err| ProgramError::IOError(io::Error::other(err)))?;
            let mut sink = Vec::new();
            file.read_to_end(&mut sink)?;
            Ok(())
        };
        walk(bpf).map_err(|why| refused(&self.probe, &why))
    }
}

/// Tells the object which address spaces exist.
pub(super) fn find_address_spaces(bpf: &mut Ebpf, btf: &Btf) -> Result<(), AttachError> {
    let walk = Walk::with(OF_ADDRESS_SPACES);
    walk.load(bpf, btf)?;
    walk.once(bpf)
}

/// Tells the object which address spaces were locked when tracing began and have been since. Call it when everything is
/// attached: whatever is locked later is seen.
pub(super) fn find_locked(bpf: &mut Ebpf, btf: &Btf) -> Result<(), AttachError> {
    let walk = Walk::with(OF_LOCKED);
    walk.load(bpf, btf)?;
    let mut pass = Array::<_, u64>::try_from(map(bpf, "LOCKED_PASS")?)?;
    let found = HashMap::<_, u64, u64>::try_from(map(bpf, "LOCKED")?)?;
    let mut left = Vec::new();
    for number in 1..=PASSES {
        undisturbed(|| pass.set(0, number, 0))?;
        walk.once(bpf)?;
        let entries: Result<Vec<(u64, u64)>, _> = undisturbed(|| found.iter().collect());
        left = entries?.into_iter().filter(|(_, last)| *last == number).map(|(mm, _)| mm).collect();
        if left.is_empty() {
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
    log::info!("{} address spaces were locked when tracing began and still are", left.len());
    let mut before = Array::<_, u64>::try_from(map(bpf, "LOCKED_BEFORE")?)?;
    let mut len = Array::<_, u64>::try_from(map(bpf, "LOCKED_BEFORE_LEN")?)?;
    undisturbed(|| {
        for (index, mm) in (0..LOCKED_BEFORE_ROOM).zip(&left) {
            before.set(index, *mm, 0)?;
        }
        len.set(0, u64::try_from(left.len()).unwrap_or(u64::MAX), 0)
    })?;
    Ok(())
}
