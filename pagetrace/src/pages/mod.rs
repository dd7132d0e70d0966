//! What a process has mapped and which of its pages are resident: `/proc/PID/maps` and `/proc/PID/pagemap`.
//!
//! Decoding is pure and total: any bytes give an answer, none a panic. Reading is a thin rim around it. Reading either
//! file takes the process's `mmap_lock`: a caller must be one that may get stuck with it.

pub mod entry;
pub mod pagemap;
pub mod swaps;
pub mod vma;

pub use entry::{Entry, SwapSlot};
pub use pagemap::Pagemap;
pub use vma::{Backing, Vma, Vmas};
