//! Discord's rate limits: 50 requests a second over all, and buckets that the answers tell of. Pure.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Requests a second, over all routes but callbacks. Discord allows 50; several processes share the bot, so
/// the answers have the last word.
const PER_SECOND: u32 = 40;
/// Buckets kept; more than this only while they are in force.
const BUCKETS_KEPT: usize = 512;

/// Says when a request may go out.
#[derive(Debug)]
pub struct Limiter<K> {
    buckets: HashMap<K, Bucket>,
    /// The moment at which the allowance of the past second is whole again.
    full_at: Instant,
    held_until: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    remaining: u32,
    until: Instant,
}

impl<K: Copy + Eq + Hash> Limiter<K> {
    /// Knows nothing yet.
    pub fn new(now: Instant) -> Self {
        Self {
            buckets: HashMap::new(),
            full_at: now,
            held_until: now,
        }
    }

    /// Takes one request, or says when to ask again.
    pub fn admit(&mut self, key: K, now: Instant) -> Result<(), Instant> {
        if now < self.held_until {
            return Err(self.held_until);
        }
        let step = Duration::from_secs(1) / PER_SECOND;
        let full_at = self.full_at.max(now) + step;
        if full_at > now + Duration::from_secs(1) {
            return Err(now
                + full_at
                    .duration_since(now)
                    .saturating_sub(Duration::from_secs(1)));
        }
        if let Some(bucket) = self.buckets.get_mut(&key) {
            if now >= bucket.until {
                self.buckets.remove(&key);
            } else if bucket.remaining == 0 {
                return Err(bucket.until);
            } else {
                bucket.remaining -= 1;
            }
        }
        self.full_at = full_at;
        Ok(())
    }

    /// What an answer says of its bucket.
    pub fn learn(&mut self, key: K, remaining: u32, reset_after: Duration, now: Instant) {
        let until = now + reset_after;
        let bucket = self
            .buckets
            .entry(key)
            .or_insert(Bucket { remaining, until });
        // Answers overtake each other: within one window only fewer is news.
        if until > bucket.until + Duration::from_millis(500) || now >= bucket.until {
            *bucket = Bucket { remaining, until };
        } else {
            bucket.remaining = bucket.remaining.min(remaining);
        }
        if self.buckets.len() > BUCKETS_KEPT {
            self.buckets.retain(|_, bucket| bucket.until > now);
        }
    }

    /// A 429: nothing of this bucket, or nothing at all, for a while.
    pub fn refused(&mut self, key: K, everything: bool, retry_after: Duration, now: Instant) {
        let until = now + retry_after;
        if everything {
            self.held_until = self.held_until.max(until);
        } else {
            self.buckets.insert(
                key,
                Bucket {
                    remaining: 0,
                    until,
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Never more than the allowance in any second, never into an exhausted bucket.
        #[test]
        fn limits_hold(requests in prop::collection::vec((0..3u8, 0..40u64), 1..400), limit in 1..6u32) {
            let start = Instant::now();
            let mut now = start;
            let mut limiter = Limiter::new(start);
            let mut sent: Vec<Instant> = Vec::new();
            let mut window: HashMap<u8, (Instant, u32)> = HashMap::new();
            for (key, later) in requests {
                now += Duration::from_millis(later);
                let mut waits = 0;
                while let Err(until) = limiter.admit(key, now) {
                    prop_assert!(until > now);
                    now = until;
                    waits += 1;
                    prop_assert!(waits < 10);
                }
                sent.push(now);
                // The far end: `limit` requests per two seconds and key.
                let (opened, used) = window.entry(key).or_insert((now, 0));
                if now >= *opened + Duration::from_secs(2) { *opened = now; *used = 0; }
                *used += 1;
                prop_assert!(*used <= limit, "bucket {} overdrawn", key);
                limiter.learn(key, limit - *used, *opened + Duration::from_secs(2) - now, now);
            }
            for (at, first) in sent.iter().enumerate() {
                let within = sent[at..].iter().take_while(|sent| **sent < *first + Duration::from_secs(1)).count();
                prop_assert!(within <= 2 * PER_SECOND as usize);
            }
        }
    }

    #[test]
    fn a_global_429_stops_everything() {
        let now = Instant::now();
        let mut limiter = Limiter::new(now);
        limiter.refused(1, true, Duration::from_secs(3), now);
        assert_eq!(limiter.admit(2, now), Err(now + Duration::from_secs(3)));
        assert_eq!(limiter.admit(2, now + Duration::from_secs(3)), Ok(()));
    }

    #[test]
    fn a_429_of_one_bucket_stops_only_that() {
        let now = Instant::now();
        let mut limiter = Limiter::new(now);
        limiter.refused(1, false, Duration::from_secs(3), now);
        assert_eq!(limiter.admit(1, now), Err(now + Duration::from_secs(3)));
        assert_eq!(limiter.admit(2, now), Ok(()));
    }

    #[test]
    fn does_not_grow_without_bound() {
        let mut now = Instant::now();
        let mut limiter = Limiter::new(now);
        for key in 0..100_000u32 {
            now += Duration::from_millis(10);
            limiter.learn(key, 1, Duration::from_secs(1), now);
            assert!(limiter.buckets.len() <= BUCKETS_KEPT + 1);
        }
    }
}
