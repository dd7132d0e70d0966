//! Names for kernel addresses.
//!
//! The kernel's own table is read again when a finding holds an address that the last reading cannot explain:
//! modules and BPF programs come and go. Where a module was unloaded since, nothing has a name before that. It is kallsyms and
//! not DWARF, so that names are the same on every machine.

use std::{cell::RefCell, collections::HashMap, fs, path::PathBuf};

use pagetrace_ebpf::wire::module::{MODULES, Range, Unloaded};
use serde::{Deserialize, Serialize};

use crate::{
    clock::monotonic_ns,
    kernel::kallsyms::{Kallsyms, Resolved},
    record::user::Symbol,
};

/// One frame of a kernel stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Address, as `0x…`.
    pub addr: String,
    /// Function; `None` when nothing is known at this address.
    pub symbol: Option<String>,
    /// Bytes into the function.
    pub offset: u64,
    /// Module, or `bpf` for a BPF program.
    pub module: Option<String>,
}

/// How the names begin of what the kernel calls fentry and fexit programs through.
const TRAMPOLINE: &str = "bpf_trampoline_";

/// Functions of tracing itself that stand above the traced function on a stack.
const TRACING: [&str; 11] = [
    TRAMPOLINE,
    "bpf_prog_",
    "bpf_trace_run",
    "__bpf_trace_",
    "__traceiter_",
    "__mmap_lock_do_trace_",
    "trace_call_bpf",
    "bpf_get_stack",
    "kprobe_",
    "kretprobe_",
    "bpf_dispatcher_",
];

/// Whether this is the name of a program of the BPF object: `bpf_prog_`, a tag, and a stem with a shim's prefix.
fn is_own_program(name: &str) -> bool {
    let stem = name.strip_prefix("bpf_prog_").and_then(|rest| rest.split_once('_')).map_or("", |(_tag, stem)| stem);
    ["bp_", "fe_", "fx_", "it_", "kp_", "kr_", "tb_", "tr_"].iter().any(|prefix| stem.starts_with(prefix))
}

/// The table is read no more often than this, nanoseconds.
const READ_EVERY: u64 = 100_000_000;

/// Most names that a recording's table takes: a damaged file must not fill the memory.
const MAX_LEARNT: usize = 1 << 20;

/// Looks addresses up.
pub struct Symbolizer {
    path: PathBuf,
    symbols: Option<Kallsyms>,
    /// When the table was last begun to be read, nanoseconds of `CLOCK_MONOTONIC`; 0 when it was not.
    read_at: u64,
    /// When that had ended: reading it takes its time on a slow machine.
    read_until: u64,
    /// However short a time ago that was, it may be read again.
    hurry: bool,
    /// Where modules were unloaded since.
    gone: Vec<Range>,
    data: RefCell<HashMap<u64, Option<String>>>,
    /// The names of a recording, instead of this machine's.
    learnt: Option<HashMap<u64, Symbol>>,
}

