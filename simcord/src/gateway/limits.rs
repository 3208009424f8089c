//! The limits that make IDENTIFY the scarce resource, and the send limit of a connection.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Guilds that one shard may hold; more close with 4011.
pub(crate) const GUILDS_PER_SHARD_MAX: u32 = 2_500;
/// Above this many guilds the shard count must be a multiple of the recommended one, else 4010.
pub(crate) const LARGE_BOT_GUILDS: u32 = 150_000;
/// Payloads that a connection may send within [`SENDS_WINDOW`].
pub(crate) const SENDS_MAX: usize = 120;
pub(crate) const SENDS_WINDOW: Duration = Duration::from_secs(60);
/// The time after which the IDENTIFYs of a day are given anew, counted from the first of them.
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What becomes of an IDENTIFY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permit {
    Granted {
        bucket: u32,
    },
    /// The bucket had one too recently: opcode 9.
    Refused {
        bucket: u32,
    },
    /// The day's budget is over: all sessions end, the token is reset.
    BudgetExceeded,
}

/// Buckets and the daily budget.
#[derive(Debug)]
pub(crate) struct IdentifyLimits {
    max_concurrency: u32,
    interval: Duration,
    /// When each bucket was used last.
    buckets: HashMap<u32, Instant>,
    total: u32,
    used: u32,
    /// When the budget of the day began to be used.
    day_began: Option<Instant>,
}

impl IdentifyLimits {
    pub(crate) fn new(max_concurrency: u32, interval: Duration, total: u32) -> Self {
        Self {
            max_concurrency,
            interval,
            buckets: HashMap::new(),
            total,
            used: 0,
            day_began: None,
        }
    }

    /// Decides about one IDENTIFY. A refused one does not use up the budget, nor does it delay the next.
    pub(crate) fn identify(&mut self, now: Instant, shard_id: u32) -> Permit {
        self.roll(now);
        if self.used >= self.total {
            return Permit::BudgetExceeded;
        }
        let bucket = shard_id % self.max_concurrency;
        if self
            .buckets
            .get(&bucket)
            .is_some_and(|last| now.duration_since(*last) < self.interval)
        {
            return Permit::Refused { bucket };
        }
        self.buckets.insert(bucket, now);
        self.used += 1;
        self.day_began.get_or_insert(now);
        Permit::Granted { bucket }
    }

    /// IDENTIFYs left and the time until the budget is full again.
    pub(crate) fn remaining(&mut self, now: Instant) -> (u32, Duration) {
        self.roll(now);
        let reset_after = self
            .day_began
            .map_or(Duration::ZERO, |began| DAY.saturating_sub(now - began));
        (self.total.saturating_sub(self.used), reset_after)
    }

    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    pub(crate) fn max_concurrency(&self) -> u32 {
        self.max_concurrency
    }

    pub(crate) fn set_max_concurrency(&mut self, max_concurrency: u32) {
        self.max_concurrency = max_concurrency.max(1);
        self.buckets.clear();
    }

    pub(crate) fn set_total(&mut self, total: u32) {
        self.total = total;
    }

    pub(crate) fn set_remaining(&mut self, now: Instant, remaining: u32) {
        self.roll(now);
        self.used = self.total.saturating_sub(remaining);
        self.day_began.get_or_insert(now);
    }

    /// Forgets all use.
    pub(crate) fn reset(&mut self) {
        self.buckets.clear();
        self.used = 0;
        self.day_began = None;
    }

    fn roll(&mut self, now: Instant) {
        if self
            .day_began
            .is_some_and(|began| now.duration_since(began) >= DAY)
        {
            self.used = 0;
            self.day_began = None;
        }
    }
}

/// The sends of one connection.
#[derive(Debug, Default)]
pub(crate) struct SendLimit {
    sent: VecDeque<Instant>,
}

impl SendLimit {
    /// Counts one send; false when it was one too many.
    pub(crate) fn send(&mut self, now: Instant) -> bool {
        while self
            .sent
            .front()
            .is_some_and(|at| now.duration_since(*at) >= SENDS_WINDOW)
        {
            self.sent.pop_front();
        }
        if self.sent.len() >= SENDS_MAX {
            return false;
        }
        self.sent.push_back(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIVE: Duration = Duration::from_secs(5);

    #[test]
    fn a_bucket_admits_one_identify_per_interval() {
        let mut limits = IdentifyLimits::new(4, FIVE, 1000);
        let now = Instant::now();
        assert_eq!(limits.identify(now, 1), Permit::Granted { bucket: 1 });
        assert_eq!(limits.identify(now, 5), Permit::Refused { bucket: 1 });
        assert_eq!(limits.identify(now, 2), Permit::Granted { bucket: 2 });
        let nearly = now
            + FIVE
                .checked_sub(Duration::from_millis(1))
                .expect("positive");
        assert_eq!(limits.identify(nearly, 5), Permit::Refused { bucket: 1 });
        assert_eq!(
            limits.identify(now + FIVE, 5),
            Permit::Granted { bucket: 1 }
        );
        assert_eq!(limits.remaining(now + FIVE).0, 997);
    }

    #[test]
    fn the_budget_returns_a_day_after_its_first_use() {
        let mut limits = IdentifyLimits::new(16, FIVE, 2);
        let now = Instant::now();
        assert_eq!(limits.remaining(now), (2, Duration::ZERO));
        assert!(matches!(limits.identify(now, 0), Permit::Granted { .. }));
        assert!(matches!(limits.identify(now, 1), Permit::Granted { .. }));
        assert_eq!(limits.identify(now, 2), Permit::BudgetExceeded);
        assert_eq!(limits.remaining(now + FIVE), (0, DAY.saturating_sub(FIVE)));
        assert!(matches!(
            limits.identify(now + DAY, 2),
            Permit::Granted { .. }
        ));
    }

    #[test]
    fn the_121st_send_within_a_minute_is_too_many() {
        let mut limit = SendLimit::default();
        let now = Instant::now();
        assert!((0..120).all(|_| limit.send(now)));
        assert!(!limit.send(now + Duration::from_secs(59)));
        assert!(limit.send(now + Duration::from_secs(60)));
    }

    proptest! {
        /// Whatever clients do, no bucket is granted two within the interval, and no day more than its total.
        #[test]
        fn grants_keep_their_distance(
            concurrency in 1u32..20,
            total in 0u32..50,
            attempts in proptest::collection::vec((0u32..64, 0u64..4_000), 0..200),
        ) {
            let mut limits = IdentifyLimits::new(concurrency, FIVE, total);
            let mut now = Instant::now();
            let mut granted: HashMap<u32, Instant> = HashMap::new();
            let mut count = 0;
            for (shard, wait_ms) in attempts {
                now += Duration::from_millis(wait_ms);
                if let Permit::Granted { bucket } = limits.identify(now, shard) {
                    prop_assert_eq!(bucket, shard % concurrency);
                    if let Some(last) = granted.insert(bucket, now) {
                        prop_assert!(now - last >= FIVE);
                    }
                    count += 1;
                }
            }
            prop_assert!(count <= total);
        }
    }
}
