//! Ways to count the present pages of a range.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use pagetrace::pages::{
    Facts, Vma, Vmas,
    ability::Ability,
    expr::Expr,
    gather::{Detail, Gather},
    walk::{ScanUse, Walker},
};

use crate::fixture::pages::PAGE_SIZE;

/// Counts present pages.
pub(super) trait Reader {
    /// How many are present.
    fn count(&mut self) -> Result<u64>;
    /// Whether a range of so many pages is for it.
    fn affordable(&self, _pages: u64) -> bool {
        true
    }
}

/// All, by name.
pub(super) fn all(pid: u32, pages: Range<u64>, pagetrace: &Path) -> Result<Vec<(&'static str, Box<dyn Reader>)>> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let ability = Ability::probe(Path::new("/proc"))?;
    let vmas = Vmas::parse(&fs::read(process.join("maps"))?);
    let start = pages.start * PAGE_SIZE as u64;
    let vma = vmas.list.into_iter().find(|vma| (vma.start..vma.end).contains(&start)).context("the mapping is gone")?;
    let ours = |scan| -> Result<Walk> {
        let walker = Walker::open(&process, &ability, scan, None)?;
        Ok(Walk { walker, vma: vma.clone(), pages: pages.clone() })
    };
    let mut out: Vec<(&'static str, Box<dyn Reader>)> = vec![
        (
            "bare pread loop",
            Box::new(Bare {
                file: File::open(process.join("pagemap"))?,
                pages: pages.clone(),
                buffer: vec![0; 1 << 18],
            }),
        ),
        ("pagetrace, library", Box::new(ours(ScanUse::Auto)?)),
        ("pagetrace, library, --scan never", Box::new(ours(ScanUse::Never)?)),
        ("pagetrace, command", Box::new(Program { program: pagetrace.to_owned(), pid, pages: pages.clone() })),
        ("procfs crate", Box::new(Procfs { pid: i32::try_from(pid)?, pages: pages.clone() })),
    ];
    if ability.scan.is_some() {
        out.push(("PAGEMAP_SCAN, by pagetrace", Box::new(Scan(ours(ScanUse::Always)?))));
    }
    Ok(out)
}

/// The least that a reader of all entries can do: one buffer, one bit looked at.
struct Bare {
    file: File,
    pages: Range<u64>,
    buffer: Vec<u8>,
}

impl Reader for Bare {
    fn count(&mut self) -> Result<u64> {
        let (mut at, end) = (self.pages.start * 8, self.pages.end * 8);
        let mut present = 0;
        while at < end {
            let wanted = usize::try_from(end - at)?.min(self.buffer.len());
            let buffer = &mut self.buffer[..wanted];
            let got = self.file.read_at(buffer, at)?;
            ensure!(got > 0, "pagemap ends");
            at += got as u64;
            let (entries, _) = buffer[..got].as_chunks();
            present += entries.iter().map(|entry| u64::from_ne_bytes(*entry) >> 63).sum::<u64>();
        }
        Ok(present)
    }
}

/// As `pagetrace pagemap` does it, within this process: all columns of the summary.
struct Walk {
    walker: Walker,
    vma: Vma,
    pages: Range<u64>,
}

impl Reader for Walk {
    fn count(&mut self) -> Result<u64> {
        let (mut tell, mut reached) = (|_: &_| Ok(()), |_| Ok(()));
        let mut gather = Gather::new(None, Detail::None, &mut tell, &mut reached);
        self.walker.vma(&self.vma, self.pages.clone(), None, true, &mut gather)?;
        Ok(gather.counts.present)
    }
}

/// Runs, and no entries.
struct Scan(Walk);

impl Reader for Scan {
    fn count(&mut self) -> Result<u64> {
        let Walk { walker, vma, pages } = &mut self.0;
        let mut present = 0;
        let mut found = |_, count: u64| -> io::Result<()> {
            present += count;
            Ok(())
        };
        walker.matching(vma, pages, &Expr::Any(Facts::PRESENT), &mut found)?.context("a scan cannot tell")?;
        Ok(present)
    }
}

/// The whole command, its start included.
struct Program {
    program: PathBuf,
    pid: u32,
    pages: Range<u64>,
}

impl Reader for Program {
    fn count(&mut self) -> Result<u64> {
        let size = PAGE_SIZE as u64;
        let range = format!("{:x}-{:x}", self.pages.start * size, self.pages.end * size);
        let mut command = Command::new(&self.program);
        command.args(["pagemap", &self.pid.to_string(), "--range", &range, "--format", "json"]).stdin(Stdio::null());
        let output = command.output()?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        let document: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        document["totals"]["present"].as_u64().context("no count")
    }
}

/// <https://docs.rs/procfs>.
struct Procfs {
    pid: i32,
    pages: Range<u64>,
}

impl Reader for Procfs {
    fn count(&mut self) -> Result<u64> {
        let mut pagemap = procfs::process::Process::new(self.pid)?.pagemap()?;
        let range = usize::try_from(self.pages.start)?..usize::try_from(self.pages.end)?;
        let present = |info: &procfs::process::PageInfo| match info {
            procfs::process::PageInfo::MemoryPage(flags) => flags.contains(procfs::process::MemoryPageFlags::PRESENT),
            procfs::process::PageInfo::SwapPage(_) => false,
        };
        Ok(pagemap.get_range_info(range)?.iter().filter(|info| present(info)).count() as u64)
    }

    /// It returns all entries in one vector, twice the size of what is read.
    fn affordable(&self, pages: u64) -> bool {
        pages <= 1 << 21
    }
}
