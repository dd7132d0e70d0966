//! The reader against blobs made by hand, damaged blobs, and the kernel the test runs on.

use proptest::prelude::*;

use super::{Btf, BtfError, raw::kind, testing::Builder};

/// Small, but with each construct the look-ups cross.
fn sample() -> Vec<u8> {
    let mut b = Builder::new();
    let int = b.int("int", 4);
    let ulong = b.int("long unsigned int", 8);
    let bool_ = b.int("bool", 1);
    let chr = b.int("char", 1);
    let sem = b.record("rw_semaphore", 16, &[("count", ulong, 0), ("owner", ulong, 64)]);
    let inner = b.record("", 16, &[("vm_start", ulong, 0), ("vm_end", ulong, 64)]);
    let either = b.aggregate(kind::UNION, "", 16, &[("", inner, 0), ("vm_rcu", int, 0)]);
    let mm = b.record("mm_struct", 64, &[("users", int, 0), ("mmap_lock", sem, 128)]);
    let mm_ptr = b.pointer(mm);
    let sem_t = b.reference(kind::TYPEDEF, "sem_t", sem);
    let sem_const = b.reference(kind::CONST, "", sem_t);
    b.record("vm_area_struct", 48, &[("", either, 0), ("vm_mm", mm_ptr, 128), ("lock", sem_const, 192)]);
    let comm = b.array(chr, 16);
    b.record("task_struct", 32, &[("comm", comm, 64), ("pid", int, 32)]);
    // kind_flag: width in the upper 8 bits of the offset word.
    b.push("flagged", 1 << 31 | kind::STRUCT << 24 | 1, 4, &[1, int, 3 << 24 | 5]);
    let void_ptr = b.pointer(0);
    let proto = b.proto(0, &[("", void_ptr), ("", mm_ptr), ("", bool_), ("", bool_)]);
    let to_proto = b.pointer(proto);
    b.reference(kind::TYPEDEF, "btf_trace_mmap_lock_acquire_returned", to_proto);
    let find = b.proto(mm_ptr, &[("mm", mm_ptr), ("addr", ulong)]);
    b.reference(kind::FUNC, "find_vma", find);
    b.enumeration("pageflags", &[("PG_locked", 0), ("PG_slab", 9)]);
    b.enumeration("", &[("ALONE", 7)]);
    b.push("wide", kind::ENUM64 << 24 | 1, 8, &[1, 2, 1]);
    b.finish()
}

#[test]
fn members_are_found_through_anonymous_ones_and_paths() {
    let btf = Btf::parse(sample()).unwrap();
    assert_eq!(btf.member_offset("mm_struct", "mmap_lock"), Some(16));
    assert_eq!(btf.member_offset("mm_struct", "mmap_lock.owner"), Some(24));
    assert_eq!(btf.member_offset("vm_area_struct", "vm_end"), Some(8));
    assert_eq!(btf.member_offset("vm_area_struct", "lock.owner"), Some(32), "through const and typedef");
    assert_eq!(btf.member_offset("vm_area_struct", "vm_mm.users"), None, "a pointer is not crossed");
    assert_eq!(btf.member_offset("vm_area_struct", "absent"), None);
    assert_eq!(btf.member_offset("absent", "vm_end"), None);
    assert_eq!(btf.member_offset("mm_struct", ""), None);
    assert_eq!(btf.struct_size("mm_struct"), Some(64));
    assert_eq!(btf.struct_size("find_vma"), None);
}

#[test]
fn types_have_names_and_sizes() {
    let btf = Btf::parse(sample()).unwrap();
    assert_eq!(btf.member_type("vm_area_struct", "vm_mm").unwrap(), "struct mm_struct *");
    assert_eq!(btf.member_type("vm_area_struct", "lock").unwrap(), "const sem_t");
    assert_eq!(btf.member_type("task_struct", "comm").unwrap(), "char[16]");
    assert_eq!(btf.member_size("task_struct", "comm"), Some(16));
    assert_eq!(btf.member_size("vm_area_struct", "lock"), Some(16));
    assert_eq!(btf.member_size("vm_area_struct", "vm_mm"), Some(8));
}

#[test]
fn a_name_of_another_class_is_no_match() {
    // In so small a blob nearly all names share a bucket of the index with another.
    for number in 0..64 {
        let name = format!("name_{number}");
        let mut builder = Builder::new();
        builder.reference(kind::TYPEDEF, &name, 2);
        builder.record(&name, 24, &[]);
        let btf = Btf::parse(builder.finish()).unwrap();
        assert_eq!(btf.struct_size(&name), Some(24));
        assert!(!btf.has_func(&name), "{name} is a struct and a typedef");
    }
}

#[test]
fn a_bit_field_has_no_byte_offset() {
    let btf = Btf::parse(sample()).unwrap();
    let member = btf.member("flagged", "int").unwrap();
    assert_eq!((member.bit_offset, member.bitfield_bits), (5, Some(3)));
    assert_eq!(member.byte_offset(), None);
}

#[test]
fn functions_and_tracepoints_have_parameters() {
    let btf = Btf::parse(sample()).unwrap();
    assert_eq!(btf.tracepoint_args("mmap_lock_acquire_returned"), Some(3));
    assert_eq!(btf.tracepoint_args("mmap_lock_released"), None);
    let find = btf.func("find_vma").unwrap();
    assert_eq!(find.position("addr"), Some(1));
    assert_eq!(find.params[0], ("mm".to_owned(), "struct mm_struct *".to_owned()));
    assert!(btf.has_func("find_vma"));
    assert!(!btf.has_func("mm_struct"), "structs and functions are different name spaces");
}

