//! How much of the day's budget is left: our own rolling count and Discord's, whichever is worse.

use std::collections::VecDeque;

/// The window of the budget.
pub(super) const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// IDENTIFYs a day until Discord has said otherwise (discord-rules: 1,000 over all shards).
const TOTAL_DEFAULT: u32 = 1000;
/// Reports whose windows end this close together speak of the same window.
const SAME_WINDOW_MS: i64 = 60_000;
/// More than Discord gives anyone: a report above is nonsense and is cut here.
const TOTAL_MAX: u32 = 10_000_000;
/// More buckets than this is nonsense and is cut here.
const MAX_CONCURRENCY_MAX: u32 = 4096;

/// A permit of the last 24 hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spent {
    pub(super) at: i64,
    pub(super) permit: u64,
    pub(super) shard: u32,
    pub(super) count: u32,
    pub(super) streak: u32,
}

/// What `GET /gateway/bot` said, and what we spent since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) total: u32,
    /// Used when it was made, and by us since.
    pub(super) used: u32,
    pub(super) resets_at: i64,
    pub(super) max_concurrency: u32,
    pub(super) recommended: u32,
}

/// The numbers of a `GET /gateway/bot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReportedLimits {
    /// IDENTIFYs a day.
    pub total: u32,
    /// Of those, left.
    pub remaining: u32,
    /// Until the count starts again.
    pub reset_after_ms: u64,
    /// Buckets.
    pub max_concurrency: u32,
    /// Shards that Discord recommends.
    pub recommended: u32,
}

/// The budget of one bot.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// By time, oldest first.
    pub(super) spent: VecDeque<Spent>,
    pub(super) report: Option<Report>,
    /// Of `spent`, those that nobody has seen yet.
    pub(super) unreleased: u32,
    pub(super) hint: Option<u32>,
    pub(super) reserve: Option<u32>,
}

impl Budget {
    /// Forgets what left the window.
    pub(super) fn prune(&mut self, now: i64) {
        while self.spent.front().is_some_and(|s| s.at <= now - DAY_MS) {
            self.spent.pop_front();
        }
    }

    pub(super) fn total(&self) -> u32 {
        self.report.map_or(TOTAL_DEFAULT, |r| r.total)
    }

    pub(super) fn max_concurrency(&self) -> u32 {
        self.report
            .map(|r| r.max_concurrency)
            .or(self.hint)
            .unwrap_or(1)
            .clamp(1, MAX_CONCURRENCY_MAX)
    }

    /// What is never spent automatically.
    pub(super) fn reserve(&self) -> u32 {
        let total = self.total();
        self.reserve.unwrap_or(total / 10).min(total)
    }

    /// What may be spent automatically in a day.
    pub(super) fn spendable(&self) -> u32 {
        self.total() - self.reserve()
    }

    fn live_report(&self, now: i64) -> Option<Report> {
        self.report.filter(|r| now < r.resets_at)
    }

    /// Used in the last 24 hours, by the worse of both counts.
    pub(super) fn used(&self, now: i64) -> u32 {
        let own = u32::try_from(self.spent.len()).unwrap_or(u32::MAX);
        let reported = self
            .live_report(now)
            .map_or(0, |r| r.used.saturating_add(self.unreleased));
        own.max(reported).min(self.total())
    }

    pub(super) fn exhausted(&self, now: i64) -> bool {
        self.used(now) >= self.spendable()
    }

    /// When, spending nothing more, the next one may be spent; `None` when the reserve is all.
    pub(super) fn free_at(&self, now: i64) -> Option<i64> {
        let spendable = self.spendable() as usize;
        if spendable == 0 {
            return None;
        }
        let own = match self.spent.len().checked_sub(spendable) {
            None => now,
            Some(over) => self.spent.get(over).map_or(now, |s| s.at + DAY_MS),
        };
        let reported = self
            .live_report(now)
            .filter(|r| r.used.saturating_add(self.unreleased) as usize >= spendable)
            .map_or(now, |r| r.resets_at);
        Some(own.max(reported).max(now))
    }

    /// When the count is back to nothing: Discord's word, or the age of our oldest permit.
    pub(super) fn resets_at(&self, now: i64) -> i64 {
        self.live_report(now).map_or_else(
            || self.spent.back().map_or(now, |s| s.at + DAY_MS),
            |r| r.resets_at,
        )
    }

    /// Counts a permit that is about to be given; [`Self::settle`] or [`Self::refund`] follows.
    pub(super) fn spend(&mut self, spent: Spent) {
        self.spent.push_back(spent);
        self.unreleased += 1;
    }

    /// The permit is on disk: it counts, whether or not it is used.
    pub(super) fn settle(&mut self) {
        self.unreleased = self.unreleased.saturating_sub(1);
        if let Some(report) = &mut self.report {
            report.used = report.used.saturating_add(1);
        }
    }

    /// Takes back a permit that nobody ever saw.
    pub(super) fn refund(&mut self, permit: u64) {
        self.unreleased = self.unreleased.saturating_sub(1);
        self.spent.retain(|s| s.permit != permit);
    }

    /// Merges a report made at `at`. False when it is nonsense.
    ///
    /// Within one window the count never goes down: a report that was fetched before our latest
    /// permits arrives late and knows nothing of them.
    pub(super) fn merge(&mut self, at: i64, limits: ReportedLimits) -> bool {
        if limits.total == 0 || limits.max_concurrency == 0 {
            return false;
        }
        let total = limits.total.min(TOTAL_MAX);
        let used = total - limits.remaining.min(total);
        let reset_after = i64::try_from(limits.reset_after_ms)
            .unwrap_or(DAY_MS)
            .min(DAY_MS);
        let resets_at = at.saturating_add(reset_after);
        let known = self
            .report
            .filter(|old| at < old.resets_at && resets_at - old.resets_at <= SAME_WINDOW_MS);
        self.report = Some(Report {
            total,
            used: used.max(known.map_or(0, |old| old.used)),
            resets_at: resets_at.max(known.map_or(resets_at, |old| old.resets_at)),
            max_concurrency: limits.max_concurrency.min(MAX_CONCURRENCY_MAX),
            recommended: limits.recommended,
        });
        true
    }
}
