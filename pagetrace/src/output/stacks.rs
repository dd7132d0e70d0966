//! The stacks of a finding, whatever its class, reduced to what stays the same from build to build and machine to machine.
//!
//! Everything that tells findings apart over time (fingerprints, baselines, locations in other tools) goes through here,
//! so that it is decided once which frames are a finding's own.

use super::{
    deadlock::{ReportedDeadlock, StandingTask},
    order::{ReportedEdge, ReportedInversion},
    report::ReportedFinding,
};
use crate::{analysis::Class, live::prepare::is_fault_entry, plan::is_user_access, symbolize::Frame};

/// What a stack shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Where a lock was taken.
    Lock,
    /// What was done under it.
    Access,
    /// Where another lock was wanted under it.
    Wanted,
}

impl Role {
    /// As titles spell it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Lock => "the lock was taken here",
            Self::Access => "user memory was accessed here",
            Self::Wanted => "another lock was wanted here",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Access => "access",
            Self::Wanted => "wanted",
        }
    }
}

/// A stack of a finding.
#[derive(Debug, Clone, Copy)]
pub struct Stack<'a> {
    /// What it shows.
    pub role: Role,
    /// Innermost first.
    pub frames: &'a [Frame],
}

/// A frame of BPF code, whose address and name are new each time a program is loaded.
const BPF: &str = "[bpf]";
/// A frame without a name.
const UNKNOWN: &str = "?";

/// Beginnings of the names of lock functions: which of them is on top depends on how locks are watched.
const LOCKING: [&str; 12] = [
    "mutex_lock",
    "__mutex_lock",
    "mutex_trylock",
    "down_read",
    "down_write",
    "__down_read",
    "__down_write",
    "rwsem_",
    "mmap_read_",
    "mmap_write_",
    "mmap_lock_",
    "__mmap_lock_",
];

/// Entry code below everything else; it differs between series and says nothing about a finding.
const ENTRY: [&str; 8] = [
    "do_syscall_64",
    "do_syscall_x64",
    "x64_sys_call",
    "entry_SYSCALL_64",
    "entry_SYSCALL_64_after_hwframe",
    "entry_SYSCALL_64_safe_stack",
    "ret_from_fork",
    "ret_from_fork_asm",
];

/// The function of a frame, without what a compiler adds (`.isra.0`, `.constprop.0`, `.part.0`, `.cold`, `.llvm.…`).
pub fn function(frame: &Frame) -> &str {
    match (&frame.symbol, &frame.module) {
        (Some(name), module) if name.starts_with("bpf_prog_") || module.as_deref() == Some("bpf") => BPF,
        (None, Some(module)) if module == "bpf" => BPF,
        (Some(name), _) => match name.find('.') {
            // A name that begins with a dot has no stem.
            None | Some(0) => name,
            Some(at) => &name[..at],
        },
        (None, _) => UNKNOWN,
    }
}

/// How many frames are lock functions.
fn locking(frames: &[Frame]) -> usize {
    frames.iter().take_while(|frame| LOCKING.iter().any(|prefix| function(frame).starts_with(prefix))).count()
}

/// How many frames are the fault's entry and the copy itself.
fn accessing(frames: &[Frame]) -> usize {
    let entered = frames.iter().rposition(|frame| is_fault_entry(function(frame))).map_or(0, |at| at + 1);
    entered + frames[entered..].iter().take_while(|frame| is_user_access(function(frame))).count()
}

impl<'a> Stack<'a> {
    /// The frames that are the finding's own: without the fault's entry, the copy itself, the lock function, and the entry code.
    pub fn own(&self) -> &'a [Frame] {
        let frames = self.frames;
        let start = match self.role {
            Role::Lock => locking(frames),
            Role::Access => accessing(frames),
            // Wanted by a lock function, or by the fault of an access.
            Role::Wanted => accessing(frames).max(locking(frames)),
        };
        let end = frames.iter().rposition(|frame| !ENTRY.contains(&function(frame))).map_or(0, |at| at + 1);
        // A stack of nothing but such frames stands for itself.
        frames.get(start..end).filter(|own| !own.is_empty()).unwrap_or(frames)
    }
}

