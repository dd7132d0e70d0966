//! What each bit of pagemap can say on this kernel, to this user. Found out by putting pages of a mapping of our own into a
//! state and reading what the kernel says of them; never from a version.
#![expect(unsafe_code, reason = "the states are made by system calls")]

use std::{
    fs::File,
    io,
    ops::Range,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    ptr,
};

use serde::Serialize;

use super::{
    entry::Entry,
    facts::Facts,
    pagemap::Pagemap,
    scan::{Query, Scanner, category},
};

/// Whether a bit that is clear says anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "why")]
pub enum Told {
    /// The kernel sets it where it holds.
    Yes,
    /// What it stands for does not exist here: clear is the truth.
    Absent(&'static str),
    /// It is clear whatever holds.
    Hidden(&'static str),
    /// That could not be found out.
    Unknown(String),
}

impl Told {
    /// Whether a clear bit is to be believed.
    #[must_use]
    pub const fn believable(&self) -> bool {
        matches!(self, Self::Yes | Self::Absent(_))
    }

    /// Why a clear bit is not to be believed, or never set; nothing where it simply works.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Yes => None,
            Self::Absent(why) | Self::Hidden(why) => Some(why),
            Self::Unknown(why) => Some(why),
        }
    }
}

/// All that was found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ability {
    /// Frame numbers and swap slots.
    pub pfn: Told,
    /// Bit 55.
    pub soft_dirty: Told,
    /// Bit 56.
    pub exclusive: Told,
    /// Bit 57.
    pub uffd_wp: Told,
    /// Bit 58.
    pub guard: Told,
    /// The categories that `PAGEMAP_SCAN` takes; none where the kernel has no such call.
    pub scan: Option<u64>,
    /// The frame of the page of zeros, where frame numbers are told.
    #[serde(skip)]
    pub zero_pfn: Option<u64>,
}

impl Ability {
    /// Puts pages into states and looks at them in `proc`'s `self/pagemap`.
    ///
    /// # Errors
    /// When there is no pagemap, or no memory.
    pub fn probe(proc: &Path) -> io::Result<Self> {
        let mut pages = Pages::map()?;
        let mut pagemap = Pagemap::open(&proc.join("self"))?;
        pages.write(Pages::WRITTEN);
        let zero = pages.read(Pages::READ);
        debug_assert_eq!(zero, 0);
        pages.write(Pages::PROTECTED);
        let written = pages.look(&mut pagemap, Pages::WRITTEN)?;
        let read = pages.look(&mut pagemap, Pages::READ)?;
        let guard = pages.install_guard();
        let guarded = pages.look(&mut pagemap, Pages::GUARDED)?;
        let protected = pages.protect();
        let marked = pages.look(&mut pagemap, Pages::PROTECTED)?;
        Ok(Self {
            pfn: match written.pfn() {
                Some(_) => Told::Yes,
                None if written.present() => Told::Hidden(
                    "frame numbers and swap slots are zeroed for who has not CAP_SYS_ADMIN in the first user namespace",
                ),
                None => Told::Unknown("a page that was just written is not there".to_owned()),
            },
            soft_dirty: match written.soft_dirty() {
                true => Told::Yes,
                false => Told::Hidden("this kernel does not keep soft-dirty marks (CONFIG_MEM_SOFT_DIRTY)"),
            },
            exclusive: match written.exclusive() {
                true => Told::Yes,
                false => Told::Hidden("this kernel does not mark a page that only one process has mapped"),
            },
            uffd_wp: match (&protected, marked.uffd_write_protected()) {
                (_, true) => Told::Yes,
                (Ok(_), false) => {
                    Told::Hidden("this kernel write-protects by userfaultfd, but says so in pagemap only since 5.13")
                }
                (Err(err), false) => match err.raw_os_error() {
                    Some(libc::ENOSYS | libc::EINVAL) => {
                        Told::Absent("this kernel has no write protection by userfaultfd")
                    }
                    _ => Told::Unknown(format!("userfaultfd could not be tried: {err}")),
                },
            },
            guard: match (guard, guarded.guard()) {
                (_, true) => Told::Yes,
                (true, false) => {
                    Told::Hidden("this kernel makes guard regions, but says so in pagemap only since 6.15")
                }
                (false, false) => Told::Absent("this kernel has no guard regions"),
            },
            scan: categories(pagemap.file(), &pages),
            zero_pfn: read.pfn(),
        })
    }

    /// Facts that cannot be told here, with the reason.
    #[must_use]
    pub fn untold(&self) -> Vec<(Facts, &str)> {
        let of = [
            (Facts::SOFT_DIRTY, &self.soft_dirty),
            (Facts::EXCLUSIVE, &self.exclusive),
            (Facts::UFFD_WP, &self.uffd_wp),
            (Facts::GUARD, &self.guard),
        ];
        let untold = of.into_iter().filter(|(_, told)| !told.believable());
        untold.filter_map(|(fact, told)| Some((fact, told.why()?))).collect()
    }

