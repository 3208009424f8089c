//! Rate limits of the REST API: per route, global, and the ban for too many invalid requests.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Requests that a bot may make in one second, over all routes but interaction callbacks and webhooks.
pub(crate) const GLOBAL_PER_SECOND: usize = 50;
/// Invalid requests (401, 403, 429) within [`INVALID_WINDOW`] that lead to a ban of the address.
pub(crate) const INVALID_MAX: usize = 10_000;
pub(crate) const INVALID_WINDOW: Duration = Duration::from_secs(600);
/// Buckets kept before idle ones are dropped.
const BUCKETS_KEPT: usize = 20_000;

/// How many requests a bucket takes in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    pub limit: u32,
    pub window: Duration,
}

impl Quota {
    const fn new(limit: u32, seconds: u64) -> Self {
        Self {
            limit,
            window: Duration::from_secs(seconds),
        }
    }

    /// The quota of a route. Discord does not publish them; these are of the size that its headers show.
    pub(crate) fn of(method: &str, route: &str) -> Self {
        let route = route.strip_prefix("/api/v10").unwrap_or(route);
        match (method, route) {
            ("POST", "/channels/{channel_id}/messages") => Self::new(5, 5),
            ("PATCH" | "DELETE", "/channels/{channel_id}/messages/{message_id}") => Self::new(5, 5),
            ("POST" | "PATCH" | "DELETE", route) if route.starts_with("/webhooks/") => {
                Self::new(5, 2)
            }
            ("PUT" | "POST" | "PATCH" | "DELETE", route) if route.starts_with("/applications/") => {
                Self::new(5, 20)
            }
            ("GET", "/gateway/bot") => Self::new(10, 5),
            ("GET", _) => Self::new(20, 5),
            _ => Self::new(10, 10),
        }
    }
}

/// What the headers tell about a bucket.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Standing {
    pub limit: u32,
    pub remaining: u32,
    pub reset_after: Duration,
    /// Name of the bucket without its major parameter.
    pub bucket: String,
}

/// Whether a request may pass.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    Pass(Standing),
    Limited(Standing),
    LimitedGlobally { retry_after: Duration },
}

#[derive(Debug)]
struct Bucket {
    opened: Instant,
    used: u32,
    window: Duration,
}

/// All limits of one bot and its address.
#[derive(Debug, Default)]
pub(crate) struct RestLimits {
    buckets: HashMap<(String, String), Bucket>,
    global: VecDeque<Instant>,
    invalid: VecDeque<Instant>,
}

impl RestLimits {
    /// Counts one request of a route (with method) and its major parameter.
    pub(crate) fn request(
        &mut self,
        now: Instant,
        method: &str,
        route: &str,
        major: &str,
        counts_globally: bool,
    ) -> Verdict {
        if counts_globally {
            while self
                .global
                .front()
                .is_some_and(|at| now.duration_since(*at) >= Duration::from_secs(1))
            {
                self.global.pop_front();
            }
            if let Some(oldest) = self
                .global
                .front()
                .filter(|_| self.global.len() >= GLOBAL_PER_SECOND)
            {
                let retry_after =
                    Duration::from_secs(1).saturating_sub(now.duration_since(*oldest));
                return Verdict::LimitedGlobally { retry_after };
            }
            self.global.push_back(now);
        }
        if self.buckets.len() >= BUCKETS_KEPT {
            self.buckets
                .retain(|_, bucket| now.duration_since(bucket.opened) < bucket.window);
        }
        let quota = Quota::of(method, route);
        let name = bucket_name(method, route);
        let bucket = self
            .buckets
            .entry((name.clone(), major.to_owned()))
            .or_insert(Bucket {
                opened: now,
                used: 0,
                window: quota.window,
            });
        if now.duration_since(bucket.opened) >= quota.window {
            *bucket = Bucket {
                opened: now,
                used: 0,
                window: quota.window,
            };
        }
        let passes = bucket.used < quota.limit;
        bucket.used += u32::from(passes);
        let standing = Standing {
            limit: quota.limit,
            remaining: quota.limit - bucket.used,
            reset_after: quota
                .window
                .saturating_sub(now.duration_since(bucket.opened)),
            bucket: name,
        };
        if passes {
            Verdict::Pass(standing)
        } else {
            Verdict::Limited(standing)
        }
    }

