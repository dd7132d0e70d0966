//! Tracing this machine: loading, attaching, reading.

pub mod loader;
pub mod settings;
