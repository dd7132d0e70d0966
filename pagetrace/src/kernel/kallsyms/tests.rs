//! The symbol table against tables made by hand, arbitrary text, and the kernel the test runs on.

use proptest::prelude::*;

use super::{Kallsyms, Resolved};

const TABLE: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000000 T __startup
ffffffff81000000 t startup
ffffffff81000100 T down_read
ffffffff81000180 t twice
ffffffff81000200 W weak
ffffffff81000300 T _etext
ffffffff82000000 D page_offset_base
ffffffff82000008 b init_mm
ffffffffc0000000 t twice\t[pagemap_mod]
ffffffffc0001000 t bpf_prog_6deef7357e7b4530_fault\t[bpf]
";

fn table() -> Kallsyms {
    Kallsyms::parse(TABLE.to_owned())
}

#[test]
fn addresses_resolve_to_the_function_around_them() {
    let table = table();
    let at = |address| table.resolve(address).map(|r| (r.name, r.offset, r.module));
    assert_eq!(at(0xffff_ffff_8100_0000), Some(("startup", 0, None)), "the plainest of the aliases");
    assert_eq!(at(0xffff_ffff_8100_017f), Some(("down_read", 0x7f, None)));
    assert_eq!(at(0xffff_ffff_8100_0300), None, "the end of text is no function");
    assert_eq!(at(0xffff_ffff_8200_0000), None, "data");
    assert_eq!(at(0xffff_ffff_80ff_ffff), None);
    assert_eq!(at(0), None);
    assert_eq!(
        table.resolve(0xffff_ffff_c000_1010),
        Some(Resolved { name: "bpf_prog_6deef7357e7b4530_fault", offset: 0x10, size: None, module: Some("bpf") })
    );
    assert_eq!(table.resolve(0xffff_ffff_8100_0101).and_then(|r| r.size), Some(0x80));
    assert_eq!(at(u64::MAX), None);
}

#[test]
fn names_find_functions_and_data() {
    let table = table();
    assert_eq!(table.address_of("page_offset_base"), Some(0xffff_ffff_8200_0000));
    assert_eq!(table.address_of("twice"), Some(0xffff_ffff_8100_0180), "the kernel's own comes first");
    assert_eq!(table.function_count("twice"), 2);
    assert_eq!(table.address_of("absent"), None);
    assert!(table.contains("init_mm"));
    assert_eq!((table.len(), table.malformed()), (12, 0));
}

#[test]
fn hidden_addresses_are_a_state_of_their_own() {
    let text: String = TABLE.lines().map(|line| format!("0000000000000000{}\n", &line[16..])).collect();
    let table = Kallsyms::parse(text);
    assert!(table.addresses_hidden());
    assert!(table.contains("down_read"));
    assert_eq!(table.address_of("down_read"), None);
    assert_eq!(table.resolve(0), None);
    assert!(!Kallsyms::parse(String::new()).addresses_hidden());
}

#[test]
fn lines_that_are_no_symbols_are_counted() {
    let table = Kallsyms::parse("zz T a\nffffffff81000000 T\n\nffffffff81000000 T ok\nffff T x\t[open".to_owned());
    assert_eq!((table.len(), table.malformed()), (1, 3));
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "[0-9a-f]{0,17} ?[TtWdé] ?[a-z_$\t\\[\\]é\n]{0,40}", address in any::<u64>()) {
        let table = Kallsyms::parse(text);
        let _ = table.resolve(address);
        let _ = table.address_of("a");
    }

    #[test]
    fn every_function_resolves_to_its_own_address(gaps in proptest::collection::vec(1_u64..5000, 1..60)) {
        let mut address = 0xffff_ffff_8100_0000;
        let mut text = String::new();
        let mut starts = Vec::new();
        for (i, gap) in gaps.iter().enumerate() {
            text.push_str(&format!("{address:016x} t f{i}\n"));
            starts.push((address, *gap));
            address += gap;
        }
        let table = Kallsyms::parse(text);
        for (i, (start, gap)) in starts.into_iter().enumerate() {
            let found = table.resolve(start + gap - 1).unwrap();
            let name = format!("f{i}");
            prop_assert_eq!((found.name, found.offset), (name.as_str(), gap - 1));
            prop_assert_eq!(table.address_of(found.name), Some(start));
        }
    }
}

#[test]
fn the_running_kernel_is_readable() {
    let Ok(text) = std::fs::read_to_string("/proc/kallsyms") else { return };
    let start = std::time::Instant::now();
    let table = Kallsyms::parse(text);
    println!("kallsyms: {} symbols in {:?}", table.len(), start.elapsed());
    assert_eq!(table.malformed(), 0);
    assert!(table.is_empty() || table.contains("down_read"));
}

#[test]
fn variables_that_are_called_alike_are_counted_by_address() {
    let table = Kallsyms::parse(
        "ffffffff82000100 d lock\nffffffff82000040 b lock\nffffffff81000000 t lock\nffffffffc0000000 d lock\t[m]\n\
         ffffffff82000200 d alone\n"
            .to_owned(),
    );
    let of = |address| {
        let found = table.variable(address).unwrap();
        table.namesake(found.name, found.module, address - found.offset)
    };
    assert_eq!([of(0xffff_ffff_8200_0040), of(0xffff_ffff_8200_0108)], [(1, 2), (2, 2)]);
    assert_eq!([of(0xffff_ffff_c000_0000), of(0xffff_ffff_8200_0200)], [(1, 1), (1, 1)]);
}
