//! Keeps what a command prints: on the console as it comes, and byte for byte in files that are sent to the host.

use std::{
    fs::File,
    io::{self, Read, Write as _},
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use crate::vm::protocol;

/// Of each stream so much is kept: the files lie in the guest's memory.
const LIMIT: u64 = 64 << 20;
/// What the command left running may hold its streams open; nobody waits longer than this for the rest.
const REST: Duration = Duration::from_secs(2);

/// Both streams of a command.
pub(super) struct Tee {
    ended: Receiver<()>,
    streams: usize,
}

impl Tee {
    /// Follows streams; `sending` stands for the file's name below `/out`.
    pub(super) fn start(streams: Vec<(&'static str, Box<dyn Read + Send>)>) -> Self {
        let (sender, ended) = channel();
        let count = streams.len();
        for (name, stream) in streams {
            let sender = sender.clone();
            thread::spawn(move || {
                follow(name, stream);
                let _ = sender.send(());
            });
        }
        Self { ended, streams: count }
    }

    /// Waits until everything that was printed is kept.
    pub(super) fn finish(self) {
        let deadline = Instant::now() + REST;
        for _ in 0..self.streams {
            match self.ended.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

fn follow(name: &str, mut stream: impl Read) {
    let mut file = File::create(Path::new(protocol::OUT).join(name)).ok();
    let mut kept = 0;
    let mut buffer = vec![0; 1 << 14];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        let bytes = &buffer[..read];
        let mut console = io::stdout().lock();
        let _ = console.write_all(bytes).and_then(|()| console.flush());
        drop(console);
        kept += read as u64;
        // A full memory must not stop the command; the console has it all.
        if kept > LIMIT || file.as_mut().is_some_and(|file| file.write_all(bytes).is_err()) {
            file = None;
        }
    }
}
