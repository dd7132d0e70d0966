//! A report for people.

use std::{
    collections::HashSet,
    fmt::{self, Write},
};

use super::{
    deadlock,
    found::{Found, Marks},
    order::ReportedOrder,
    order_text,
    report::{Command, Lock, Owner, Report, ReportedFinding},
};
use crate::{
    analysis::{Class, Relation, Severity, Verdict},
    symbolize::Frame,
};

/// Escape sequences, or none.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Whether the output is a terminal that wants colours.
    pub colour: bool,
}

impl Style {
    pub(super) fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn severity(self, severity: Severity) -> String {
        let code = if matches!(severity, Severity::CrossMm | Severity::Latent) { "1;33" } else { "1;31" };
        self.paint(code, severity.name())
    }
}

/// Renders a report.
pub fn render(report: &Report, style: Style) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_report(&mut out, report, style);
    out
}

fn write_report(out: &mut String, report: &Report, style: Style) -> fmt::Result {
    for (index, finding) in report.findings.iter().enumerate() {
        write_found(out, index + 1, finding, style)?;
    }
    write_closing(out, report, style)
}

/// What a report ends with: the verdict and what it rests on.
pub fn closing(report: &Report, style: Style) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_closing(&mut out, report, style);
    out
}

fn write_closing(out: &mut String, report: &Report, style: Style) -> fmt::Result {
    let verdict = match report.verdict {
        Verdict::Clean => style.paint("1;32", "CLEAN"),
        Verdict::Findings => style.paint("1;31", "FINDINGS"),
        Verdict::Incomplete => style.paint("1;33", "INCOMPLETE"),
    };
    let count = report.findings.len();
    let what = match report.verdict {
        Verdict::Clean if report.order.is_some() => {
            "no user memory was touched and faulted in under an mmap lock, and no lock was taken in both orders with one"
                .to_owned()
        }
        Verdict::Clean => "no user memory was touched and faulted in under an mmap lock".to_owned(),
        Verdict::Findings if count == 1 => "one violation".to_owned(),
        Verdict::Findings => format!("{count} distinct violations"),
        Verdict::Incomplete => "nothing was found, but something that could hide a violation went unseen".to_owned(),
    };
    writeln!(out, "{verdict}: {what}")?;
    for reason in &report.coverage.incomplete_because {
        writeln!(out, "  incomplete: {reason}")?;
    }
    let seconds = report.duration_ms as f64 / 1000.0;
    writeln!(out, "  kernel {} {}, watched for {seconds:.1} s", report.kernel.release, report.kernel.machine)?;
    let ways: Vec<String> = report
        .coverage
        .events
        .iter()
        .map(|event| format!("{} by {}", event.event, event.attach.map_or("nothing", |attach| attach.name())))
        .collect();
    writeln!(out, "  seen: {}", ways.join(", "))?;
    for sentence in &report.coverage.not_seen {
        writeln!(out, "  not seen: {sentence}")?;
    }
    let lost: Vec<String> =
        report.loss.iter().filter(|(_, count)| **count != 0).map(|(name, count)| format!("{name} {count}")).collect();
    writeln!(out, "  loss: {}", if lost.is_empty() { "none".to_owned() } else { lost.join(", ") })?;
    if let Some(order) = &report.order {
        let known = order.edges.iter().filter(|edge| edge.known.is_some()).count();
        writeln!(
            out,
            "  lock order: {} edges, {known} of them known to be right; {} cycles through mmap_lock",
            order.edges.len(),
            order.cycles.len()
        )?;
        write_new_edges(out, order)?;
    }
    if let Some(provocation) = &report.provocation {
        writeln!(out, "  provoked: {}", provocation.sentence())?;
        for note in &provocation.notes {
            writeln!(out, "  provoked: {note}")?;
        }
    }
    if let Some(recording) = &report.recording {
        let (agreed, disagreed) = (recording.agreed, recording.disagreed);
        writeln!(
            out,
            "  recording: {} records, {} bytes; violations told and derived alike: {agreed}, differently: {disagreed}",
            recording.records, recording.bytes
        )?;
    }
    for sign in &report.console {
        writeln!(out, "  console: {}: {}", sign.kind, sign.message)?;
        for line in &sign.more {
            writeln!(out, "    {line}")?;
        }
    }
    if let Some(command) = &report.command {
        write_command(out, command)?;
    }
    write_policy(out, report)
}

