//! Reports and event lines: values in, text or JSON out. Nothing here reads the machine.

pub mod advice;
pub mod case;
pub mod console;
pub mod deadlock;
pub mod document;
pub mod dot;
pub mod event;
pub mod fingerprint;
pub mod found;
pub mod gather;
pub mod github;
pub mod junit;
pub mod merge;
pub mod order;
pub(crate) mod order_text;
pub mod pagemap;
pub mod plan;
pub mod provocation;
pub mod report;
pub mod sarif;
pub mod stacks;
pub mod text;
pub mod verify;

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one document, or one object a line.
    Json,
}

/// Form of what a recording tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ReportFormat {
    /// For people.
    Text,
    /// One document, for programs.
    Json,
    /// The lock order as a graph for Graphviz.
    Dot,
}
