//! Probe entries, one file an attach type. Each fetches arguments and calls the hook they share.

mod fentry;
mod iter;
mod kprobe;
mod tracepoint;
