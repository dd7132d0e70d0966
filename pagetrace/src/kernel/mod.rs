//! Facts about the running kernel. Decides nothing about what to attach; that is the plan's business.

pub mod btf;
pub mod kallsyms;
