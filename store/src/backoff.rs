//! Pauses between tries: doubling, with jitter, so that the agents of a fleet do not come back in step.

use std::time::Duration;

/// The pauses of one run of failures.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// The first pause is at most `first`; none is longer than `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max,
            next: first,
        }
    }

    /// The next pause: between half and all of what the doubling says.
    pub fn pause(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(self.max);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// It went well: the next failure begins anew.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_begin_anew() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(10), ms(100));
        for full in [10, 20, 40, 80, 100, 100] {
            let pause = backoff.pause();
            assert!(
                pause >= ms(full) / 2 && pause <= ms(full),
                "{pause:?} of {full} ms"
            );
        }
        backoff.reset();
        assert!(backoff.pause() <= ms(10));
    }
}
