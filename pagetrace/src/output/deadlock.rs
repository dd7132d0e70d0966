//! Deadlocks that stand: values of a report, and their text.

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

use super::{
    found::Marks,
    report::Task,
    text::{Style, wrap, write_excuse, write_stack},
};
use crate::{
    analysis::{Class, Severity, deadlock::Because},
    symbolize::Frame,
};

const ADVICE: &str = "These tasks do not go on, and whatever else wants their locks queues behind them: reading their maps or \
                      command lines does as well. A task whose wait is uninterruptible ends with a reboot only. See the other \
                      findings for the access or the order that leads here.";

/// A lock that is held or waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandingLock {
    /// Its name.
    pub name: String,
    /// Its address, or that of its address space.
    pub address: String,
    /// `read` or `write`.
    pub mode: String,
    /// Where it was taken; empty for one that is waited for.
    pub stack: Vec<Frame>,
}

/// A task of a deadlock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandingTask {
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Thread name.
    pub comm: String,
    /// What it holds.
    pub holds: Vec<StandingLock>,
    /// What it waits for.
    pub waits_for: StandingLock,
    /// Why it waits for the next task, and the last for the first.
    pub because: Because,
    /// Where it waits, as the kernel says, innermost first.
    pub waits_at: Vec<String>,
}

/// Another thread of one of the processes that is blocked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bystander {
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Thread name.
    pub comm: String,
    /// Where it waits, innermost first.
    pub waits_at: Vec<String>,
}

/// Tasks that wait for each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedDeadlock {
    /// [`Class::Deadlock`].
    pub class: Class,
    /// [`Severity::Deadlock`].
    pub severity: Severity,
    /// What tells it over time.
    #[serde(flatten)]
    pub marks: Marks,
    /// The first of its tasks.
    pub task: Option<Task>,
    /// What it is, in a sentence.
    pub summary: String,
    /// Its tasks, each waiting for the next.
    pub tasks: Vec<StandingTask>,
    /// Other threads of these processes that are blocked.
    pub beside: Vec<Bystander>,
    /// What to do about it.
    pub advice: String,
}

impl ReportedDeadlock {
    /// A deadlock of these tasks.
    pub fn of(tasks: Vec<StandingTask>, beside: Vec<Bystander>) -> Self {
        let summary = summary(&tasks);
        let task = tasks.first().map(|StandingTask { pid, tid, comm, .. }| Task {
            pid: *pid,
            tid: *tid,
            comm: comm.clone(),
            kernel_thread: false,
        });
        Self {
            class: Class::Deadlock,
            severity: Severity::Deadlock,
            marks: Marks::default(),
            advice: ADVICE.to_owned(),
            task,
            summary,
            tasks,
            beside,
        }
    }
}

fn who(task: &StandingTask) -> String {
    format!("{} (pid {}, tid {})", task.comm, task.pid, task.tid)
}

fn why(because: Because) -> &'static str {
    match because {
        Because::Holds => "which is held by",
        Because::Queued => "behind a writer that queued for it,",
        Because::QueuedUnknown => "behind a writer that queued for it, which waits for",
    }
}

fn summary(tasks: &[StandingTask]) -> String {
    match tasks {
        [only] => {
            let behind =
                if only.because == Because::QueuedUnknown { ", behind a writer that waits for it" } else { "" };
            format!("{} waits for {}, which it holds itself{behind}", who(only), only.waits_for.name)
        }
        _ => {
            let names: Vec<String> = tasks.iter().map(who).collect();
            format!("{} wait for each other", names.join(" and "))
        }
    }
}

/// Writes a deadlock.
pub(super) fn write(out: &mut String, number: usize, deadlock: &ReportedDeadlock, style: Style) -> fmt::Result {
    let standing = style.paint("1;31", "standing");
    writeln!(out, "#{number} {}, {standing}: {}", deadlock.class.name(), deadlock.summary)?;
    write_excuse(out, &deadlock.marks)?;
    write_cycle(out, &deadlock.tasks)?;
    for (at, task) in deadlock.tasks.iter().enumerate() {
        let next = deadlock.tasks.get((at + 1) % deadlock.tasks.len()).unwrap_or(task);
        writeln!(
            out,
            "  {} waits for {} ({}) {} {}",
            who(task),
            task.waits_for.name,
            task.waits_for.mode,
            why(task.because),
            who(next)
        )?;
        for lock in &task.holds {
            writeln!(out, "  {} holds {} ({})", who(task), lock.name, lock.mode)?;
            write_stack(out, "which was taken here", &lock.stack)?;
        }
        write_lines(out, &format!("{} waits here", who(task)), &task.waits_at)?;
    }
    for task in &deadlock.beside {
        let who = format!("{} (pid {}, tid {}), which is blocked as well, is here", task.comm, task.pid, task.tid);
        write_lines(out, &who, &task.waits_at)?;
    }
    for line in wrap(&deadlock.advice, 110) {
        writeln!(out, "  {line}")?;
    }
    writeln!(out)
}

/// Who waits for whom, in one line.
fn write_cycle(out: &mut String, tasks: &[StandingTask]) -> fmt::Result {
    let letters = || ('A'..='Z').cycle();
    let mut line = String::new();
    for (task, letter) in tasks.iter().zip(letters()) {
        writeln!(out, "  {letter}: {}", who(task))?;
        let queue = if task.because == Because::Holds { "" } else { "a writer in its queue --> " };
        line.push_str(&format!("{letter} -- {} ({}) --> {queue}", task.waits_for.name, task.waits_for.mode));
    }
    writeln!(out, "    {line}A")
}

fn write_lines(out: &mut String, title: &str, lines: &[String]) -> fmt::Result {
    writeln!(out, "  {title}:")?;
    if lines.is_empty() {
        writeln!(out, "    (the kernel does not show it)")?;
    }
    lines.iter().try_for_each(|line| writeln!(out, "    {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(tid: u32, wants: &str, because: Because) -> StandingTask {
        let lock = |name: &str| StandingLock {
            name: name.to_owned(),
            address: "0x1".to_owned(),
            mode: "write".to_owned(),
            stack: Vec::new(),
        };
        StandingTask {
            pid: 1,
            tid,
            comm: "a".to_owned(),
            holds: vec![lock("another")],
            waits_for: lock(wants),
            because,
            waits_at: vec!["drv_ioctl+0x1".to_owned()],
        }
    }

    #[test]
    fn the_cycle_is_drawn() {
        let drawn = |tasks: Vec<StandingTask>| {
            let mut out = String::new();
            write(&mut out, 2, &ReportedDeadlock::of(tasks, Vec::new()), Style { colour: false }).unwrap();
            out
        };
        let two = drawn(vec![task(7, "mutex m", Because::Holds), task(8, "mmap_lock", Because::Holds)]);
        assert!(
            two.starts_with("#2 deadlock, standing: a (pid 1, tid 7) and a (pid 1, tid 8) wait for each other\n"),
            "{two}"
        );
        assert!(
            two.contains("  B: a (pid 1, tid 8)\n    A -- mutex m (write) --> B -- mmap_lock (write) --> A\n"),
            "{two}"
        );
        let one = drawn(vec![task(7, "mmap_lock", Because::QueuedUnknown)]);
        assert!(one.contains("    A -- mmap_lock (write) --> a writer in its queue --> A\n"), "{one}");
    }
}
