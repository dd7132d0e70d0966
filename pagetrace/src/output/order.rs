//! The lock order of a report: edges and inversions with names. Values in, values out.

use std::borrow::Cow;

use pagetrace_ebpf::wire::order::{ClassId, class};
use serde::{Deserialize, Serialize};

use super::{
    fingerprint,
    found::Marks,
    report::{Owner, Task},
    stacks::{Role, Stack, function},
};
use crate::{
    analysis::{
        Class, LockMode, Severity,
        order::{Cause, Edge, Inversion, Lock, Orders, Shape},
    },
    kernel::locks::LockFields,
    symbolize::{Frame, Symbolizer},
};

/// How a lock's name was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NamedBy {
    /// It is an mmap_lock, by the slab cache that it lies in.
    MmStruct,
    /// A variable begins there.
    Symbol,
    /// The nearest variable before it.
    NearestSymbol,
    /// Slab cache, and the type and field that BTF has at the offset.
    SlabAndBtf,
    /// Slab cache and offset; the type is not known.
    Slab,
    /// As [`NamedBy::Slab`], in a cache of several types: the site tells them apart.
    SlabAndSite,
    /// The inode that it lies in, by its file system type.
    Inode,
    /// Nothing but its address.
    Address,
}

/// A lock's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// What it is called, by class.
    pub text: String,
    /// How that was found.
    pub by: NamedBy,
}

/// A lock of an edge, with its name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReportedLock {
    /// Its class.
    #[serde(flatten)]
    pub name: Name,
    /// Its address.
    pub address: String,
    /// Whose address space, for an mmap lock.
    pub owner: Option<Owner>,
    /// Read or write.
    pub mode: LockMode,
    /// `mutex` or `rwsem`.
    pub kind: Cow<'static, str>,
    /// Taken by a trylock.
    pub trylock: bool,
    /// Where it was taken or wanted.
    pub stack: Vec<Frame>,
}

/// An edge, with names.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReportedEdge {
    /// The lock that was held.
    pub held: ReportedLock,
    /// The lock that was wanted.
    pub wanted: ReportedLock,
    /// Why it was wanted.
    pub cause: Cause,
    /// The user address of a fault or an access.
    pub user_address: Option<String>,
    /// Who.
    pub task: Task,
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// How long the outer lock had been held.
    pub held_ns: u64,
    /// Times it was seen.
    pub count: u64,
    /// Last time it was seen.
    pub last_seen_ns: u64,
    /// Why it takes part in no cycle; null when it does.
    pub known: Option<Cow<'static, str>>,
    /// The same for the same classes of locks, held and wanted in the same modes, in every run: see `fingerprint.rs`.
    #[serde(default)]
    pub fingerprint: String,
    /// Whether a baseline that has edges lacks this one; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<bool>,
}

/// An inversion, with names.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReportedInversion {
    /// [`Class::LockOrder`].
    pub class: Class,
    /// [`Severity::Inversion`].
    pub severity: Severity,
    /// What tells it over time.
    #[serde(flatten)]
    pub marks: Marks,
    /// How often its rarest edge was seen.
    pub count: u64,
    /// Who was seen with the first edge.
    pub task: Option<Task>,
    /// What kind of cycle.
    pub shape: Shape,
    /// Its edges, each beginning where the one before ends.
    pub cycle: Vec<ReportedEdge>,
    /// What it is, in a sentence.
    pub summary: String,
    /// What to do about it.
    pub advice: String,
}

/// A cycle in the order, by the places of its edges.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReportedCycle {
    /// What kind.
    pub shape: Shape,
    /// Indices in [`ReportedOrder::edges`].
    pub edges: Vec<usize>,
}

/// The lock order of a run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ReportedOrder {
    /// Cycles through mmap_lock.
    pub cycles: Vec<ReportedCycle>,
    /// All edges seen, oldest first.
    pub edges: Vec<ReportedEdge>,
    /// Edges that found no room in the report.
    pub dropped: u64,
}

/// Where the kernel and its modules lie on x86-64 (Documentation/arch/x86/x86_64/mm.rst): variables are nowhere else.
const IMAGE: u64 = 0xffff_ffff_8000_0000;
/// The highest bit of a site, which tells how it was found and is set in every kernel address.
const SITE_MARK: u64 = 1 << 63;

/// Addresses that a lock's name is made of: a variable's and a site's, 0 for none.
pub fn named_addresses(of: ClassId, address: u64) -> [u64; 2] {
    let site = if of.kind == class::MMAP || of.site == 0 { 0 } else { of.site | SITE_MARK };
    [if of.kind == class::ADDRESS && address >= IMAGE { address } else { 0 }, site]
}

