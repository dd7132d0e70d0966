//! Reports and event lines: values in, text or JSON out. Nothing here reads the machine.

pub mod advice;
pub mod case;
pub mod console;
pub mod document;
pub mod event;
pub mod fingerprint;
pub mod gather;
pub mod github;
pub mod junit;
pub mod pagemap;
pub mod plan;
pub mod provocation;
pub mod report;
pub mod sarif;
pub mod stacks;
pub mod text;

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one document, or one object a line.
    Json,
}
