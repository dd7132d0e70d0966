//! Takes the programs that a run does not attach out of the object before it is loaded: all that are in it are relocated,
//! and that time would go into programs for other kernels and other commands. It is a small part of a start on real
//! processors, where the kernel's verifier takes most, and a tenth of one in an emulated guest.

use std::borrow::Cow;

use object::{
    Endianness, SectionIndex, elf,
    read::elf::{ElfFile64, SectionHeader as _, Sym as _},
};

/// Where functions lie that programs share.
const SHARED: &[u8] = b".text";

/// Offset of `st_info` in a symbol (`Elf64_Sym`).
const INFO: usize = 4;

/// The object with those programs only that are wanted. aya takes functions in sections of programs for programs; what is
/// not wanted is marked as something else there.
pub(super) fn only<'a>(bytes: &'a [u8], wanted: &dyn Fn(&str) -> bool) -> Cow<'a, [u8]> {
    match unwanted(bytes, wanted) {
        Ok(places) => {
            let mut out = bytes.to_vec();
            for place in places {
                if let Some(info) = out.get_mut(place) {
                    *info = *info & 0xf0 | elf::STT_NOTYPE;
                }
            }
            Cow::Owned(out)
        }
        Err(err) => {
            // It loads all the same, only not as fast.
            log::info!("cannot tell the programs of the BPF object apart: {err}");
            Cow::Borrowed(bytes)
        }
    }
}

/// Where the types of the programs' symbols lie that are not wanted.
fn unwanted(bytes: &[u8], wanted: &dyn Fn(&str) -> bool) -> object::Result<Vec<usize>> {
    let file = ElfFile64::<Endianness>::parse(bytes)?;
    let (endian, sections, symbols) = (file.endian(), file.elf_section_table(), file.elf_symbol_table());
    let table = sections.section(symbols.section())?;
    let start = usize::try_from(table.sh_offset(endian)).unwrap_or(usize::MAX);
    let size = size_of::<elf::Sym64<Endianness>>();
    let mut places = Vec::new();
    for (index, symbol) in symbols.enumerate() {
        let section = SectionIndex(usize::from(symbol.st_shndx(endian)));
        if symbol.st_type() != elf::STT_FUNC || section.0 == 0 {
            continue;
        }
        if sections.section_name(endian, sections.section(section)?)? == SHARED {
            continue;
        }
        if !wanted(&String::from_utf8_lossy(symbols.symbol_name(endian, symbol)?)) {
            places.push(start.saturating_add(index.0 * size + INFO));
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::{super::OBJECT, *};

    fn programs(bytes: &[u8]) -> Vec<String> {
        let file = ElfFile64::<Endianness>::parse(bytes).unwrap();
        let (endian, sections, symbols) = (file.endian(), file.elf_section_table(), file.elf_symbol_table());
        let function = |symbol: &&elf::Sym64<Endianness>| symbol.st_type() == elf::STT_FUNC;
        let text = |symbol: &elf::Sym64<Endianness>| {
            let section = sections.section(SectionIndex(usize::from(symbol.st_shndx(endian)))).unwrap();
            sections.section_name(endian, section).unwrap() == SHARED
        };
        let found = symbols.iter().filter(function).filter(|symbol| !text(symbol));
        found.map(|symbol| String::from_utf8_lossy(symbols.symbol_name(endian, symbol).unwrap()).into_owned()).collect()
    }

    #[test]
    fn what_is_wanted_stays_and_nothing_else_changes() {
        let all = programs(OBJECT);
        assert!(all.len() > 100, "{} programs", all.len());
        let (keep, other) = (all[0].clone(), all[1].clone());
        let cut = only(OBJECT, &|name| name == keep);
        assert_eq!(programs(&cut), [keep]);
        assert_ne!(programs(&cut), [other]);
        let changed = OBJECT.iter().zip(cut.iter()).filter(|(a, b)| a != b).count();
        assert_eq!((cut.len(), changed), (OBJECT.len(), all.len() - 1));
        assert_eq!(*only(OBJECT, &|_| true), *OBJECT);
    }

    #[test]
    fn what_is_no_object_is_left_alone() {
        assert!(matches!(only(b"no object", &|_| false), Cow::Borrowed(b"no object")));
    }
}
