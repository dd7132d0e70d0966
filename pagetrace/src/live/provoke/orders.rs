//! What pagetrace tells the helper: one byte an order, on its standard input, whose end is the end.

use std::{
    io,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// An order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Push pages out.
    Push,
    /// Touch nothing until told.
    Pause,
    /// End.
    End,
}

impl Order {
    /// As sent; the end is sent by closing.
    pub(super) const fn byte(self) -> u8 {
        match self {
            Self::Push => b'+',
            Self::Pause => b'-',
            Self::End => b'.',
        }
    }

    /// The last order among these bytes; what is unknown ends the helper, which pagetrace did not write.
    fn latest(bytes: &[u8]) -> Self {
        match bytes.last() {
            Some(b'+') => Self::Push,
            Some(b'-') => Self::Pause,
            _ => Self::End,
        }
    }
}

/// The helper's side.
#[derive(Debug)]
pub(super) struct Orders {
    current: Order,
}

impl Orders {
    /// Held back until told otherwise.
    pub(super) const fn new() -> Self {
        Self { current: Order::Pause }
    }

    /// Sleeps for `rest`, longer while held back, and says whether to go on.
    pub(super) fn rest(&mut self, rest: Duration) -> bool {
        let until = Instant::now() + rest;
        loop {
            match self.current {
                Order::End => return false,
                Order::Pause => {
                    self.listen(None);
                }
                Order::Push => {
                    if self.listen(Some(until.saturating_duration_since(Instant::now()))) {
                        return true;
                    }
                }
            }
        }
    }

    /// Waits for an order, and says whether the time passed without one.
    fn listen(&mut self, limit: Option<Duration>) -> bool {
        let stdin = io::stdin();
        let mut wait = [PollFd::new(&stdin, PollFlags::IN)];
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut wait, limit.as_ref()) {
            Ok(0) => return true,
            Ok(_) => {
                let mut bytes = [0; 64];
                // Not through the buffered handle, whose buffer poll does not know about.
                let read = rustix::io::read(&stdin, &mut bytes).unwrap_or(0);
                self.current = Order::latest(bytes.get(..read).unwrap_or_default());
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => self.current = Order::End,
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_order_counts_and_silence_is_the_end() {
        for order in [Order::Push, Order::Pause, Order::End] {
            assert_eq!(Order::latest(&[b'+', b'-', order.byte()]), order);
        }
        assert_eq!(Order::latest(&[]), Order::End);
        assert_eq!(Order::latest(b"+?"), Order::End);
    }
}
