//! The guest's init: mounts, loads modules, runs the command, reports, powers off.
//!
//! The invariant: whatever the command did to the kernel short of killing it, one last word with the
//! run's token reaches the console, and the machine goes off without waiting for stuck tasks.

mod mounts;
mod out;
mod tee;

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::{ffi::OsStrExt as _, process::ExitStatusExt as _},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::{
    process::{Pid, WaitOptions},
    system::{self, RebootCommand},
    termios::{self, OptionalActions},
};

use super::protocol::{self, Message};

const PATH: &str = "/bin:/sbin:/usr/bin:/usr/sbin";
/// Files that cannot be sent within this time stay in the guest.
const SEND_LIMIT: Duration = Duration::from_secs(30);

/// Whether this process is a guest's init.
#[must_use]
pub fn is_init() -> bool {
    std::process::id() == 1 && env::args_os().next().as_deref() == Some(OsStr::new("/init"))
}

/// The init. Does not return: the machine goes off.
pub fn main() -> ! {
    // Where no token can be read there is no host that waits for one.
    let token = fs::read_to_string(protocol::TOKEN).unwrap_or_default();
    let last = orders(&token).unwrap_or_else(|err| Message::Failed(format!("{err:#}")));
    finish(&token, &last)
}

fn orders(token: &str) -> Result<Message> {
    raw_console();
    mounts::all()?;
    for module in protocol::split(&read(protocol::MODULES)?) {
        load(Path::new(&module))?;
    }
    let command = protocol::split(&read(protocol::COMMAND)?);
    let (program, args) = command.split_first().context("there is no command to run")?;
    let timeout: u64 = fs::read_to_string(protocol::TIMEOUT)?.parse().context("the time limit is no number")?;
    say(token, &Message::Ready);
    let overdue = token.to_owned();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(timeout));
        show_blocked_tasks();
        finish(&overdue, &Message::Timeout)
    });
    let mut child = Command::new(program);
    let dir = fs::read(protocol::CWD).unwrap_or_else(|_| b"/root".to_vec());
    child.args(args).env_clear().current_dir(OsStr::from_bytes(&dir)).stdin(Stdio::null());
    let keep = Path::new(protocol::TEE).exists();
    if keep {
        child.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    for (name, value) in [("PATH", PATH), ("HOME", "/root"), ("USER", "root"), ("TERM", "dumb"), ("LANG", "C.UTF-8")] {
        child.env(name, value);
    }
    for pair in protocol::split(&read(protocol::ENV)?) {
        let bytes = pair.as_bytes();
        let cut = bytes.iter().position(|b| *b == b'=').unwrap_or(bytes.len());
        child.env(OsStr::from_bytes(&bytes[..cut]), OsStr::from_bytes(bytes.get(cut + 1..).unwrap_or_default()));
    }
    match child.spawn() {
        Ok(mut child) => {
            let mut streams: Vec<(_, Box<dyn io::Read + Send>)> = Vec::new();
            streams.extend(child.stdout.take().map(|stream| (protocol::STDOUT, Box::new(stream) as _)));
            streams.extend(child.stderr.take().map(|stream| (protocol::STDERR, Box::new(stream) as _)));
            let tee = tee::Tee::start(streams);
            let ended = wait_for(child.id());
            tee.finish();
            ended
        }
        Err(err) => {
            eprintln!("{}: {err}", program.display());
            // As a shell has it.
            Ok(Message::Exited(if err.kind() == io::ErrorKind::NotFound { 127 } else { 126 }))
        }
    }
}

fn read(path: &str) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {path}"))
}

/// Without this the terminal would turn every line feed into two characters.
fn raw_console() {
    let stdout = io::stdout();
    if let Ok(mut settings) = termios::tcgetattr(&stdout) {
        settings.make_raw();
        let _ = termios::tcsetattr(&stdout, OptionalActions::Now, &settings);
    }
}

fn load(module: &Path) -> Result<()> {
    let file = File::open(module).with_context(|| format!("cannot open {}", module.display()))?;
    system::finit_module(&file, c"", 0).with_context(|| format!("cannot load the kernel module {}", module.display()))
}

/// Waits for the command; whatever else ends meanwhile was left to the init by its parent.
fn wait_for(command: u32) -> Result<Message> {
    let command = i32::try_from(command).ok().and_then(Pid::from_raw).context("the command has no process id")?;
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == command => {
                let status = ExitStatus::from_raw(status.as_raw());
                return Ok(match (status.code(), status.signal()) {
                    (Some(code), _) => Message::Exited(code),
                    (None, Some(signal)) => Message::Signaled(signal),
                    (None, None) => Message::Failed(format!("the command ended in an unknown way: {status}")),
                });
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(err) => return Err(err).context("cannot wait for the command"),
        }
    }
}

/// What an overdue command waits for is in the kernel's list of blocked tasks.
fn show_blocked_tasks() {
    let _ = fs::write("/proc/sys/kernel/printk", "7");
    let _ = fs::write("/proc/sysrq-trigger", "w");
}

/// Sends the files, says the last word, powers off. Only the first caller gets through.
fn finish(token: &str, last: &Message) -> ! {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        loop {
            thread::park();
        }
    }
    let (sender, sent) = mpsc::channel();
    thread::spawn(move || sender.send(out::send()));
    let last = match sent.recv_timeout(SEND_LIMIT) {
        Ok(Ok(Some(out::Sent::Disk(bytes)))) => {
            say(token, &Message::Out(bytes));
            last.clone()
        }
        Ok(Ok(Some(out::Sent::Line(bytes)))) => {
            say(token, &Message::Line(bytes));
            last.clone()
        }
        Ok(Ok(None)) => last.clone(),
        Ok(Err(err)) => Message::Failed(format!("cannot send {}: {err:#} (the command: {last})", protocol::OUT)),
        Err(_) => Message::Failed(format!("sending {} took too long (the command: {last})", protocol::OUT)),
    };
    // A message of the kernel must not fall into the middle of the last word.
    let _ = fs::write("/proc/sys/kernel/printk", "1");
    say(token, &last);
    let _ = system::reboot(RebootCommand::PowerOff);
    loop {
        thread::park();
    }
}

fn say(token: &str, message: &Message) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{}", protocol::encode(token, message));
    let _ = stdout.flush();
    let _ = termios::tcdrain(&stdout);
}