impl ReportedFinding {
    /// All its stacks, locks first.
    pub fn stacks(&self) -> Vec<Stack<'_>> {
        let locks = self.locks.iter().map(|lock| Stack { role: Role::Lock, frames: &lock.stack });
        locks.chain([Stack { role: Role::Access, frames: &self.fault.stack }]).collect()
    }

    /// The stacks that tell it from others.
    fn telling(&self) -> Vec<Stack<'_>> {
        let mut stacks = self.stacks();
        if self.class == Class::LockLeak {
            // Where a leak is noticed says nothing about it.
            stacks.retain(|stack| stack.role == Role::Lock);
        }
        stacks
    }

    /// The frame that a person would open first: the caller of the access, or of the lock function.
    pub fn site(&self) -> Option<&Frame> {
        let stacks = self.telling();
        stacks.iter().rev().find_map(|stack| stack.own().first())
    }

    /// What the fingerprint is made from: a line for the class, and for each stack a line with its functions.
    pub(super) fn identity(&self) -> String {
        let mut text = format!("{}\n", self.class.name());
        self.telling().iter().for_each(|stack| text.push_str(&line(stack)));
        text
    }
}

/// A stack's line in what a fingerprint is made from.
fn line(stack: &Stack<'_>) -> String {
    let mut text = stack.role.name().to_owned();
    let mut last = "";
    for name in stack.own().iter().map(function) {
        // How many frames a program and its trampoline come to differs between kernels.
        if name != BPF || last != BPF {
            text.push(' ');
            text.push_str(name);
        }
        last = name;
    }
    text.push('\n');
    text
}

/// Parts of a cycle, begun at the part whose text is the least: where a cycle begins is chance.
fn from_least(class: &str, mut parts: Vec<String>) -> String {
    let least = parts.iter().enumerate().min_by_key(|(_, text)| *text).map_or(0, |(at, _)| at);
    parts.rotate_left(least);
    format!("{class}\n{}", parts.concat())
}

impl ReportedEdge {
    fn stacks(&self) -> [Stack<'_>; 2] {
        let held = Stack { role: Role::Lock, frames: &self.held.stack };
        [held, Stack { role: Role::Wanted, frames: &self.wanted.stack }]
    }

    /// The frame that a person would open first: where the second lock was wanted.
    pub fn site(&self) -> Option<&Frame> {
        let [_, wanted] = self.stacks();
        wanted.own().first()
    }
}

impl ReportedInversion {
    /// The stacks of its edges.
    pub fn stacks(&self) -> Vec<Stack<'_>> {
        self.cycle.iter().flat_map(ReportedEdge::stacks).collect()
    }

    /// As a violation's: two lines for each edge.
    pub(super) fn identity(&self) -> String {
        let stacks = self.stacks();
        let edges = stacks.chunks(2).map(|edge| edge.iter().map(line).collect());
        from_least(self.class.name(), edges.collect())
    }
}

