//! What a file that is said to be a kernel is, from its first bytes. Pure.

/// Bytes that are enough to tell: a bzImage's header and most of its version string.
pub const ENOUGH: usize = 1 << 16;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// A kernel that boots on x86-64.
    X86 {
        /// What `uname -r` will say, where the header tells.
        release: Option<String>,
    },
    /// Anything else, in words.
    Other(&'static str),
}

/// Looks at the first bytes of a file.
#[must_use]
pub fn identify(bytes: &[u8]) -> Image {
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..offset + magic.len()) == Some(magic);
    // Documentation/arch/x86/boot.rst
    if at(0x1fe, &[0x55, 0xaa]) && at(0x202, b"HdrS") {
        return if bit64(bytes) { Image::X86 { release: release(bytes) } } else { Image::Other("a 32-bit kernel") };
    }
    // Documentation/arch/arm64/booting.rst, and the header of riscv, which took it over.
    if at(56, b"ARM\x64") {
        return Image::Other("a kernel for arm64; test machines are x86-64");
    }
    if at(56, b"RSC\x05") {
        return Image::Other("a kernel for riscv; test machines are x86-64");
    }
    let known: [(&[u8], &str); 5] = [
        (b"\x7fELF", "an ELF file; of a kernel build it is arch/x86/boot/bzImage that boots"),
        (b"\x1f\x8b", "compressed by gzip, as kernels of other architectures are; an x86-64 kernel is a bzImage"),
        (b"!<arch>\n", "a package without the ending .deb"),
        (b"\xed\xab\xee\xdb", "a package without the ending .rpm"),
        (b"#!", "a script"),
    ];
    known
        .iter()
        .find(|(magic, _)| bytes.starts_with(magic))
        .map_or(Image::Other("no kernel"), |(_, what)| Image::Other(what))
}

/// `XLF_KERNEL_64` in the header's flags; headers before version 2.12 do not have them, and kernels that old are not ours.
fn bit64(bytes: &[u8]) -> bool {
    bytes.get(0x236).is_some_and(|flags| flags & 1 != 0)
}

/// The string that the header points to begins with the release.
fn release(bytes: &[u8]) -> Option<String> {
    let pointer = u16::from_le_bytes(bytes.get(0x20e..0x210)?.try_into().ok()?);
    let text = bytes.get(usize::from(pointer).checked_add(0x200).filter(|_| pointer != 0)?..)?;
    let word = text.split(|byte| *byte == 0 || *byte == b' ').next()?;
    let plain = |byte: &u8| byte.is_ascii_graphic();
    (!word.is_empty() && word.len() < 100 && word.iter().all(plain)).then(|| String::from_utf8_lossy(word).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage() -> Vec<u8> {
        let mut bytes = vec![0; 0x300];
        bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x80_u16.to_le_bytes());
        bytes[0x236] = 1;
        bytes.splice(0x280.., *b"6.12.0-mine (me@here) #1 SMP\0");
        bytes
    }

    #[test]
    fn a_kernel_says_its_release() {
        assert_eq!(identify(&bzimage()), Image::X86 { release: Some("6.12.0-mine".into()) });
        let mut none = bzimage();
        none[0x20e..0x210].copy_from_slice(&[0, 0]);
        assert_eq!(identify(&none), Image::X86 { release: None });
        for end in 0..bzimage().len() {
            assert!(matches!(identify(&bzimage()[..end]), Image::X86 { .. } | Image::Other(_)));
        }
    }

    #[test]
    fn what_does_not_boot_is_named() {
        let mut arm = vec![0; 64];
        arm[56..60].copy_from_slice(b"ARM\x64");
        let mut old = bzimage();
        old[0x236] = 0;
        for (bytes, says) in [
            (arm, "arm64"),
            (old, "32-bit"),
            (b"\x7fELF".to_vec(), "bzImage"),
            (b"#!/bin/sh".to_vec(), "script"),
            (vec![], "no kernel"),
        ] {
            let Image::Other(what) = identify(&bytes) else { panic!("{says} is a kernel") };
            assert!(what.contains(says), "{what}");
        }
    }
}
