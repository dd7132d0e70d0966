//! The logic that probes of all attach types share.

pub(crate) mod access;
pub(crate) mod before;
pub(crate) mod fault;
pub(crate) mod leak;
pub(crate) mod lock;
pub(crate) mod module;
pub(crate) mod order;
mod orphan;
mod page;
mod seen;
pub(crate) mod settle;
pub(crate) mod task;
mod violation;
pub(crate) mod walk;
