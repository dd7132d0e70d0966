//! Runs a command on a test kernel: one kernel image, an initramfs made on the fly, QEMU.
//!
//! The invariant: whatever happens in the guest ends in exactly one [`Outcome`], and a failure of
//! the machinery (no QEMU, no image, no boot) is never reported as a failure of the command.
//!
//! The guest's init is this library too ([`guest`]): a static binary which calls [`guest::main`]
//! when it is started as `/init`.
//!
//! `xtask` includes this directory by path, because it must compile on a machine which cannot build
//! the tracer yet. So nothing here may use another module of the crate, nor a dependency which
//! `xtask` does not have.

pub mod accel;
pub mod apt;
pub mod busybox;
pub mod cache;
pub mod console;
pub mod cpio;
pub mod guest;
pub mod image;
pub mod initramfs;
pub mod kernel;
pub mod mirror;
pub mod outcome;
pub mod package;
pub mod protocol;
pub mod qemu;
pub mod run;
pub mod spec;
pub mod trouble;
pub mod watch;

pub use accel::Accel;
pub use outcome::Outcome;
pub use run::{VmResult, run};
pub use spec::{Source, VmFile, VmSpec};