impl ReportedDeadlock {
    /// The stacks where its tasks took what they hold.
    pub fn stacks(&self) -> Vec<Stack<'_>> {
        let held = self.tasks.iter().flat_map(|task| &task.holds);
        held.map(|lock| Stack { role: Role::Lock, frames: &lock.stack }).collect()
    }

    /// As a violation's: for each task a line for each lock that it holds.
    pub(super) fn identity(&self) -> String {
        let task = |task: &StandingTask| -> String {
            task.holds.iter().map(|lock| line(&Stack { role: Role::Lock, frames: &lock.stack })).collect()
        };
        from_least(self.class.name(), self.tasks.iter().map(task).collect())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        analysis::Severity,
        output::{
            found::{Found, Marks},
            report::{Fault, Task},
        },
    };

    /// A fault in module `drv` that differs from others in nothing but a function.
    pub(crate) fn finding(function: &str) -> ReportedFinding {
        let drv = |name: &str| Frame { module: Some("drv".into()), ..frame(name, 8) };
        let mut finding = ReportedFinding {
            class: Class::FaultUnderLock,
            severity: Severity::RecursiveRead,
            marks: Marks::default(),
            count: 1,
            tasks: 1,
            first_seen_ns: 1,
            last_seen_ns: 1,
            hung: false,
            stuck_tids: Vec::new(),
            task: Task { pid: 1, tid: 1, comm: "a".into(), kernel_thread: false },
            locks: Vec::new(),
            fault: Fault {
                address: "0x1000".into(),
                write: None,
                mm: "0x1".into(),
                owner: None,
                vma: None,
                page: None,
                instruction: frame("rep_movs_alternative", 1),
                stack: vec![
                    frame("asm_exc_page_fault", 1),
                    frame("_copy_to_user", 2),
                    drv(function),
                    frame("vfs_read", 3),
                ],
            },
            summary: String::new(),
            advice: String::new(),
        };
        finding.mark();
        finding
    }

    fn fingerprint(finding: &ReportedFinding) -> String {
        let mut finding = finding.clone();
        finding.mark();
        finding.marks.fingerprint
    }

    #[test]
    fn addresses_and_offsets_make_no_other_fingerprint_and_functions_and_class_do() {
        let one = finding("f");
        let mut moved = finding("f.isra.0");
        for frame in &mut moved.fault.stack {
            (frame.addr, frame.offset) = ("0xffff".into(), frame.offset + 100);
        }
        (moved.count, moved.task.pid, moved.severity) = (9, 77, Severity::Deadlock);
        assert_eq!(fingerprint(&moved), one.marks.fingerprint);
        assert_ne!(finding("g").marks.fingerprint, one.marks.fingerprint);
        let mut by_bpf = one.clone();
        by_bpf.fault.stack.insert(2, frame("bpf_prog_1f_x", 1));
        let once = fingerprint(&by_bpf);
        by_bpf.fault.stack.insert(2, Frame { module: Some("bpf".into()), ..frame("bpf_trampoline_6442490053", 1) });
        assert_eq!(fingerprint(&by_bpf), once);
        assert_ne!(once, one.marks.fingerprint);
        moved.class = Class::UaccessUnderLock;
        assert_ne!(fingerprint(&moved), one.marks.fingerprint);
        assert_eq!(Found::Violation(Box::new(one)).title(), "fault-under-lock in f [drv]");
    }

    fn frame(symbol: &str, offset: u64) -> Frame {
        Frame { addr: format!("{offset:#x}"), symbol: Some(symbol.to_owned()), offset, module: None }
    }

    fn names(role: Role, symbols: &[&str]) -> Vec<String> {
        let frames: Vec<Frame> = symbols.iter().map(|symbol| frame(symbol, 1)).collect();
        Stack { role, frames: &frames }.own().iter().map(|frame| function(frame).to_owned()).collect()
    }

    #[test]
    fn what_a_compiler_adds_to_a_name_is_no_part_of_it() {
        for name in ["walk.isra.0", "walk.constprop.0", "walk.part.0.cold", "walk.llvm.123", "walk"] {
            assert_eq!(function(&frame(name, 7)), "walk");
        }
        assert_eq!(function(&frame(".text", 0)), ".text");
    }

    #[test]
    fn bpf_programs_and_unknown_code_have_no_name_of_their_own() {
        let bpf = Some("bpf".to_owned());
        assert_eq!(function(&frame("bpf_prog_6deef7357e7b4530_x", 1)), "[bpf]");
        assert_eq!(function(&Frame { addr: "0x1".into(), symbol: None, offset: 0, module: bpf }), "[bpf]");
        assert_eq!(function(&Frame { addr: "0x1".into(), symbol: None, offset: 0, module: None }), "?");
    }

    #[test]
    fn the_way_a_run_was_watched_does_not_show() {
        let fentry = ["lock_mm_and_find_vma", "do_user_addr_fault", "exc_page_fault", "asm_exc_page_fault"];
        let below = ["rep_movs_alternative", "_copy_from_user", "drv_read", "vfs_read", "do_syscall_64"];
        let by_fentry: Vec<&str> = fentry.into_iter().chain(below).collect();
        let by_tracepoint: Vec<&str> = ["exc_page_fault", "asm_exc_page_fault"].into_iter().chain(below).collect();
        assert_eq!(names(Role::Access, &by_fentry), ["drv_read", "vfs_read"]);
        assert_eq!(names(Role::Access, &by_tracepoint), ["drv_read", "vfs_read"]);
        assert_eq!(names(Role::Access, &below), ["drv_read", "vfs_read"]);
        let lock =
            ["down_read_killable", "drv_lock", "x64_sys_call", "do_syscall_64", "entry_SYSCALL_64_after_hwframe"];
        assert_eq!(names(Role::Lock, &lock), ["drv_lock"]);
    }

    #[test]
    fn a_stack_of_nothing_else_stands_for_itself() {
        assert_eq!(names(Role::Lock, &["down_read"]), ["down_read"]);
        assert_eq!(names(Role::Access, &["asm_exc_page_fault"]), ["asm_exc_page_fault"]);
        assert!(names(Role::Access, &[]).is_empty());
    }
}
