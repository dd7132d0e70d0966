//! Installs packages with apt, bpf-linker with cargo, components with rustup.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::needs::Id;
use crate::{bpf, step, vm::qemu::find, workspace};

/// The version that fits the LLVM below, and that LLVM's place.
const BPF_LINKER: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";

/// Whether this machine installs with apt.
pub(super) fn has_apt() -> bool {
    find("apt-get").is_some()
}

/// Installs what the archive has and returns what it does not.
pub(super) fn packages(wanted: &[&str]) -> Result<Vec<String>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let mut unavailable = not_in_index(wanted)?;
    if !unavailable.is_empty() {
        step::run("apt-get update", apt()?.arg("update"))?;
        unavailable = not_in_index(wanted)?;
    }
    let available: Vec<_> = wanted.iter().filter(|name| !unavailable.iter().any(|u| u == *name)).collect();
    if available.is_empty() {
        return Ok(unavailable);
    }
    let install = || -> Result<Command> {
        let mut command = apt()?;
        command.args(["install", "--yes", "--no-install-recommends"]).args(&available);
        Ok(command)
    };
    let title = format!("installing {} packages with apt-get", available.len());
    if step::run(&title, &mut install()?).is_err() {
        // An index older than the archive names files that are gone.
        step::run("apt-get update", apt()?.arg("update"))?;
        step::run(&title, &mut install()?)?;
    }
    Ok(unavailable)
}

/// Does what packages cannot.
pub(super) fn rest(id: Id, unavailable: &[String]) -> Result<()> {
    match id {
        Id::Packages => match unavailable.first() {
            Some(name) => bail!("the package {name} is not in this machine's archive"),
            None => Ok(()),
        },
        Id::Component(name) => component(name),
        Id::BpfRust if bpf::find_toolchain().is_ok() => Ok(()),
        Id::BpfRust => nightly(),
        Id::BpfLinker => bpf_linker(),
    }
}

fn not_in_index(names: &[&str]) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for name in names {
        let out = Command::new("apt-cache")
            .args(["policy", name])
            .env("LC_ALL", "C")
            .output()
            .context("cannot start apt-cache")?;
        if !has_candidate(&String::from_utf8_lossy(&out.stdout)) {
            missing.push((*name).to_owned());
        }
    }
    Ok(missing)
}

fn has_candidate(policy: &str) -> bool {
    policy.lines().filter_map(|line| line.trim().strip_prefix("Candidate:")).any(|version| version.trim() != "(none)")
}

/// apt-get as root, never asking.
fn apt() -> Result<Command> {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("apt-get")
    } else if sudo_works() {
        let mut command = Command::new("sudo");
        command.args(["--non-interactive", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        command
    } else {
        bail!(
            "installing packages needs root, and sudo does not work without a password here: run `sudo -v` first, or install them by hand"
        );
    };
    command.env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet");
    Ok(command)
}

fn sudo_works() -> bool {
    Command::new("sudo")
        .args(["--non-interactive", "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn component(name: &str) -> Result<()> {
    if find("rustup").is_none() {
        bail!("{name} is missing, and without rustup it has to come from where this Rust came from");
    }
    step::run(&format!("adding {name}"), Command::new("rustup").args(["component", "add", name]))?;
    Ok(())
}

fn nightly() -> Result<()> {
    if find("rustup").is_none() {
        bail!("neither Debian's rustc-web nor rustup is here: install rustup, then run this again");
    }
    let mut command = Command::new("rustup");
    command.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
    step::run("installing a nightly Rust with its sources", &mut command)?;
    Ok(())
}

fn bpf_linker() -> Result<()> {
    if !Path::new(LLVM).is_dir() {
        bail!(
            "bpf-linker needs LLVM 22 in {LLVM}, and the packages llvm-22-dev and libpolly-22-dev are not in this machine's archive"
        );
    }
    let mut command = Command::new(workspace::cargo());
    command
        .args(["install", "bpf-linker", "--locked", "--version", BPF_LINKER])
        .args(["--no-default-features", "--features", "llvm-22"])
        // Both: an older llvm-config on the PATH would win over the first alone.
        .env("LLVM_SYS_221_PREFIX", LLVM)
        .env("LLVM_PREFIX", LLVM)
        // In the workspace, its settings would apply.
        .current_dir("/");
    step::run("compiling bpf-linker, about a minute", &mut command)?;
    if !bpf::has_linker() {
        bail!("bpf-linker is installed, but cargo's bin directory is not on the PATH");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates() {
        assert!(has_candidate("qemu:\n  Installed: (none)\n  Candidate: 1:7.2\n"));
        assert!(!has_candidate("qemu:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!has_candidate(""));
    }
}