/// The variable at an address, if there is one.
pub fn variable(address: u64, names: &Symbolizer) -> Option<(String, NamedBy)> {
    let symbol = names.variable(address).filter(|_| address >= IMAGE)?;
    let module = symbol.module.map_or_else(String::new, |module| format!("{module}:"));
    Some(match symbol.offset {
        0 => (format!("{module}{}", symbol.name), NamedBy::Symbol),
        offset => (format!("{module}{}+{offset:#x}", symbol.name), NamedBy::NearestSymbol),
    })
}

/// What a lock is called.
pub fn name(lock: &Lock, names: &Symbolizer, fields: &LockFields) -> Name {
    let [variable, site] = named_addresses(lock.class, lock.address);
    let offset = lock.class.offset & class::OFFSET;
    let (text, by) = match lock.class.kind {
        class::MMAP => ("mmap_lock".to_owned(), NamedBy::MmStruct),
        class::ADDRESS => self::variable(variable, names).unwrap_or_else(|| {
            let place = if site == 0 { String::new() } else { format!(" ({})", place(lock, site, names)) };
            (format!("lock at {:#x}{place}", lock.address), NamedBy::Address)
        }),
        class::SLAB => match fields.in_cache(&lock.class_name, offset) {
            Some(field) => (field.to_owned(), NamedBy::SlabAndBtf),
            None => (format!("{}+{offset:#x}", lock.class_name), NamedBy::Slab),
        },
        class::INODE => {
            let field = fields.in_inode(offset).map_or_else(|| format!("inode+{offset:#x}"), str::to_owned);
            let what = if lock.class.offset & class::DIRECTORY != 0 { " directory" } else { "" };
            (format!("{field} ({}{what})", lock.class_name), NamedBy::Inode)
        }
        _ => (format!("{}+{offset:#x} ({})", lock.class_name, place(lock, site, names)), NamedBy::SlabAndSite),
    };
    Name { text, by }
}

/// The place that the site of a class tells.
fn place(lock: &Lock, site: u64, names: &Symbolizer) -> String {
    let how = if lock.site_is_init { "initialised" } else { "first taken" };
    let site = names.frames(&[site]).first().map_or_else(|| format!("{site:#x}"), Frame::text);
    format!("{how} in {site}")
}

fn reported_lock(lock: &Lock, names: &Symbolizer, fields: &LockFields) -> ReportedLock {
    let owner = lock.mm.as_ref().and_then(|mm| mm.owner.as_ref());
    ReportedLock {
        name: name(lock, names, fields),
        address: format!("{:#x}", lock.address),
        owner: owner.map(|(pid, comm)| Owner { pid: *pid, comm: comm.clone() }),
        mode: lock.mode,
        kind: if lock.mutex { "mutex" } else { "rwsem" }.into(),
        trylock: lock.trylock,
        stack: names.frames(&lock.stack),
    }
}

/// What a lock's class is called in a fingerprint: without what is chance in its name.
fn identity(lock: &Lock, reported: &ReportedLock, names: &Symbolizer) -> String {
    let class = match reported.name.by {
        NamedBy::Address => {
            let taken = Stack { role: Role::Lock, frames: &reported.stack };
            format!("{} of {}", reported.kind, taken.own().first().map_or("?", function))
        }
        NamedBy::SlabAndSite => {
            let [_, site] = named_addresses(lock.class, lock.address);
            let offset = lock.class.offset & class::OFFSET;
            let frames = names.frames(&[site]);
            format!("{}+{offset:#x} of {}", lock.class_name, frames.first().map_or("?", function))
        }
        _ => reported.name.text.clone(),
    };
    format!("{} {class}", lock.mode.name())
}

impl ReportedEdge {
    /// Names an edge. Call it soon after the event: modules and BPF programs go, and their names with them. `None` where a
    /// little later may tell more names, unless it has to be `now`, with the names that are known.
    pub fn name(edge: &Edge, names: &mut Symbolizer, fields: &LockFields, now: bool) -> Option<Self> {
        let addresses = [&edge.held, &edge.wanted].map(|lock| named_addresses(lock.class, lock.address)).concat();
        if !now && !names.cover_since(edge.time, &[&edge.held.stack, &edge.wanted.stack, &addresses]) {
            return None;
        }
        let task = &edge.task;
        let [held, wanted] = [&edge.held, &edge.wanted].map(|lock| reported_lock(lock, names, fields));
        let ends = [identity(&edge.held, &held, names), identity(&edge.wanted, &wanted, names)];
        Some(Self {
            fingerprint: fingerprint::hash(&format!("lock-order edge\n{}\n", ends.join("\n"))),
            new: None,
            held,
            wanted,
            cause: edge.cause,
            user_address: edge.address.map(|address| format!("{address:#x}")),
            task: Task { pid: task.pid, tid: task.tid, comm: task.comm.clone(), kernel_thread: task.kernel_thread },
            time_ns: edge.time,
            held_ns: edge.time.saturating_sub(edge.since),
            count: edge.count,
            last_seen_ns: edge.last,
            known: edge.known.map(|known| known.what.into()),
        })
    }

