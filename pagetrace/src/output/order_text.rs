//! Inversions of the lock order, for people.

use std::fmt::{self, Write};

use super::{
    order::{NamedBy, ReportedEdge, ReportedInversion, ReportedLock, whose},
    text::{Style, wrap, write_excuse, write_stack},
};
use crate::analysis::{
    LockMode,
    order::{Cause, Shape},
};

/// Width of a column of the scenario.
const COLUMN: usize = 44;

/// Writes an inversion.
pub(super) fn write(out: &mut String, number: usize, inversion: &ReportedInversion, style: Style) -> fmt::Result {
    let ReportedInversion { class, severity, summary, cycle: edges, .. } = inversion;
    writeln!(out, "#{number} {}, {}: {summary}", class.name(), style.severity(*severity))?;
    write_excuse(out, &inversion.marks)?;
    for (step, edge) in edges.iter().enumerate() {
        write_edge(out, step + 1, edge)?;
    }
    if edges.len() > 1 {
        writeln!(out, "  what happens when the tasks meet:")?;
        scenario(out, inversion.shape, edges)?;
    }
    for line in wrap(&inversion.advice, 110) {
        writeln!(out, "  {line}")?;
    }
    writeln!(out)
}

fn write_edge(out: &mut String, step: usize, edge: &ReportedEdge) -> fmt::Result {
    let ReportedEdge { held, wanted, task, .. } = edge;
    let times = if edge.count == 1 { "once".to_owned() } else { format!("{} times", edge.count) };
    let why = match (edge.cause, &edge.user_address) {
        (Cause::Fault, Some(address)) => format!(", by a page fault at {address}"),
        (Cause::Fault, None) => ", by a page fault".to_owned(),
        (Cause::Access, Some(address)) => format!(", by an access to {address} that may fault"),
        (Cause::Access, None) => ", by an access to user memory that may fault".to_owned(),
        (Cause::Lock, _) => String::new(),
    };
    let tried = if held.trylock { ", by trylock" } else { "" };
    writeln!(
        out,
        "  {step}. {} (pid {}, tid {}) wanted {} for {}{why}, and held {} for {}{tried}",
        task.comm,
        task.pid,
        task.tid,
        whose(wanted),
        wanted.mode.name(),
        whose(held),
        held.mode.name(),
    )?;
    writeln!(
        out,
        "  seen {times}, first at {:.6} s, with the outer lock held for {:.1} us",
        edge.time_ns as f64 / 1e9,
        edge.held_ns as f64 / 1e3
    )?;
    for lock in [held, wanted] {
        writeln!(out, "  {} is the {} at {}{}", lock.name.text, lock.kind, lock.address, found(lock))?;
    }
    write_stack(out, &format!("{} was taken here", held.name.text), &held.stack)?;
    write_stack(out, &format!("{} was wanted here", wanted.name.text), &wanted.stack)
}

fn found(lock: &ReportedLock) -> &'static str {
    match lock.name.by {
        NamedBy::MmStruct => ", in an mm_struct",
        NamedBy::Symbol => ", a variable of that name",
        NamedBy::NearestSymbol => ", named by the variable before it",
        NamedBy::SlabAndBtf => ", named by its slab cache and BTF",
        NamedBy::Slab => ", named by its slab cache and offset",
        NamedBy::SlabAndSite => ", named by its slab cache, offset and site, since the cache serves several types",
        NamedBy::Inode => ", named by the inode it lies in",
        NamedBy::Address => ", of which nothing is known but its address",
    }
}

/// Each task a column: what it holds, then what it waits for.
fn scenario(out: &mut String, shape: Shape, edges: &[ReportedEdge]) -> fmt::Result {
    let lock = |lock: &ReportedLock| if shape == Shape::Classes { lock.name.text.clone() } else { whose(lock) };
    let row = |out: &mut String, cells: Vec<String>| {
        let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:<COLUMN$}")).collect();
        writeln!(out, "    {}", cells.join("  ").trim_end())
    };
    let letters = 'A'..='Z';
    row(out, edges.iter().zip(letters).map(|(edge, letter)| format!("{letter}, as {}", edge.task.comm)).collect())?;
    for (turn, edge) in edges.iter().enumerate() {
        let cell = format!("holds {} ({})", lock(&edge.held), edge.held.mode.name());
        row(out, vec![String::new(); turn].into_iter().chain([cell]).collect())?;
    }
    for (turn, edge) in edges.iter().enumerate() {
        let cell = format!("waits for {} ({})", lock(&edge.wanted), edge.wanted.mode.name());
        row(out, vec![String::new(); turn].into_iter().chain([cell]).collect())?;
    }
    let readers = edges.iter().any(|edge| edge.held.mode == LockMode::Read && edge.held.kind == "rwsem");
    let note = if readers {
        "a lock held for read blocks a reader too once a writer has queued between them"
    } else {
        "nobody goes on"
    };
    writeln!(out, "    *** deadlock: {note} ***")
}