    /// The facts that `PAGEMAP_SCAN` tells here.
    #[must_use]
    pub fn scanned(&self) -> Facts {
        let Some(categories) = self.scan else { return Facts::NONE };
        match categories & category::GUARD {
            // Not told of a kernel without guard regions is the truth.
            0 if !matches!(self.guard, Told::Absent(_)) => Facts::OF_SCAN.without(Facts::GUARD),
            _ => Facts::OF_SCAN,
        }
    }
}

/// The categories that the kernel's `PAGEMAP_SCAN` takes.
fn categories(pagemap: &File, pages: &Pages) -> Option<u64> {
    const FIRST: u64 =
        category::WRITTEN | category::FILE | category::PRESENT | category::SWAPPED | category::PFNZERO | category::HUGE;
    let Range { start, end } = pages.range(Pages::WRITTEN);
    let takes = |returned| {
        let query = Query { returned, ..Query::default() };
        Scanner::default().scan(pagemap, start, end, query, 0).is_ok()
    };
    [FIRST | category::GUARD, FIRST].into_iter().find(|set| takes(*set))
}

/// Memory to try things on.
struct Pages {
    start: usize,
    size: usize,
}

impl Pages {
    const WRITTEN: usize = 0;
    const READ: usize = 1;
    const GUARDED: usize = 2;
    const PROTECTED: usize = 3;
    const COUNT: usize = 4;

    fn map() -> io::Result<Self> {
        let size = rustix::param::page_size();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: new memory, where the kernel likes.
        let start = unsafe { libc::mmap(ptr::null_mut(), Self::COUNT * size, access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.expose_provenance(), size })
    }

    fn at(&self, page: usize) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.start + page * self.size)
    }

    fn range(&self, page: usize) -> Range<u64> {
        let start = (self.start + page * self.size) as u64;
        start..start + self.size as u64
    }

    fn write(&mut self, page: usize) {
        // SAFETY: the page is mapped for writing and the value's own.
        unsafe { self.at(page).write_volatile(1) };
    }

    fn read(&self, page: usize) -> u8 {
        // SAFETY: the page is mapped and holds plain bytes.
        unsafe { self.at(page).read_volatile() }
    }

    fn look(&self, pagemap: &mut Pagemap, page: usize) -> io::Result<Entry> {
        let first = (self.start / self.size + page) as u64;
        pagemap.read(first, 1)?.next().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Whether the kernel makes guard regions.
    fn install_guard(&mut self) -> bool {
        /// `MADV_GUARD_INSTALL`.
        const INSTALL: libc::c_int = 102;
        // SAFETY: the page is the value's own and nothing touches it.
        unsafe { libc::madvise(self.at(Self::GUARDED).cast(), self.size, INSTALL) == 0 }
    }

    /// Write-protects a page as long as the descriptor is open; nothing writes to it meanwhile.
    fn protect(&mut self) -> io::Result<OwnedFd> {
        const fn request(number: u64, size: u64) -> u64 {
            3 << 30 | size << 16 | 0xaa << 8 | number
        }
        const API: u64 = request(0x3f, 24);
        const REGISTER: u64 = request(0, 32);
        const WRITE_PROTECT: u64 = request(6, 24);
        /// `UFFDIO_REGISTER_MODE_WP`.
        const MODE_WP: u64 = 1 << 1;
        /// `UFFD_USER_MODE_ONLY`: needs no privilege; kernels before 5.11 do not know it.
        const USER_ONLY: libc::c_int = 1;
        let open = |flags: libc::c_int| {
            // SAFETY: takes flags and gives a descriptor.
            let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK | flags) };
            match i32::try_from(fd) {
                // SAFETY: the descriptor is new and nobody else's.
                Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
                _ => Err(io::Error::last_os_error()),
            }
        };
        let fd = open(USER_ONLY).or_else(|_| open(0))?;
        let Range { start, end } = self.range(Self::PROTECTED);
        // Each is the structure of the request, in words: linux/userfaultfd.h.
        let mut api = [0xaa, 1, 0];
        let mut register = [start, end - start, MODE_WP, 0];
        let mut protect = [start, end - start, 1];
        let steps: [(u64, &mut [u64]); 3] = [(API, &mut api), (REGISTER, &mut register), (WRITE_PROTECT, &mut protect)];
        for (request, argument) in steps {
            // SAFETY: the words are live and as many as the request's size says; the range is the value's own.
            if unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument.as_mut_ptr()) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(fd)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is the value's own.
        unsafe { libc::munmap(self.at(0).cast(), Self::COUNT * self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_says_what_it_can_say() {
        let ability = Ability::probe(Path::new("/proc")).unwrap();
        assert_eq!(ability.exclusive, Told::Yes, "since 4.2");
        assert!(!matches!(ability.pfn, Told::Absent(_)));
        let told = ability.untold().into_iter().fold(Facts::OF_ENTRY, |told, (fact, _)| told.without(fact));
        assert_eq!(told.any(Facts::SOFT_DIRTY), ability.soft_dirty == Told::Yes);
        // Two probes of one kernel agree.
        assert_eq!(Ability::probe(Path::new("/proc")).unwrap(), ability);
    }
}