    /// What it is, without whose locks they were.
    pub fn title(&self) -> String {
        let end = |lock: &ReportedLock| format!("{} ({})", lock.name.text, lock.mode.name());
        format!("{} -> {}", end(&self.held), end(&self.wanted))
    }
}

/// The lock as a person tells it from the others of its class.
pub fn whose(lock: &ReportedLock) -> String {
    match &lock.owner {
        Some(owner) if owner.comm.is_empty() => format!("{} of process {}", lock.name.text, owner.pid),
        Some(owner) => format!("{} of process {} ({})", lock.name.text, owner.pid, owner.comm),
        None => lock.name.text.clone(),
    }
}

impl ReportedOrder {
    /// The order of a run; `named` has the edges as they were named when they came.
    pub fn of(orders: &Orders, mut named: Vec<ReportedEdge>) -> Self {
        for (named, edge) in named.iter_mut().zip(orders.edges()) {
            (named.count, named.last_seen_ns) = (edge.count, edge.last);
        }
        let cycle = |Inversion { shape, edges }| ReportedCycle { shape, edges };
        let cycles = orders.inversions().into_iter().map(cycle).collect();
        Self { cycles, edges: named, dropped: orders.overflow }
    }

    /// The cycles as findings.
    pub fn inversions(&self) -> impl Iterator<Item = ReportedInversion> {
        self.cycles.iter().map(|ReportedCycle { shape, edges }| {
            let cycle: Vec<ReportedEdge> = edges.iter().filter_map(|&index| self.edges.get(index)).cloned().collect();
            ReportedInversion {
                class: Class::LockOrder,
                severity: Severity::Inversion,
                marks: Marks::default(),
                count: cycle.iter().map(|edge| edge.count).min().unwrap_or(0),
                task: cycle.first().map(|edge| edge.task.clone()),
                shape: *shape,
                summary: summary(*shape, &cycle),
                advice: advice(*shape, &cycle),
                cycle,
            }
        })
    }
}

/// What an inversion is.
pub fn summary(shape: Shape, edges: &[ReportedEdge]) -> String {
    let instances = shape != Shape::Classes;
    let name = |lock: &ReportedLock| if instances { whose(lock) } else { lock.name.text.clone() };
    let mut chain: Vec<String> = edges.iter().map(|edge| name(&edge.held)).collect();
    chain.extend(edges.last().map(|edge| name(&edge.wanted)));
    let chain = chain.join(" -> ");
    match shape {
        Shape::Recursive => format!("a task wanted an mmap_lock that it held: {chain}"),
        Shape::AddressSpaces => format!("mmap locks of different address spaces are taken in both orders: {chain}"),
        Shape::Classes => format!("mmap_lock is taken in both orders with other locks: {chain}"),
    }
}

fn advice(shape: Shape, edges: &[ReportedEdge]) -> String {
    match shape {
        Shape::Recursive => "Readers queue behind a writer that waits, so even a second read acquisition waits for ever as \
                             soon as a writer comes in between. Take the lock once, and pass on that it is held."
            .to_owned(),
        Shape::AddressSpaces => {
            "Hold one address space's mmap_lock at a time: release the first before whatever takes the second, page faults \
             on one's own memory among them, or copy through a kernel buffer in between."
                .to_owned()
        }
        Shape::Classes => {
            let by_fault = edges.iter().find(|edge| edge.cause != Cause::Lock);
            // A cycle begins with what is wanted under mmap_lock and ends with what mmap_lock is wanted under.
            let inner = edges.first().map_or("the other lock", |edge| edge.wanted.name.text.as_str());
            let outer = edges.last().map_or("the other lock", |edge| edge.held.name.text.as_str());
            let way = match by_fault {
                Some(edge) => format!(
                    "Do not touch user memory while {} is held: copy before it is taken, or to a kernel buffer and to the \
                     user after it is released.",
                    edge.held.name.text
                ),
                None => format!("Take mmap_lock before {outer} everywhere, or drop {outer} before mmap_lock is wanted."),
            };
            format!(
                "{way} The other way round is hardly ever open: mmap_lock is held when a driver's mmap() and fault handlers \
                 are called, so {inner} would have to stay out of these, as a lock of its own for what they need."
            )
        }
    }
}
