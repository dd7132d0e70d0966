//! Follows a command and its children with ptrace, from a thread of its own: only the thread that traces a task may ask for it.
//!
//! Tells what changes maps and what makes and ends tasks; at each point at which pages shall be looked at it waits, with the task
//! standing still, until that is done. Signals are handed on, stops by signals stay stops. Decides nothing about pages.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use tokio::sync::mpsc::Sender;

use super::{
    ptrace::{self, Syscall},
    standstill::{Held, Standstill},
    syscalls::{self, Call, Memory},
};
use crate::analysis::presence::{Change, Changed, Occasion, SpaceId};
use crate::clock::monotonic_ns;

/// A moment at which a task stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    /// Another program is in place.
    Exec {
        /// The thread that asked for it.
        former: u32,
        /// Its process, and its thread from now on.
        pid: u32,
        /// The new address space.
        space: SpaceId,
        /// When the call began.
        call: u64,
    },
    /// A child with an address space of its own has been made.
    Fork {
        /// Whose.
        parent: SpaceId,
        /// The new one.
        child: SpaceId,
        /// The child.
        pid: u32,
        /// When the call began.
        call: u64,
    },
    /// Nothing but this was to be done.
    Look {
        /// What to look at.
        space: SpaceId,
        /// By which thread.
        tid: u32,
        /// Why.
        occasion: Occasion,
    },
}

/// What happened.
#[derive(Debug)]
pub(super) enum Notice {
    /// A thread of an address space that is known.
    Thread {
        /// Its id.
        tid: u32,
        /// Its process.
        pid: u32,
        /// Where it lives.
        space: SpaceId,
    },
    /// It is gone.
    Ended {
        /// Its id.
        tid: u32,
    },
    /// The last thread of an address space is gone, and it was not looked at in the end.
    Unseen {
        /// Its process.
        pid: u32,
    },
    /// A map was changed.
    Changed(SpaceId, Changed),
    /// Nothing goes on in the task before this is answered.
    Point(Point, SyncSender<()>),
    /// Something could not be followed, as a sentence.
    Trouble(String),
    /// The tasks of an address space did not all stop in time, so it was not looked at in between.
    Skipped,
    /// The command has ended, with the status of wait(2) if it is known; so many tasks that it left run on, not traced.
    Finished {
        /// The status.
        status: Option<i32>,
        /// Tasks.
        left: usize,
    },
}

/// The first address space: that of the process before it became the command.
pub(super) const FIRST: SpaceId = SpaceId(0);

struct Thread {
    pid: u32,
    space: SpaceId,
    call: Option<Call>,
    /// It is on its way out.
    ending: bool,
    /// It waits in the kernel until a child that uses its memory goes its own way.
    lends: bool,
}

impl Thread {
    const fn new(pid: u32, space: SpaceId) -> Self {
        Self { pid, space, call: None, ending: false, lends: false }
    }
}

struct Tracer {
    root: u32,
    threads: HashMap<u32, Thread>,
    /// Tasks that have stopped for the first time before the one that made them has told of them.
    early: HashSet<u32>,
    memory: HashMap<SpaceId, Memory>,
    /// Address spaces that were looked at in the end.
    looked: HashSet<SpaceId>,
    next: u64,
    notices: Sender<Notice>,
    foreign_told: bool,
    /// Somebody wants to look in between.
    asked: Arc<AtomicBool>,
    still: Standstill,
}

/// The thread that follows.
pub(super) struct Follower {
    handle: JoinHandle<()>,
    tid: u32,
    asked: Arc<AtomicBool>,
}

impl Follower {
    /// Asks for a look at everything. Where the thread is busy, the next call reaches it.
    pub(super) fn ask(&self) {
        self.asked.store(true, Ordering::Relaxed);
        ptrace::wake(self.tid);
    }

    /// Waits for its end.
    pub(super) fn join(self) {
        let _ = self.handle.join();
    }
}

/// Nobody takes notices any more: the tasks are let go.
struct Deserted;

