//! pagetrace: who touched user memory while holding `mmap_lock`, on the kernel you run.

pub mod kernel;
pub mod live;
