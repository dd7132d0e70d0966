//! Reads the kernel's structures at the offsets the loader found in BTF. Every read can fail and says so.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{
        bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_kernel_str_bytes,
        generated::bpf_probe_read_kernel as bpf_probe_read_kernel_raw,
    },
    macros::map,
    maps::{Array, HashMap},
};
use pagetrace_ebpf::wire::{CAST, MmOwner, setting};

/// The settings; the loader overwrites them before the verifier sees them, so each is a constant to it.
#[unsafe(no_mangle)]
static SETTINGS: [u64; setting::LEN] = [0; setting::LEN];

/// One setting.
#[inline(always)]
pub(crate) fn setting(index: usize) -> u64 {
    // SAFETY: indices are constants below the array's length. Volatile, since the value is not the compiler's zero.
    unsafe { core::ptr::read_volatile(&raw const SETTINGS[index]) }
}

/// Reads a value of kernel memory.
#[inline(always)]
pub(crate) fn read<T: Copy>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address itself and fails on a bad one.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// Whether [`word_at`] can be used.
#[inline(always)]
pub(crate) fn can_cast() -> bool {
    setting(setting::CAST_TYPE) != setting::NONE
}

/// A word of kernel memory, 0 where it cannot be read. A load and no call: since `bpf_rdonly_cast` (6.2) the kernel lets a program
/// read through any address that it is told the type of, and handles a fault itself.
#[inline(always)]
pub(crate) fn word_at(address: u64) -> u64 {
    // SAFETY: the loader has put a function of the kernel in this number's place; it gives the address back, of which the verifier
    // then knows the type: a struct that begins with a word.
    unsafe {
        let cast: unsafe extern "C" fn(u64, u32) -> *const u64 = core::mem::transmute(CAST as usize);
        core::ptr::read_volatile(cast(address, setting(setting::CAST_TYPE) as u32))
    }
}

/// Reads the member whose offset is `member`.
#[inline(always)]
pub(crate) fn member<T: Copy>(base: u64, member: usize) -> Option<T> {
    let offset = setting(member);
    if offset == setting::NONE { None } else { read(base.wrapping_add(offset)) }
}

/// Numbers and arrays of them: any bytes are one.
pub(crate) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Writes the member whose offset is `member` to `out`; zeroes where there is no such member, or it cannot be read, as near
/// address 0.
///
/// Every branch is one more way for the verifier to follow, and this has none.
#[inline(always)]
pub(crate) fn member_to<T: Plain>(out: &mut T, base: u64, member: usize) {
    let offset = setting(member);
    let from = if offset == setting::NONE { 0 } else { base.wrapping_add(offset) };
    // SAFETY: the helper writes the bytes of the value and no more, zeroes when it fails (kernel/trace/bpf_trace.c,
    // `bpf_probe_read_kernel_common`).
    unsafe { bpf_probe_read_kernel_raw((&raw mut *out).cast(), size_of::<T>() as u32, from as *const c_void) };
}

/// As [`member_to`], for a value on the stack.
#[inline(always)]
pub(crate) fn member_or_zero(base: u64, member: usize) -> u64 {
    let mut value = 0;
    member_to(&mut value, base, member);
    value
}

/// The current `task_struct`.
#[inline(always)]
pub(crate) fn current() -> u64 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_get_current_task() }
}

/// `current->mm`; 0 for a kernel thread that uses none.
#[inline(always)]
pub(crate) fn current_mm() -> u64 {
    member(current(), setting::TASK_MM).unwrap_or(0)
}

/// Whether the current task has page faults disabled (include/linux/uaccess.h, `pagefault_disabled`).
///
/// The helper that reads kernel memory disables page faults itself meanwhile (mm/maccess.c,
/// `copy_from_kernel_nofault`), so the depth it reads is one too high.
#[inline(always)]
pub(crate) fn nofault() -> bool {
    member::<u32>(current(), setting::TASK_NOFAULT).unwrap_or(0) > 1
}

