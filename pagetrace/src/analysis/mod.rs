//! Findings from records. Pure: no BPF, no files, no clock; the same records always give the same findings.

mod compare;
mod correlate;
pub mod deadlock;
mod finding;
mod interrupt;
mod latent;
pub mod model;
pub mod order;
mod page;
pub mod presence;
mod repeat;
mod verdict;

pub use compare::{CrossCheck, Disagreement};
pub use correlate::{Correlator, Outcome, Stacks, Suspected, suspected};
pub use finding::{Access, Class, Finding, HeldLock, LockMode, MmId, Relation, Severity, TaskId, VmaInfo};
pub use page::{PageInfo, PageState};
pub use repeat::Repeat;
pub use verdict::{Inputs, Loss, Verdict, judge};