    /// Counts one invalid request.
    pub(crate) fn invalid(&mut self, now: Instant) {
        self.invalid.push_back(now);
        self.forget_invalid(now);
    }

    /// The time for which the address is banned, if it is.
    pub(crate) fn banned(&mut self, now: Instant) -> Option<Duration> {
        self.forget_invalid(now);
        let oldest = self
            .invalid
            .front()
            .filter(|_| self.invalid.len() >= INVALID_MAX)?;
        Some(INVALID_WINDOW.saturating_sub(now.duration_since(*oldest)))
    }

    fn forget_invalid(&mut self, now: Instant) {
        while self.invalid.len() > INVALID_MAX
            || self
                .invalid
                .front()
                .is_some_and(|at| now.duration_since(*at) >= INVALID_WINDOW)
        {
            self.invalid.pop_front();
        }
    }
}

/// Opaque to clients, the same for every major parameter.
fn bucket_name(method: &str, route: &str) -> String {
    let method = if method == "HEAD" { "GET" } else { method };
    let high = xxhash_rust::xxh3::xxh3_64(format!("{method} {route}").as_bytes());
    format!(
        "{high:016x}{:016x}",
        high.rotate_left(17).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROUTE: &str = "/api/v10/channels/{channel_id}/messages";

    #[test]
    fn buckets_are_apart_by_major_parameter_and_open_again() {
        let mut limits = RestLimits::default();
        let now = Instant::now();
        for left in (0..5).rev() {
            match limits.request(now, "POST", ROUTE, "1", true) {
                Verdict::Pass(standing) => assert_eq!(standing.remaining, left),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(
            limits.request(now, "POST", ROUTE, "1", true),
            Verdict::Limited(_)
        ));
        assert!(matches!(
            limits.request(now, "POST", ROUTE, "2", true),
            Verdict::Pass(_)
        ));
        assert!(matches!(
            limits.request(now, "GET", ROUTE, "1", true),
            Verdict::Pass(_)
        ));
        let later = now + Duration::from_secs(5);
        assert!(matches!(
            limits.request(later, "POST", ROUTE, "1", true),
            Verdict::Pass(_)
        ));
    }

    #[test]
    fn the_51st_request_of_a_second_is_limited_globally() {
        let mut limits = RestLimits::default();
        let now = Instant::now();
        for n in 0..50 {
            assert!(matches!(
                limits.request(now, "GET", ROUTE, &n.to_string(), true),
                Verdict::Pass(_)
            ));
        }
        assert!(matches!(
            limits.request(now, "GET", ROUTE, "x", true),
            Verdict::LimitedGlobally { .. }
        ));
        assert!(matches!(
            limits.request(now, "GET", ROUTE, "x", false),
            Verdict::Pass(_)
        ));
        let later = now + Duration::from_secs(1);
        assert!(matches!(
            limits.request(later, "GET", ROUTE, "x", true),
            Verdict::Pass(_)
        ));
    }

    #[test]
    fn ten_thousand_invalid_requests_lead_to_a_ban_that_ends() {
        let mut limits = RestLimits::default();
        let now = Instant::now();
        for _ in 0..INVALID_MAX - 1 {
            limits.invalid(now);
        }
        assert_eq!(limits.banned(now), None);
        limits.invalid(now + Duration::from_secs(1));
        assert_eq!(
            limits.banned(now + Duration::from_secs(1)),
            Some(Duration::from_secs(599))
        );
        assert_eq!(limits.banned(now + INVALID_WINDOW), None);
    }

    proptest! {
        /// However requests come, no window of a bucket passes more than its limit.
        #[test]
        fn no_window_passes_more_than_its_limit(waits in proptest::collection::vec(0u64..3_000, 0..100)) {
            let mut limits = RestLimits::default();
            let mut now = Instant::now();
            let mut opened = None;
            let mut passed = 0;
            for wait in waits {
                now += Duration::from_millis(wait);
                if opened.is_none_or(|at| now.duration_since(at) >= Duration::from_secs(5)) {
                    opened = Some(now);
                    passed = 0;
                }
                if let Verdict::Pass(_) = limits.request(now, "POST", ROUTE, "1", false) {
                    passed += 1;
                } else {
                    prop_assert_eq!(passed, 5);
                }
                prop_assert!(passed <= 5);
            }
        }
    }
}
