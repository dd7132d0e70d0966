//! Median and range of a handful of measurements. Pure.

/// What a few runs of the same thing gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    /// The median.
    pub(super) median: f64,
    /// The smallest.
    pub(super) min: f64,
    /// The largest.
    pub(super) max: f64,
}

impl Sample {
    /// `None` without values.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let median = if sorted.len() % 2 == 1 { upper } else { f64::midpoint(sorted[middle - 1], upper) };
        Some(Self { median, min: sorted[0], max: sorted[sorted.len() - 1] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_or_between_the_two_in_the_middle() {
        assert_eq!(Sample::of(&[3.0, 1.0, 9.0]), Some(Sample { median: 3.0, min: 1.0, max: 9.0 }));
        assert_eq!(Sample::of(&[4.0, 1.0, 2.0, 9.0]).map(|sample| sample.median), Some(3.0));
        assert_eq!(Sample::of(&[]), None);
    }
}
