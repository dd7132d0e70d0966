//! One image or module with DWARF: its functions, and the line of an offset into one.
//!
//! A module is an object that has not been linked. Its sections all begin at 0, so each gets a place of its own here, and
//! its debug information is relocated to these.

use std::{collections::HashMap, sync::Arc};

use addr2line::Context;
use anyhow::{Context as _, Result, bail, ensure};
use gimli::{EndianArcSlice, LittleEndian, SectionId};
use object::{
    File, Object as _, ObjectKind, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SectionKind,
    SymbolKind,
};

use super::Source;

type Bytes = EndianArcSlice<LittleEndian>;

/// Functions and lines of a file.
pub(super) struct Image {
    context: Context<Bytes>,
    /// Address and size of each function; `None` where two have the same name.
    functions: HashMap<String, Option<(u64, u64)>>,
    /// The directory it was built in.
    built_in: Option<String>,
}

impl Image {
    /// Reads a file; one of another release than `release`, or without DWARF, is an error.
    pub(super) fn parse(bytes: &[u8], release: Option<&str>) -> Result<Self> {
        let file = File::parse(bytes).context("this is no ELF file")?;
        if let Some(release) = release {
            let told = told_release(&file).context("it does not say which kernel it belongs to")?;
            ensure!(told == release, "it belongs to kernel {told}, and what ran was {release}");
        }
        ensure!(file.section_by_name(".debug_info").is_some(), "it has no debug information");
        let bases = bases(&file);
        let functions = functions(&file, &bases);
        let load = |id: SectionId| -> Result<Bytes> {
            let data = section(&file, id.name(), &bases)?;
            Ok(EndianArcSlice::new(Arc::from(data), LittleEndian))
        };
        let dwarf = gimli::Dwarf::load(load)?;
        let built_in = built_in(&dwarf);
        Ok(Self { context: Context::from_dwarf(dwarf)?, functions, built_in })
    }

    /// The line, in the function itself and not in what was put in line there.
    pub(super) fn line(&self, function: &str, offset: u64) -> Option<Source> {
        let (start, size) = (*self.functions.get(function)?)?;
        if offset >= size.max(1) {
            return None; // Another build: this function was longer there.
        }
        let mut frames = self.context.find_frames(start + offset).skip_all_loads().ok()?;
        let mut outermost = None;
        while let Ok(Some(frame)) = frames.next() {
            outermost = frame.location.or(outermost);
        }
        let location = outermost?;
        let (path, line) = (location.file?, location.line.filter(|line| *line != 0)?);
        let below =
            self.built_in.as_deref().and_then(|dir| path.strip_prefix(dir)).map(|rest| rest.trim_start_matches('/'));
        let file = below.unwrap_or(path);
        Some(Source { file: file.strip_prefix("./").unwrap_or(file).to_owned(), line })
    }
}

/// The release that an image's banner or a module's `vermagic` names.
fn told_release(file: &File<'_>) -> Option<String> {
    let (data, marker): (_, &[u8]) = if file.kind() == ObjectKind::Relocatable {
        (file.section_by_name(".modinfo")?.data().ok()?, b"vermagic=")
    } else {
        (file.section_by_name(".rodata")?.data().ok()?, b"Linux version ")
    };
    let at = data.windows(marker.len()).position(|window| window == marker)? + marker.len();
    let word = data[at..].split(|byte| *byte == b' ').next()?;
    String::from_utf8(word.to_vec()).ok()
}

/// A place for each section; their own addresses where the file was linked.
fn bases(file: &File<'_>) -> HashMap<SectionIndex, u64> {
    let mut next = 0x1000_u64;
    let mut bases = HashMap::new();
    for section in file.sections() {
        let base = if file.kind() != ObjectKind::Relocatable {
            section.address()
        } else if matches!(section.kind(), SectionKind::Text | SectionKind::Data | SectionKind::ReadOnlyData) {
            let base = next;
            next = (next + section.size()).next_multiple_of(0x1000) + 0x1000;
            base
        } else {
            0
        };
        bases.insert(section.index(), base);
    }
    bases
}

