//! Who pagetrace runs as: user, capabilities, user namespace. Reads text it is given, raises nothing.

use serde::Serialize;

/// The capabilities that matter here, with their bit in `include/uapi/linux/capability.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[repr(u8)]
pub enum Cap {
    /// Read any file: tracefs belongs to root.
    CapDacReadSearch = 2,
    /// Look into other users' processes.
    CapSysPtrace = 19,
    /// Everything the narrower ones do not cover: kernels before 5.8, page frame numbers in pagemap.
    CapSysAdmin = 21,
    /// Advise other processes' memory, since 5.12.
    CapSysNice = 23,
    /// Raise resource limits.
    CapSysResource = 24,
    /// See kernel addresses.
    CapSyslog = 34,
    /// Attach probes and read kernel memory from BPF, since 5.8.
    CapPerfmon = 38,
    /// Load BPF programs, since 5.8.
    CapBpf = 39,
}

/// User and capabilities of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Privileges {
    /// Effective user id.
    pub euid: u32,
    /// Effective capabilities, one bit each.
    pub effective: u64,
    /// Whether the process is in the first user namespace; capabilities of any other do not count for tracing.
    pub initial_user_namespace: bool,
}

impl Privileges {
    /// From the text of `/proc/self/status` and, if it could be read, `/proc/self/uid_map`.
    #[must_use]
    pub fn parse(status: &str, uid_map: Option<&str>) -> Option<Self> {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let euid = field("Uid")?.split_ascii_whitespace().nth(1)?.parse().ok()?;
        let effective = u64::from_str_radix(field("CapEff")?.trim(), 16).ok()?;
        // The first namespace maps every id to itself; a kernel without user namespaces has no such file.
        let whole = |map: &str| map.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
        Some(Self { euid, effective, initial_user_namespace: uid_map.is_none_or(whole) })
    }

    /// Whether `cap` is effective.
    #[must_use]
    pub fn has(&self, cap: Cap) -> bool {
        self.effective >> (cap as u8) & 1 == 1
    }

    /// Whether BPF programs may be loaded: `CAP_BPF`, or `CAP_SYS_ADMIN` which implies it.
    #[must_use]
    pub fn may_load_bpf(&self) -> bool {
        self.initial_user_namespace && (self.has(Cap::CapBpf) || self.has(Cap::CapSysAdmin))
    }

    /// Whether they may be attached and may read kernel memory: `CAP_PERFMON`, or `CAP_SYS_ADMIN`.
    #[must_use]
    pub fn may_trace(&self) -> bool {
        self.initial_user_namespace && (self.has(Cap::CapPerfmon) || self.has(Cap::CapSysAdmin))
    }
}

#[cfg(test)]
mod tests {
    use super::{Cap, Privileges};

    fn parse(caps: &str, map: &str) -> Privileges {
        Privileges::parse(&format!("Name:\tx\nUid:\t1000\t0\t0\t0\nCapEff:\t{caps}\n"), Some(map)).unwrap()
    }

    #[test]
    fn effective_user_and_capabilities_count() {
        let all = parse("000001fffeffffff", "         0          0 4294967295\n");
        assert_eq!(all.euid, 0);
        assert!(all.may_load_bpf() && all.may_trace());
        assert!(!all.has(Cap::CapSysResource), "bit 24 is clear");
        let none = parse("0000000000000000", "0 0 4294967295");
        assert!(!none.may_load_bpf() && !none.may_trace());
        let narrow = parse("000000c000000000", "0 0 4294967295");
        assert!(narrow.has(Cap::CapBpf) && narrow.has(Cap::CapPerfmon) && !narrow.has(Cap::CapSysAdmin));
        assert!(narrow.may_load_bpf() && narrow.may_trace());
    }

    #[test]
    fn capabilities_of_an_inner_user_namespace_do_not_count() {
        let inner = parse("000001ffffffffff", "0 1000 1\n");
        assert!(inner.has(Cap::CapSysAdmin) && !inner.may_load_bpf());
    }

    #[test]
    fn odd_text_is_none() {
        assert_eq!(Privileges::parse("", None), None);
        assert_eq!(Privileges::parse("Uid:\t1\nCapEff:\tzz", None), None);
    }
}
