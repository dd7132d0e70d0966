//! What a process has mapped and which of its pages are resident: `/proc/PID/maps` and `/proc/PID/pagemap`.
//!
//! Decoding is pure and total: any bytes give an answer, none a panic. Reading is a thin rim around it. Reading either
//! file takes the process's `mmap_lock`: a caller must be one that may get stuck with it.

pub mod ability;
pub mod entry;
pub mod expr;
pub mod facts;
pub mod gather;
pub mod kpage;
pub mod pagemap;
mod parts;
pub mod process;
pub mod range;
pub mod runs;
pub mod scan;
pub mod smaps;
mod span;
pub mod summary;
pub mod swaps;
pub mod vma;
pub mod walk;

pub use entry::{Entry, SwapSlot};
pub use facts::Facts;
pub use pagemap::Pagemap;
pub use vma::{Backing, Vma, Vmas};
