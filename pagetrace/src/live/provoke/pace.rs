//! How much of the time may be spent pushing. Pure.

use std::time::Duration;

/// One part of work, four parts of rest: a fifth of one CPU, and of the time during which the target's lock is taken.
const REST: u32 = 4;
/// Rests shorter than this are saved up: a system call for each would cost more than it spares.
const WORTH_IT: Duration = Duration::from_millis(1);
/// Longest rest at once, so that one slow piece of work does not end the provoking.
const LONGEST: Duration = Duration::from_millis(250);

/// Rest that is owed.
#[derive(Debug, Default)]
pub(super) struct Pace {
    owed: Duration,
}

impl Pace {
    /// After work of this length: the rest to take now.
    pub(super) fn after(&mut self, work: Duration) -> Duration {
        self.owed = self.owed.saturating_add(work.saturating_mul(REST));
        if self.owed < WORTH_IT {
            return Duration::ZERO;
        }
        std::mem::take(&mut self.owed).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_a_fifth_of_the_time() {
        let (mut pace, piece) = (Pace::default(), Duration::from_micros(70));
        let rest: Duration = (0..1000).map(|_| pace.after(piece)).sum();
        assert!(rest + WORTH_IT >= piece * 1000 * REST, "{rest:?}");
        assert!(rest <= piece * 1000 * REST, "{rest:?}");
    }

    #[test]
    fn a_slow_piece_does_not_stop_everything() {
        assert_eq!(Pace::default().after(Duration::from_secs(60)), LONGEST);
    }
}
