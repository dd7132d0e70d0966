//! What the integration tests share: the fixtures that exercise right and wrong patterns, and the suite that
//! holds pagetrace against them.

pub mod bench;
pub mod fixture;
pub mod fuzz;
pub mod guest;
