//! As which user the traced command runs: the one who called sudo, or pagetrace's own. Changes nothing in this process;
//! `Identity::assume` is for a forked child only.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::OsStrExt as _,
};

/// A user to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name, also for `USER` and `LOGNAME`.
    pub name: OsString,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// All groups, the primary one among them.
    pub groups: Vec<u32>,
    /// Home directory, for `HOME`.
    pub home: OsString,
}

/// As whom the command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunAs {
    /// As pagetrace does.
    Caller,
    /// As this user.
    User(User),
}

/// Why it cannot be known as whom.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// sudo left something that is no id.
    #[error("{variable} is {value:?}, not a user or group id; give --as-root to run the command as root")]
    Variable {
        /// The environment variable.
        variable: &'static str,
        /// Its value, or nothing.
        value: Option<OsString>,
    },
    /// There is no such user.
    #[error(
        "user {uid} who called sudo has no entry in the user database ({why}); give --as-root to run the command as root"
    )]
    NoEntry {
        /// The id.
        uid: u32,
        /// What the database said.
        why: String,
    },
    /// The groups cannot be listed.
    #[error("the groups of user {uid} cannot be listed; give --as-root to run the command as root")]
    Groups {
        /// The id.
        uid: u32,
    },
}

/// What sudo says about its caller in the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sudo {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Sudo {
    /// `None` if pagetrace was not called through sudo, or by root through it.
    pub(super) fn parse(var: impl Fn(&'static str) -> Option<OsString>) -> Result<Option<Self>, UserError> {
        let number = |variable| {
            let value = var(variable);
            let parsed = value.as_deref().and_then(OsStr::to_str).and_then(|text| text.parse::<u32>().ok());
            // All ones means "no change" to setuid, so it is nobody's id.
            parsed.filter(|&id| id != u32::MAX).ok_or(UserError::Variable { variable, value })
        };
        if var("SUDO_UID").is_none() {
            return Ok(None);
        }
        let (uid, gid) = (number("SUDO_UID")?, number("SUDO_GID")?);
        Ok((uid != 0).then_some(Self { uid, gid }))
    }
}

impl RunAs {
    /// The user who called sudo, if pagetrace runs as root through sudo and `as_root` is not asked for. Looks the
    /// user up in /etc/passwd, or by `getent` where that does not know them.
    ///
    /// # Errors
    /// [`UserError`], rather than running a user's command as root by mistake.
    pub fn of_caller(as_root: bool) -> Result<Self, UserError> {
        if as_root || !rustix::process::geteuid().is_root() {
            return Ok(Self::Caller);
        }
        match Sudo::parse(std::env::var_os)? {
            None => Ok(Self::Caller),
            Some(Sudo { uid, gid }) => {
                let (name, home) = entry(uid)?;
                let groups = groups(&name, gid).ok_or(UserError::Groups { uid })?;
                Ok(Self::User(User { name, uid, gid, groups, home }))
            }
        }
    }

    pub(super) fn identity(&self) -> Option<Identity> {
        match self {
            Self::Caller => None,
            Self::User(User { uid, gid, groups, .. }) => {
                Some(Identity { uid: *uid, gid: *gid, groups: groups.clone() })
            }
        }
    }
}

/// Ids to take on, in a form that needs no allocation to do so.
#[derive(Debug)]
pub(super) struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Identity {
    /// Groups first: once the user is changed, they may not be.
    #[expect(
        unsafe_code,
        reason = "a child's ids must be changed by plain system calls, not by the safe per-thread ones"
    )]
    pub(super) fn assume(&self) -> io::Result<()> {
        let Self { uid, gid, groups } = self;
        let check = |result: libc::c_int| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        // SAFETY: pointer and length are those of one live slice of gid_t, which is u32 on Linux.
        check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })?;
        // SAFETY: takes integers only.
        check(unsafe { libc::setresgid(*gid, *gid, *gid) })?;
        // SAFETY: takes integers only.
        check(unsafe { libc::setresuid(*uid, *uid, *uid) })
    }
}

/// Name and home directory of a user: from /etc/passwd, else from `getent`, which knows directory services.
///
/// Not through libc: its user database loads plug-ins at run time, which a static binary must not do.
fn entry(uid: u32) -> Result<(OsString, OsString), UserError> {
    let no_entry = |why: &str| UserError::NoEntry { uid, why: why.to_owned() };
    let local = std::fs::read("/etc/passwd").ok().and_then(|table| passwd_entry(&table, uid));
    let found = local.or_else(|| passwd_entry(&output("getent", &["passwd", &uid.to_string()])?, uid));
    found.ok_or_else(|| no_entry("neither /etc/passwd nor getent knows it"))
}

/// A user's groups: those of /etc/group, and what `id` adds from directory services.
fn groups(name: &OsStr, gid: u32) -> Option<Vec<u32>> {
    let mut found = vec![gid];
    if let Ok(table) = std::fs::read("/etc/group") {
        found.extend(group_memberships(&table, name));
    }
    if let Some(text) = name.to_str().and_then(|name| output("id", &["-G", name])) {
        found.extend(String::from_utf8_lossy(&text).split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
    }
    found.sort_unstable();
    found.dedup();
    Some(found)
}

fn output(program: &str, args: &[&str]) -> Option<Vec<u8>> {
    let output = std::process::Command::new(program).args(args).stdin(std::process::Stdio::null()).output().ok()?;
    output.status.success().then_some(output.stdout)
}

/// The entry of `uid` in a table as passwd(5) describes it.
pub(super) fn passwd_entry(table: &[u8], uid: u32) -> Option<(OsString, OsString)> {
    table.split(|&byte| byte == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b':').collect();
        let [name, _, id, _, _, home, ..] = fields.as_slice() else { return None };
        let id: u32 = std::str::from_utf8(id).ok()?.parse().ok()?;
        (id == uid && !name.is_empty())
            .then(|| (OsStr::from_bytes(name).to_owned(), OsStr::from_bytes(home).to_owned()))
    })
}

/// Ids of the groups that list `name` in a table as group(5) describes it.
pub(super) fn group_memberships(table: &[u8], name: &OsStr) -> Vec<u32> {
    let of_line = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b':').collect();
        let [_, _, id, members, ..] = fields.as_slice() else { return None };
        let member = members.split(|&byte| byte == b',').any(|member| member == name.as_bytes());
        if member { std::str::from_utf8(id).ok()?.parse().ok() } else { None }
    };
    table.split(|&byte| byte == b'\n').filter_map(of_line).collect()
}
