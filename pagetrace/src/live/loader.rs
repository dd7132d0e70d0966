//! Loads the BPF object and attaches what the plan says. The only module that names `aya`.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::Instant,
};

use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, RingBuf, StackTraceMap},
    programs::{BtfTracePoint, FEntry, FExit, KProbe, PerfEvent, Program, ProgramError, RawTracePoint},
};
use pagetrace_ebpf::wire::{body, counter, order, seen, setting, task};
use tokio::io::unix::AsyncFd;

use cast::linked;
use kprobes::Kprobes;
use only::only;
use teach::Teacher;

use super::{readiness::readable, settings::Settings, undisturbed::undisturbed};
use crate::{
    clock::monotonic_ns,
    kernel::{cast::Cast, kallsyms::Kallsyms, threads},
    plan::{Plan, Probe, ProgramType, Refusal, Stage, skipped},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pagetrace.bpf.o"));

/// Sizes of the object's maps.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Bytes of the ring buffer: a power of two, at least one page.
    pub ring_bytes: u32,
    /// Tasks that can have state at once.
    pub tasks: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { ring_bytes: 8 << 20, tasks: threads::LEAST }
    }
}

/// Why attaching failed.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel's type information could not be read.
    #[error("cannot read the kernel's BTF: {0}")]
    Btf(#[from] aya::BtfError),
    /// The object or its maps were refused.
    #[error("cannot load the BPF object: {0}")]
    Object(#[from] EbpfError),
    /// The kernel did not load a program, which casts; one that does not may work.
    #[error("the kernel refused to load {} for {}: {}", .0.attach.name(), .0.target, .0.why)]
    Unloadable(Refusal),
    /// One program was refused; a plan without it may work.
    #[error("the kernel refused {} on {}: {}", .0.attach.name(), .0.target, .0.why)]
    Refused(Refusal),
    /// Programs on user accesses were refused; a plan without them may work.
    #[error("the kernel refused probes on user accesses, {} for one: {}", .0.first().map_or("", |it| it.target.as_str()), .0.first().map_or("", |it| it.why.as_str()))]
    Closed(Vec<Refusal>),
    /// The object does not have what this code expects of it.
    #[error("the BPF object has no {0}")]
    Incomplete(String),
    /// A map could not be used.
    #[error("cannot use a BPF map: {0}")]
    Map(#[from] MapError),
    /// A file descriptor could not be used.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
}

/// Everything that is attached; dropping it detaches.
pub struct Attached {
    bpf: Ebpf,
    ring: AsyncFd<RingBuf<MapData>>,
    stacks: StackTraceMap<MapData>,
    counters: PerCpuArray<MapData, u64>,
    seen: HashMap<MapData, [u64; seen::KEY_WORDS], [u64; seen::VALUE_WORDS]>,
    edges: HashMap<MapData, [u64; order::KEY_WORDS], [u64; order::VALUE_WORDS]>,
    order_tasks: HashMap<MapData, u64, [u64; order::TASK_WORDS]>,
    task_at: HashMap<MapData, u64, u32>,
    tasks: Array<MapData, [u64; task::WORDS]>,
    /// What is attached for what.
    plan: Plan,
    /// Each once, in the order of attaching.
    programs: Vec<String>,
    teacher: Teacher,
    /// When everything was attached, nanoseconds of `CLOCK_MONOTONIC`.
    pub attached_at: u64,
    /// The events of the probes on user accesses.
    accesses: Vec<OwnedFd>,
    /// Those of the other probes that are attached by one, by program.
    events: BTreeMap<String, Vec<OwnedFd>>,
}

/// A counter on each CPU; a single value where the kernel does not tell them apart.
pub type ByCpu = (&'static str, Vec<u64>);

/// Stacks by id, while the ring buffer is read.
pub trait StackTable {
    /// Addresses of a stored stack, innermost first; `None` when the id is none or the stack is gone.
    fn stack(&self, id: i32) -> Option<Vec<u64>>;
}

/// No stacks at all, for records that have none.
pub struct NoStacks;

impl StackTable for NoStacks {
    fn stack(&self, _id: i32) -> Option<Vec<u64>> {
        None
    }
}

impl StackTable for StackTraceMap<MapData> {
    fn stack(&self, id: i32) -> Option<Vec<u64>> {
        let id = u32::try_from(id).ok()?;
        let trace = undisturbed(|| self.get(&id, 0)).ok()?;
        Some(trace.frames().iter().map(|frame| frame.ip).filter(|ip| *ip != 0).collect())
    }
}

/// Records handed over at once: a storm must not keep the session from its other duties.
const BATCH: usize = 16384;

/// The kernel's types in the form that `aya` wants them in. Reading them takes a good part of a start: once is enough, however
/// many plans the kernel refuses.
#[derive(Debug)]
pub struct Types(Btf);

impl Types {
    /// Reads them.
    ///
    /// # Errors
    /// When they cannot be read or understood.
    pub fn read() -> Result<Self, AttachError> {
        Ok(Self(Btf::from_sys_fs()?))
    }
}

/// Loads and attaches, in the plan's order.
///
/// # Errors
/// [`AttachError::Refused`] names the program a new plan should do without.
pub fn attach(
    plan: &Plan,
    settings: &Settings,
    cast: Option<Cast>,
    sizes: Sizes,
    targets: &[u64],
    symbols: Option<&Kallsyms>,
    Types(btf): &Types,
) -> Result<Attached, AttachError> {
    let begun = Instant::now();
    let mut slots = settings.clone();
    // The kernel side's idea of the array, and the array.
    slots.set(setting::TASK_PLACES, u64::from(sizes.tasks));
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(btf))
        .override_global("SETTINGS", slots.slots(), true)
        .map_max_entries("RECORDS", sizes.ring_bytes)
        .map_max_entries("TASKS", sizes.tasks)
        .map_max_entries("TASK_AT", sizes.tasks)
        .map_max_entries("TASK_OF", sizes.tasks);
    if settings.get(setting::MM_CACHE) != setting::NONE {
        loader.map_max_entries("KNOWN_MMS", 1);
    }
    for (map, entries) in order_maps(settings, sizes) {
        loader.map_max_entries(map, entries);
    }
    if settings.get(setting::TARGET_MODE) == setting::target::ALL {
        loader.map_max_entries("TARGETS", 1);
    }
    let probes = plan.probes();
    let wanted = |name: &str| {
        let goes_on = |probe: &Probe| body::of(&probe.program).is_some_and(|body| body.program == name);
        iterate::PROGRAMS.contains(&name) || probes.iter().any(|probe| probe.program == name || goes_on(probe))
    };
    let types = begun.elapsed();
    let mut code = only(OBJECT, &wanted);
    if let Some(Cast { function, .. }) = cast {
        code = linked(code, function).map_err(|err| AttachError::Incomplete(format!("instructions: {err}")))?.into();
    }
    // Asked before anything is loaded, since the plan without what the kernel refuses of these loads it all again.
    let (accesses, rest): (Vec<&Probe>, Vec<&Probe>) =
        probes.iter().partition(|probe| probe.stage == Stage::UserAccess);
    let kprobes = Kprobes::new(symbols);
    let asked = access::ask(&accesses, &kprobes)?;
    let mut bpf = loader.load(&code)?;
    let object = begun.elapsed();
    fill_targets(&mut bpf, settings, targets)?;
    let mut programs: Vec<String> = Vec::new();
    let unloadable = |err| match err {
        AttachError::Refused(refusal) if cast.is_some() && !refusal.whole_type => AttachError::Unloadable(refusal),
        err => err,
    };
    // What is most likely refused is loaded first, and attached last.
    load_all(&mut bpf, &accesses, btf, &mut programs).map_err(unloadable)?;
    let loaded_first = programs.len();
    load_all(&mut bpf, &rest, btf, &mut programs).map_err(unloadable)?;
    programs.rotate_left(loaded_first);
    let loaded = begun.elapsed();
    if settings.get(setting::MM_CACHE) == setting::NONE {
        // Only on kernels whose slabs cannot be read.
        iterate::find_address_spaces(&mut bpf, btf)?;
    }
    let mut events: BTreeMap<String, Vec<OwnedFd>> = BTreeMap::new();
    for probe in rest {
        let event = attach_by(&mut bpf, probe, &kprobes).map_err(|why| refused(probe, &why))?;
        events.entry(probe.program.clone()).or_default().extend(event);
    }
    // On an emulated processor all takes longer while breakpoints are set.
    let accesses = access::attach(&mut bpf, &accesses, asked, symbols)?;
    if cast.is_some() {
        log::debug!("programs cast");
    }
    log::debug!(
        "types read after {types:?}, object relocated after {object:?}, {} programs loaded after {loaded:?}, {} probes \
         attached after {:?}",
        programs.len(),
        probes.len(),
        begun.elapsed(),
    );
    let mut attached_at = Array::<_, u64>::try_from(map(&mut bpf, "ATTACHED_AT")?)?;
    let now = monotonic_ns();
    undisturbed(|| attached_at.set(0, now, 0))?;
    iterate::find_locked(&mut bpf, btf)?;
    let ring = RingBuf::try_from(map(&mut bpf, "RECORDS")?)?;
    Ok(Attached {
        ring: readable(ring).map_err(|err| AttachError::Io("cannot poll the ring buffer", err))?,
        stacks: StackTraceMap::try_from(map(&mut bpf, "STACKS")?)?,
        counters: PerCpuArray::try_from(map(&mut bpf, "COUNTERS")?)?,
        attached_at: now,
        seen: HashMap::try_from(map(&mut bpf, "SEEN")?)?,
        edges: HashMap::try_from(map(&mut bpf, "ORDER_EDGES")?)?,
        order_tasks: HashMap::try_from(map(&mut bpf, "ORDER_TASKS")?)?,
        task_at: HashMap::try_from(map(&mut bpf, "TASK_AT")?)?,
        tasks: Array::try_from(map(&mut bpf, "TASKS")?)?,
        plan: plan.clone(),
        programs,
        teacher: Teacher::new(&mut bpf, symbols)?,
        accesses,
        events,
        bpf,
    })
}

/// Sizes of the lock order's maps: what is not wanted must cost no memory.
fn order_maps(settings: &Settings, sizes: Sizes) -> Vec<(&'static str, u32)> {
    match settings.get(setting::ORDER) {
        1 => vec![("ORDER_TASKS", sizes.tasks)],
        _ => ["ORDER_TASKS", "ORDER_EDGES", "ORDER_SITES", "ORDER_BORN"].map(|map| (map, 1)).into(),
    }
}

/// Loads the probes' programs. One that goes to several targets is loaded once.
fn load_all(bpf: &mut Ebpf, probes: &[&Probe], btf: &Btf, loaded: &mut Vec<String>) -> Result<(), AttachError> {
    for probe in probes {
        if loaded.contains(&probe.program) {
            continue;
        }
        if let Some(body) = body::of(&probe.program) {
            bodies::load(bpf, body, probe, btf)?;
        }
        let begun = Instant::now();
        load(bpf, probe, btf).map_err(|why| refused(probe, &why))?;
        log_cost(bpf, &probe.program, begun);
        loaded.push(probe.program.clone());
    }
    Ok(())
}

/// Asking costs a system call for each program: only who reads the log pays.
fn log_cost(bpf: &mut Ebpf, name: &str, begun: Instant) {
    log::debug!(
        "{name} loaded in {:?}, instructions verified: {:?}",
        begun.elapsed(),
        program(bpf, name).and_then(|program| program.info()).ok().and_then(|info| info.verified_instruction_count())
    );
}

fn map(bpf: &mut Ebpf, name: &str) -> Result<aya::maps::Map, AttachError> {
    bpf.take_map(name).ok_or_else(|| AttachError::Incomplete(format!("map {name}")))
}

fn program<'a>(bpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, ProgramError> {
    bpf.program_mut(name)
        .ok_or_else(|| ProgramError::IOError(io::Error::other(format!("the BPF object has no program {name}"))))
}

fn refused(probe: &Probe, why: &ProgramError) -> AttachError {
    AttachError::Refused(refusal(probe, why))
}

fn refusal(probe: &Probe, why: &ProgramError) -> Refusal {
    let mut text = why.to_string();
    if let ProgramError::LoadError { verifier_log, .. } = why {
        log::debug!("verifier log of {}:\n{verifier_log}", probe.program);
    }
    let mut source = std::error::Error::source(why);
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    // A verifier log belongs into the debug log, not into a sentence.
    let text = text.lines().next().unwrap_or("unknown error");
    let text = text.split(" Verifier output:").next().unwrap_or(text).trim_end().to_owned();
    // Nothing about one function makes the kernel answer EPERM: a policy closes the attach type.
    let whole_type = errno_of(why) == Some(rustix::io::Errno::PERM.raw_os_error());
    let Probe { kind, target, .. } = probe;
    Refusal { attach: kind.attach(), target: target.clone(), why: text, whole_type }
}

fn errno_of(why: &ProgramError) -> Option<i32> {
    match why {
        ProgramError::LoadError { io_error, .. } => io_error.raw_os_error(),
        _ => None,
    }
}

fn load(bpf: &mut Ebpf, probe: &Probe, btf: &Btf) -> Result<(), ProgramError> {
    let target = probe.target.as_str();
    let program = program(bpf, &probe.program)?;
    match probe.kind {
        ProgramType::Kprobe | ProgramType::Kretprobe => <&mut KProbe>::try_from(program)?.load(),
        ProgramType::Fentry => <&mut FEntry>::try_from(program)?.load(target, btf),
        ProgramType::Fexit => <&mut FExit>::try_from(program)?.load(target, btf),
        ProgramType::BtfTracepoint => <&mut BtfTracePoint>::try_from(program)?.load(target, btf),
        ProgramType::RawTracepoint => <&mut RawTracePoint>::try_from(program)?.load(),
        ProgramType::Breakpoint => <&mut PerfEvent>::try_from(program)?.load(),
    }
}

/// Attaches a probe; one that an event runs is attached as long as that is open.
fn attach_by(bpf: &mut Ebpf, probe: &Probe, kprobes: &Kprobes<'_>) -> Result<Option<OwnedFd>, ProgramError> {
    let Some(event) = kprobes.open(probe).transpose()? else { return attach_one(bpf, probe).map(|()| None) };
    kprobes::run(bpf, probe, &event)?;
    Ok(Some(event))
}

fn attach_one(bpf: &mut Ebpf, probe: &Probe) -> Result<(), ProgramError> {
    let program = program(bpf, &probe.program)?;
    match probe.kind {
        ProgramType::Kprobe | ProgramType::Kretprobe => {
            <&mut KProbe>::try_from(program)?.attach(&probe.target, 0).map(drop)
        }
        ProgramType::Fentry => <&mut FEntry>::try_from(program)?.attach().map(drop),
        ProgramType::Fexit => <&mut FExit>::try_from(program)?.attach().map(drop),
        ProgramType::BtfTracepoint => <&mut BtfTracePoint>::try_from(program)?.attach().map(drop),
        ProgramType::RawTracepoint => <&mut RawTracePoint>::try_from(program)?.attach(&probe.target).map(drop),
        ProgramType::Breakpoint => {
            Err(ProgramError::IOError(io::Error::other("a breakpoint serves user accesses alone: see `access`")))
        }
    }
}

fn fill_targets(bpf: &mut Ebpf, settings: &Settings, targets: &[u64]) -> Result<(), AttachError> {
    if settings.get(setting::TARGET_MODE) == setting::target::ALL {
        return Ok(());
    }
    let map = bpf.map_mut("TARGETS").ok_or_else(|| AttachError::Incomplete("map TARGETS".to_owned()))?;
    let mut map = HashMap::<_, u64, u64>::try_from(map)?;
    for key in targets {
        map.insert(key, 0, 0)?;
    }
    Ok(())
}

impl Attached {
    /// Whether a process belongs to the target, as the kernel side followed it.
    pub fn is_target(&self, pid: u32) -> bool {
        let Some(map) = self.bpf.map("TARGETS") else { return false };
        let key = setting::target_key::PROCESS | u64::from(pid);
        HashMap::<_, u64, u64>::try_from(map).is_ok_and(|map| undisturbed(|| map.get(&key, 0)).is_ok())
    }

    /// Waits until records may be there, then hands each to `take`.
    ///
    /// # Errors
    /// When the ring buffer cannot be polled.
    pub async fn wait_and_drain(&mut self, take: &mut dyn FnMut(&[u8], &dyn StackTable)) -> io::Result<()> {
        let Self { ring, stacks, teacher, .. } = self;
        let mut guard = ring.readable_mut().await?;
        let ring = guard.get_inner_mut();
        let mut taken = 0;
        while taken < BATCH
            && let Some(item) = ring.next()
        {
            if !teacher.take(&item) {
                take(&item, stacks);
            }
            taken += 1;
        }
        // With more to read there may be no new wakeup: the readiness stays.
        if taken < BATCH {
            guard.clear_ready();
        }
        Ok(())
    }

    /// Hands over what is in the ring buffer now, without waiting.
    pub fn drain(&mut self, take: &mut dyn FnMut(&[u8], &dyn StackTable)) {
        let Self { ring, stacks, teacher, .. } = self;
        let ring = ring.get_mut();
        while let Some(item) = ring.next() {
            if !teacher.take(&item) {
                take(&item, stacks);
            }
        }
    }

    /// Addresses of a stored stack, innermost first; `None` when the id is none or the stack is gone.
    pub fn stack(&self, id: i32) -> Option<Vec<u64>> {
        self.stacks.stack(id)
    }

    /// The counters, each CPU by itself, and the events that the kernel skipped because a program of ours was
    /// running already.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters_by_cpu(&self) -> Result<Vec<ByCpu>, AttachError> {
        let mut out = Vec::new();
        for (index, name) in counter::NAMES.iter().enumerate() {
            let values = undisturbed(|| self.counters.get(&u32::try_from(index).unwrap_or(u32::MAX), 0))?;
            out.push((*name, values.iter().copied().collect()));
        }
        let misses = self.skipped();
        let counters = skipped::counters(&self.plan, misses.iter().map(|(program, count)| (program.as_str(), *count)));
        out.extend(counters.map(|(name, count)| (name, vec![count])));
        Ok(out)
    }

    /// Programs that the kernel skipped because they were running already on that CPU, and how often.
    pub fn skipped(&self) -> BTreeMap<String, u64> {
        let misses = |name: &String| Some((name.clone(), recursion_misses(self.bpf.program(name)?)?));
        self.programs.iter().filter_map(misses).filter(|(_, misses)| *misses != 0).collect()
    }

    /// Detaches everything; maps can still be read.
    pub fn detach(&mut self) {
        let begun = Instant::now();
        // The reverse of attaching: without the probes of releases a lock would seem held.
        self.accesses.clear();
        for name in self.programs.iter().rev() {
            self.events.remove(name);
            if let Some(program) = self.bpf.program_mut(name) {
                let _ = unload(program);
            }
        }
        log::debug!("detached in {:?}", begun.elapsed());
    }
}

fn unload(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::KProbe(program) => program.unload(),
        Program::FEntry(program) => program.unload(),
        Program::FExit(program) => program.unload(),
        Program::BtfTracePoint(program) => program.unload(),
        Program::RawTracePoint(program) => program.unload(),
        Program::PerfEvent(program) => program.unload(),
        _ => Ok(()),
    }
}

/// Since 5.12 the kernel counts calls it skipped; fdinfo tells (kernel/bpf/syscall.c, `bpf_prog_show_fdinfo`).
fn recursion_misses(program: &Program) -> Option<u64> {
    let fd = program.fd().ok()?.as_fd().as_raw_fd();
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
}

mod access;
mod bodies;
mod cast;
mod iterate;
mod kprobes;
#[cfg(test)]
mod object;
mod only;
mod state;
mod teach;
