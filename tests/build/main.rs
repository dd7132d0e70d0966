//! Puts the BPF fixtures' object where `include_bytes!` finds it.
#![expect(clippy::print_stdout, reason = "a build script speaks to cargo")]

#[path = "../../pagetrace/build/bpf.rs"]
pub mod bpf;

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};

fn main() -> Result<()> {
    println!("cargo::rerun-if-env-changed=PAGETRACE_FIXTURES_BPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("cargo sets CARGO_MANIFEST_DIR")?);
    let workspace = manifest.parent().context("the package lies in a workspace")?;
    let object = match env::var_os("PAGETRACE_FIXTURES_BPF_OBJECT") {
        Some(given) => {
            let given = PathBuf::from(given);
            println!("cargo::rerun-if-changed={}", given.display());
            given
        }
        None => {
            for path in ["tests/fixtures/bpf", "tests/build", "pagetrace/build/bpf.rs", "Cargo.lock"] {
                println!("cargo::rerun-if-changed={}", workspace.join(path).display());
            }
            bpf::build(workspace, "pagetrace-fixtures-bpf", "pagetrace-fixtures-bpf", &bpf::target_dir(workspace))?
        }
    };
    let to = out.join("fixtures.bpf.o");
    fs::copy(&object, &to).with_context(|| format!("cannot copy {} to {}", object.display(), to.display()))?;
    Ok(())
}
