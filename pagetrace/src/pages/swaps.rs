//! Whether there is swap with room: `/proc/swaps`. Pure.

/// Whether one of the areas in the text of `/proc/swaps` has free pages. Anonymous pages have nowhere to go otherwise.
#[must_use]
pub fn has_room(text: &str) -> bool {
    // Filename, type, size, used, priority; the kernel escapes blanks in the name.
    text.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(2).map(str::parse::<u64>);
        matches!((fields.next(), fields.next()), (Some(Ok(size)), Some(Ok(used))) if used < size)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";

    #[test]
    fn an_area_with_room_counts() {
        assert!(!has_room(HEAD));
        assert!(has_room(&format!("{HEAD}/dev/zram0                              partition\t1024\t\t0\t\t100\n")));
        assert!(!has_room(&format!("{HEAD}/swap\\040file                          file\t\t1024\t\t1024\t\t-2\n")));
        assert!(has_room(&format!("{HEAD}/a file 8 8 -2\n/b file 8 7 -3\n")));
    }

    proptest! {
        #[test]
        fn an_area_counts_whatever_stands_around_it(before: String, used in 0_u64..9, size in 0_u64..9) {
            let head = before.replace(['\n', '\r'], " ");
            prop_assert_eq!(has_room(&format!("{head}\n/swap file {size} {used} -2\n")), used < size);
            let _ = has_room(&before);
        }
    }
}