/// When the last hook was attached, nanoseconds of `CLOCK_MONOTONIC`; 0 until then.
#[map]
static ATTACHED_AT: Array<u64> = Array::with_max_entries(1, 0);

#[inline(always)]
fn attached_at() -> u64 {
    ATTACHED_AT.get(0).copied().unwrap_or(0)
}

/// Whether every hook is attached.
#[inline(always)]
pub(crate) fn all_attached() -> bool {
    attached_at() != 0
}

/// Whether the current task is older than the tracing.
#[inline(always)]
pub(crate) fn predates_tracing() -> bool {
    let attached = attached_at();
    attached == 0 || member::<u64>(current(), setting::TASK_START).is_some_and(|start| start < attached)
}

/// The task that owns an mm, and its process id.
#[inline(always)]
pub(crate) fn owner_task(mm: u64) -> Option<(u64, u32)> {
    let task: u64 = member(mm, setting::MM_OWNER)?;
    if task == 0 {
        return None;
    }
    Some((task, member(task, setting::TASK_TGID)?))
}

/// Writes whose address space `mm` is. What is unknown is 0.
#[inline(always)]
pub(crate) fn describe_mm(mm: u64, out: &mut MmOwner) {
    let owner = member_or_zero(mm, setting::MM_OWNER);
    out.mm = mm;
    member_to(&mut out.tgid, owner, setting::TASK_TGID);
    out.pad = 0;
    member_to(&mut out.comm, owner, setting::TASK_COMM);
}

/// Reads a NUL-terminated string; what does not fit is cut off.
#[inline(always)]
pub(crate) fn read_str(address: u64, out: &mut [u8]) {
    // SAFETY: the helper checks the address and writes at most `out.len()` bytes.
    let _ = unsafe { bpf_probe_read_kernel_str_bytes(address as *const u8, out) };
}

/// Reads a string as words, zeroes behind it.
#[inline(always)]
pub(crate) fn read_words<const N: usize>(address: u64, out: &mut [u64; N]) {
    // SAFETY: the bytes of the words, all of which may have any value.
    let bytes = unsafe { core::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<u8>(), N * 8) };
    read_str(address, bytes);
}

/// Bases of the direct map and of the page descriptors, and the cache that mm_structs come from.
#[repr(C)]
#[derive(Clone, Copy)]
struct SlabLayout {
    page_offset: u64,
    vmemmap: u64,
    cache: u64,
    size: u64,
}

#[map]
static SLAB_LAYOUT: Array<SlabLayout> = Array::with_max_entries(1, 0);

/// Address spaces known to exist, for kernels whose slabs cannot be read.
#[map]
static KNOWN_MMS: HashMap<u64, u32> = HashMap::with_max_entries(65536, 0);

/// Remembers an address space.
#[inline(always)]
pub(crate) fn know_mm(mm: u64) {
    if mm != 0 {
        let _ = KNOWN_MMS.insert(&mm, &1, 0);
    }
}

/// The mm whose `mmap_lock` is at `sem`; `None` when this semaphore is another kind of lock.
#[inline(always)]
pub(crate) fn mm_of_lock(sem: u64) -> Option<u64> {
    let mm = sem.wrapping_sub(setting(setting::MM_LOCK));
    if mm == current_mm() {
        return Some(mm);
    }
    if setting(setting::MM_CACHE) == setting::NONE {
        // SAFETY: only presence matters; the value is never dereferenced.
        return unsafe { KNOWN_MMS.get(&mm) }.map(|_| mm);
    }
    in_mm_cache(mm).then_some(mm)
}

/// Bases and sizes, read once.
#[inline(always)]
fn layout() -> Option<&'static SlabLayout> {
    let layout = SLAB_LAYOUT.get_ptr_mut(0)?;
    // SAFETY: an array map's entry 0 always exists; writers race only to store the same values.
    let layout = unsafe { &mut *layout };
    if layout.size == 0 && !fill(layout) { None } else { Some(layout) }
}

