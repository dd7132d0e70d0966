//! QEMU: its command line, its process, its console.
//!
//! A QEMU never outlives its [`Qemu`], nor (where `setpriv` is there) the thread that started it.

use std::{
    ffi::OsString,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::accel::Accel;

/// The emulator.
pub const QEMU: &str = "qemu-system-x86_64";

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct Machine<'a> {
    /// The kernel image.
    pub kernel: &'a Path,
    /// The initramfs; a probe boots without one.
    pub initrd: Option<&'a Path>,
    /// A raw disk for what the guest sends back.
    pub disk: Option<&'a Path>,
    /// A file that takes what the guest sends over its second serial line.
    pub line: Option<&'a Path>,
    /// The accelerator.
    pub accel: Accel,
    /// The model of the emulated processors.
    pub cpu: &'a str,
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// Text added to the kernel's command line.
    pub append: &'a str,
}

impl Machine<'_> {
    /// The arguments of QEMU.
    #[must_use]
    pub fn args(&self) -> Vec<OsString> {
        let Machine { kernel, initrd, disk, line, accel, cpu, cpus, mem_mib, append } = self;
        let mut args: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| args.extend(words.iter().map(OsString::from));
        add(&["-machine", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"]);
        add(&["-no-reboot", "-serial", "stdio"]);
        match accel {
            Accel::Kvm => add(&["-accel", "kvm", "-cpu", "host"]),
            // One thread for all processors: with a thread each (QEMU 7.2), one processor still ran
            // the int3 that another had already patched away, and a kernel whose tracepoints were
            // switched on and off died of `Oops: int3` in 4 of 15 runs. A tracer patches all the time.
            Accel::Tcg => add(&["-accel", "tcg,thread=single", "-cpu", cpu]),
        }
        add(&["-smp", &cpus.to_string(), "-m", &mem_mib.to_string()]);
        // panic=-1 reboots at once, which -no-reboot turns into an exit.
        add(&["-append", format!("console=ttyS0,115200 panic=-1 quiet {append}").trim_end()]);
        args.extend(["-kernel".into(), kernel.into()]);
        if let Some(initrd) = initrd {
            args.extend(["-initrd".into(), initrd.into()]);
        }
        // A comma in an option's value is written twice.
        let value = |path: &Path| path.to_string_lossy().replace(',', ",,");
        if let Some(line) = line {
            args.extend(["-chardev".into(), format!("file,id=line,path={}", value(line)).into()]);
            args.extend(["-serial".into(), "chardev:line".into()]);
        }
        if let Some(disk) = disk {
            let path = value(disk);
            args.extend(["-drive".into(), format!("if=none,id=out,format=raw,cache=unsafe,file={path}").into()]);
            args.extend(["-device".into(), "nvme,drive=out,serial=out".into()]);
        }
        args
    }
}

/// What came from QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    /// Bytes of the guest's console.
    Console(Vec<u8>),
    /// Bytes of QEMU's own stderr.
    Stderr(Vec<u8>),
    /// Nothing until the deadline.
    Silence,
    /// Both streams have ended: QEMU is gone.
    End,
}

/// A running QEMU.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    chunks: Receiver<Chunk>,
}

impl Qemu {
    /// Starts a machine.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn start(machine: &Machine<'_>) -> Result<Self> {
        let mut command = tied_to_this_thread();
        command.args(machine.args()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {QEMU} (Debian: qemu-system-x86, Fedora: qemu-system-x86-core)"))?;
        let (sender, chunks) = channel();
        if let Some(stdout) = child.stdout.take() {
            let sender = sender.clone();
            thread::spawn(move || pump(stdout, |bytes| sender.send(Chunk::Console(bytes)).is_ok()));
        }
        if let Some(stderr) = child.stderr.take() {
            thread::spawn(move || pump(stderr, |bytes| sender.send(Chunk::Stderr(bytes)).is_ok()));
        }
        Ok(Self { child, chunks })
    }

    /// Waits for the next chunk, until `deadline` at most.
    pub fn next(&self, deadline: Instant) -> Chunk {
        match self.chunks.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(chunk) => chunk,
            Err(RecvTimeoutError::Timeout) => Chunk::Silence,
            Err(RecvTimeoutError::Disconnected) => Chunk::End,
        }
    }

    /// Waits a moment for the exit of a QEMU whose streams have ended.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pump(mut stream: impl Read, send: impl Fn(Vec<u8>) -> bool) {
    let mut buffer = vec![0; 16384];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        if !send(buffer[..read].to_vec()) {
            return;
        }
    }
}

/// QEMU's command, killed by the kernel when the thread that starts it ends.
fn tied_to_this_thread() -> Command {
    const SETPRIV: [&str; 2] = ["--pdeathsig", "KILL"];
    let works = find("setpriv").is_some()
        && Command::new("setpriv")
            .args(SETPRIV)
            .arg("true")
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
    // Without QEMU the error has to be about QEMU, not setpriv's about a program it cannot find.
    if !works || find(QEMU).is_none() {
        return Command::new(QEMU);
    }
    let mut command = Command::new("setpriv");
    command.args(SETPRIV).arg(QEMU);
    command
}

/// A program on the `PATH`.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let machine = Machine {
            kernel: Path::new("/k"),
            initrd: Some(Path::new("/i")),
            disk: Some(Path::new("/a,b")),
            line: Some(Path::new("/c,d")),
            accel: Accel::Tcg,
            cpu: "max,erms=off",
            cpus: 3,
            mem_mib: 512,
            append: "nokaslr",
        };
        let args: Vec<_> = machine.args().iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
        let after = |name: &str| args[args.iter().position(|arg| arg == name).unwrap() + 1].as_str();
        assert_eq!((after("-accel"), after("-cpu")), ("tcg,thread=single", "max,erms=off"));
        assert_eq!((after("-smp"), after("-m"), after("-initrd")), ("3", "512", "/i"));
        assert!(after("-append").ends_with("quiet nokaslr"));
        assert!(after("-chardev").ends_with("path=/c,,d"));
        assert!(after("-drive").ends_with("file=/a,,b"));
    }
}
