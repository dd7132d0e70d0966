//! The traced machine as it runs: loading, attaching, reading, the traced command. Whatever is decided about events
//! is decided elsewhere.

mod deadlock;
pub mod hang;
pub mod loader;
mod order;
mod perf;
pub mod prepare;
pub mod provoke;
mod readiness;
pub mod session;
pub mod settings;
mod shortcut;
mod stacks;
mod strict;
pub mod tape;
mod undisturbed;
pub mod verify;
pub mod workload;