/// The descriptor of the first page of whatever `address` of the direct map lies in (mm/slab.h, `virt_to_slab`); 0 outside.
#[inline(always)]
fn page_head(layout: &SlabLayout, address: u64) -> u64 {
    if address < layout.page_offset || address >= layout.vmemmap {
        return 0;
    }
    let page_size = setting(setting::PAGE_SIZE_OF);
    let page = layout.vmemmap.wrapping_add(((address - layout.page_offset) >> 12).wrapping_mul(page_size));
    let Some(word) = member::<u64>(page, setting::PAGE_HEAD) else { return 0 };
    match word & 1 {
        0 => page,
        // A mask has all upper bits set, which no pointer into the page descriptors has.
        _ if setting(setting::PAGE_HEAD_IS_MASK) == 1 && word >> 32 == 0xffff_ffff => page & word,
        _ => word - 1,
    }
}

/// The address of the page that a descriptor is about.
#[inline(always)]
fn page_address(layout: &SlabLayout, page: u64) -> u64 {
    // A plain division could panic, and the verifier refuses the call to a function that never returns.
    let index = page.wrapping_sub(layout.vmemmap).checked_div(setting(setting::PAGE_SIZE_OF)).unwrap_or(0);
    layout.page_offset.wrapping_add(index << 12)
}

/// Whether `mm` is the start of an object of the `mm_struct` slab cache.
#[inline(always)]
fn in_mm_cache(mm: u64) -> bool {
    let Some(mm) = as_number(mm) else { return false };
    let Some(layout) = layout() else { return false };
    let head = page_head(layout, mm);
    if head == 0 || member::<u64>(head, setting::SLAB_CACHE) != Some(layout.cache) {
        return false;
    }
    // mm_struct embeds another rw_semaphore (context.ldt_usr_sem): only the one at the object's start plus the
    // offset of mmap_lock counts.
    mm.wrapping_sub(page_address(layout, head)).checked_rem(layout.size) == Some(0)
}

/// The slab cache that the object at `address` comes from, and the offset in the object.
#[inline(always)]
pub(crate) fn slab_object(address: u64) -> Option<(u64, u64)> {
    if setting(setting::MM_CACHE) == setting::NONE || setting(setting::SLAB_TEST_AT) == setting::NONE {
        return None;
    }
    let layout = layout()?;
    let head = page_head(layout, address);
    if head == 0 {
        return None;
    }
    let word = u64::from(member::<u32>(head, setting::SLAB_TEST_AT)?);
    if word >> setting(setting::SLAB_TEST_SHIFT) & setting(setting::SLAB_TEST_MASK) != setting(setting::SLAB_TEST_VALUE)
    {
        return None;
    }
    let cache = member::<u64>(head, setting::SLAB_CACHE)?;
    let size = u64::from(member::<u32>(cache, setting::CACHE_SIZE)?);
    Some((cache, address.wrapping_sub(page_address(layout, head)).checked_rem(size)?))
}

/// The same value, of which the verifier does not know any more that it is a pointer: an fentry argument is typed,
/// and subtracting from it or shifting it is refused.
#[inline(always)]
pub(crate) fn as_number(pointer: u64) -> Option<u64> {
    let spilled = core::hint::black_box(pointer);
    read(&raw const spilled as u64)
}

/// A value that a global function takes; 0 when it cannot be had.
#[inline(always)]
pub(crate) fn number(value: u64) -> u64 {
    as_number(value).unwrap_or(0)
}

#[inline(always)]
fn fill(layout: &mut SlabLayout) -> bool {
    let Some(page_offset) = read::<u64>(setting(setting::PAGE_OFFSET_BASE)) else { return false };
    let Some(vmemmap) = read::<u64>(setting(setting::VMEMMAP_BASE)) else { return false };
    let Some(cache) = read::<u64>(setting(setting::MM_CACHE)) else { return false };
    let Some(size) = member::<u32>(cache, setting::CACHE_SIZE) else { return false };
    layout.page_offset = page_offset;
    layout.vmemmap = vmemmap;
    layout.cache = cache;
    layout.size = u64::from(size);
    size != 0
}
