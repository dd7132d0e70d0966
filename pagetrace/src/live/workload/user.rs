//! As which user the traced command runs: the one who called sudo, or pagetrace's own. Changes nothing in this process;
//! `Identity::assume` is for a forked child only.

use std::{
    ffi::{CStr, CString, OsStr, OsString},
    io,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
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
    /// user up in the user database (nsswitch).
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
                let name = OsString::from_vec(name.into_bytes());
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

/// Name and home directory of a user.
#[expect(unsafe_code, reason = "the user database is only reachable through libc")]
fn entry(uid: u32) -> Result<(CString, OsString), UserError> {
    let no_entry = |why: String| UserError::NoEntry { uid, why };
    let mut buffer = vec![0; 1 << 16];
    // SAFETY: all-zero is a valid passwd: null pointers and zero ids.
    let mut found: libc::passwd = unsafe { std::mem::zeroed() };
    let mut result = std::ptr::null_mut();
    // SAFETY: all pointers are to live objects, and the length is the buffer's.
    let error = unsafe { libc::getpwuid_r(uid, &raw mut found, buffer.as_mut_ptr(), buffer.len(), &raw mut result) };
    if error != 0 {
        return Err(no_entry(io::Error::from_raw_os_error(error).to_string()));
    }
    if result.is_null() || found.pw_name.is_null() || found.pw_dir.is_null() {
        return Err(no_entry("no such user".to_owned()));
    }
    // SAFETY: the call succeeded, so both point to NUL-terminated strings in `buffer`, which lives on.
    let (name, home) = unsafe { (CStr::from_ptr(found.pw_name), CStr::from_ptr(found.pw_dir)) };
    Ok((name.to_owned(), OsStr::from_bytes(home.to_bytes()).to_owned()))
}

#[expect(unsafe_code, reason = "the group database is only reachable through libc")]
fn groups(name: &CStr, gid: u32) -> Option<Vec<u32>> {
    // NGROUPS_MAX of the kernel; the call says how many there are.
    let mut groups = vec![0; 65_536];
    let mut count = libc::c_int::try_from(groups.len()).ok()?;
    // SAFETY: the name is NUL-terminated, and `count` is the length of the array the pointer leads to.
    let result = unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &raw mut count) };
    if result < 0 {
        return None;
    }
    groups.truncate(usize::try_from(count).ok()?);
    Some(groups)
}