/// Begins to follow a process that is held back before its `execve`.
///
/// # Errors
/// When the kernel does not let it be traced.
pub(super) fn follow(root: u32, notices: Sender<Notice>) -> io::Result<Follower> {
    ptrace::can_be_woken()?;
    let asked = Arc::new(AtomicBool::new(false));
    let is_asked = Arc::clone(&asked);
    let (tell, told) = sync_channel(1);
    let handle = thread::Builder::new().name("follow".to_owned()).spawn(move || {
        let seized = ptrace::seize(root);
        let follows = seized.is_ok();
        let tid = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        let _ = tell.send(seized.map(|()| tid));
        if follows {
            let first = Thread::new(root, FIRST);
            let mut tracer = Tracer {
                root,
                threads: HashMap::from([(root, first)]),
                early: HashSet::new(),
                memory: HashMap::new(),
                looked: HashSet::from([FIRST]),
                next: 1,
                notices,
                foreign_told: false,
                asked: is_asked,
                still: Standstill::default(),
            };
            // With the thread's end the kernel lets go of whatever it still traces.
            let _ = tracer.run();
        }
    })?;
    let tid = told.recv().map_err(io::Error::other)??;
    Ok(Follower { handle, tid, asked })
}

impl Tracer {
    fn run(&mut self) -> Result<(), Deserted> {
        let status = loop {
            if self.asked.swap(false, Ordering::Relaxed) {
                self.stand_still()?;
            }
            if self.is_held_back() {
                // One that cannot execute ends, and whoever started it waits for that to say why: it must find the status.
                match ptrace::peek(self.root) {
                    Ok(None) => {}
                    Ok(status) => break status,
                    Err(_) => break None,
                }
            }
            match ptrace::wait(None) {
                Ok(None) => {}
                // There is none: the command's end was taken by somebody else.
                Err(_) => break None,
                Ok(Some((tid, status))) if libc::WIFSTOPPED(status) => self.stopped(tid, status)?,
                Ok(Some((tid, status))) => {
                    self.early.remove(&tid);
                    self.gone(tid)?;
                    if tid == self.root {
                        break Some(status);
                    }
                }
            }
        };
        self.tell(Notice::Finished { status, left: self.threads.len() })
    }

    /// Whether the process is not yet the command.
    fn is_held_back(&self) -> bool {
        self.threads.get(&self.root).is_some_and(|thread| thread.space == FIRST)
    }

    fn tell(&self, notice: Notice) -> Result<(), Deserted> {
        self.notices.blocking_send(notice).map_err(|_| Deserted)
    }

    /// Tells of a point and waits until it is dealt with.
    fn point(&self, point: Point) -> Result<(), Deserted> {
        let (done, is_done) = sync_channel(1);
        self.tell(Notice::Point(point, done))?;
        is_done.recv().map_err(|_| Deserted)
    }

    fn new_space(&mut self) -> SpaceId {
        let space = SpaceId(self.next);
        self.next += 1;
        space
    }

    fn gone(&mut self, tid: u32) -> Result<(), Deserted> {
        let Some(thread) = self.threads.remove(&tid) else { return Ok(()) };
        self.still.forget(tid);
        self.look_if_still(thread.space)?;
        if !self.threads.values().any(|other| other.space == thread.space) {
            self.memory.remove(&thread.space);
            if !self.looked.remove(&thread.space) {
                self.tell(Notice::Unseen { pid: thread.pid })?;
            }
        }
        self.tell(Notice::Ended { tid })
    }

    fn stopped(&mut self, tid: u32, status: i32) -> Result<(), Deserted> {
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        let Some(thread) = self.threads.get_mut(&tid) else {
            self.early.insert(tid);
            return Ok(());
        };
        thread.lends = event == libc::PTRACE_EVENT_VFORK;
        let mut hand_on = 0;
        match event {
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => self.made(tid, event)?,
            libc::PTRACE_EVENT_EXEC => return self.executed(tid),
            libc::PTRACE_EVENT_EXIT => self.ends(tid)?,
            libc::PTRACE_EVENT_STOP if signal != libc::SIGTRAP => {
                // The whole process was stopped by a signal, and stays so until SIGCONT.
                return self.go_on(tid, Held::Listen);
            }
            0 if signal == libc::SIGTRAP | 0x80 => self.syscall(tid)?,
            0 => {
                hand_on = signal;
                self.signalled(tid, signal)?;
            }
            _ => {}
        }
        self.go_on(tid, Held::Run(hand_on))
    }

