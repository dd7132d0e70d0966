//! Puts a function of the kernel where the object has a number that stands for it: aya links maps and helpers, no functions.

use std::borrow::Cow;

use object::{
    Endianness, elf,
    read::elf::{ElfFile64, SectionHeader as _},
};
use pagetrace_ebpf::wire::CAST;

/// An instruction's length.
const INSTRUCTION: usize = 8;
/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_KFUNC_CALL`, in the upper half of the second byte: the register it is the source of.
const KERNEL_FUNCTION: u8 = 2 << 4;

/// The object with its calls of [`CAST`] going to the kernel's function with this id.
pub(super) fn linked(bytes: Cow<'_, [u8]>, function: u32) -> object::Result<Vec<u8>> {
    let calls = calls(&bytes)?;
    let mut out = bytes.into_owned();
    for at in calls {
        if let Some([_, registers, _, _, number @ ..]) = out.get_mut(at..at + INSTRUCTION) {
            *registers = KERNEL_FUNCTION;
            number.copy_from_slice(&function.to_le_bytes());
        }
    }
    Ok(out)
}

/// Where they are.
fn calls(bytes: &[u8]) -> object::Result<Vec<usize>> {
    let file = ElfFile64::<Endianness>::parse(bytes)?;
    let endian = file.endian();
    let mut wanted = [CALL, 0, 0, 0, 0, 0, 0, 0];
    wanted[4..].copy_from_slice(&CAST.to_le_bytes());
    let mut places = Vec::new();
    for section in file.elf_section_table().iter() {
        if section.sh_flags(endian) & u64::from(elf::SHF_EXECINSTR) == 0 {
            continue;
        }
        let start = usize::try_from(section.sh_offset(endian)).unwrap_or(usize::MAX);
        let code = section.data(endian, bytes)?;
        let found = code.chunks_exact(INSTRUCTION).enumerate().filter(|(_, instruction)| **instruction == wanted);
        places.extend(found.map(|(index, _)| start.saturating_add(index * INSTRUCTION)));
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::{super::OBJECT, *};

    #[test]
    fn every_call_goes_to_the_function_and_nothing_else_changes() {
        let before = calls(OBJECT).unwrap();
        assert!(before.len() > 20, "{before:?}");
        let linked = linked(Cow::Borrowed(OBJECT), 0x0403_0201).unwrap();
        assert_eq!(linked.len(), OBJECT.len());
        assert!(calls(&linked).unwrap().is_empty());
        for at in &before {
            assert_eq!(linked[*at..at + INSTRUCTION], [0x85, 0x20, 0, 0, 1, 2, 3, 4]);
        }
        let changed = OBJECT.chunks(INSTRUCTION).zip(linked.chunks(INSTRUCTION)).filter(|(a, b)| a != b).count();
        assert_eq!(changed, before.len());
    }

    #[test]
    fn what_is_no_object_is_told() {
        linked(Cow::Borrowed(b"no object"), 1).unwrap_err();
    }
}
