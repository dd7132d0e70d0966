//! The traced machine as it runs. Whatever is decided about events is decided elsewhere.

pub mod workload;
