//! pagetrace: who touched user memory while holding `mmap_lock`, on the kernel you run.

pub mod analysis;
pub mod cli;
mod clock;
pub mod kernel;
pub mod lines;
pub mod live;
pub mod output;
pub mod pages;
pub mod plan;
pub mod policy;
pub mod record;
pub mod symbolize;
pub mod vm;
