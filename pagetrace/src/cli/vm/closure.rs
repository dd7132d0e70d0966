//! What a program of this machine needs to run elsewhere: its interpreter and the closure of its libraries.
//!
//! Nothing is run to find out: the dynamic section says what is needed, and the loader's own rules say where it lies.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use object::{
    Endianness,
    elf::{DT_NEEDED, DT_RPATH, DT_RUNPATH, EM_X86_64},
    read::elf::{Dyn as _, ElfFile64, FileHeader as _, ProgramHeader as _},
};

use crate::vm::VmFile;

/// Where the loader looks without being told.
const USUAL: [&str; 6] =
    ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"];
/// Interpreters that name interpreters are not followed further.
const NESTED: usize = 4;

/// Files of programs, each at the path that it has here.
#[derive(Debug, Default)]
pub(super) struct Closure {
    files: BTreeMap<PathBuf, PathBuf>,
    /// Directories that libraries were found in: the guest's loader has no cache of them.
    pub(super) library_dirs: BTreeSet<PathBuf>,
    usual: Vec<PathBuf>,
}

/// What an ELF file says about itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    interpreter: Option<PathBuf>,
    libraries: Vec<String>,
    search: Vec<String>,
}

impl Closure {
    /// None yet.
    pub(super) fn new() -> Self {
        let mut usual: Vec<PathBuf> = env::var_os("LD_LIBRARY_PATH")
            .map(|dirs| env::split_paths(&dirs).filter(|dir| dir.is_absolute()).collect())
            .unwrap_or_default();
        usual.extend(configured(Path::new("/etc/ld.so.conf"), 0));
        usual.extend(USUAL.map(PathBuf::from));
        Self { usual, ..Self::default() }
    }

    /// Adds a program, by an absolute path.
    pub(super) fn program(&mut self, path: &Path) -> Result<()> {
        self.file(path, NESTED)
    }

    /// The files for a guest.
    pub(super) fn into_files(self) -> Vec<VmFile> {
        self.files.into_iter().map(|(guest, host)| VmFile::executable(guest, host)).collect()
    }

    fn file(&mut self, path: &Path, nested: usize) -> Result<()> {
        if self.files.contains_key(path) {
            return Ok(());
        }
        let shown = path.display();
        let host = path.canonicalize().with_context(|| format!("{shown} does not exist"))?;
        let bytes = fs::read(&host).with_context(|| format!("cannot read {shown}"))?;
        self.files.insert(path.to_owned(), host.clone());
        if let Some(interpreter) = script(&bytes) {
            ensure!(nested > 0, "{shown}: too many interpreters of interpreters");
            for program in interpreter {
                let program = find(&program).with_context(|| format!("{shown} needs {program}, which is not there"))?;
                self.file(&program, nested - 1)?;
            }
            return Ok(());
        }
        if !bytes.starts_with(b"\x7fELF") {
            return Ok(()); // The guest's kernel says what it makes of it.
        }
        let needs = needs(&bytes).with_context(|| format!("cannot run {shown} in a guest"))?;
        let interpreter = needs.interpreter.clone();
        let mut search: Vec<PathBuf> = needs.search.iter().map(|dir| expand(dir, &host)).collect();
        search.extend(self.usual.iter().cloned());
        self.libraries(path, &host, needs.libraries, &search)?;
        if let Some(interpreter) = interpreter {
            self.file(&interpreter, nested)?;
        }
        Ok(())
    }

    fn libraries(&mut self, of: &Path, host: &Path, libraries: Vec<String>, search: &[PathBuf]) -> Result<()> {
        for library in libraries {
            let found = if library.contains('/') {
                Some(expand(&library, host)).filter(|path| path.is_file())
            } else {
                search.iter().map(|dir| dir.join(&library)).find(|path| fits(path))
            };
            let Some(path) = found else {
                bail!(
                    "{} needs the library {library}, which is in none of {}",
                    of.display(),
                    search.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
                );
            };
            if let Some(dir) = path.parent() {
                self.library_dirs.insert(dir.to_owned());
            }
            self.file(&path, NESTED)?;
        }
        Ok(())
    }
}

/// Whether a file is a library for this architecture: the loader passes over others.
fn fits(path: &Path) -> bool {
    path.is_file() && fs::read(path).is_ok_and(|bytes| needs(&bytes).is_ok())
}

/// Directories of /etc/ld.so.conf and what it includes.
fn configured(file: &Path, depth: usize) -> Vec<PathBuf> {
    let Ok(text) = fs::read_to_string(file) else { return Vec::new() };
    let mut dirs = Vec::new();
    for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        if let Some(pattern) = line.strip_prefix("include ").map(str::trim) {
            // The one form there is in practice: every .conf of a directory.
            let parent = Path::new(pattern).parent().filter(|_| depth < 4);
            let mut files: Vec<PathBuf> = parent
                .and_then(|dir| fs::read_dir(dir).ok())
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path())
                .collect();
            files.sort();
            files.retain(|file| file.extension().is_some_and(|ext| ext == "conf"));
            dirs.extend(files.iter().flat_map(|file| configured(file, depth + 1)));
        } else if line.starts_with('/') {
            dirs.push(PathBuf::from(line));
        }
    }
    dirs
}