    /// Lets a task go on, unless it shall stand still.
    fn go_on(&mut self, tid: u32, how: Held) -> Result<(), Deserted> {
        let Some(thread) = self.threads.get(&tid) else {
            release(tid, how);
            return Ok(());
        };
        // One that ends, or lends its memory, touches nothing that others wait for.
        let (space, runs) = (thread.space, !thread.ending && !thread.lends);
        if !runs || !self.still.hold(space, tid, how) {
            release(tid, how);
        }
        self.look_if_still(space)
    }

    /// Asks every task to stop where it is. Those that have been asked before had time enough.
    fn stand_still(&mut self) -> Result<(), Deserted> {
        for space in self.still.waiting() {
            self.still.release(space).into_iter().for_each(|(tid, how)| release(tid, how));
            self.tell(Notice::Skipped)?;
        }
        for (tid, thread) in self.threads.iter().filter(|(_, thread)| thread.space != FIRST) {
            self.still.begin(thread.space);
            if !thread.ending && !thread.lends {
                // It may have been killed, which the next wait tells.
                let _ = ptrace::interrupt(*tid);
            }
        }
        Ok(())
    }

    /// Looks at an address space whose tasks stand still, and lets them go on.
    fn look_if_still(&mut self, space: SpaceId) -> Result<(), Deserted> {
        let own = self.threads.iter().filter(|(_, of)| of.space == space && !of.ending && !of.lends);
        let needed = own.map(|(tid, _)| *tid).collect();
        let Some(tid) = self.still.complete(space, &needed) else { return Ok(()) };
        self.point(Point::Look { space, tid, occasion: Occasion::Periodic })?;
        self.still.release(space).into_iter().for_each(|(tid, how)| release(tid, how));
        Ok(())
    }

    /// A signal for a bad access says that a fault came to nothing.
    fn signalled(&mut self, tid: u32, signal: i32) -> Result<(), Deserted> {
        let Some(thread) = self.threads.get(&tid) else { return Ok(()) };
        if let (libc::SIGSEGV | libc::SIGBUS, Ok(address)) = (signal, ptrace::bad_address(tid)) {
            let at = monotonic_ns();
            let changed = Changed { at, end: at, tid, change: Change::Failed(address / 4096) };
            self.tell(Notice::Changed(thread.space, changed))?;
        }
        Ok(())
    }

    fn syscall(&mut self, tid: u32) -> Result<(), Deserted> {
        let Some(thread) = self.threads.get_mut(&tid) else { return Ok(()) };
        match ptrace::syscall(tid) {
            Ok(Syscall::Enters { number, arguments }) => {
                let number = i64::try_from(number).unwrap_or(-1);
                let call = Call { number, arguments, at: monotonic_ns() };
                thread.call = syscalls::matters(number).then_some(call);
                let space = thread.space;
                let alone = self.threads.values().filter(|other| other.space == space).count() == 1;
                if syscalls::is_exec(number) && alone {
                    self.point(Point::Look { space, tid, occasion: Occasion::BeforeExec })?;
                }
            }
            Ok(Syscall::Leaves(result)) => {
                let (space, call) = (thread.space, thread.call.take());
                let Some(call) = call else { return Ok(()) };
                let end = monotonic_ns();
                let changes = syscalls::changes(&call, result, self.memory.entry(space).or_default());
                for change in changes {
                    self.tell(Notice::Changed(space, Changed { at: call.at, end, tid, change }))?;
                }
            }
            Ok(Syscall::Foreign) if !self.foreign_told => {
                self.foreign_told = true;
                let pid = thread.pid;
                self.tell(Notice::Trouble(format!(
                    "process {pid} makes system calls of 32-bit programs, which are not followed"
                )))?;
            }
            // It was killed, which the next wait tells.
            Ok(Syscall::Foreign | Syscall::Neither) | Err(_) => {}
        }
        Ok(())
    }

