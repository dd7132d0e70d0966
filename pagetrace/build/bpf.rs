//! Builds a BPF object of this workspace with whichever BPF-capable Rust this machine has.
//!
//! Shared by the build script (the tracer's own object) and by xtask (test fixtures). It must not
//! install anything: `cargo xtask setup` does that. It only finds a complete toolchain or says in
//! one sentence what is missing.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// The only BPF target: pagetrace supports little-endian x86-64 kernels.
pub const TARGET: &str = "bpfel-unknown-none";

/// A toolchain that can compile `core` for [`TARGET`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Toolchain {
    /// A rustup nightly with `rust-src`; `core` is built on the fly.
    Nightly,
    /// A distribution compiler that ships a prebuilt `core` for BPF.
    Prebuilt {
        /// The compiler.
        rustc: PathBuf,
        /// Its cargo.
        cargo: PathBuf,
    },
}

/// Finds a complete toolchain, the distribution's prebuilt one first: it needs no nightly and
/// compiles less.
///
/// # Errors
/// One sentence that says what to install when neither way is complete.
pub fn find_toolchain() -> Result<Toolchain> {
    if let Some(found) = find_prebuilt() {
        return Ok(found);
    }
    if nightly_has_rust_src() {
        return Ok(Toolchain::Nightly);
    }
    bail!(
        "no Rust toolchain here can compile for {TARGET}: run `cargo xtask setup`, or install a nightly with its \
         sources (`rustup toolchain install nightly --component rust-src`), or the Debian packages rustc-web, \
         cargo-web and libstd-rust-web-dev-bpf, or point PAGETRACE_BPF_OBJECT at a prebuilt object"
    )
}

/// The prebuilt-`core` toolchain of the distribution, when all of it is there.
pub fn find_prebuilt() -> Option<Toolchain> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    let cargo = PathBuf::from("/usr/bin/cargo");
    if !rustc.exists() || !cargo.exists() {
        return None;
    }
    let sysroot = stdout_of(Command::new(&rustc).args(["--print", "sysroot"]))?;
    let lib = Path::new(&sysroot).join("lib/rustlib").join(TARGET).join("lib");
    has_core(&lib).then_some(Toolchain::Prebuilt { rustc, cargo })
}

fn has_core(lib: &Path) -> bool {
    lib.read_dir()
        .is_ok_and(|entries| entries.flatten().any(|e| e.file_name().to_string_lossy().starts_with("libcore-")))
}

/// Whether rustup has a nightly with the standard library's sources.
pub fn nightly_has_rust_src() -> bool {
    let sysroot = stdout_of(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]));
    sysroot.is_some_and(|root| Path::new(&root).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists())
}

/// Whether `bpf-linker` can be started.
pub fn has_linker() -> bool {
    stdout_of(Command::new("bpf-linker").arg("--version")).is_some()
}

fn stdout_of(command: &mut Command) -> Option<String> {
    let out = command.env_remove("RUSTUP_TOOLCHAIN").output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// Where BPF objects are built: one place for all profiles and target directories, since an object is the same for each
/// and takes longer to link than everything else.
pub fn target_dir(workspace: &Path) -> PathBuf {
    let base = env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), |dir| workspace.join(dir));
    base.join("bpf")
}

/// Compiles binary `bin` of workspace package `package` to a BPF object and returns its path.
///
/// # Errors
/// When no toolchain is complete, the linker is missing, or the compiler fails.
pub fn build(workspace: &Path, package: &str, bin: &str, target_dir: &Path) -> Result<PathBuf> {
    let toolchain = find_toolchain()?;
    if !has_linker() {
        bail!("bpf-linker is not on the PATH: run `cargo xtask setup`, or `cargo install bpf-linker`");
    }
    let mut command = match &toolchain {
        Toolchain::Prebuilt { rustc, cargo } => {
            let mut command = Command::new(cargo);
            // aya-ebpf alone asks for an unstable feature; opening it for every crate would make
            // their build scripts see a nightly.
            command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "aya_ebpf");
            command
        }
        Toolchain::Nightly => {
            let mut command = Command::new("rustup");
            command.args(["run", "nightly", "cargo"]).env_remove("RUSTC");
            command
        }
    };
    command.arg("build");
    if toolchain == Toolchain::Nightly {
        command.args(["-Z", "build-std=core"]);
    }
    command
        .args(["--release", "--features", "bpf", "--target", TARGET])
        .args(["--package", package, "--bin", bin])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(workspace);
    // What cargo set up for the host build must not leak into this one.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let leaks = text.starts_with("CARGO_") && text != "CARGO_HOME" && !text.starts_with("CARGO_HTTP");
        if leaks || text == "RUSTUP_TOOLCHAIN" || text == "RUSTC_WRAPPER" || text == "RUSTC_WORKSPACE_WRAPPER" {
            command.env_remove(&name);
        }
    }
    command.env(
        "CARGO_ENCODED_RUSTFLAGS",
        [
            "--cfg=bpf_target_arch=\"x86_64\"",
            "-Cdebuginfo=2",
            "-Clink-arg=--btf",
            "-Clinker=bpf-linker",
            "-Cpanic=abort",
        ]
        .join("\x1f"),
    );
    let out = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !out.status.success() {
        bail!("building the BPF object failed ({}): {command:?}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    }
    let object = target_dir.join(TARGET).join("release").join(bin);
    if !object.exists() {
        bail!("the BPF build succeeded but left no {}", object.display());
    }
    Ok(object)
}
