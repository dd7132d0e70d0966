//! Finds the Debian mirror to use: the one that is asked for, else the one in apt's own configuration.
//!
//! Names no host of its own: which archive a machine talks to is its owner's choice. Choosing is pure; [`configured`] is
//! the thin rim that reads the environment and the files.

use std::{env, ffi::OsString, fs, path::Path};

use anyhow::{Context as _, Result, bail};

/// Names the archive where apt knows none, or another one is wanted: the address that Debian's `dists` lies below.
pub const SETTING: &str = "PAGETRACE_DEBIAN_MIRROR";

/// Base addresses of the archive and of its security part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The main archive.
    pub main: String,
    /// The security archive.
    pub security: String,
}

impl Mirror {
    /// From the value of [`SETTING`]. The security archive stands beside the main one on Debian's mirrors, under the
    /// main one's name with `-security` behind it.
    fn parse(value: &str) -> Result<Self> {
        let main = value.trim().trim_end_matches('/');
        let wanted = "want the archive's address, such as http://HOST/debian";
        if !usable(main) {
            bail!("{SETTING} is {value:?}, which is no address apt can fetch from: {wanted}");
        }
        // It becomes a line of apt's configuration.
        if main.chars().any(|c| c.is_whitespace() || c.is_control()) {
            bail!("{SETTING} is {value:?}, which is more than one word: {wanted}");
        }
        Ok(Self { main: main.to_owned(), security: format!("{main}-security") })
    }
}

/// A source: an address and the suites taken from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceEntry {
    /// The address.
    pub uri: String,
    /// The suites.
    pub suites: Vec<String>,
}

/// The one-line format (`sources.list`).
#[must_use]
pub fn parse_list(text: &str) -> Vec<SourceEntry> {
    let entry = |line: &str| {
        let mut rest = line.trim().strip_prefix("deb ")?.trim_start();
        if let Some(options) = rest.strip_prefix('[') {
            rest = options.split_once(']')?.1;
        }
        let mut words = rest.split_whitespace();
        Some(SourceEntry { uri: words.next()?.to_owned(), suites: vec![words.next()?.to_owned()] })
    };
    text.lines().filter_map(entry).collect()
}

