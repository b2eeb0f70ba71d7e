use serde::{Deserialize, Serialize};

/// The middle of several measurements and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

/// How long the slower ones of many requests take, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

impl Spread {
    /// `None` of nothing.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        Some(Self { min: rounded(*sorted.first()?), median: rounded(median(&sorted)?), max: rounded(*sorted.last()?) })
    }
}

impl Percentiles {
    /// `None` of nothing.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        let at = |percent| percentile(&sorted, percent).map(rounded);
        Some(Self { p50: at(50.0)?, p90: at(90.0)?, p99: at(99.0)? })
    }
}

/// The smallest of the values, which are in order, that so many percent of them do not exceed.
pub(super) fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// `a` over `b`, pair by pair; a pair without a figure on both sides is left out.
pub(super) fn ratios(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Spread> {
    let each: Vec<f64> = pairs.into_iter().filter(|(a, b)| *a > 0.0 && *b > 0.0).map(|(a, b)| a / b).collect();
    Spread::of(&each)
}

/// To three digits after the point: what is beyond is noise, and would be most of a report.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The middle of values that are in order; of an even number the mean of the two in the middle.
fn median(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get((sorted.len() - 1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        let at = |percent| percentile(&values, percent).unwrap();
        assert_eq!([at(1.0), at(50.0), at(90.0), at(99.0), at(100.0)], [1.0, 50.0, 90.0, 99.0, 100.0]);
        assert_eq!(percentile(&[7.0], 1.0), Some(7.0));
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 50.0), Some(2.0));
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 99.0), Some(3.0));
        assert_eq!(percentile(&[], 50.0), None);
        assert_eq!(Percentiles::of(&[]), None);
        assert_eq!(Percentiles::of(&[3.0, 1.0, 2.0]), Some(Percentiles { p50: 2.0, p90: 3.0, p99: 3.0 }));
    }

    #[test]
    fn a_median_lies_between_the_two_in_the_middle() {
        assert_eq!(Spread::of(&[4.0, 1.0, 3.0]), Some(Spread { min: 1.0, median: 3.0, max: 4.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0]), Some(Spread { min: 1.0, median: 2.5, max: 4.0 }));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn ratios_are_of_pairs_and_not_of_means() {
        // The machine was half as fast in the second repeat: the ratio does not notice.
        let spread = ratios([(200.0, 100.0), (100.0, 50.0), (230.0, 100.0)]).unwrap();
        assert_eq!(spread, Spread { min: 2.0, median: 2.0, max: 2.3 });
        assert_eq!(ratios([(1.0, 0.0), (0.0, 1.0)]), None);
    }
}
