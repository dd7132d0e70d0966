//! Rules about files that no compiler lint checks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

const MAX_LINES: usize = 600;

/// What a file violates, as `path: rule` or `path:line: rule`.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    list(root, &mut files)?;
    files.sort();
    let mut found = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let shown = path.strip_prefix(root).unwrap_or(&path).display();
        found.extend(violations(&text).into_iter().map(|violation| format!("{shown}{violation}")));
    }
    Ok(found)
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let kind = entry.file_type()?;
        if kind.is_dir() && !name.starts_with('.') && name != "target" {
            list(&entry.path(), files)?;
        } else if kind.is_file() && name.ends_with(".rs") {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn violations(text: &str) -> Vec<String> {
    // Written apart, so that this file keeps its own rules.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("#[", "ignore")];
    let mut found = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_LINES {
        found.push(format!(": {lines} lines, {MAX_LINES} are allowed"));
    }
    if !text.starts_with("//!") {
        found.push(": does not begin with a //! line that says what it is for".into());
    }
    for (number, line) in text.lines().enumerate() {
        found.extend(marks.iter().filter(|mark| line.contains(*mark)).map(|mark| format!(":{}: {mark}", number + 1)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        assert!(violations("//! Fine.\nfn f() {}\n").is_empty());
        assert_eq!(violations("fn f() {}\n").len(), 1);
        assert_eq!(violations(&format!("//! a\n// {}\n", concat!("TO", "DO"))).len(), 1);
        assert_eq!(violations(&format!("//! a\n{}", "\n".repeat(MAX_LINES))).len(), 1);
    }
}
