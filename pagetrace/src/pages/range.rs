//! A range of addresses as people write it. Pure.

use std::{ops::Range, str::FromStr};

/// Why a text is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not two numbers.
    #[error("a range is two addresses in hexadecimal with a hyphen between, such as 7f0000000000-7f0000400000")]
    Form,
    /// The end is not behind the start.
    #[error("the range ends at {end:#x}, which is not behind its start {start:#x}")]
    Reversed {
        /// Its start.
        start: u64,
        /// Its end.
        end: u64,
    },
}

/// Addresses, the end not included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses(pub Range<u64>);

impl FromStr for Addresses {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let (start, end) = text.split_once('-').ok_or(RangeError::Form)?;
        let number = |text: &str| {
            let text = text.trim();
            let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
            // `from_str_radix` takes a sign.
            let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            u64::from_str_radix(digits, 16).ok().filter(|_| plain).ok_or(RangeError::Form)
        };
        let (start, end) = (number(start)?, number(end)?);
        if start < end { Ok(Self(start..end)) } else { Err(RangeError::Reversed { start, end }) }
    }
}

impl Addresses {
    /// The whole pages that it touches, by number.
    #[must_use]
    pub fn pages(&self, page_size: u64) -> Range<u64> {
        let page_size = page_size.max(1);
        self.0.start / page_size..self.0.end.div_ceil(page_size)
    }

    /// Whether it begins and ends with a page.
    #[must_use]
    pub fn is_aligned(&self, page_size: u64) -> bool {
        self.0.start.is_multiple_of(page_size) && self.0.end.is_multiple_of(page_size)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_as_people_write_them() {
        let parse = |text: &str| text.parse::<Addresses>().map(|range| range.0);
        assert_eq!(parse("1000-3000"), Ok(0x1000..0x3000));
        assert_eq!(parse("0x1000-0xffffffffffffffff"), Ok(0x1000..u64::MAX));
        assert_eq!(parse("3000-1000"), Err(RangeError::Reversed { start: 0x3000, end: 0x1000 }));
        assert_eq!(parse("1000-1000"), Err(RangeError::Reversed { start: 0x1000, end: 0x1000 }));
        for bad in ["", "-", "1000", "1000-", "-1000", "x-y", "1-10000000000000000", "+1-2", "1--2", "1-2-3"] {
            assert_eq!(parse(bad), Err(RangeError::Form), "{bad}");
        }
    }

    #[test]
    fn a_range_is_widened_to_whole_pages() {
        let range = Addresses(0x1001..0x2001);
        assert_eq!((range.pages(4096), range.is_aligned(4096)), (1..3, false));
        assert!(Addresses(0x1000..0x2000).is_aligned(4096));
        assert_eq!(Addresses(0..u64::MAX).pages(4096), 0..1 << 52);
    }

    proptest! {
        #[test]
        fn any_text_has_an_answer(text: String) {
            let _ = text.parse::<Addresses>();
        }

        #[test]
        fn what_is_written_is_read(start: u64, end: u64) {
            let parsed = format!("{start:x}-{end:#x}").parse::<Addresses>();
            prop_assert_eq!(parsed.is_ok(), start < end);
        }
    }
}
