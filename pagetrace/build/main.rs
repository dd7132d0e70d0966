//! Puts the BPF object where `include_bytes!` finds it.
#![expect(clippy::print_stdout, reason = "this is how a build script talks to cargo")]

pub mod bpf;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

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
    if !strip(&object, &to) {
        fs::copy(&object, &to).with_context(|| format!("cannot copy {} to {}", object.display(), to.display()))?;
    }
    Ok(())
}

/// Copies the object without its DWARF, three quarters of it, which is read by nobody once BTF is made from it. Needs what
/// rustup puts beside a compiler; says whether it was there.
fn strip(object: &Path, to: &Path) -> bool {
    let (Some(rustc), Some(host)) = (env::var_os("RUSTC"), env::var_os("HOST")) else { return false };
    let Ok(out) = Command::new(rustc).args(["--print", "sysroot"]).output() else { return false };
    let lib = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()).join("lib");
    let objcopy = lib.join("rustlib").join(host).join("bin/rust-objcopy");
    let stripped = Command::new(objcopy).env("LD_LIBRARY_PATH", lib).arg("--strip-debug").args([object, to]).output();
    stripped.is_ok_and(|out| out.status.success())
}
