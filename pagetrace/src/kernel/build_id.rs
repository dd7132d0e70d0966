//! The kernel image's build id, from the ELF notes in /sys/kernel/notes. Pure and total.

/// `NT_GNU_BUILD_ID`.
const BUILD_ID: u32 = 3;

/// The id, hexadecimal; `None` when there is none.
pub fn parse(mut notes: &[u8]) -> Option<String> {
    let word = |bytes: &[u8], at: usize| {
        let word: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(word)).ok()
    };
    // Each note: lengths of name and content, a type, then both, padded to four bytes.
    loop {
        let (name_len, len) = (word(notes, 0)?, word(notes, 4)?);
        let kind = u32::try_from(word(notes, 8)?).ok()?;
        let content_at = 12_usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let content = notes.get(content_at..content_at.checked_add(len)?)?;
        if kind == BUILD_ID && notes.get(12..16) == Some(b"GNU\0") {
            return Some(content.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        notes = notes.get(content_at.checked_add(len.checked_next_multiple_of(4)?)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    fn note(kind: u32, name: &[u8], content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for word in [u32::try_from(name.len()).unwrap(), u32::try_from(content.len()).unwrap(), kind] {
            out.extend(word.to_le_bytes());
        }
        for part in [name, content] {
            out.extend(part);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    #[test]
    fn the_id_is_found_among_other_notes_and_damage_is_none() {
        let notes = [note(6, b"Xen\0", b"linux"), note(3, b"GNU\0", &[0xab, 0x01, 0xff])].concat();
        assert_eq!(parse(&notes).as_deref(), Some("ab01ff"));
        for end in 0..notes.len() - 1 {
            assert_eq!(parse(&notes[..end]), None, "{end}");
        }
        assert_eq!(parse(&[0xff; 64]), None);
    }
}