/// Edges that the baseline does not know, each class of them once.
fn write_new_edges(out: &mut String, order: &ReportedOrder) -> fmt::Result {
    const MOST: usize = 20;
    let mut seen = HashSet::new();
    let new = order.edges.iter().filter(|edge| edge.new == Some(true));
    let new: Vec<_> = new.filter(|edge| seen.insert(edge.fingerprint.as_str())).collect();
    for edge in new.iter().take(MOST) {
        let by = format!("{} (pid {}, tid {})", edge.task.comm, edge.task.pid, edge.task.tid);
        let site = edge.site().map_or_else(String::new, |frame| format!(" in {}", frame.text()));
        writeln!(out, "  not in the baseline: {}, by {by}{site}", edge.title())?;
    }
    if new.len() > MOST {
        writeln!(out, "  not in the baseline: {} more", new.len() - MOST)?;
    }
    Ok(())
}

fn write_policy(out: &mut String, report: &Report) -> fmt::Result {
    let Some(policy) = &report.policy else { return Ok(()) };
    writeln!(out, "  policy: {}", policy.result.name())?;
    for why in &policy.because {
        writeln!(out, "  policy: {why}")?;
    }
    if !policy.unused.is_empty() {
        writeln!(out, "  policy: in the baseline and not found: {}", policy.unused.join(", "))?;
    }
    Ok(())
}

fn write_command(out: &mut String, command: &Command) -> fmt::Result {
    let name = command.argv.join(" ");
    match (command.exit_code, command.signal) {
        (Some(code), _) => writeln!(out, "  command `{name}` exited with {code}")?,
        (None, Some(signal)) => writeln!(out, "  command `{name}` was killed by signal {signal}")?,
        (None, None) if command.left_behind => {}
        (None, None) => writeln!(out, "  command `{name}` has not ended")?,
    }
    if command.hung {
        writeln!(out, "  a task of the command hung on a lock and was sent SIGKILL")?;
    }
    if command.left_behind {
        writeln!(
            out,
            "  the command (pid {}) cannot be ended: its wait is uninterruptible on this kernel, only a reboot ends it",
            command.pid
        )?;
    }
    Ok(())
}

fn owner_text(owner: Option<&Owner>) -> String {
    owner.map_or_else(|| "owner unknown".to_owned(), |owner| format!("process {} ({})", owner.pid, owner.comm))
}

pub(super) fn write_stack(out: &mut String, title: &str, stack: &[Frame]) -> fmt::Result {
    writeln!(out, "  {title}:")?;
    if stack.is_empty() {
        writeln!(out, "    (the stack could not be kept)")?;
    }
    for frame in stack {
        writeln!(out, "    {}", frame.text())?;
    }
    Ok(())
}

/// Renders one finding.
pub fn finding(number: usize, finding: &Found, style: Style) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_found(&mut out, number, finding, style);
    out
}

/// Renders one violation.
pub fn violation(number: usize, finding: &ReportedFinding, style: Style) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_finding(&mut out, number, finding, style);
    out
}

fn write_found(out: &mut String, number: usize, finding: &Found, style: Style) -> fmt::Result {
    match finding {
        Found::Violation(it) => write_finding(out, number, it, style),
        Found::Deadlock(it) => deadlock::write(out, number, it, style),
        Found::Inversion(it) => order_text::write(out, number, it, style),
    }
}

pub(super) fn write_excuse(out: &mut String, marks: &Marks) -> fmt::Result {
    match &marks.excused {
        Some(excuse) => writeln!(out, "  does not count, {}", excuse.text()),
        None => Ok(()),
    }
}

