//! Damaged type information.

use pagetrace::kernel::{btf::Btf, offsets::Offsets};

use super::{
    Target,
    mutate::{Dice, damage},
};

/// A small blob of types: an int, a pointer, a struct with members, a prototype, a function, a typedef.
pub(super) struct Blob(Vec<u8>);

impl Blob {
    pub(super) fn new() -> Self {
        // include/uapi/linux/btf.h: INT 1, PTR 2, STRUCT 4, TYPEDEF 8, FUNC 12, FUNC_PROTO 13.
        const STRINGS: &[u8] = b"\0int\0task_struct\0mm\0flags\0btf_trace_x\0down_read\0sem\0";
        let string = |text: &str| {
            let found = STRINGS.windows(text.len() + 1).position(|window| window == [text.as_bytes(), b"\0"].concat());
            u32::try_from(found.unwrap_or(0)).unwrap_or(0)
        };
        let types: Vec<u32> = [
            vec![string("int"), 1 << 24, 4, 32],
            vec![0, 2 << 24, 1],
            vec![string("task_struct"), 4 << 24 | 2, 16, string("flags"), 1, 0, string("mm"), 2, 64],
            vec![0, 13 << 24 | 2, 1, string("sem"), 2, string("mm"), 2],
            vec![string("down_read"), 12 << 24, 4],
            vec![string("btf_trace_x"), 8 << 24, 2],
        ]
        .concat();
        let size = |length: usize| u32::try_from(length).unwrap_or(0);
        let mut blob = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, size(types.len() * 4), size(types.len() * 4), size(STRINGS.len())].iter().chain(&types) {
            blob.extend(word.to_le_bytes());
        }
        blob.extend(STRINGS);
        Self(blob)
    }
}

impl Target for Blob {
    fn case(&self, dice: &mut Dice) -> Result<(), String> {
        let mut bytes = self.0.clone();
        damage(&mut bytes, dice);
        let Ok(btf) = Btf::parse(bytes) else { return Ok(()) };
        // Whatever was let in has to answer any question.
        for id in 0..u32::try_from(btf.type_count()).unwrap_or(0).min(64) + 2 {
            let _ = btf.type_name(id);
        }
        let _ = (btf.struct_size("task_struct"), btf.has_func("down_read"), btf.member_offset("task_struct", "mm"));
        let _ = (btf.tracepoint_args("x"), btf.any_enum_value("y"), Offsets::from_btf(&btf).is_ok());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sound_blob_is_read() {
        let btf = Btf::parse(Blob::new().0).expect("it is sound");
        assert_eq!(btf.member_offset("task_struct", "mm"), Some(8));
        assert!(btf.has_func("down_read"));
    }
}
