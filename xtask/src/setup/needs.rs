//! What building and testing need, as a table, and how each is recognized. Nothing here installs.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use crate::{bpf, vm::qemu::find};

/// Which need; what is not a plain package is installed by a step named after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Id {
    /// Packages are all it takes.
    Packages,
    /// A Rust that compiles for BPF.
    BpfRust,
    /// bpf-linker.
    BpfLinker,
    /// A component of the Rust toolchain.
    Component(&'static str),
}

/// A thing that must be there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    /// Which.
    pub(crate) id: Id,
    /// Its name.
    pub(crate) what: &'static str,
    /// What for.
    pub(crate) why: &'static str,
    /// Debian's packages.
    pub(crate) apt: &'static [&'static str],
    /// Fedora's packages, for the report.
    pub(crate) dnf: &'static [&'static str],
    /// What else is done.
    pub(crate) also: &'static str,
    /// Whether it is there.
    present: fn() -> bool,
}

const NEEDS: [Need; 9] = [
    Need {
        id: Id::Packages,
        what: "a C compiler and linker",
        why: "linking Rust programs and compiling LLVM's glue for bpf-linker",
        apt: &["gcc", "g++", "libc6-dev"],
        dnf: &["gcc", "gcc-c++", "glibc-devel", "glibc-static"],
        also: "",
        present: || programs(&["cc", "c++"]),
    },
    Need {
        id: Id::Component("rustfmt"),
        what: "rustfmt",
        why: "the format check",
        apt: &[],
        dnf: &[],
        also: "rustup component add rustfmt",
        present: || component("rustfmt"),
    },
    Need {
        id: Id::Component("clippy"),
        what: "clippy",
        why: "the lints",
        apt: &[],
        dnf: &[],
        also: "rustup component add clippy",
        present: || component("clippy-driver"),
    },
    Need {
        id: Id::BpfRust,
        what: "a Rust that compiles for BPF",
        why: "building the BPF object",
        apt: &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"],
        dnf: &[],
        also: "where the packages do not exist: rustup toolchain install nightly --component rust-src",
        present: || bpf::find_toolchain().is_ok(),
    },
    Need {
        id: Id::BpfLinker,
        what: "bpf-linker",
        why: "linking the BPF object",
        apt: &["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "libffi-dev", "libxml2-dev", "zlib1g-dev"],
        dnf: &["llvm-devel", "libzstd-devel", "libffi-devel", "libxml2-devel", "zlib-devel"],
        also: "cargo install bpf-linker",
        present: bpf::has_linker,
    },
    Need {
        id: Id::Packages,
        what: "QEMU",
        why: "booting test kernels",
        apt: &["qemu-system-x86"],
        dnf: &["qemu-system-x86-core"],
        also: "",
        present: || programs(&[crate::vm::qemu::QEMU]),
    },
    Need {
        id: Id::Packages,
        what: "the tools kernel modules are built with",
        why: "the fixture module",
        apt: &["gcc-12", "make", "binutils", "libelf1"],
        dnf: &["gcc", "make", "binutils", "elfutils-libelf"],
        also: "",
        // Another compiler's version only gives a warning from kbuild, so any distribution's will do.
        present: || programs(&["make", "ld"]) && (programs(&["gcc-12"]) || (programs(&["gcc"]) && !on_bookworm())),
    },
    Need {
        id: Id::Packages,
        what: "debootstrap",
        why: "building the fixture module for kernels that need a newer C library",
        apt: &["debootstrap"],
        dnf: &["debootstrap"],
        also: "",
        present: || programs(&["debootstrap"]),
    },
    Need {
        id: Id::Packages,
        what: "apt and dpkg-deb",
        why: "fetching test kernels from Debian's archive",
        apt: &["apt", "dpkg"],
        dnf: &["apt", "dpkg", "debian-keyring"],
        also: "",
        present: || programs(&["apt-get", "apt-cache", "dpkg-deb"]),
    },
];

/// What building a kernel needs besides: only tasks that build one ask for it.
const KERNEL_NEEDS: [Need; 2] = [
    Need {
        id: Id::Packages,
        what: "the tools a kernel is built with",
        why: "the kernel with lockdep",
        apt: &["bc", "bison", "flex", "libelf-dev", "xz-utils"],
        dnf: &["bc", "bison", "flex", "elfutils-libelf-devel", "xz"],
        also: "",
        present: || programs(&["bc", "bison", "flex", "xz"]) && Path::new("/usr/include/libelf.h").is_file(),
    },
    Need {
        id: Id::Packages,
        what: "pahole",
        why: "the type information of that kernel",
        apt: &["dwarves"],
        dnf: &["dwarves"],
        also: "",
        present: || programs(&["pahole"]),
    },
];

/// What building the kernel's own tests needs besides.
const SELFTEST_NEEDS: [Need; 1] = [Need {
    id: Id::Packages,
    what: "the libraries that the kernel's tests use",
    why: "building tools/testing/selftests/mm",
    apt: &["libcap-dev", "libnuma-dev", "liburing-dev", "xz-utils"],
    dnf: &["libcap-static", "numactl-devel", "liburing-devel", "xz"],
    also: "",
    present: || {
        let header = |name: &str| Path::new("/usr/include").join(name).is_file();
        programs(&["xz"]) && ["sys/capability.h", "numa.h", "liburing.h"].into_iter().all(header)
    },
}];

/// What a task is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Build pagetrace and test it.
    Usual,
    /// Build a kernel as well.
    Kernel,
    /// Build the kernel's own tests as well.
    Selftests,
}

/// What is missing here.
pub(crate) fn missing(purpose: Purpose) -> Vec<Need> {
    let more: &[Need] = match purpose {
        Purpose::Usual => &[],
        Purpose::Kernel => &KERNEL_NEEDS,
        Purpose::Selftests => &SELFTEST_NEEDS,
    };
    NEEDS.iter().chain(more).filter(|need| !(need.present)()).copied().collect()
}

fn programs(names: &[&str]) -> bool {
    // root's tools are not on every user's PATH.
    names.iter().all(|name| find(name).is_some() || Path::new("/usr/sbin").join(name).is_file())
}

/// rustup leaves a proxy for a component that is not installed, so the file being there is no proof.
fn component(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn on_bookworm() -> bool {
    std::fs::read_to_string("/etc/os-release").is_ok_and(|text| text.contains("VERSION_CODENAME=bookworm"))
}
