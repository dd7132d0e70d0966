//! Probe entries, one file an attach type. Each fetches arguments and calls the hook they share.

mod access;
mod fentry;
mod iter;
mod kprobe;
mod order_fentry;
mod order_kprobe;
mod order_tracepoint;
mod tracepoint;