/// The stanza format (`*.sources`).
#[must_use]
pub fn parse_deb822(text: &str) -> Vec<SourceEntry> {
    let mut entries = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            entries.extend(stanza(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    entries
}

fn stanza(fields: &[(String, String)]) -> Vec<SourceEntry> {
    let words = |wanted: &str| -> Vec<String> {
        let value = fields.iter().find(|(name, _)| name == wanted).map_or("", |(_, value)| value);
        value.split_whitespace().map(str::to_owned).collect()
    };
    if words("enabled").first().is_some_and(|word| word == "no") || !words("types").iter().any(|word| word == "deb") {
        return Vec::new();
    }
    let suites = words("suites");
    words("uris").into_iter().map(|uri| SourceEntry { uri, suites: suites.clone() }).collect()
}

fn usable(uri: &str) -> bool {
    ["http://", "https://", "mirror+http", "ftp://"].iter().any(|scheme| uri.starts_with(scheme))
}

/// The Debian mirror among the sources. Where its security part is not among them, that address follows from the main
/// one's, as [`SETTING`]'s does. The suites tell Debian's archive from other vendors'. `None` when no source is Debian's
/// main archive.
#[must_use]
pub fn choose(entries: &[SourceEntry]) -> Option<Mirror> {
    const CODENAMES: [&str; 7] = ["bullseye", "bookworm", "trixie", "forky", "sid", "stable", "testing"];
    let find = |security: bool| {
        let wanted = |suite: &str| {
            let (codename, part) = suite.split_once(['-', '/']).unwrap_or((suite, ""));
            CODENAMES.contains(&codename) && (part == "security") == security
        };
        entries
            .iter()
            .find(|entry| usable(&entry.uri) && entry.suites.iter().any(|suite| wanted(suite)))
            .map(|entry| entry.uri.trim_end_matches('/').to_owned())
    };
    let main = find(false)?;
    let security = find(true).unwrap_or_else(|| format!("{main}-security"));
    Some(Mirror { main, security })
}

/// The mirror that [`SETTING`] names, else the one that apt is configured with, below `etc_apt` (`/etc/apt`).
///
/// # Errors
/// When the setting is no address, or neither names a Debian mirror.
pub fn configured(etc_apt: &Path) -> Result<Mirror> {
    asked_or_configured(env::var_os(SETTING), etc_apt)
}

fn asked_or_configured(asked: Option<OsString>, etc_apt: &Path) -> Result<Mirror> {
    if let Some(value) = asked.filter(|value| !value.is_empty()) {
        let text = value.to_str().with_context(|| format!("{SETTING} is not UTF-8: {}", value.display()))?;
        return Mirror::parse(text);
    }
    choose(&sources(etc_apt)).with_context(|| {
        format!(
            "no Debian mirror is known: {} names none; set {SETTING} to one's address, such as http://HOST/debian",
            etc_apt.display()
        )
    })
}

/// All sources that apt is configured with.
fn sources(etc_apt: &Path) -> Vec<SourceEntry> {
    let mut entries =
        fs::read_to_string(etc_apt.join("sources.list")).map_or_else(|_| Vec::new(), |text| parse_list(&text));
    let mut parts: Vec<_> = etc_apt
        .join("sources.list.d")
        .read_dir()
        .map_or_else(|_| Vec::new(), |dir| dir.flatten().map(|entry| entry.path()).collect());
    parts.sort();
    for path in parts {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        match path.extension().and_then(|ext| ext.to_str()) {
            Some("list") => entries.extend(parse_list(&text)),
            Some("sources") => entries.extend(parse_deb822(&text)),
            _ => {}
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_format() {
        let text = "# deb http://no/ bookworm main\n\
                    deb-src http://no/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://m/debian/ bookworm main contrib\n\
                    deb http://s/debian-security bookworm-security main\n";
        let mirror = choose(&parse_list(text));
        assert_eq!(
            mirror,
            Some(Mirror { main: "http://m/debian".into(), security: "http://s/debian-security".into() })
        );
    }

    #[test]
    fn stanza_format() {
        let text = "Types: deb\n# a comment\nURIs: http://m/debian\nSuites: bookworm\n bookworm-updates\n\n\
                    Types: deb\nEnabled: no\nURIs: http://off/debian-security\nSuites: bookworm-security\n";
        let mirror = choose(&parse_deb822(text));
        assert_eq!(
            mirror,
            Some(Mirror { main: "http://m/debian".into(), security: "http://m/debian-security".into() })
        );
    }

    #[test]
    fn other_archives_are_not_debian() {
        let text = "deb http://u/ubuntu noble main\ndeb cdrom:[x]/ bookworm main\n";
        assert_eq!(choose(&parse_list(text)), None);
    }

    #[test]
    fn a_machine_without_a_debian_mirror_is_told_what_to_set() {
        let said = asked_or_configured(None, Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(said.contains(SETTING) && said.contains("/nonexistent") && said.lines().count() == 1, "{said}");
    }

    #[test]
    fn the_setting_is_one_address() {
        let mirror = asked_or_configured(Some("http://m/debian/".into()), Path::new("/nonexistent")).unwrap();
        assert_eq!(mirror, Mirror { main: "http://m/debian".into(), security: "http://m/debian-security".into() });
        for bad in ["m/debian", "file:/x", "http://m/debian main\ndeb http://n/", ""] {
            let said = Mirror::parse(bad).unwrap_err().to_string();
            assert!(said.contains(SETTING) && said.lines().count() == 1, "{bad}: {said}");
        }
    }
}