fn write_finding(out: &mut String, number: usize, finding: &ReportedFinding, style: Style) -> fmt::Result {
    let severity = style.severity(finding.severity);
    writeln!(out, "#{number} {}, {severity}: {}", finding.class.name(), finding.summary)?;
    write_excuse(out, &finding.marks)?;
    let kind = if finding.task.kernel_thread { " (kernel thread)" } else { "" };
    let mut times = if finding.count == 1 { "once".to_owned() } else { format!("{} times", finding.count) };
    if finding.tasks > 1 {
        times.push_str(&format!(", of {} tasks", finding.tasks));
    }
    writeln!(
        out,
        "  task     {} pid {} tid {}{kind}, seen {times}",
        finding.task.comm, finding.task.pid, finding.task.tid
    )?;
    if finding.hung {
        let tids: Vec<String> = finding.stuck_tids.iter().map(ToString::to_string).collect();
        let stuck = match tids.as_slice() {
            [_] if finding.tasks == 1 => "the task is stuck: it never got the lock that its fault needs".to_owned(),
            _ => format!("stuck, since the lock that the fault needs was never got: tid {}", tids.join(", ")),
        };
        writeln!(out, "  {}", style.paint("1;31", &stuck))?;
    }
    if finding.class != Class::LockLeak {
        write_access(out, finding)?;
    }
    for lock in &finding.locks {
        write_lock(out, lock)?;
    }
    match finding.class {
        Class::LockLeak if finding.fault.stack.is_empty() => {}
        Class::LockLeak => write_stack(out, "it was noticed here", &finding.fault.stack)?,
        _ => write_stack(out, "user memory was accessed here", &finding.fault.stack)?,
    }
    for line in wrap(&finding.advice, 110) {
        writeln!(out, "  {line}")?;
    }
    writeln!(out, "  fingerprint {}", finding.marks.fingerprint)?;
    writeln!(out)
}

fn write_access(out: &mut String, finding: &ReportedFinding) -> fmt::Result {
    let fault = &finding.fault;
    let latent = finding.class == Class::UaccessUnderLock;
    let access = match fault.write {
        Some(true) => "write",
        Some(false) => "read",
        None => "access",
    };
    writeln!(
        out,
        "  {}   {access} at {} by {}, in mm {} of {}",
        if latent { "access" } else { "fault " },
        fault.address,
        fault.instruction.text(),
        fault.mm,
        owner_text(fault.owner.as_ref())
    )?;
    match &fault.vma {
        None if latent => {}
        Some(vma) => {
            let file =
                vma.file.as_ref().map_or_else(|| "anonymous".to_owned(), |file| format!("{file} at {:#x}", vma.offset));
            writeln!(out, "  vma      {}-{} {} {file}", vma.start, vma.end, vma.perms)?;
        }
        None => {
            writeln!(out, "  vma      not known: it is looked up under the lock, and that was not had or not seen")?;
        }
    }
    if let Some(page) = &fault.page {
        let file = fault.vma.as_ref().map(|vma| vma.file.is_some());
        writeln!(out, "  page     {}", page.text(fault.write, file))?;
    }
    Ok(())
}

fn write_lock(out: &mut String, lock: &Lock) -> fmt::Result {
    let relation = match lock.relation {
        Relation::Own => "the faulting mm itself",
        Relation::Foreign => "another mm",
    };
    let mode = lock.mode.name();
    let mut notes = String::new();
    if lock.trylock {
        notes.push_str(", by trylock");
    }
    if lock.downgraded {
        notes.push_str(", downgraded from write");
    }
    match lock.writer_queued {
        Some(true) => notes.push_str(", a writer is queued"),
        Some(false) => notes.push_str(", no writer queued"),
        None => {}
    }
    if lock.taken_unseen {
        writeln!(
            out,
            "  lock     mmap_lock of {relation}, {} of {}, held for {mode}, says the lock itself: it was taken unseen, \
             before tracing began perhaps{notes}",
            lock.mm,
            owner_text(lock.owner.as_ref())
        )?;
        return Ok(());
    }
    let held = lock.held_ns as f64 / 1000.0;
    let most = if lock.held_ns_at_most { "at most " } else { "" };
    writeln!(
        out,
        "  lock     mmap_lock of {relation}, {} of {}, held for {mode} for {most}{held:.1} us{notes}",
        lock.mm,
        owner_text(lock.owner.as_ref())
    )?;
    write_stack(out, "the lock was taken here", &lock.stack)
}

/// Breaks a text at spaces.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let fits = lines.last().is_some_and(|line| line.is_empty() || line.len() + 1 + word.len() <= width);
        if !fits {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_spaces_and_lose_nothing() {
        let text = "one two three four";
        assert_eq!(wrap(text, 9), ["one two", "three", "four"]);
        assert_eq!(wrap(text, 1).join(" "), text);
    }
}
