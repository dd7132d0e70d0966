//! The lock order as a graph for Graphviz: `dot -Tsvg`.

use std::{collections::BTreeMap, fmt::Write as _};

use super::order::ReportedOrder;
use crate::analysis::LockMode;

/// Renders the order.
pub fn render(order: &ReportedOrder) -> String {
    let mut out = String::from("digraph \"lock order\" {\n  rankdir=LR;\n  node [shape=box, fontname=monospace];\n");
    let guilty: Vec<usize> = order.cycles.iter().flat_map(|cycle| cycle.edges.iter().copied()).collect();
    let mut nodes: BTreeMap<&str, usize> = BTreeMap::new();
    for edge in &order.edges {
        for lock in [&edge.held, &edge.wanted] {
            let next = nodes.len();
            nodes.entry(&lock.name.text).or_insert(next);
        }
    }
    // Writing to a String cannot fail.
    for (name, number) in &nodes {
        let shape = if *name == "mmap_lock" { ", style=bold" } else { "" };
        let _ = writeln!(out, "  n{number} [label=\"{}\"{shape}];", escape(name));
    }
    for (index, edge) in order.edges.iter().enumerate() {
        let (Some(from), Some(to)) =
            (nodes.get(edge.held.name.text.as_str()), nodes.get(edge.wanted.name.text.as_str()))
        else {
            continue;
        };
        let letter = |mode| if mode == LockMode::Read { 'r' } else { 'w' };
        let label = format!("{}{} x{}", letter(edge.held.mode), letter(edge.wanted.mode), edge.count);
        let look = match (guilty.contains(&index), &edge.known, edge.new) {
            (true, ..) => ", color=red, penwidth=2",
            (false, Some(_), _) => ", style=dotted",
            (false, None, Some(true)) => ", color=blue, penwidth=2",
            (false, None, _) => "",
        };
        let _ = writeln!(out, "  n{from} -> n{to} [label=\"{label}\"{look}];");
    }
    out.push_str("}\n");
    out
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}
