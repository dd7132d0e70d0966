//! The wire types: what the BPF object writes and the loader reads.
#![no_std]
#![forbid(unsafe_code)]

pub mod wire;