impl Symbolizer {
    /// Reads names from `path`, normally /proc/kallsyms, when they are first needed.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            symbols: None,
            read_at: 0,
            read_until: 0,
            hurry: false,
            gone: Vec::new(),
            data: RefCell::default(),
            learnt: None,
        }
    }

    /// Knows only what it is told; nothing of this machine.
    pub fn recorded() -> Self {
        Self { learnt: Some(HashMap::new()), ..Self::new(PathBuf::new()) }
    }

    /// Learns a name from a recording. The first stays: what is looked up later was named when it was first seen.
    pub fn learn(&mut self, address: u64, symbol: Symbol) {
        if let Some(learnt) = self.learnt.as_mut().filter(|learnt| learnt.len() < MAX_LEARNT) {
            learnt.entry(address).or_insert(symbol);
        }
    }

    /// What is at an address, for a recording.
    pub fn lookup(&self, address: u64) -> Option<Symbol> {
        if let Some(learnt) = &self.learnt {
            return learnt.get(&address).cloned();
        }
        let found = self.table(address)?.resolve(address)?;
        Some(Symbol { name: found.name.to_owned(), offset: found.offset, module: found.module.map(str::to_owned) })
    }

    /// What lies there is another thing from now on. What was named before keeps its name, so name first what is older.
    pub fn forget(&mut self, unloaded: &Unloaded) {
        match &mut self.learnt {
            Some(learnt) => learnt.retain(|address, _| !unloaded.contains(*address)),
            // A table that was read since knows.
            None if self.read_at > unloaded.header.ts => {}
            None => self.gone.extend([unloaded.text, unloaded.data]),
        }
        self.data.borrow_mut().retain(|address, _| !unloaded.contains(*address));
    }

    fn is_gone(&self, address: u64) -> bool {
        self.gone.iter().any(|range| range.contains(address))
    }

    /// The table, if what it says of an address is still true.
    fn table(&self, address: u64) -> Option<&Kallsyms> {
        self.symbols.as_ref().filter(|_| !self.is_gone(address))
    }

    /// Uses a table that was read already.
    #[must_use]
    pub fn with(mut self, symbols: Option<Kallsyms>) -> Self {
        self.symbols = symbols;
        self
    }

    /// As [`Symbolizer::cover`], for addresses seen at a time, nanoseconds of `CLOCK_MONOTONIC`: a table that was read later tells
    /// all that can be told. `false` when it should be read for them, and was too short a time ago: ask again later.
    pub fn cover_since(&mut self, time: u64, stacks: &[&[u64]]) -> bool {
        self.read_at > time || self.cover(stacks)
    }

    /// Makes sure that the table explains these addresses, reading it again when it must be older than they are. `false` when it
    /// was read too short a time ago for that.
    pub fn cover(&mut self, stacks: &[&[u64]]) -> bool {
        if self.learnt.is_some() {
            return true;
        }
        // Once for every module that goes.
        let is_gone = stacks.iter().copied().flatten().any(|address| self.is_gone(*address));
        let stale = is_gone
            || self.symbols.as_ref().is_none_or(|symbols| stacks.iter().any(|stack| self.is_stale(symbols, stack)));
        // A storm of findings from code that is gone must not become a storm of table readings.
        let now = monotonic_ns();
        let due = self.symbols.is_none() || is_gone || self.hurry || now.saturating_sub(self.read_until) >= READ_EVERY;
        if stale && due {
            if let Ok(text) = fs::read_to_string(&self.path) {
                self.symbols = Some(Kallsyms::parse(text));
                self.gone.clear();
                self.data.borrow_mut().clear();
            }
            (self.read_at, self.read_until, self.hurry) = (now, monotonic_ns(), false);
        }
        !stale || due
    }

    /// Whether the table may be older than what a stack shows.
    fn is_stale(&self, symbols: &Kallsyms, stack: &[u64]) -> bool {
        let is_trampoline = |found: &Resolved<'_>| found.name.starts_with(TRAMPOLINE);
        let outside = stack.iter().filter(|address| **address >= MODULES && !self.in_image(**address));
        outside
            .map(|address| (*address, symbols.resolve(*address)))
            // Ours, for as long as we trace: each stack of a program begins with them.
            .skip_while(|(_, found)| found.is_some_and(|found| is_own_program(found.name) || is_trampoline(&found)))
            // Other BPF programs come and go: the one that was there may have left its place to another.
            .filter(|(_, found)| {
                found.is_none_or(|found| matches!(found.module, None | Some("bpf")) && !is_trampoline(&found))
            })
            .any(|(address, _)| symbols.name_at(address).is_none())
    }

    /// The table may be read again now, though it was read a moment ago: nothing can be asked for later.
    pub fn hurry(&mut self) {
        self.hurry = true;
    }

    fn in_image(&self, address: u64) -> bool {
        let Some(symbols) = &self.symbols else { return false };
        symbols.address_of("_etext").is_some_and(|end| address < end)
    }

    /// The name at an address.
    pub fn name(&self, address: u64) -> Option<&str> {
        if let Some(learnt) = &self.learnt {
            return learnt.get(&address).map(|symbol| symbol.name.as_str());
        }
        self.table(address)?.resolve(address).map(|found| found.name)
    }

    /// The variable that begins at an address, such as a `mm_walk_ops`.
    pub fn data_name(&self, address: u64) -> Option<String> {
        if let Some(learnt) = &self.learnt {
            return learnt.get(&address).map(|symbol| symbol.name.clone());
        }
        if let Some(known) = self.data.borrow().get(&address) {
            return known.clone();
        }
        let found = self.table(address).and_then(|symbols| symbols.name_at(address)).map(str::to_owned);
        self.data.borrow_mut().insert(address, found.clone());
        found
    }

    /// The variable at an address, or the nearest before it.
    pub fn variable(&self, address: u64) -> Option<Symbol> {
        if address == 0 {
            return None;
        }
        if let Some(learnt) = &self.learnt {
            return learnt.get(&address).cloned();
        }
        let symbols = self.table(address)?;
        let found = symbols.variable(address)?;
        // A name that several have is none to tell locks by; which of them it is is the same on every boot of a kernel.
        let name = match symbols.namesake(found.name, found.module, address - found.offset) {
            (_, ..=1) => found.name.to_owned(),
            (nth, of) => format!("{} ({nth} of {of})", found.name),
        };
        Some(Symbol { name, offset: found.offset, module: found.module.map(str::to_owned) })
    }

    /// Frames of a stack, without the tracing functions on top of it.
    pub fn frames(&self, stack: &[u64]) -> Vec<Frame> {
        let all: Vec<Frame> = stack.iter().map(|address| self.frame(*address)).collect();
        let tracing = |frame: &Frame| {
            frame.symbol.as_deref().is_some_and(|name| TRACING.iter().any(|prefix| name.starts_with(prefix)))
        };
        let own = all.iter().take_while(|frame| tracing(frame)).count();
        let mut below: Vec<Frame> = all.into_iter().skip(own).collect();
        // Our programs run on top of the stack only. Further down, their names are the nearest that the table still has
        // for the address of a program that was unloaded since.
        for frame in below.iter_mut().filter(|frame| frame.symbol.as_deref().is_some_and(is_own_program)) {
            frame.symbol = None;
            frame.offset = 0;
        }
        below
    }

    fn frame(&self, address: u64) -> Frame {
        let addr = format!("{address:#x}");
        match self.lookup(address) {
            Some(Symbol { name, offset, module }) => Frame { addr, symbol: Some(name), offset, module },
            None => Frame { addr, symbol: None, offset: 0, module: None },
        }
    }
}

