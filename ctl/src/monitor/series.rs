//! Bounded histories: what a sparkline, a percentile and a histogram are drawn from.

use std::collections::VecDeque;

use hdrhistogram::Histogram;

/// Points kept in one series: two minutes at the usual half second.
pub const POINTS_MAX: usize = 240;

/// The last values of one number. Missing samples are NaN.
#[derive(Clone, Debug, Default)]
pub struct Series {
    values: VecDeque<f64>,
}

impl Series {
    /// Appends a sample, dropping the oldest when full.
    pub fn push(&mut self, value: f64) {
        self.push_within(value, POINTS_MAX);
    }

    /// Appends a sample, keeping at most `max` of them.
    pub fn push_within(&mut self, value: f64, max: usize) {
        while self.values.len() >= max.clamp(1, POINTS_MAX) {
            self.values.pop_front();
        }
        self.values.push_back(value);
    }

    /// Puts older samples in front of those already seen.
    pub fn fill(&mut self, older: &[f64]) {
        let room = POINTS_MAX - self.values.len();
        for value in older.iter().rev().take(room) {
            self.values.push_front(*value);
        }
    }

    /// Samples held.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether nothing was sampled.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The newest sample.
    pub fn last(&self) -> Option<f64> {
        self.values.back().copied().filter(|v| v.is_finite())
    }

    /// The largest sample.
    pub fn max(&self) -> Option<f64> {
        self.values
            .iter()
            .copied()
            .filter(|v| v.is_finite())
            .reduce(f64::max)
    }

    /// The newest `n` samples, oldest first, padded in front with NaN.
    pub fn tail(&self, n: usize) -> impl Iterator<Item = f64> + '_ {
        let pad = n.saturating_sub(self.values.len());
        let skip = self.values.len().saturating_sub(n);
        std::iter::repeat_n(f64::NAN, pad).chain(self.values.iter().skip(skip).copied())
    }
}

/// Latencies seen since a view was opened, in units of 10 µs.
#[derive(Clone, Debug)]
pub struct Latencies {
    histogram: Histogram<u64>,
}

/// Ten minutes: anything above is counted as that.
const LATENCY_MAX: u64 = 60_000_000;

impl Default for Latencies {
    fn default() -> Self {
        // Two digits keep it under 30 KB.
        let histogram = Histogram::new_with_bounds(1, LATENCY_MAX, 2)
            .expect("invariant: constant bounds are valid");
        Self { histogram }
    }
}

impl Latencies {
    /// Counts one latency in milliseconds; zero, negative and NaN mean "unknown" and are ignored.
    pub fn record(&mut self, ms: f64) {
        if ms.is_finite() && ms > 0.0 {
            self.histogram
                .saturating_record(((ms * 100.0).round() as u64).clamp(1, LATENCY_MAX));
        }
    }

    /// Samples counted.
    pub fn len(&self) -> u64 {
        self.histogram.len()
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.histogram.is_empty()
    }

    /// The latency in milliseconds that `percentile` of the samples do not exceed.
    pub fn percentile(&self, percentile: f64) -> f64 {
        self.histogram.value_at_percentile(percentile) as f64 / 100.0
    }

    /// The longest, in milliseconds.
    pub fn max(&self) -> f64 {
        self.histogram.max() as f64 / 100.0
    }

    /// At most `n` bars from the shortest to the longest: upper bound in milliseconds and samples.
    pub fn bars(&self, n: usize) -> Vec<(f64, u64)> {
        if self.histogram.is_empty() || n == 0 {
            return Vec::new();
        }
        let (low, high) = (self.histogram.min(), self.histogram.max());
        let step = ((high - low) / n as u64 + 1).max(1);
        (0..n as u64)
            .map(|i| (low + i * step, low + (i + 1) * step - 1))
            .take_while(|(from, _)| *from <= high)
            .map(|(from, to)| (to as f64 / 100.0, self.histogram.count_between(from, to)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_bounded_and_filled_from_the_front() {
        let mut series = Series::default();
        series.push(9.0);
        series.fill(&[1.0, 2.0]);
        assert_eq!(series.tail(3).collect::<Vec<_>>(), [1.0, 2.0, 9.0]);
        assert!(series.tail(5).next().is_some_and(f64::is_nan));
        for i in 0..1000 {
            series.push(f64::from(i));
        }
        series.fill(&[5.0; 1000]);
        assert_eq!(series.len(), POINTS_MAX);
        assert_eq!(series.last(), Some(999.0));
    }

    #[test]
    fn latencies_ignore_what_is_no_latency() {
        let mut latencies = Latencies::default();
        for ms in [f64::NAN, -1.0, 0.0, f64::INFINITY] {
            latencies.record(ms);
        }
        assert!(latencies.is_empty() && latencies.bars(5).is_empty());
        for ms in 1..=100 {
            latencies.record(f64::from(ms));
        }
        assert!((latencies.percentile(50.0) - 50.0).abs() < 1.0);
        assert!((latencies.max() - 100.0).abs() < 1.0);
        let bars = latencies.bars(10);
        assert!(bars.len() <= 10);
        // Neighbouring bars may share a cell of the histogram, never lose one.
        assert!(bars.iter().map(|b| b.1).sum::<u64>() >= 100);
    }
}