#[test]
fn enumerators_have_values() {
    let btf = Btf::parse(sample()).unwrap();
    assert_eq!(btf.enum_value("pageflags", "PG_slab"), Some(9));
    assert_eq!(btf.enum_value("pageflags", "ALONE"), None);
    assert_eq!(btf.any_enum_value("ALONE"), Some(7));
    assert_eq!(btf.enum_value("wide", "int"), Some(0x1_0000_0002));
}

#[test]
fn what_is_not_btf_is_said() {
    assert!(matches!(Btf::parse(Vec::new()), Err(BtfError::Truncated { offset: 0, .. })));
    let mut blob = sample();
    blob.swap(0, 1);
    assert_eq!(Btf::parse(blob).unwrap_err(), BtfError::ForeignEndian);
    let mut blob = sample();
    blob[2] = 9;
    assert_eq!(Btf::parse(blob).unwrap_err(), BtfError::Version { found: 9 });
    let mut blob = sample();
    blob.pop();
    assert!(matches!(Btf::parse(blob), Err(BtfError::Section { section: "string", .. })));
    assert!(matches!(Btf::parse(b"\x7fELF.........................".to_vec()), Err(BtfError::Magic { .. })));
}

#[test]
fn a_kind_from_the_future_needs_a_description_of_its_size() {
    let mut b = Builder::new();
    b.push("new", 77 << 24 | 2, 0, &[1, 2, 3]);
    b.int("int", 4);
    b.record("s", 4, &[("m", 2, 0)]);
    let blob = b.finish();
    assert_eq!(Btf::parse(blob.clone()).unwrap_err(), BtfError::UnknownKind { kind: 77, offset: 24, id: 1 });

    // The same with a header of 32 bytes and a layout section: 4 bytes fixed, 4 for each of the two elements.
    let mut described = blob[..4].to_vec();
    described.extend_from_slice(&32_u32.to_ne_bytes());
    described.extend_from_slice(&blob[8..24]);
    let sections = u32::try_from(blob.len() - 24).unwrap();
    described.extend_from_slice(&sections.to_ne_bytes());
    described.extend_from_slice(&(78_u32 * 4).to_ne_bytes());
    described.extend_from_slice(&blob[24..]);
    described.extend_from_slice(&[0; 77 * 4]);
    described.extend_from_slice(&[4, 4, 0, 0]);
    let btf = Btf::parse(described).unwrap();
    assert_eq!(btf.type_count(), 3);
    assert_eq!(btf.member_offset("s", "m"), Some(0));
}

#[test]
fn a_struct_in_itself_ends() {
    let mut b = Builder::new();
    let members = vec![("", 1, 0); 500];
    b.record("loop", 4, &members);
    b.reference(kind::TYPEDEF, "t", 2);
    b.pointer(3);
    let btf = Btf::parse(b.finish()).unwrap();
    assert_eq!(btf.member_offset("loop", "x"), None);
    assert!(btf.type_name(2).contains('t'));
    assert!(btf.type_name(3).contains('?'));
    assert!(btf.typedef_func("t").is_none());
}

/// Asks everything; the answers do not matter, only that there are some.
fn ask(blob: Vec<u8>) {
    let Ok(btf) = Btf::parse(blob) else { return };
    for name in ["mm_struct", "vm_area_struct", "task_struct", "flagged"] {
        for path in ["mmap_lock.owner", "vm_end", "vm_mm", "lock.count", "comm", "int"] {
            let _ = btf.member_offset(name, path);
            let _ = btf.member_type(name, path);
            let _ = btf.member_size(name, path);
        }
        let _ = btf.struct_size(name);
    }
    let _ = btf.tracepoint("mmap_lock_acquire_returned");
    let _ = btf.func("find_vma");
    let _ = btf.any_enum_value("PG_slab");
    let _ = btf.enum_value("wide", "int");
    for id in 0..40 {
        let _ = btf.type_name(id);
    }
}

proptest! {
    #[test]
    fn random_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        ask(bytes);
    }

    #[test]
    fn random_types_behind_a_good_header_do_not_panic(words in proptest::collection::vec(any::<u32>(), 0..80)) {
        let mut b = Builder::new();
        for part in words.chunks_exact(4) {
            b.push("mm_struct", part[0] & 0x9f00_0003, part[1] % 24, &[part[2] % 24, part[3] % 24, part[0] % 64]);
        }
        ask(b.finish());
    }

    #[test]
    fn truncation_is_an_error(cut in 0_usize..10_000) {
        let mut blob = sample();
        blob.truncate(cut % blob.len());
        prop_assert!(Btf::parse(blob).is_err());
    }

    #[test]
    fn flipped_bits_do_not_panic(flips in proptest::collection::vec((any::<usize>(), 0_u8..8), 1..6)) {
        let mut blob = sample();
        for (at, bit) in flips {
            let at = at % blob.len();
            blob[at] ^= 1 << bit;
        }
        ask(blob);
    }
}

#[test]
fn the_running_kernel_is_readable_if_it_has_btf() {
    let Ok(blob) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
    let start = std::time::Instant::now();
    let btf = Btf::parse(blob).unwrap();
    println!("BTF: {} types in {:?}", btf.type_count(), start.elapsed());
    for member in ["pid", "tgid", "mm", "comm", "flags"] {
        assert!(btf.member_offset("task_struct", member).is_some(), "task_struct.{member}");
    }
    assert_eq!(btf.member_type("task_struct", "mm").unwrap(), "struct mm_struct *");
    assert_eq!(btf.member_size("task_struct", "comm"), Some(16));
    assert_eq!(btf.func("handle_mm_fault").map(|proto| proto.params.len()), Some(4));
}
