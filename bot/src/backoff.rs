//! Exponential backoff with full jitter.

use std::time::Duration;

/// Delays that double from `min` to `max`, each drawn from its upper half so that a fleet spreads out.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// The first delay is around `min`; none is longer than `max`.
    pub const fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            failures: 0,
        }
    }

    /// The delay after one more failure.
    pub fn delay(&mut self) -> Duration {
        let full = self
            .min
            .saturating_mul(1 << self.failures.min(20))
            .min(self.max);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Failures since the last success.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Call after a success.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_bound_and_starts_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut previous_full = Duration::ZERO;
        for failure in 0..40 {
            let delay = backoff.delay();
            let full = Duration::from_millis(100 << failure.min(20)).min(Duration::from_secs(5));
            assert!(delay >= full / 2 && delay <= full, "{failure}: {delay:?}");
            assert!(full >= previous_full);
            previous_full = full;
        }
        backoff.reset();
        assert!(backoff.delay() <= Duration::from_millis(100));
    }
}
