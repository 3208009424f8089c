//! How much of the day's budget is left: our own rolling count and Discord's, whichever is worse.
//!
//! What was reported is believed only where it takes away. A report cannot make our own count
//! smaller, nor the day shorter, nor the total larger than Discord's rules give to a bot of so many
//! shards.

use std::collections::VecDeque;

use super::{FOREIGN_VALID_MS, JITTER_MS, PERSIST_MAX_MS, record::Stamp};

/// The window of Discord's budget.
pub(super) const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// How long a permit counts: its IDENTIFY may go out so much later than the permit was recorded.
pub(super) const WINDOW_MS: i64 = DAY_MS + PERSIST_MAX_MS + FOREIGN_VALID_MS + JITTER_MS;
/// IDENTIFYs a day until Discord has said otherwise (discord-rules: 1,000 over all shards).
const TOTAL_DEFAULT: u32 = 1000;
/// Reports whose windows end this close together speak of the same window.
const SAME_WINDOW_MS: u64 = 60_000;
/// Windows that are remembered at once; an honest Discord has one.
pub(super) const FLOORS_MAX: usize = 4;
/// More than Discord gives anyone: a report above is nonsense and is cut here.
const TOTAL_MAX: u32 = 10_000_000;
/// More buckets than this is nonsense and is cut here.
const MAX_CONCURRENCY_MAX: u32 = 4096;

/// Below so many shards a bot is in no more than 150,000 guilds, which makes a large bot
/// (discord-rules: at most 2,500 guilds a shard).
const SHARDS_LARGE: u32 = 61;
/// What a large bot has at least.
const TOTAL_LARGE: u32 = 2000;
/// IDENTIFYs a day of two shards of a large bot: `guilds / 1000 * 5`, with 2,500 guilds a shard.
const TOTAL_OF_TWO_SHARDS: u32 = 25;

/// A permit of the last 24 hours, or several that need not be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spent {
    pub(super) at: i64,
    /// As it was recorded: `at` is what we make of it.
    pub(super) stamp: Stamp,
    /// The (highest) number.
    pub(super) permit: u64,
    /// How many.
    pub(super) permits: u32,
    pub(super) shard: u32,
    /// 0 = nobody knows which shard.
    pub(super) count: u32,
    pub(super) streak: u32,
    pub(super) valid_ms: u32,
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

/// So much is used, whatever is said later, until this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Floor {
    pub(super) used: u32,
    pub(super) until: i64,
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
    /// Permits in `spent`.
    own: u64,
    /// Most shards of the bot that anyone asked for: what the spec says, not the report.
    pub(super) shards: u32,
    pub(super) report: Option<Report>,
    /// What was used of windows that newer reports say are over, until they really are.
    pub(super) floors: Vec<Floor>,
    /// Of `spent`, those that nobody has seen yet.
    pub(super) unreleased: u32,
    /// Reports taken in so far.
    pub(super) reports: u64,
    pub(super) hint: Option<u32>,
    pub(super) reserve: Option<u32>,
}

impl Budget {
    /// Forgets what left the window.
    pub(super) fn prune(&mut self, now: i64) {
        while let Some(spent) = self.spent.pop_front_if(|s| s.at <= now - WINDOW_MS) {
            self.own -= u64::from(spent.permits);
        }
    }