#[cfg(test)]
pub(crate) mod tests {
    use pagetrace_ebpf::wire::{
        Header, MmOwner,
        lock::held,
        order::{Edge, LockClass, OrderLock, class, how},
    };

    use super::*;
    use crate::{
        analysis::{Stacks, order::Orders},
        kernel::locks::LockFields,
        output::{
            dot,
            order::{ReportedEdge, ReportedOrder},
        },
        record::user::Symbol,
        symbolize::Symbolizer,
    };

    struct NoStacks;

    impl Stacks for NoStacks {
        fn stack(&self, _id: i32) -> Option<Vec<u64>> {
            Some(vec![0xffff_ffff_8100_0010])
        }
        fn is_fault_entry(&self, _address: u64) -> bool {
            false
        }
        fn is_user_access(&self, _address: u64) -> bool {
            false
        }
        fn function(&self, _address: u64) -> Option<u64> {
            None
        }
    }

    const MUTEX: u64 = 0xffff_ffff_c000_1000;

    fn edge(held: OrderLock, wanted: OrderLock, address: u64) -> Edge {
        let mut record = Edge { held, wanted, address, stack_len: 8, ..Edge::default() };
        let mut comm = [0; 16];
        comm[..3].copy_from_slice(b"drv");
        record.header = Header { ts: 2_000_000, tid: 9, tgid: 8, comm, ..Header::default() };
        record.stack[0] = 0xffff_ffff_8100_0020;
        record
    }

    /// A mutex that is wanted under mmap_lock, and held over a fault.
    pub(crate) fn example() -> ReportedOrder {
        let mm = MmOwner { mm: 1, tgid: 8, ..MmOwner::default() };
        let mmap = |flags| OrderLock {
            class: LockClass { kind: class::MMAP, owner: 1, ..LockClass::default() },
            address: 0x70,
            since: 1_000_000,
            mm,
            flags,
            ..OrderLock::default()
        };
        let mutex = OrderLock {
            class: LockClass { kind: class::ADDRESS, owner: MUTEX, ..LockClass::default() },
            address: MUTEX,
            since: 1_500_000,
            flags: held::WRITE | how::MUTEX,
            ..OrderLock::default()
        };
        let mut orders = Orders::default();
        orders.take(&edge(mmap(held::WRITE), mutex, 0), &NoStacks);
        orders.take(&edge(mutex, mmap(held::READ | how::BY_FAULT), 0x1000), &NoStacks);
        let mut names = Symbolizer::recorded();
        let symbol = |name: &str, module: Option<&str>| Symbol {
            name: name.to_owned(),
            offset: 0,
            module: module.map(str::to_owned),
        };
        names.learn(MUTEX, symbol("drv_lock", Some("drv")));
        names.learn(0xffff_ffff_8100_0010, symbol("mutex_lock", None));
        names.learn(0xffff_ffff_8100_0020, symbol("lock_mm_and_find_vma", None));
        let fields = LockFields::default();
        let named =
            orders.edges().iter().filter_map(|edge| ReportedEdge::name(edge, &mut names, &fields, true)).collect();
        ReportedOrder::of(&orders, named)
    }

    #[test]
    fn an_inversion_says_who_what_where_and_how_it_ends() {
        let mut out = String::new();
        for inversion in example().inversions() {
            write(&mut out, 1, &inversion, Style { colour: false }).unwrap();
        }
        let expected = [
            "#1 lock-order, inversion: mmap_lock is taken in both orders with other locks: mmap_lock -> drv:drv_lock -> mmap_lock",
            "  1. drv (pid 8, tid 9) wanted drv:drv_lock for write, and held mmap_lock of process 8 for write",
            "  2. drv (pid 8, tid 9) wanted mmap_lock of process 8 for read, by a page fault at 0x1000, and held drv:drv_lock \
             for write",
            "  seen once, first at 0.002000 s, with the outer lock held for 500.0 us",
            "  drv:drv_lock is the mutex at 0xffffffffc0001000, a variable of that name",
            "    A, as drv                                     B, as drv",
            "    holds mmap_lock (write)",
            "                                                  holds drv:drv_lock (write)",
            "    waits for drv:drv_lock (write)",
            "                                                  waits for mmap_lock (read)",
            "    *** deadlock: nobody goes on ***",
            "  Do not touch user memory while drv:drv_lock is held: copy before it is taken, or to a kernel buffer and to the",
        ];
        for line in expected {
            assert!(out.lines().any(|have| have == line), "{line}\nis not in\n{out}");
        }
    }

    #[test]
    fn the_graph_marks_the_cycle() {
        let dot = dot::render(&example());
        assert_eq!(dot.matches("color=red").count(), 2, "{dot}");
        assert!(dot.contains("label=\"drv:drv_lock\"") && dot.contains("label=\"ww x1\""), "{dot}");
    }
}