impl Frame {
    /// As stacks are printed: `function+0x12 [module]`.
    pub fn text(&self) -> String {
        let module = self.module.as_ref().map_or_else(String::new, |module| format!(" [{module}]"));
        match &self.symbol {
            Some(symbol) => format!("{symbol}+{:#x}{module}", self.offset),
            None => format!("{}{module}", self.addr),
        }
    }
}

#[cfg(test)]
mod tests {
    use pagetrace_ebpf::wire::Header;

    use super::*;

    #[test]
    fn tracing_frames_on_top_go_and_those_below_stay() {
        let table = "ffffffff81000000 T _text\nffffffff81000100 T down_read\nffffffff81000200 T __traceiter_x\n\
                     ffffffff81000300 T after\nffffffff81000400 T _etext\nffffffffc0000000 t bpf_prog_1_x\t[bpf]\n\
                     ffffffffc0000100 t bpf_prog_2_y\t[bpf]\n";
        let symbolizer = Symbolizer::new(PathBuf::new()).with(Some(Kallsyms::parse(table.to_owned())));
        let stack = [0xffff_ffff_c000_0010, 0xffff_ffff_8100_0210, 0xffff_ffff_8100_0110, 0xffff_ffff_c000_0020];
        let frames: Vec<String> = symbolizer.frames(&stack).iter().map(Frame::text).collect();
        assert_eq!(frames, ["down_read+0x10", "bpf_prog_1_x+0x20 [bpf]"]);
    }

    fn unloaded(start: u64, end: u64) -> Unloaded {
        let header = Header { ts: monotonic_ns(), ..Header::default() };
        Unloaded { header, data: Range { start, end }, ..Unloaded::default() }
    }