    /// A task has made another.
    fn made(&mut self, tid: u32, event: i32) -> Result<(), Deserted> {
        let (Some(thread), Ok(child)) = (self.threads.get(&tid), ptrace::message(tid)) else { return Ok(()) };
        let (pid, parent) = (thread.pid, thread.space);
        let call = thread.call.map_or_else(monotonic_ns, |call| call.at);
        // It stops before it begins.
        if !self.early.remove(&child) {
            let first = loop {
                match ptrace::wait(Some(child)) {
                    Ok(None) => {}
                    Ok(Some((_, status))) => break Some(status),
                    Err(_) => break None,
                }
            };
            if !first.is_some_and(|status| libc::WIFSTOPPED(status)) {
                // It was killed before it began.
                return Ok(());
            }
        }
        let is_thread = fs::metadata(format!("/proc/{pid}/task/{child}")).is_ok();
        let shares = is_thread || ptrace::same_memory(tid, child).unwrap_or(event == libc::PTRACE_EVENT_VFORK);
        let pid = if is_thread { pid } else { child };
        if shares {
            self.threads.insert(child, Thread::new(pid, parent));
            self.tell(Notice::Thread { tid: child, pid, space: parent })?;
        } else {
            let space = self.new_space();
            self.threads.insert(child, Thread::new(pid, space));
            let memory = self.memory.get(&parent).copied().unwrap_or_default();
            self.memory.insert(space, memory);
            self.point(Point::Fork { parent, child: space, pid, call })?;
        }
        self.go_on(child, Held::Run(0))
    }

    /// The process runs another program; all its other threads are gone.
    fn executed(&mut self, tid: u32) -> Result<(), Deserted> {
        let former = ptrace::message(tid).unwrap_or(tid);
        let call = self.threads.get(&former).and_then(|thread| thread.call).map(|call| call.at);
        let others: Vec<u32> =
            self.threads.iter().filter(|(id, of)| **id != former && of.pid == tid).map(|(id, _)| *id).collect();
        for other in others {
            // What was theirs goes on as that of the one that is left.
            self.threads.remove(&other);
            self.still.forget(other);
            self.tell(Notice::Ended { tid: other })?;
        }
        let before = self.threads.remove(&former).map(|thread| thread.space);
        let space = self.new_space();
        self.threads.insert(tid, Thread::new(tid, space));
        if let Some(before) = before.filter(|before| !self.threads.values().any(|other| other.space == *before)) {
            self.memory.remove(&before);
            self.looked.remove(&before);
        }
        // Only now is its end ours to hold: until here, it was held back by the one who started it.
        let _ = ptrace::follow_ends(tid);
        self.point(Point::Exec { former, pid: tid, space, call: call.unwrap_or(0) })?;
        if let Some(before) = before {
            self.look_if_still(before)?;
        }
        self.go_on(tid, Held::Run(0))
    }

    /// A thread is about to end; with the last one its memory goes.
    fn ends(&mut self, tid: u32) -> Result<(), Deserted> {
        let Some(thread) = self.threads.get_mut(&tid) else { return Ok(()) };
        thread.ending = true;
        let space = thread.space;
        if self.threads.values().all(|other| other.space != space || other.ending) {
            self.looked.insert(space);
            self.point(Point::Look { space, tid, occasion: Occasion::Exit })?;
        }
        Ok(())
    }
}

/// It may have been killed meanwhile, which the next wait tells.
fn release(tid: u32, how: Held) {
    let _ = match how {
        Held::Run(signal) => ptrace::resume(tid, signal),
        Held::Listen => ptrace::listen(tid),
    };
}
