//! How long a lease surely lives, as its holder can know; pure.
//!
//! A keep-alive prolongs the lease from when the store carries it out, which is not before it was
//! sent. So the lease lives at least for its time to live after the latest keep-alive that was
//! answered *was sent*.

use std::time::Duration;

use tokio::time::Instant;

/// The life of one lease.
#[derive(Debug, Clone)]
pub struct Lapse {
    ttl: Duration,
    renewed_at: Instant,
}

impl Lapse {
    /// A lease that was asked for at `asked_at`.
    pub fn new(ttl: Duration, asked_at: Instant) -> Self {
        Self {
            ttl,
            renewed_at: asked_at,
        }
    }

    /// A keep-alive that was sent at `sent_at` has been answered.
    pub fn renewed(&mut self, sent_at: Instant) {
        self.renewed_at = self.renewed_at.max(sent_at);
    }

    /// When the next keep-alive is due: three fit into a life.
    pub fn due(&self) -> Instant {
        self.renewed_at + self.ttl / 3
    }

    /// Until when its holder may act. A tenth earlier than the store would end it.
    pub fn over(&self) -> Instant {
        self.renewed_at + self.ttl - self.ttl / 10
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sent_counts_and_late_answers_take_nothing_back() {
        let start = Instant::now();
        let s = Duration::from_secs;
        let mut lapse = Lapse::new(s(10), start);
        assert_eq!(lapse.over(), start + s(9));
        assert!(lapse.due() > start + s(3) && lapse.due() < start + s(4));
        lapse.renewed(start + s(3));
        assert_eq!(lapse.over(), start + s(12));
        lapse.renewed(start + s(1));
        assert_eq!(lapse.over(), start + s(12));
    }
}
