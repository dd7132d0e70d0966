//! Finds the Debian mirror this machine already uses, in apt's own configuration.
//!
//! Parsing is pure; [`configured`] is the thin rim that reads the files.

use std::{fs, path::Path};

/// Base addresses of the archive and of its security part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The main archive.
    pub main: String,
    /// The security archive.
    pub security: String,
}

impl Default for Mirror {
    fn default() -> Self {
        Self { main: "http://deb.debian.org/debian".into(), security: "http://deb.debian.org/debian-security".into() }
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

/// The Debian mirror among the sources; what is not there is taken from Debian's own address. The
/// suites tell Debian's archive from other vendors'.
#[must_use]
pub fn choose(entries: &[SourceEntry]) -> Mirror {
    const CODENAMES: [&str; 7] = ["bullseye", "bookworm", "trixie", "forky", "sid", "stable", "testing"];
    let find = |security: bool| {
        let wanted = |suite: &str| {
            let (codename, part) = suite.split_once(['-', '/']).unwrap_or((suite, ""));
            CODENAMES.contains(&codename) && (part == "security") == security
        };
        let usable = |uri: &str| ["http://", "https://", "mirror+http", "ftp://"].iter().any(|p| uri.starts_with(p));
        entries
            .iter()
            .find(|entry| usable(&entry.uri) && entry.suites.iter().any(|suite| wanted(suite)))
            .map(|entry| entry.uri.trim_end_matches('/').to_owned())
    };
    let default = Mirror::default();
    Mirror { main: find(false).unwrap_or(default.main), security: find(true).unwrap_or(default.security) }
}

/// The mirror that apt is configured with, below `etc_apt` (`/etc/apt`).
#[must_use]
pub fn configured(etc_apt: &Path) -> Mirror {
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
    choose(&entries)
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
        assert_eq!(mirror, Mirror { main: "http://m/debian".into(), security: "http://s/debian-security".into() });
    }

    #[test]
    fn stanza_format() {
        let text = "Types: deb\n# a comment\nURIs: http://m/debian\nSuites: bookworm\n bookworm-updates\n\n\
                    Types: deb\nEnabled: no\nURIs: http://off/debian-security\nSuites: bookworm-security\n";
        let mirror = choose(&parse_deb822(text));
        assert_eq!(mirror, Mirror { main: "http://m/debian".into(), ..Mirror::default() });
    }

    #[test]
    fn other_archives_are_not_debian() {
        let text = "deb http://archive.ubuntu.com/ubuntu noble main\ndeb cdrom:[x]/ bookworm main\n";
        assert_eq!(choose(&parse_list(text)), Mirror::default());
    }
}
