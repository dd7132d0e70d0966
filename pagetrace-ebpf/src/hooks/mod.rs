//! The logic that probes of all attach types share.

pub(crate) mod fault;
pub(crate) mod lock;
pub(crate) mod task;
mod violation;
pub(crate) mod walk;