    #[test]
    fn what_lay_in_a_module_that_is_gone_has_no_name_until_the_table_is_read_again() {
        let table = |first: &str, second: &str| {
            format!(
                "ffffffff81000000 T _text\nffffffff81000400 T _etext\nffffffffc0000000 d {first}_lock\t[{first}]\n\
                 ffffffffc0001000 d {second}_lock\t[{second}]\n"
            )
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kallsyms");
        fs::write(&path, table("new", "other")).unwrap();
        let mut names = Symbolizer::new(path).with(Some(Kallsyms::parse(table("old", "other"))));
        let (gone, stays) = (0xffff_ffff_c000_0000, 0xffff_ffff_c000_1000);
        let name = |names: &Symbolizer, at| names.variable(at).map(|symbol| symbol.name);
        assert_eq!(names.data_name(gone).as_deref(), Some("old_lock"));
        names.forget(&unloaded(gone, stays));
        assert_eq!((name(&names, gone), names.data_name(gone), names.lookup(gone)), (None, None, None));
        assert_eq!(name(&names, stays).as_deref(), Some("other_lock"));
        assert!(names.cover(&[&[gone]]), "however short a time ago the table was read");
        assert_eq!(name(&names, gone).as_deref(), Some("new_lock"));
        assert_eq!(names.data_name(gone).as_deref(), Some("new_lock"));
        names.forget(&Unloaded { header: Header { ts: 1, ..Header::default() }, ..unloaded(gone, stays) });
        assert_eq!(name(&names, gone).as_deref(), Some("new_lock"), "that was before the table was read");
        assert!(!names.cover(&[&[0xffff_ffff_c100_0000]]), "what nobody knows must not have it read all the time");
        assert!(names.cover(&[&[stays]]), "a variable that the table has");
        let later = monotonic_ns();
        assert!(names.cover_since(1, &[&[0xffff_ffff_c100_0000]]), "it was read after that");
        assert!(!names.cover_since(later, &[&[0xffff_ffff_c100_0000]]));
        names.hurry();
        assert!(names.cover_since(later, &[&[0xffff_ffff_c100_0000]]));
        assert!(names.cover_since(later, &[&[0xffff_ffff_c100_0000]]), "it has been read for that");
        assert!(!names.cover_since(monotonic_ns(), &[&[0xffff_ffff_c100_0000]]));
    }

    #[test]
    fn programs_of_ours_do_not_have_the_table_read_again() {
        let table = |top: &str| {
            format!(
                "ffffffff81000000 T _text\nffffffff81000100 T down_read\nffffffff81000400 T _etext\n\
                 ffffffffc0000000 t {top}\t[bpf]\nffffffffc0010000 t bpf_trampoline_1\t[bpf]\n\
                 ffffffffc0020000 t bpf_prog_2_theirs\t[bpf]\n"
            )
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kallsyms");
        fs::write(&path, table("bpf_prog_9_new")).unwrap();
        let mut names = Symbolizer::new(path).with(Some(Kallsyms::parse(table("bpf_prog_1_fe_lock"))));
        let (ours, theirs) = (0xffff_ffff_c000_0010, 0xffff_ffff_c002_0010);
        let (trampoline, function) = (0xffff_ffff_c001_0010, 0xffff_ffff_8100_0110);
        assert!(names.cover(&[&[ours, trampoline, function, trampoline], &[ours]]));
        assert_eq!(names.name(ours), Some("bpf_prog_1_fe_lock"), "it was not read again");
        assert!(names.cover(&[&[ours, function, theirs]]));
        assert_eq!(names.name(ours), Some("bpf_prog_9_new"), "it was, for another's program");
        assert!(!names.cover(&[&[ours, function]]), "no program of ours any more");
    }

    #[test]
    fn a_recording_names_an_address_anew_where_a_module_went() {
        let mut names = Symbolizer::recorded();
        let symbol = |name: &str| Symbol { name: name.to_owned(), offset: 0, module: None };
        let learn = |names: &mut Symbolizer, name| names.learn(0x1000, symbol(name));
        learn(&mut names, "old");
        learn(&mut names, "later");
        assert_eq!(names.name(0x1000), Some("old"));
        names.forget(&unloaded(0x1000, 0x2000));
        assert_eq!(names.name(0x1000), None);
        learn(&mut names, "new");
        assert_eq!(names.name(0x1000), Some("new"));
    }

    #[test]
    fn a_program_of_ours_is_never_named_below_the_traced_function() {
        for ours in ["tb_x", "bp_access", "it_locked"] {
            let table =
                "ffffffff81000100 T down_read\nffffffff81000400 T _etext\nffffffffc0000000 t bpf_prog_1f_".to_owned();
            let symbols = Kallsyms::parse(format!("{table}{ours}\t[bpf]\n"));
            let symbolizer = Symbolizer::new(PathBuf::new()).with(Some(symbols));
            let frames: Vec<String> =
                symbolizer.frames(&[0xffff_ffff_8100_0110, 0xffff_ffff_c000_0330]).iter().map(Frame::text).collect();
            assert_eq!(frames, ["down_read+0x10", "0xffffffffc0000330 [bpf]"], "{ours}");
        }
    }
}
