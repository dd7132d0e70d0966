//! Puts the BPF object where `include_bytes!` finds it.
#![expect(clippy::print_stdout, reason = "this is how a build script talks to cargo")]

pub mod bpf;

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};

fn main() -> Result<()> {
    println!("cargo::rerun-if-env-changed=PAGETRACE_BPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("cargo sets CARGO_MANIFEST_DIR")?);
    let workspace = manifest.parent().context("the package lies in a workspace")?;
    let object = match env::var_os("PAGETRACE_BPF_OBJECT") {
        Some(given) => {
            let given = PathBuf::from(given);
            println!("cargo::rerun-if-changed={}", given.display());
            given
        }
        None => {
            for path in ["pagetrace-ebpf/src", "pagetrace-ebpf/Cargo.toml", "Cargo.lock"] {
                println!("cargo::rerun-if-changed={}", workspace.join(path).display());
            }
            println!("cargo::rerun-if-changed=build");
            bpf::build(workspace, "pagetrace-ebpf", "pagetrace-bpf", &bpf::target_dir(workspace))?
        }
    };
    let to = out.join("pagetrace.bpf.o");
    fs::copy(&object, &to).with_context(|| format!("cannot copy {} to {}", object.display(), to.display()))?;
    Ok(())
}
