//! How much a scan goes through at once. It holds the target's `mmap_lock` meanwhile.

use std::time::Duration;

use super::parts::BLOCK;

/// How many pages a scan is given: what takes it about as long as the lock may be held. An empty gigabyte takes no longer than a full
/// megabyte, and only trying shows which it is.
#[derive(Debug)]
pub(super) struct Span {
    pages: u64,
    hold: Duration,
}

impl Span {
    const LARGEST: u64 = 1 << 24;

    /// To begin with.
    pub(super) fn new(paced: bool) -> Self {
        match paced {
            true => Self { pages: BLOCK, hold: Duration::from_micros(50) },
            false => Self { pages: 1 << 16, hold: Duration::from_millis(1) },
        }
    }

    /// Where a scan from page `at` on has to end.
    pub(super) fn end(&self, at: u64, last: u64) -> u64 {
        (at.saturating_add(self.pages) / BLOCK * BLOCK).max(at + 1).min(last)
    }

    /// Learns how long one took.
    pub(super) fn took(&mut self, time: Duration) {
        if time > self.hold {
            self.pages = (self.pages / 2).max(BLOCK);
        } else if time < self.hold / 2 {
            self.pages = (self.pages * 2).min(Self::LARGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_gets_as_much_as_it_goes_through_in_time() {
        let mut span = Span::new(false);
        (0..100).for_each(|_| span.took(Duration::from_micros(3)));
        assert_eq!(span.end(0, u64::MAX), Span::LARGEST);
        assert_eq!(span.end(7, 1000), 1000);
        (0..100).for_each(|_| span.took(Duration::from_secs(1)));
        assert_eq!(span.end(100, u64::MAX), BLOCK, "blocks are not cut in two");
        let steady = span.end(0, u64::MAX);
        span.took(span.hold * 3 / 4);
        assert_eq!(span.end(0, u64::MAX), steady);
        assert_eq!(Span::new(true).end(0, u64::MAX), BLOCK);
    }

    #[test]
    fn it_always_gets_on() {
        let span = Span::new(true);
        assert_eq!(span.end(u64::MAX - 1, u64::MAX), u64::MAX);
        assert!((0..2000).all(|at| span.end(at, u64::MAX) > at));
    }
}
