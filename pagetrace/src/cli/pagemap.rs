//! `pagetrace pagemap`: what a process has in memory, read from `/proc/PID/pagemap`. Attaches nothing.

mod args;
mod progress;

use std::{
    cell::RefCell,
    collections::HashMap,
    fs::{self, File},
    io::{self, BufReader, BufWriter},
    ops::Range,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

pub(super) use self::args::PagemapArgs;
use self::progress::Progress;
use super::{
    exit::{Exit, Unmet},
    sink,
};
use crate::{
    output::{
        Format,
        pagemap::{Head, Render, Sums, Tail, View, json::Json, text, text::Text},
    },
    pages::{
        Facts, Vma, Vmas,
        ability::Ability,
        expr::Expr,
        gather::{Detail, Gather, Line},
        kpage::Frames,
        process::{Now, Process, ProcessError},
        smaps::{self, Smaps},
        summary::{Counts, Density},
        walk::{ScanUse, Walker},
    },
};

/// How often a process is asked whether it is still the same.
const ASK: Duration = Duration::from_millis(100);

/// Something that was asked for does not exist.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Nothing(String);

/// What is looked at.
struct Target {
    process: Process,
    vmas: Vec<Vma>,
    unreadable_lines: usize,
    smaps: HashMap<u64, Smaps>,
}

/// Reads and prints.
pub(super) fn run(args: &PagemapArgs) -> Result<Exit> {
    let (out, _) = sink::open(args.output.output.as_deref())?;
    let proc = Path::new("/proc");
    let page_size = u64::try_from(rustix::param::page_size()).context("a page has a size")?;
    let ability = Ability::probe(proc).map_err(|err| {
        Unmet(format!("cannot read this process's own pagemap ({err}): the kernel needs CONFIG_PROC_PAGE_MONITOR, and /proc mounted"))
    })?;
    let filter = args.filter.as_deref().map(Expr::parse).transpose().map_err(BadCondition)?;
    able(args, &ability, filter.as_ref())?;
    let target = Target::open(proc, args, page_size)?;
    let mut walker = Walker::open(&target.process.dir, &ability, args.scan, args.pace)
        .map_err(|err| ProcessError::of(target.process.pid, "pagemap", err))?;
    let mut frames = None;
    if args.flags {
        let opened = Frames::open(proc);
        frames =
            Some(opened.map_err(|err| Unmet(format!("cannot read /proc/kpageflags ({err}): --flags needs root")))?);
    }
    // All files are open: were they all those of one program?
    target.still()?;
    let out = BufWriter::with_capacity(1 << 16, out);
    let mut render: Box<dyn Render> = match args.output.format {
        Format::Text => Box::new(Text::new(out)),
        Format::Json => Box::new(Json::new(out)),
    };
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    render.head(&Head {
        pid: target.process.pid,
        comm: &target.process.comm,
        release: &release,
        ability: &ability,
        page_size,
        filter: args.filter.as_deref(),
        view: args.view,
        mappings: target.vmas.len(),
        flags: args.flags,
    })?;
    let tail = read(args, &target, &mut walker, (filter.as_ref(), frames.as_mut()), page_size, &mut *render)?;
    render.finish(&tail)?;
    Ok(if tail.incomplete_because.is_empty() { Exit::Clean } else { Exit::Incomplete })
}

/// The condition is none, or cannot be answered here.
#[derive(Debug, thiserror::Error)]
#[error("--where: {0}")]
pub(super) struct BadCondition(crate::pages::expr::ExprError);

/// The code that an error of this command ends with.
pub(super) fn exit(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if cause.is::<Nothing>() || cause.is::<BadCondition>() {
        return Some(Exit::Usage);
    }
    cause.downcast_ref::<ProcessError>().map(|err| match err {
        ProcessError::Forbidden { .. } => Exit::Cannot,
        ProcessError::Read { .. } => Exit::Internal,
        _ => Exit::Usage,
    })
}

/// Refuses what this kernel or this user cannot answer, before anything is read.
fn able(args: &PagemapArgs, ability: &Ability, filter: Option<&Expr>) -> Result<()> {
    if args.scan == ScanUse::Always && ability.scan.is_none() {
        return Err(Unmet(
            "--scan always: this kernel has no PAGEMAP_SCAN, which came with 6.7; leave --scan away".to_owned(),
        )
        .into());
    }
    let Some(filter) = filter else { return Ok(()) };
    for (fact, why) in ability.untold() {
        if filter.facts().any(fact) {
            let name = fact.names().collect::<Vec<_>>().join(" ");
            return Err(Unmet(format!("--where asks for {name}, which cannot be told here: {why}")).into());
        }
    }
    if filter.asks_frames() && !args.flags {
        return Err(Nothing("--where asks for flags of frames (kpf_…), which only --flags reads".to_owned()).into());
    }
    if filter.asks_frames() && ability.pfn != crate::pages::ability::Told::Yes {
        return Err(Unmet(
            "--where asks for flags of frames (kpf_…): this needs --flags and root with CAP_SYS_ADMIN".to_owned(),
        )
        .into());
    }
    Ok(())
}

impl Target {
    fn open(proc: &Path, args: &PagemapArgs, page_size: u64) -> Result<Self> {
        let process = Process::open(proc, args.pid())?;
        let maps = fs::read(process.dir.join("maps")).map_err(|err| ProcessError::of(process.pid, "maps", err))?;
        let Vmas { list, unreadable } = Vmas::parse(&maps);
        let mut smaps = HashMap::new();
        if args.smaps {
            let file =
                File::open(process.dir.join("smaps")).map_err(|err| ProcessError::of(process.pid, "smaps", err))?;
            smaps::read(BufReader::new(file), |of| {
                smaps.insert(of.vma.start, of);
            })
            .map_err(|err| ProcessError::of(process.pid, "smaps", err))?;
        }
        let mut vmas = list;
        if let Some(wanted) = &args.range {
            if !wanted.is_aligned(page_size) {
                eprintln!("pagetrace: the range does not begin and end with a page; it is widened to whole pages");
            }
            let pages = wanted.pages(page_size);
            vmas.retain(|vma| vma.pages(page_size).start < pages.end && pages.start < vma.pages(page_size).end);
            if vmas.is_empty() {
                eprintln!("pagetrace: process {} has nothing mapped in the range", process.pid);
            }
        }
        if let Some(name) = &args.vma {
            let all = std::mem::take(&mut vmas);
            let (chosen, others): (Vec<Vma>, Vec<Vma>) = all.into_iter().partition(|vma| is_called(vma, name));
            if chosen.is_empty() {
                let mut names: Vec<String> =
                    others.iter().filter(|vma| !vma.name.is_empty()).map(crate::output::pagemap::name).collect();
                names.dedup();
                names.truncate(20);
                return Err(Nothing(format!(
                    "process {} has no mapping called `{name}`; it has: {}",
                    process.pid,
                    names.join(", ")
                ))
                .into());
            }
            vmas = chosen;
        }
        Ok(Self { process, vmas, unreadable_lines: unreadable, smaps })
    }

    /// Fails if it has ended or runs another program.
    fn still(&self) -> Result<()> {
        match self.process.now() {
            Now::Same => Ok(()),
            Now::Ended => Err(ProcessError::None(self.process.pid).into()),
            Now::Executed => {
                Err(Nothing(format!("process {} has just begun another program; try again", self.process.pid)).into())
            }
        }
    }
}

/// Whether people mean this mapping: by its whole name, the last part of its path, or what stands in brackets.
fn is_called(vma: &Vma, name: &str) -> bool {
    let of = crate::output::pagemap::name(vma);
    let path = of.strip_suffix(" (deleted)").unwrap_or(&of);
    let bare = path.trim_start_matches('[').trim_end_matches(']');
    let last = |path: &str| path.rsplit('/').next() == Some(name);
    !name.is_empty() && (name == of || name == path || last(path) || last(&of) || bare == name)
}

fn read(
    args: &PagemapArgs,
    target: &Target,
    walker: &mut Walker,
    (filter, mut frames): (Option<&Expr>, Option<&mut Frames>),
    page_size: u64,
    render: &mut dyn Render,
) -> Result<Tail> {
    let wanted = args.range.as_ref().map_or(0..u64::MAX, |range| range.pages(page_size));
    let clip = |vma: &Vma| {
        let pages = vma.pages(page_size);
        pages.start.max(wanted.start)..pages.end.min(wanted.end)
    };
    let mut tail = Tail {
        totals: Counts::default(),
        unreadable: 0,
        effort: walker.effort(),
        unreadable_lines: target.unreadable_lines,
        incomplete_because: Vec::new(),
    };
    let progress = RefCell::new(Progress::new(
        target.vmas.iter().map(clip).map(|pages| pages.end.saturating_sub(pages.start)).sum(),
    ));
    let detail = match args.view {
        View::Summary | View::Map => Detail::None,
        View::Runs => Detail::Runs,
        View::Entries => Detail::Entries,
    };
    let present = Expr::Any(Facts::PRESENT);
    let mut gone = false;
    let mut asked = Instant::now();
    for vma in &target.vmas {
        let pages = clip(vma);
        let count = pages.end.saturating_sub(pages.start);
        render.begin(vma)?;
        let density = (args.view == View::Map).then(|| Density::new(pages.start, count, text::WIDTH));
        let looked_for = if pictured(args) { Some(filter.unwrap_or(&present)) } else { filter };
        let (counts, density, flags, until) = {
            let render = RefCell::new(&mut *render);
            let mut tell = |line: &Line| render.borrow_mut().line(line);
            let mut reached = |page: u64| progress.borrow_mut().within(page.saturating_sub(pages.start));
            let mut gather = Gather::new(looked_for, detail, &mut tell, &mut reached);
            gather.frames = frames.as_deref_mut();
            gather.density = density;
            gather.dense = filter.is_none().then_some(&present);
            let until = match look(args, vma, &pages, walker, &mut gather) {
                // What an address space that is gone answers.
                Err(err) if err.raw_os_error() == Some(libc::ESRCH) => {
                    gone = true;
                    pages.end
                }
                other => other?,
            };
            gather.finish()?;
            (gather.counts, gather.density.take(), args.flags.then(|| gather.flags.clone()), until)
        };
        let unreadable = pages.end.saturating_sub(until.max(pages.start));
        let sums = Sums {
            counts: Counts { pages: count, ..counts },
            flags,
            density,
            smaps: target.smaps.get(&vma.start),
            unreadable,
        };
        render.end(vma, &sums)?;
        progress.borrow_mut().done(count);
        tail.totals.merge(&sums.counts);
        tail.unreadable += unreadable;
        if gone {
            break;
        }
        if unreadable != 0 || asked.elapsed() >= ASK {
            asked = Instant::now();
            if target.process.now() != Now::Same {
                break;
            }
        }
    }
    progress.borrow_mut().clear();
    tail.effort = walker.effort();
    let pid = target.process.pid;
    match target.process.now() {
        Now::Same if gone => tail.incomplete_because.push(format!("the kernel gives no more of the pages of process {pid}")),
        Now::Same => {}
        Now::Ended => tail.incomplete_because.push(format!("process {pid} ended while it was read; what was read last may be missing")),
        Now::Executed => tail
            .incomplete_because
            .push(format!("process {pid} began another program while it was read; what was read is of the one before, and not all of it")),
    }
    if tail.totals.undecided != 0 {
        tail.incomplete_because.push(format!(
            "of {} pages it cannot be told whether the condition holds: {}",
            tail.totals.undecided,
            "huge and zero take PAGEMAP_SCAN (6.7), or root; of a driver's memory they cannot be told"
        ));
    }
    if tail.unreadable_lines != 0 {
        tail.incomplete_because
            .push(format!("{} lines of maps have not the form that proc_pid_maps(5) describes", tail.unreadable_lines));
    }
    Ok(tail)
}

/// Goes through a mapping; returns the page at which that ended. A picture alone needs no entries where a scan can tell.
fn look(
    args: &PagemapArgs,
    vma: &Vma,
    pages: &Range<u64>,
    walker: &mut Walker,
    gather: &mut Gather<'_>,
) -> io::Result<u64> {
    let filter = gather.filter;
    if let Some(filter) = filter.filter(|_| pictured(args) && !args.flags)
        && let Some(()) = walker.matching(vma, pages, filter, &mut |first, count| gather.matched(first, count))?
    {
        return Ok(pages.end);
    }
    walker.vma(vma, pages.clone(), filter, !pictured(args) || args.filter.is_some(), gather)
}

/// Whether all that is shown is which pages match: programs get the sums as well.
fn pictured(args: &PagemapArgs) -> bool {
    args.view == View::Map && args.output.format == Format::Text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_called_by_any_part_that_names_it() {
        let vma = |name: &str| Vma::parse(format!("1000-2000 rw-p 00000000 00:00 0 {name}").as_bytes()).unwrap();
        assert!(is_called(&vma("[heap]"), "heap") && is_called(&vma("[heap]"), "[heap]"));
        assert!(is_called(&vma("/usr/lib/libc.so.6"), "libc.so.6") && is_called(&vma("/a/b (deleted)"), "b"));
        assert!(is_called(&vma("/a/b (deleted)"), "b (deleted)"), "as the list of mappings shows it");
        assert!(!is_called(&vma("/usr/lib/libc.so.6"), "libc") && !is_called(&vma(""), ""));
    }
}
