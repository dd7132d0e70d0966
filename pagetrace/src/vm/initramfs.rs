//! Builds a guest's initramfs: the init, its orders, the caller's files, and a small `/etc`.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufWriter, Read},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{
    cpio::{Head, Writer, kind},
    protocol,
    spec::{Source, VmFile, VmSpec},
};

/// The plain user's id; root is 0.
pub const USER_ID: u32 = 1000;

const DIRECTORIES: [(&str, u32); 13] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("lib", 0o755),
    ("out", 0o1777),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("vm", 0o755),
];

/// Writes the initramfs of a run to `path`.
///
/// # Errors
/// When a file cannot be read or written.
pub fn write(spec: &VmSpec, token: &str, path: &Path) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    if let Some(first) = &spec.initrd {
        put_first(first, &mut file)?;
    }
    let mut tree = Tree { cpio: Writer::new(BufWriter::new(file)), seen: BTreeSet::new() };
    for (name, mode) in DIRECTORIES {
        tree.directory(Path::new(name), mode, 0)?;
    }
    tree.directory(Path::new("home/user"), 0o755, USER_ID)?;
    // Before devtmpfs is mounted the kernel opens these for the init.
    for (name, device) in [("dev/console", (5, 1)), ("dev/null", (1, 3))] {
        let head = Head { name: name.as_bytes(), mode: kind::CHAR | 0o600, device, ..Head::default() };
        tree.cpio.append(head, &mut io::empty())?;
    }
    tree.file(&VmFile::executable("/init", &spec.init))?;
    for file in orders(spec, token) {
        tree.file(&file)?;
    }
    for (index, host) in spec.modules.iter().enumerate() {
        tree.file(&VmFile::copy(module_path(index, host), host))?;
    }
    for file in &spec.files {
        tree.file(file)?;
    }
    let (mut inner, _) = tree.cpio.finish()?;
    io::Write::flush(&mut inner).with_context(|| format!("cannot write {}", path.display()))
}

/// Archives one behind the other are unpacked in turn, each decompressed by itself; each begins at a multiple of four.
fn put_first(archive: &Path, file: &mut File) -> Result<()> {
    let mut from = File::open(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let copied = io::copy(&mut from, file).with_context(|| format!("cannot copy {}", archive.display()))?;
    let padding = usize::try_from(copied.next_multiple_of(4) - copied).unwrap_or(0);
    io::Write::write_all(file, &[0; 3][..padding]).with_context(|| format!("cannot copy {}", archive.display()))
}

fn module_path(index: usize, host: &Path) -> PathBuf {
    let name = host.file_name().unwrap_or_default().to_string_lossy();
    PathBuf::from(format!("/vm/{index}-{name}"))
}

fn orders(spec: &VmSpec, token: &str) -> Vec<VmFile> {
    let env: Vec<_> = spec
        .env
        .iter()
        .map(|(name, value)| {
            let mut pair = name.clone();
            pair.push("=");
            pair.push(value);
            pair
        })
        .collect();
    let modules: Vec<_> =
        spec.modules.iter().enumerate().map(|(i, host)| module_path(i, host).into_os_string()).collect();
    let mut orders = vec![
        VmFile::bytes(protocol::TOKEN, token),
        VmFile::bytes(protocol::COMMAND, protocol::join(&spec.command)),
        VmFile::bytes(protocol::ENV, protocol::join(&env)),
        VmFile::bytes(protocol::MODULES, protocol::join(&modules)),
        VmFile::bytes(protocol::TIMEOUT, spec.timeout.as_millis().to_string()),
        VmFile::bytes("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n"),
        VmFile::bytes("/etc/group", "root:x:0:\nuser:x:1000:\n"),
        VmFile::bytes("/etc/hosts", "127.0.0.1 localhost\n"),
    ];
    orders.extend(spec.cwd.iter().map(|dir| VmFile::bytes(protocol::CWD, dir.as_os_str().as_bytes())));
    orders.extend(spec.keep_output.then(|| VmFile::bytes(protocol::TEE, "")));
    orders
}

struct Tree<W> {
    cpio: Writer<W>,
    seen: BTreeSet<PathBuf>,
}

impl<W: io::Write> Tree<W> {
    fn directory(&mut self, path: &Path, mode: u32, owner: u32) -> Result<()> {
        if path.as_os_str().is_empty() || !self.seen.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent, 0o755, 0)?;
        }
        let head = Head { name: path.as_os_str().as_bytes(), mode: kind::DIRECTORY | mode, owner, ..Head::default() };
        self.cpio.append(head, &mut io::empty()).context("cannot write the initramfs")
    }

    fn file(&mut self, file: &VmFile) -> Result<()> {
        let VmFile { path, source, mode } = file;
        let path = path.strip_prefix("/").unwrap_or(path);
        if let Some(parent) = path.parent() {
            self.directory(parent, 0o755, 0)?;
        }
        let (kind, size, mut content): (u32, u64, Box<dyn Read>) = match source {
            Source::Directory => return self.directory(path, *mode, 0),
            Source::Bytes(bytes) => (kind::FILE, bytes.len() as u64, Box::new(bytes.as_slice())),
            Source::Link(target) => (kind::LINK, target.len() as u64, Box::new(target.as_bytes())),
            Source::Host(host) => {
                let open = || format!("cannot read {}", host.display());
                let size = fs::metadata(host).with_context(open)?.len();
                (kind::FILE, size, Box::new(File::open(host).with_context(open)?))
            }
        };
        let name = path.as_os_str().as_bytes();
        let size = u32::try_from(size).with_context(|| format!("{} is too large for an initramfs", path.display()))?;
        let head = Head { name, mode: kind | mode, size, ..Head::default() };
        self.cpio
            .append(head, &mut content)
            .with_context(|| format!("cannot put {} into the initramfs", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::cpio;

    #[test]
    fn an_initramfs_holds_what_the_caller_gave() {
        let dir = std::env::temp_dir().join(format!("pagetrace-initramfs-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let init = dir.join("init");
        fs::write(&init, "#!").unwrap();
        let mut spec = VmSpec::new("/nowhere", &init, &dir);
        spec.command = vec!["sh".into(), "-c".into(), "exit 7".into()];
        spec.env = vec![("A".into(), "b c".into())];
        spec.modules = vec![init.clone()];
        spec.files = vec![VmFile::bytes("/opt/x/y", "z"), VmFile::link("/bin/sh", "busybox")];
        let path = dir.join("initramfs");
        write(&spec, "token", &path).unwrap();
        let entries = cpio::read(&fs::read(&path).unwrap()).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let data = |name: &str| {
            let entry = entries.iter().find(|e| e.path == Path::new(name)).unwrap_or_else(|| panic!("no {name}"));
            (entry.mode, entry.data.clone())
        };
        assert_eq!(data("init"), (kind::FILE | 0o755, b"#!".to_vec()));
        assert_eq!(data("vm/command").1, b"sh\0-c\0exit 7\0");
        assert_eq!(data("vm/env").1, b"A=b c\0");
        assert_eq!(data("vm/modules").1, b"/vm/0-init\0");
        assert_eq!(data("opt/x").0, kind::DIRECTORY | 0o755);
        assert_eq!(data("bin/sh"), (kind::LINK | 0o777, b"busybox".to_vec()));
        let position = |name: &str| entries.iter().position(|e| e.path == Path::new(name)).unwrap();
        assert!(entries.iter().all(|e| e.path != Path::new("vm/tee") && e.path != Path::new("vm/cwd")));
        assert!(position("opt") < position("opt/x") && position("opt/x") < position("opt/x/y"));
    }
}