fn expand(dir: &str, host: &Path) -> PathBuf {
    let origin = host.parent().unwrap_or(Path::new("/")).display().to_string();
    PathBuf::from(dir.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin))
}

/// The programs that a script's first line names: the interpreter, and what `env` starts.
fn script(bytes: &[u8]) -> Option<Vec<String>> {
    let line = bytes.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(&line[..line.len().min(256)]).into_owned();
    let mut words = line.split_whitespace();
    let interpreter = words.next()?.to_owned();
    let by_env = interpreter.ends_with("/env");
    let mut programs = vec![interpreter];
    programs.extend(words.find(|word| by_env && !word.starts_with('-') && !word.contains('=')).map(str::to_owned));
    Some(programs)
}

/// A program by name or path, as a shell finds it; the path is absolute.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        let path = std::path::absolute(program).ok()?;
        return path.exists().then_some(path);
    }
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn needs(bytes: &[u8]) -> Result<Needs> {
    let file = ElfFile64::<Endianness>::parse(bytes).ok().context("it is not a 64-bit program")?;
    let (endian, header) = (file.endian(), file.elf_header());
    ensure!(header.e_machine(endian) == EM_X86_64, "it is a program for another architecture");
    let mut needs = Needs::default();
    for segment in file.elf_program_headers() {
        if let Ok(Some(interpreter)) = segment.interpreter(endian, bytes) {
            needs.interpreter = Some(PathBuf::from(String::from_utf8_lossy(interpreter).into_owned()));
        }
    }
    let sections = file.elf_section_table();
    let Ok(Some((entries, link))) = sections.dynamic(endian, bytes) else { return Ok(needs) };
    let strings = sections.strings(endian, bytes, link).context("its dynamic section has no names")?;
    for entry in entries {
        let name = || {
            let at = u32::try_from(entry.d_val(endian)).ok()?;
            Some(String::from_utf8_lossy(strings.get(at).ok()?).into_owned())
        };
        match entry.d_tag(endian) {
            DT_NEEDED => needs.libraries.extend(name()),
            DT_RPATH | DT_RUNPATH => {
                needs.search.extend(name().iter().flat_map(|dirs| dirs.split(':')).map(str::to_owned));
            }
            _ => {}
        }
    }
    Ok(needs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_comes_with_its_interpreter_and_libraries() {
        let mut closure = Closure::new();
        let this = env::current_exe().unwrap();
        closure.program(&this).unwrap();
        let names: Vec<String> =
            closure.files.keys().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert!(names.iter().any(|name| name.starts_with("ld-linux")), "{names:?}");
        assert!(names.iter().any(|name| name.starts_with("libc.so")), "{names:?}");
        assert!(!closure.library_dirs.is_empty());
        assert!(closure.into_files().iter().any(|file| file.path == this));
    }

    #[test]
    fn a_script_comes_with_its_interpreter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        fs::write(&path, "#!/bin/sh -e\n").unwrap();
        let mut closure = Closure::new();
        closure.program(&path).unwrap();
        assert!(closure.files.contains_key(Path::new("/bin/sh")), "{:?}", closure.files.keys());
        fs::write(&path, "#!/no/such/interpreter\n").unwrap();
        let err = format!("{:#}", Closure::new().program(&path).unwrap_err());
        assert!(err.contains("needs /no/such/interpreter"), "{err}");
        assert_eq!(script(b"#!/usr/bin/env -S python3 -u\n"), Some(vec!["/usr/bin/env".into(), "python3".into()]));
        assert_eq!(script(b"text"), None);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let err = format!("{:#}", Closure::new().program(Path::new("/no/such/program")).unwrap_err());
        assert!(err.contains("/no/such/program"), "{err}");
        let mut closure = Closure { usual: vec![PathBuf::from("/no/such/dir")], ..Closure::default() };
        let err = format!("{:#}", closure.program(&env::current_exe().unwrap()).unwrap_err());
        assert!(err.contains("needs the library lib") && err.contains("/no/such/dir"), "{err}");
    }

    #[test]
    fn damaged_programs_are_errors() {
        let whole = fs::read(env::current_exe().unwrap()).unwrap();
        for end in [4, 16, 63, 64, 200, 4096] {
            let _ = needs(&whole[..end]);
        }
        let mut other = whole[..64].to_vec();
        other[4] = 1;
        assert!(needs(&other).unwrap_err().to_string().contains("64-bit"));
    }
}
