//! Latencies as HDR histograms: bounded memory, two significant digits.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;

/// Longer is recorded as this: a day, in microseconds.
const LONGEST_US: u64 = 24 * 60 * 60 * 1_000_000;

/// A distribution of latencies, written and read from anywhere.
pub struct Latency {
    inner: Mutex<Inner>,
}

struct Inner {
    /// Microseconds.
    histogram: Histogram<u32>,
    sum: Duration,
}

/// A distribution in a few numbers, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LatencySummary {
    /// How many were recorded.
    pub count: u64,
    /// Their sum.
    pub sum_s: f64,
    /// Half were at most this.
    pub p50_s: f64,
    /// Nine of ten were at most this.
    pub p90_s: f64,
    /// 99 of 100 were at most this.
    pub p99_s: f64,
    /// The longest.
    pub max_s: f64,
}

impl Latency {
    /// An empty distribution. It grows with the longest latency, to some 20 kB.
    pub fn new() -> Self {
        let mut histogram = Histogram::new(2).expect("invariant: two digits are allowed");
        histogram.auto(true);
        Self {
            inner: Mutex::new(Inner {
                histogram,
                sum: Duration::ZERO,
            }),
        }
    }

    /// Records one.
    pub fn record(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros())
            .unwrap_or(LONGEST_US)
            .clamp(1, LONGEST_US);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // Not `saturating_record`: that one does not let the histogram grow.
        if inner.histogram.record(micros).is_ok() {
            inner.sum = inner.sum.saturating_add(latency);
        }
    }

    /// The distribution so far.
    pub fn summary(&self) -> LatencySummary {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let histogram = &inner.histogram;
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
        LatencySummary {
            count: histogram.len(),
            sum_s: inner.sum.as_secs_f64(),
            p50_s: at(0.5),
            p90_s: at(0.9),
            p99_s: at(0.99),
            max_s: histogram.max() as f64 / 1e6,
        }
    }
}

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.summary().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_two_digits_and_extremes_do_not_overflow() {
        let latency = Latency::new();
        assert_eq!(latency.summary(), LatencySummary::default());
        for ms in 1..=100 {
            latency.record(Duration::from_millis(ms));
        }
        let summary = latency.summary();
        assert_eq!(summary.count, 100);
        assert!((summary.p50_s - 0.050).abs() < 0.001, "{summary:?}");
        assert!((summary.p99_s - 0.099).abs() < 0.002, "{summary:?}");
        assert!((summary.sum_s - 5.05).abs() < 1e-9, "{summary:?}");
        latency.record(Duration::MAX);
        latency.record(Duration::ZERO);
        assert_eq!(latency.summary().count, 102);
        let day_s = LONGEST_US as f64 / 1e6;
        assert!((latency.summary().max_s / day_s - 1.0).abs() < 0.01);
    }
}