/// Where a symbol lies, given the sections' places.
fn place(file: &File<'_>, symbol: &object::Symbol<'_, '_>, bases: &HashMap<SectionIndex, u64>) -> u64 {
    let base = if file.kind() == ObjectKind::Relocatable {
        symbol.section_index().and_then(|index| bases.get(&index)).copied().unwrap_or(0)
    } else {
        0
    };
    base.wrapping_add(symbol.address())
}

fn functions(file: &File<'_>, bases: &HashMap<SectionIndex, u64>) -> HashMap<String, Option<(u64, u64)>> {
    let mut functions: HashMap<String, Option<(u64, u64)>> = HashMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let Ok(name) = symbol.name() else { continue };
        let here = (place(file, &symbol, bases), symbol.size());
        functions
            .entry(name.to_owned())
            // Static functions of the same name: which of them is meant cannot be told.
            .and_modify(|known| *known = known.filter(|known| *known == here))
            .or_insert(Some(here));
    }
    functions
}

/// A debug section, decompressed and relocated; nothing where there is none.
fn section(file: &File<'_>, name: &str, bases: &HashMap<SectionIndex, u64>) -> Result<Vec<u8>> {
    let Some(section) = file.section_by_name(name) else { return Ok(Vec::new()) };
    let mut data = section.uncompressed_data().with_context(|| format!("cannot read {name}"))?.into_owned();
    if file.kind() != ObjectKind::Relocatable {
        return Ok(data);
    }
    for (offset, relocation) in section.relocations() {
        let target = match relocation.target() {
            RelocationTarget::Symbol(index) => place(file, &file.symbol_by_index(index)?, bases),
            RelocationTarget::Section(index) => bases.get(&index).copied().unwrap_or(0),
            RelocationTarget::Absolute => 0,
            _ => bail!("{name} has a relocation of an unknown kind"),
        };
        let value = target.wrapping_add_signed(relocation.addend());
        let bytes = value.to_le_bytes();
        let size = usize::from(relocation.size() / 8);
        let slot = usize::try_from(offset).ok().and_then(|at| data.get_mut(at..at.checked_add(size)?));
        match (slot, bytes.get(..size)) {
            (Some(slot), Some(bytes)) => slot.copy_from_slice(bytes),
            _ => bail!("{name} has a relocation outside of it"),
        }
    }
    Ok(data)
}

/// The directory that the first unit which tells one was compiled in.
fn built_in(dwarf: &gimli::Dwarf<Bytes>) -> Option<String> {
    let mut units = dwarf.units();
    while let Ok(Some(header)) = units.next() {
        if let Some(dir) = dwarf.unit(header).ok().and_then(|unit| unit.comp_dir) {
            return gimli::Reader::to_string_lossy(&dir).ok().map(std::borrow::Cow::into_owned);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_image_is_refused_in_a_sentence() {
        for (bytes, says) in [(&b""[..], "no ELF file"), (b"\x7fELF", "no ELF file"), (&[0xff; 64], "no ELF file")] {
            let err = Image::parse(bytes, None).err().map(|err| err.to_string()).unwrap_or_default();
            assert!(err.contains(says), "{err}");
        }
    }

    /// This test's own binary has debug information, and functions whose lines are known here.
    #[test]
    fn a_function_is_found_at_its_line() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let image = Image::parse(&bytes, None).unwrap();
        let name = image.functions.keys().find(|name| name.contains("lines5image") && name.contains("told_release"));
        let source = image.line(name.unwrap(), 0).unwrap();
        assert!(source.file.ends_with("lines/image.rs"), "{source:?}");
        assert!(image.line(name.unwrap(), u64::MAX).is_none() && image.line("no_such_function", 0).is_none());
        let err = Image::parse(&bytes, Some("6.1.0")).err().unwrap().to_string();
        assert!(err.contains("kernel"), "{err}");
    }
}
