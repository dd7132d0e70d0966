//! What every kernel's verifier asks of the object before it looks at a single value.

use std::collections::HashMap;

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

/// Opcodes (include/uapi/linux/bpf.h): a load of a 64-bit constant takes two places.
const LOAD_WIDE: u8 = 0x18;
const EXIT: u8 = 0x95;
const CALL: u8 = 0x85;
const JUMP_ALWAYS: u8 = 0x05;
const CLASS: u8 = 0x07;
const CLASSES_OF_JUMPS: [u8; 2] = [0x05, 0x06];

/// Where control goes from the instruction at a place, and whether it jumps there.
fn next(code: &[[u8; 8]], at: usize) -> Vec<(usize, bool)> {
    let [opcode, _, low, high, ..] = code[at];
    let target = || at.saturating_add_signed(isize::from(i16::from_le_bytes([low, high])) + 1);
    match opcode {
        EXIT => Vec::new(),
        LOAD_WIDE => vec![(at + 2, false)],
        JUMP_ALWAYS => vec![(target(), true)],
        CALL => vec![(at + 1, false)],
        _ if CLASSES_OF_JUMPS.contains(&(opcode & CLASS)) => vec![(at + 1, true), (target(), true)],
        _ => vec![(at + 1, false)],
    }
}

/// Places from which a loop is closed by running on into its beginning.
fn loops_without_a_jump(code: &[[u8; 8]]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut on_path = HashMap::from([(0, true)]);
    let mut path = vec![(0, next(code, 0))];
    while let Some((at, left)) = path.last_mut() {
        let from = *at;
        let Some((to, jumps)) = (!left.is_empty()).then(|| left.remove(0)) else {
            on_path.insert(from, false);
            path.pop();
            continue;
        };
        match on_path.get(&to) {
            Some(true) if !jumps => found.push(from),
            Some(_) => {}
            None => {
                on_path.insert(to, true);
                path.push((to, next(code, to)));
            }
        }
    }
    found
}

/// The verifier of 6.1 and before refuses any other (kernel/bpf/verifier.c, `check_cfg`), and which the compiler makes
/// depends on how it lays out blocks.
#[test]
fn every_loop_is_closed_by_a_jump() {
    let file = object::File::parse(super::OBJECT).expect("the object is an ELF file");
    let mut functions = 0;
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() != 0) {
        let index = symbol.section_index().expect("a function lies in a section");
        let section = file.section_by_index(index).expect("the section is there");
        let bytes = section.data_range(symbol.address(), symbol.size()).expect("readable").expect("within the section");
        let code: Vec<[u8; 8]> = bytes.chunks_exact(8).map(|chunk| chunk.try_into().expect("eight bytes")).collect();
        let name = symbol.name().expect("a function has a name");
        assert_eq!(loops_without_a_jump(&code), Vec::<usize>::new(), "in {name}");
        functions += 1;
    }
    assert!(functions > 100, "the object has {functions} functions");
}

#[test]
fn such_a_loop_would_be_found() {
    let jump = |opcode: u8, offset: i16| {
        let [low, high] = offset.to_le_bytes();
        [opcode, 0, low, high, 0, 0, 0, 0]
    };
    let add = jump(0x07, 0);
    // goto +1; add; if … goto -2; exit: the addition runs on into the condition that leads to it.
    let falls = [jump(JUMP_ALWAYS, 1), add, jump(0x15, -2), jump(EXIT, 0)];
    assert_eq!(loops_without_a_jump(&falls), [1]);
    // add; if … goto -2; exit
    let jumps = [add, jump(0x15, -2), jump(EXIT, 0)];
    assert_eq!(loops_without_a_jump(&jumps), Vec::<usize>::new());
}
