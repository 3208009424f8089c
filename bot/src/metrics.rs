//! Latency percentiles and the process's own figures.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Percentiles cover between one and two of these.
const WINDOW: Duration = Duration::from_secs(60);
/// Longest latency told apart, microseconds.
const LATENCY_MAX_US: u64 = 120_000_000;

/// Latencies of recent calls. Two histograms take turns, so that old values fade.
pub struct Recorder {
    current: Histogram<u32>,
    previous: Histogram<u32>,
    turned: Instant,
    calls: u64,
    errors: u64,
}

/// What a [`Recorder`] knows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Latency {
    /// Median, milliseconds; 0 without calls.
    pub p50_ms: f64,
    /// 99th percentile, milliseconds.
    pub p99_ms: f64,
    /// Calls since the start.
    pub calls: u64,
    /// Failed ones.
    pub errors: u64,
}

impl Default for Recorder {
    fn default() -> Self {
        // Two significant figures: 20 KB instead of 300 KB, and 1 % is exact enough.
        let empty = Histogram::new_with_bounds(1, LATENCY_MAX_US, 2)
            .expect("invariant: the bounds are valid");
        Self {
            current: empty.clone(),
            previous: empty,
            turned: Instant::now(),
            calls: 0,
            errors: 0,
        }
    }
}

impl Recorder {
    /// A recorder has no invariant that a panic elsewhere could break.
    pub fn lock(recorder: &Mutex<Self>) -> MutexGuard<'_, Self> {
        recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a call.
    pub fn record(&mut self, took: Duration, failed: bool) {
        self.turn(Instant::now());
        self.calls += 1;
        self.errors += u64::from(failed);
        self.current
            .saturating_record((took.as_micros() as u64).clamp(1, LATENCY_MAX_US));
    }

    /// Percentiles of the latest minute or two.
    pub fn latency(&mut self) -> Latency {
        self.turn(Instant::now());
        let mut both = self.previous.clone();
        both += &self.current;
        let quantile = |q| {
            if both.is_empty() {
                0.0
            } else {
                both.value_at_quantile(q) as f64 / 1000.0
            }
        };
        Latency {
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
            calls: self.calls,
            errors: self.errors,
        }
    }

    fn turn(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.turned);
        if since >= WINDOW {
            std::mem::swap(&mut self.current, &mut self.previous);
            self.current.reset();
            if since >= 2 * WINDOW {
                self.previous.reset();
            }
            self.turned = now;
        }
    }
}

/// Resident memory of this process, bytes; 0 where /proc does not tell.
pub fn rss_bytes() -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/self/statm") else {
        return 0;
    };
    let pages: u64 = text
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_counts() {
        let mut recorder = Recorder::default();
        assert_eq!(recorder.latency(), Latency::default());
        for ms in 1..=100 {
            recorder.record(Duration::from_millis(ms), ms == 100);
        }
        let latency = recorder.latency();
        assert!((latency.p50_ms - 50.0).abs() < 1.5, "{latency:?}");
        assert!((latency.p99_ms - 99.0).abs() < 2.5, "{latency:?}");
        assert_eq!((latency.calls, latency.errors), (100, 1));
    }

    #[test]
    fn old_values_fade() {
        let mut recorder = Recorder::default();
        recorder.record(Duration::from_secs(1), false);
        let start = recorder.turned;
        recorder.turn(start + WINDOW);
        assert!(recorder.latency().p50_ms > 900.0);
        recorder.turned = start;
        recorder.turn(start + 3 * WINDOW);
        assert!(recorder.latency().p50_ms < 1.0);
        assert_eq!(recorder.latency().calls, 1);
    }

    #[test]
    fn own_memory_is_known() {
        assert!(rss_bytes() > 100_000);
    }
}
