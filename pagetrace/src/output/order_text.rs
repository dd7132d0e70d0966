//! Inversions of the lock order, for people.

use std::fmt::{self, Write};

use super::{
    order::{NamedBy, ReportedEdge, ReportedInversion, ReportedLock, ReportedOrder, whose},
    text::{Style, wrap, write_stack},
};
use crate::analysis::{
    LockMode,
    order::{Cause, Shape},
};

/// Width of a column of the scenario.
const COLUMN: usize = 44;

/// Writes all inversions, numbered from `first` on.
pub(super) fn write(out: &mut String, order: &ReportedOrder, first: usize, style: Style) -> fmt::Result {
    for (number, inversion) in (first..).zip(&order.inversions) {
        write_inversion(out, number, inversion, order, style)?;
    }
    Ok(())
}

fn mode(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Read => "read",
        LockMode::Write => "write",
    }
}

fn write_inversion(
    out: &mut String,
    number: usize,
    inversion: &ReportedInversion,
    order: &ReportedOrder,
    style: Style,
) -> fmt::Result {
    let severity = style.paint("1;31", inversion.severity);
    writeln!(out, "#{number} {}, {severity}: {}", inversion.class, inversion.summary)?;
    let edges: Vec<&ReportedEdge> = inversion.edges.iter().filter_map(|&index| order.edges.get(index)).collect();
    for (step, edge) in edges.iter().enumerate() {
        write_edge(out, step + 1, edge)?;
    }
    if edges.len() > 1 {
        writeln!(out, "  what happens when the tasks meet:")?;
        scenario(out, inversion.shape, &edges)?;
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
        mode(wanted.mode),
        whose(held),
        mode(held.mode),
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
fn scenario(out: &mut String, shape: Shape, edges: &[&ReportedEdge]) -> fmt::Result {
    let lock = |lock: &ReportedLock| if shape == Shape::Classes { lock.name.text.clone() } else { whose(lock) };
    let row = |out: &mut String, cells: Vec<String>| {
        let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:<COLUMN$}")).collect();
        writeln!(out, "    {}", cells.join("  ").trim_end())
    };
    let letters = 'A'..='Z';
    row(out, edges.iter().zip(letters).map(|(edge, letter)| format!("{letter}, as {}", edge.task.comm)).collect())?;
    for (turn, edge) in edges.iter().enumerate() {
        let cell = format!("holds {} ({})", lock(&edge.held), mode(edge.held.mode));
        row(out, vec![String::new(); turn].into_iter().chain([cell]).collect())?;
    }
    for (turn, edge) in edges.iter().enumerate() {
        let cell = format!("waits for {} ({})", lock(&edge.wanted), mode(edge.wanted.mode));
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
