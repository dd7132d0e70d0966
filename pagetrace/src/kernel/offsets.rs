//! Where the members lie that the BPF programs read, on the running kernel, all in bytes.
//!
//! Read from BTF at load time and handed to the programs as globals; nothing here is a constant of some kernel.
//! A member that a supported kernel may lack is an `Option`; one without which no event can be understood is an error.

use serde::{Deserialize, Serialize};

use super::btf::Btf;

/// A member that every kernel pagetrace supports has, and this one has not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's BTF has no byte offset for {of}.{member}, which pagetrace must read")]
pub struct MissingMember {
    /// The struct.
    pub of: &'static str,
    /// The member, or `sizeof`.
    pub member: String,
}

/// Declares a struct of offsets and how each is found. `required` members must exist; of the paths of an `optional`
/// member the first that exists counts; `size` is the size of the struct itself.
macro_rules! layout {
    ($(#[$doc:meta])* $name:ident of $of:literal $(with $size:ident)? {
        required { $($(#[$req_doc:meta])* $req:ident = $req_path:literal,)* }
        optional { $($(#[$opt_doc:meta])* $opt:ident = [$($opt_path:literal),+],)* }
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $name {
            $($(#[$req_doc])* pub $req: u32,)*
            $($(#[$opt_doc])* pub $opt: Option<u32>,)*
            $(#[doc = "The size of the struct itself."] pub $size: u32,)?
        }

        impl $name {
            fn from_btf(btf: &Btf) -> Result<Self, MissingMember> {
                Ok(Self {
                    $($req: required(btf, $of, $req_path)?,)*
                    $($opt: first(btf, $of, &[$($opt_path),+]),)*
                    $($size: btf.struct_size($of).ok_or_else(|| missing($of, "sizeof"))?,)?
                })
            }
        }
    };
}

layout! {
    /// `struct task_struct`, `include/linux/sched.h`.
    Task of "task_struct" {
        required {
            /// The task's address space; null for a kernel thread that borrows none.
            mm = "mm",
            /// The thread's id, what user space calls tid.
            pid = "pid",
            /// The process's id, what user space calls pid.
            tgid = "tgid",
            /// The name, 16 bytes with its NUL.
            comm = "comm",
            /// `PF_*` bits.
            flags = "flags",
            /// Depth of `pagefault_disable()`; a fault is only a failed access while it is not zero.
            pagefault_disabled = "pagefault_disabled",
            /// What the threads of a process share, from its making to its end.
            signal = "signal",
            /// The task that gets the wait status.
            real_parent = "real_parent",
        }
        optional {
            /// Monotonic nanoseconds of the task's start: with the tid, an identity that is not reused.
            start_time = ["start_time", "start_boottime"],
            /// Start in the clock that counts suspend too.
            start_boottime = ["start_boottime", "real_start_time"],
            /// Signals pending for this thread, the first 64 as bits.
            pending = ["pending.signal"],
            /// Run state; `state` (a long) before 5.14, `__state` (an int) since.
            state = ["__state", "state"],
        }
    }
}

layout! {
    /// `struct mm_struct`, `include/linux/mm_types.h`.
    Mm of "mm_struct" with size {
        required {
            /// The lock this program is about.
            mmap_lock = "mmap_lock",
            /// Users of the address space, an `atomic_t`.
            mm_users = "mm_users",
        }
        optional {
            /// The task that answers for the address space; needs `CONFIG_MEMCG`.
            owner = ["owner"],
            /// The highest page table.
            pgd = ["pgd"],
            /// lockdep's description of the lock, on kernels that have lockdep.
            mmap_lock_dep_map = ["mmap_lock.dep_map"],
            /// Sequence count of the per-VMA locks.
            mm_lock_seq = ["mm_lock_seq"],
        }
    }
}

layout! {
    /// `struct rw_semaphore`, `include/linux/rwsem.h`.
    Rwsem of "rw_semaphore" {
        required {
            /// Bit 0 a writer holds it, bit 1 there are waiters, bits 8 and up count readers (`kernel/locking/rwsem.c`).
            count = "count",
        }
        optional {
            /// Writer's `task_struct`, or the last reader's with flags in the low bits.
            owner = ["owner"],
            /// Head of the queue of waiters, until 7.2.
            wait_list = ["wait_list"],
            /// First of the queue of waiters, from 7.3 on.
            first_waiter = ["first_waiter"],
        }
    }
}

layout! {
    /// `struct vm_area_struct`, `include/linux/mm_types.h`.
    Vma of "vm_area_struct" {
        required {
            /// First address.
            vm_start = "vm_start",
            /// First address after it.
            vm_end = "vm_end",
            /// `VM_*` bits.
            vm_flags = "vm_flags",
            /// The address space it belongs to.
            vm_mm = "vm_mm",
            /// The mapped file, or null.
            vm_file = "vm_file",
            /// Offset in the file, in pages.
            vm_pgoff = "vm_pgoff",
        }
        optional {}
    }
}

/// From a mapped file to its name: `struct file`, `struct dentry`, `struct inode`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// `file.f_path.dentry`, a pointer.
    pub dentry: u32,
    /// `dentry.d_name.name`, a pointer to the last path component.
    pub d_name: u32,
    /// `dentry.d_parent`, a pointer; the root's points to itself.
    pub d_parent: u32,
    /// `dentry.d_inode`, a pointer.
    pub d_inode: u32,
    /// `inode.i_ino`.
    pub i_ino: u32,
}

impl File {
    fn from_btf(btf: &Btf) -> Result<Self, MissingMember> {
        Ok(Self {
            dentry: required(btf, "file", "f_path.dentry")?,
            d_name: required(btf, "dentry", "d_name.name")?,
            d_parent: required(btf, "dentry", "d_parent")?,
            d_inode: required(btf, "dentry", "d_inode")?,
            i_ino: required(btf, "inode", "i_ino")?,
        })
    }
}

/// Registers at an exception or probe, `struct pt_regs`. Fields differ by architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regs {
    /// Instruction pointer: `ip`, or `pc` on arm64.
    pub ip: u32,
    /// Stack pointer.
    pub sp: u32,
    /// Code segment, whose low two bits tell user mode (x86).
    pub cs: Option<u32>,
    /// Processor state, which tells user mode (arm64).
    pub pstate: Option<u32>,
}

impl Regs {
    fn from_btf(btf: &Btf) -> Result<Self, MissingMember> {
        let of = "pt_regs";
        Ok(Self {
            ip: first(btf, of, &["ip", "pc", "epc"]).ok_or_else(|| missing(of, "ip"))?,
            sp: first(btf, of, &["sp"]).ok_or_else(|| missing(of, "sp"))?,
            cs: first(btf, of, &["cs"]),
            pstate: first(btf, of, &["pstate"]),
        })
    }
}

layout! {
    /// `struct mm_walk_ops`, `include/linux/pagewalk.h`: tells one kind of page walk from another.
    WalkOps of "mm_walk_ops" {
        required {}
        optional {
            /// Called for each page middle directory entry.
            pmd_entry = ["pmd_entry"],
            /// Called for each page table entry.
            pte_entry = ["pte_entry"],
            /// Called for each hole.
            pte_hole = ["pte_hole"],
            /// Called for each huge page entry.
            hugetlb_entry = ["hugetlb_entry"],
            /// Says whether an area is walked.
            test_walk = ["test_walk"],
            /// Which lock the walk asks for; since 6.5.
            walk_lock = ["walk_lock"],
        }
    }
}

layout! {
    /// `struct mm_walk`, `include/linux/pagewalk.h`.
    Walk of "mm_walk" {
        required {}
        optional {
            /// The callbacks, a pointer to `struct mm_walk_ops`.
            ops = ["ops"],
            /// The address space walked.
            mm = ["mm"],
            /// The area the walk is in.
            vma = ["vma"],
            /// The caller's own state.
            private = ["private"],
        }
    }
}

/// From a cgroup to the number that `bpf_get_current_cgroup_id()` gives. The path crosses a pointer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// `cgroup.kn`, a pointer.
    pub kn: Option<u32>,
    /// `kernfs_node.id`, 64 bits.
    pub kn_id: Option<u32>,
}

pub use super::slab::Slab;

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offsets {
    /// `task_struct`.
    pub task: Task,
    /// `mm_struct`.
    pub mm: Mm,
    /// `rw_semaphore`.
    pub rwsem: Rwsem,
    /// `vm_area_struct`.
    pub vma: Vma,
    /// `file`, `dentry`, `inode`.
    pub file: File,
    /// `pt_regs`.
    pub regs: Regs,
    /// `mm_walk_ops`.
    pub walk_ops: WalkOps,
    /// `mm_walk`.
    pub walk: Walk,
    /// `cgroup` and `kernfs_node`.
    pub cgroup: Cgroup,
    /// Pages and slab caches; `None` if this kernel's layout is not one that is understood.
    pub slab: Option<Slab>,
}

impl Offsets {
    /// Reads all offsets from the kernel's BTF.
    ///
    /// # Errors
    /// [`MissingMember`] names the first struct and member that is absent and cannot be done without.
    pub fn from_btf(btf: &Btf) -> Result<Self, MissingMember> {
        Ok(Self {
            task: Task::from_btf(btf)?,
            mm: Mm::from_btf(btf)?,
            rwsem: Rwsem::from_btf(btf)?,
            vma: Vma::from_btf(btf)?,
            file: File::from_btf(btf)?,
            regs: Regs::from_btf(btf)?,
            walk_ops: WalkOps::from_btf(btf)?,
            walk: Walk::from_btf(btf)?,
            cgroup: Cgroup { kn: first(btf, "cgroup", &["kn"]), kn_id: first(btf, "kernfs_node", &["id"]) },
            slab: Slab::from_btf(btf),
        })
    }
}

fn required(btf: &Btf, of: &'static str, path: &str) -> Result<u32, MissingMember> {
    btf.member_offset(of, path).ok_or_else(|| missing(of, path))
}

fn missing(of: &'static str, member: &str) -> MissingMember {
    MissingMember { of, member: member.to_owned() }
}

fn first(btf: &Btf, of: &str, paths: &[&str]) -> Option<u32> {
    paths.iter().find_map(|path| btf.member_offset(of, path))
}

#[cfg(test)]
mod tests {
    use super::{MissingMember, Offsets};
    use crate::kernel::btf::{Btf, testing::Builder};

    #[test]
    fn a_missing_member_is_named() {
        let mut b = Builder::new();
        let int = b.int("int", 4);
        b.record("task_struct", 8, &[("mm", int, 0), ("pid", int, 32)]);
        let error = Offsets::from_btf(&Btf::parse(b.finish()).unwrap()).unwrap_err();
        assert_eq!(error, MissingMember { of: "task_struct", member: "tgid".to_owned() });
        assert!(error.to_string().contains("task_struct.tgid"));
    }

    #[test]
    fn the_running_kernel_has_them_all() {
        let Ok(blob) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let offsets = Offsets::from_btf(&Btf::parse(blob).unwrap()).unwrap();
        assert_eq!(offsets.task.tgid, offsets.task.pid + 4);
        assert!(offsets.rwsem.wait_list.is_some() || offsets.rwsem.first_waiter.is_some());
        assert!(offsets.mm.mmap_lock < offsets.mm.size);
        println!("{}", serde_json::to_string(&offsets).unwrap());
    }
}
