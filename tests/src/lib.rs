//! What the integration tests share: the fixtures that exercise right and wrong patterns.

pub mod fixture;