    /// IDENTIFYs a day: what was reported, but never more than a bot of this size can have.
    pub(super) fn total(&self) -> u32 {
        let possible = if self.shards < SHARDS_LARGE {
            TOTAL_DEFAULT
        } else {
            TOTAL_LARGE.max((self.shards / 2).saturating_mul(TOTAL_OF_TWO_SHARDS))
        };
        self.report.map_or(TOTAL_DEFAULT, |r| r.total.min(possible))
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

    /// Used by Discord's count.
    fn reported(&self, now: i64) -> u32 {
        let floors = self.floors.iter().filter(|floor| now < floor.until);
        let report = self.live_report(now).map(|r| r.used);
        floors
            .map(|floor| floor.used)
            .chain(report)
            .max()
            .map_or(0, |used| used.saturating_add(self.unreleased))
    }

    /// Used in the last 24 hours, by the worse of both counts.
    pub(super) fn used(&self, now: i64) -> u32 {
        let own = u32::try_from(self.own).unwrap_or(u32::MAX);
        own.max(self.reported(now)).min(self.total())
    }

    pub(super) fn exhausted(&self, now: i64) -> bool {
        self.used(now) >= self.spendable()
    }

    /// When, spending nothing more, the next one may be spent; `None` when the reserve is all.
    pub(super) fn free_at(&self, now: i64) -> Option<i64> {
        let spendable = self.spendable();
        if spendable == 0 {
            return None;
        }
        let mut left = self.own;
        let mut own = now;
        for spent in &self.spent {
            if left < u64::from(spendable) {
                break;
            }
            left -= u64::from(spent.permits);
            own = spent.at + WINDOW_MS;
        }
        let over = |used: u32| used.saturating_add(self.unreleased) >= spendable;
        let reported = self
            .live_report(now)
            .filter(|r| over(r.used))
            .map_or(now, |r| r.resets_at);
        let floors = self.floors.iter().filter(|floor| over(floor.used));
        let reported = floors.map(|floor| floor.until).fold(reported, i64::max);
        Some(own.max(reported).max(now))
    }

    /// When the count is back to nothing: Discord's word, or the age of our oldest permit.
    pub(super) fn resets_at(&self, now: i64) -> i64 {
        self.live_report(now).map_or_else(
            || self.spent.back().map_or(now, |s| s.at + WINDOW_MS),
            |r| r.resets_at,
        )
    }

    /// Counts a permit that is about to be given; [`Self::settle`] or [`Self::refund`] follows.
    pub(super) fn spend(&mut self, spent: Spent) {
        self.own += u64::from(spent.permits);
        self.unreleased = self.unreleased.saturating_add(spent.permits);
        self.spent.push_back(spent);
    }

    /// So many permits are given out: they count, whether or not they are used.
    pub(super) fn settle(&mut self, permits: u32) {
        self.unreleased = self.unreleased.saturating_sub(permits);
        if let Some(report) = &mut self.report {
            report.used = report.used.saturating_add(permits);
        }
        for floor in &mut self.floors {
            floor.used = floor.used.saturating_add(permits);
        }
    }

    /// Takes back a permit that nobody ever saw.
    pub(super) fn refund(&mut self, permit: u64) {
        self.unreleased = self.unreleased.saturating_sub(1);
        self.forget(permit);
    }

    /// Takes back a permit that was given out, after so many [`Self::reports`], and not used. Whether a
    /// later report has counted it nobody knows, so that only our own count gets smaller then.
    pub(super) fn give_back(&mut self, permit: u64, reports: u64) {
        self.forget(permit);
        if reports != self.reports {
            return;
        }
        if let Some(report) = &mut self.report {
            report.used = report.used.saturating_sub(1);
        }
        for floor in &mut self.floors {
            floor.used = floor.used.saturating_sub(1);
        }
    }

    /// Takes it out of our own count.
    pub(super) fn forget(&mut self, permit: u64) {
        let mut forgotten = 0;
        self.spent.retain(|s| {
            let gone = s.permit == permit && s.permits == 1;
            forgotten += u64::from(gone);
            !gone
        });
        self.own -= forgotten;
    }

    /// Forgets our own count, before it is read again. What was reported stays.
    pub(super) fn clear(&mut self) {
        self.spent.clear();
        self.own = 0;
        self.unreleased = 0;
    }

    /// Merges a report made at `at`. False when it is nonsense.
    pub(super) fn merge(&mut self, at: i64, limits: ReportedLimits) -> bool {
        if limits.total == 0 || limits.max_concurrency == 0 {
            return false;
        }
        let total = limits.total.min(TOTAL_MAX);
        let reset_after = i64::try_from(limits.reset_after_ms)
            .unwrap_or(DAY_MS)
            .min(DAY_MS);
        let report = Report {
            total,
            used: total - limits.remaining.min(total),
            resets_at: at.saturating_add(reset_after),
            max_concurrency: limits.max_concurrency.min(MAX_CONCURRENCY_MAX),
            recommended: limits.recommended,
        };
        self.absorb(at, report);
        true
    }

    /// Takes over a report made at `at`.
    ///
    /// Until a window is over by our clock its count never goes down: a report that was fetched
    /// before our latest permits arrives late and knows nothing of them, and one that speaks of a
    /// new window too early is not believed yet.
    pub(super) fn absorb(&mut self, at: i64, mut report: Report) {
        self.reports += 1;
        self.floors.retain(|floor| at < floor.until);
        if let Some(old) = self.report.filter(|old| at < old.resets_at) {
            if report.resets_at.abs_diff(old.resets_at) <= SAME_WINDOW_MS {
                report.used = report.used.max(old.used);
                report.resets_at = report.resets_at.max(old.resets_at);
            } else {
                self.keep(Floor {
                    used: old.used,
                    until: old.resets_at,
                });
            }
        }
        self.report = Some(report);
    }

    fn keep(&mut self, floor: Floor) {
        let says_more = |a: &Floor, b: &Floor| a.used >= b.used && a.until >= b.until;
        if floor.used == 0 || self.floors.iter().any(|other| says_more(other, &floor)) {
            return;
        }
        self.floors.retain(|other| !says_more(&floor, other));
        self.floors.push(floor);
        if self.floors.len() > FLOORS_MAX {
            // One that says more than both of the oldest.
            let other = self.floors.remove(0);
            let oldest = &mut self.floors[0];
            oldest.used = oldest.used.max(other.used);
            oldest.until = oldest.until.max(other.until);
        }
    }
}
