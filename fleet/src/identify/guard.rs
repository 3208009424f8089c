//! Keeps a crash loop from burning the day's budget.
//!
//! An IDENTIFY is wasted when its shard asks again before it was ready for a while. Two brakes:
//!
//! - **per shard**: after a few wasted ones in a row the next waits, twice as long each time;
//! - **per bot**: once a quarter of the spendable budget is wasted within 24 hours, shards whose
//!   last IDENTIFY was wasted go by slow start: one probe a while, two more for each that holds.
//!   Shards that were fine are not held back.
//!
//! So a Discord outage that wasted everyone's IDENTIFY is recovered from by doubling, and a bot that
//! dies each time spends a probe a quarter of an hour.
//!
//! "For a while" is a minute, and longer once half of the day's budget is gone: a loop that takes two
//! minutes to die looks like health at first, and would otherwise run the budget down to its reserve.

use std::collections::{HashMap, VecDeque};

use super::budget::DAY_MS;

/// IDENTIFYs in a row that a shard may waste without waiting.
const FREE_TRIES: u32 = 3;
/// The first wait of a shard, doubled for each further waste.
const SHARD_WAIT_MS: i64 = 30_000;
/// The longest wait of a shard.
const SHARD_WAIT_MAX_MS: i64 = 30 * 60_000;
/// Ready for this long = the IDENTIFY was not wasted.
const STABLE_MS: i64 = 60_000;
/// The same once half of the spendable budget is used, and once three quarters are.
const STABLE_HALF_MS: i64 = 10 * 60_000;
const STABLE_MOST_MS: i64 = 60 * 60_000;
/// Between two probes at first, doubled while none holds.
const PROBE_WAIT_MS: i64 = 60_000;
/// Between two probes at most.
const PROBE_WAIT_MAX_MS: i64 = 15 * 60_000;
/// Further IDENTIFYs that one that held earns.
const CREDITS_PER_SUCCESS: u32 = 2;
const CREDITS_MAX: u32 = 64;
/// However small the budget, so many wasted ones are normal.
const WASTED_MIN: usize = 8;

/// A shard tuple: id and count.
pub(super) type Tuple = (u32, u32);

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ShardGuard {
    /// IDENTIFYs since it was last stable.
    streak: u32,
    last: i64,
    ready_at: Option<i64>,
    credited: bool,
}

impl ShardGuard {
    /// Wasted ones in a row, were it to ask at `now`.
    fn wasted(&self, now: i64, stable_ms: i64) -> u32 {
        let stable = self.ready_at.is_some_and(|at| now - at >= stable_ms);
        if stable || now - self.last >= DAY_MS {
            0
        } else {
            self.streak
        }
    }
}

/// Both brakes of one bot.
#[derive(Debug)]
pub(super) struct Guard {
    shards: HashMap<Tuple, ShardGuard>,
    /// How long a shard has to be ready before it counts as stable.
    stable_ms: i64,
    /// When IDENTIFYs turned out to be wasted, within 24 hours.
    wasted: VecDeque<i64>,
    /// Set while the bot's brake is on.
    slow: Option<SlowStart>,
}

#[derive(Debug, Clone, Copy)]
struct SlowStart {
    credits: u32,
    next_probe: i64,
    wait: i64,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            shards: HashMap::new(),
            stable_ms: STABLE_MS,
            wasted: VecDeque::new(),
            slow: None,
        }
    }
}

impl Guard {
    /// Keeps the books. True when the bot's brake has just gone on.
    pub(super) fn advance(&mut self, now: i64, used: u32, spendable: u32) -> bool {
        let (used, all) = (u64::from(used), u64::from(spendable));
        self.stable_ms = if used * 4 >= all * 3 {
            STABLE_MOST_MS
        } else if used * 2 >= all {
            STABLE_HALF_MS
        } else {
            STABLE_MS
        };
        while self.wasted.front().is_some_and(|at| *at <= now - DAY_MS) {
            self.wasted.pop_front();
        }
        let limit = (spendable as usize / 4).max(WASTED_MIN);
        if self.wasted.len() < limit {
            self.slow = None;
            return false;
        }
        let newly = self.slow.is_none();
        let slow = self.slow.get_or_insert(SlowStart {
            credits: 0,
            next_probe: now + PROBE_WAIT_MS,
            wait: PROBE_WAIT_MS,
        });
        for shard in self.shards.values_mut() {
            if !shard.credited && shard.ready_at.is_some_and(|at| now - at >= self.stable_ms) {
                shard.credited = true;
                slow.credits = (slow.credits + CREDITS_PER_SUCCESS).min(CREDITS_MAX);
                slow.wait = PROBE_WAIT_MS;
                slow.next_probe = now + PROBE_WAIT_MS;
            }
        }
        if slow.credits == 0 && now >= slow.next_probe {
            slow.credits = 1;
            slow.next_probe = now + slow.wait;
            slow.wait = (slow.wait * 2).min(PROBE_WAIT_MAX_MS);
        }
        newly
    }

    /// The shard asks for a permit: whatever it had is over. From here on time makes it no stabler.
    pub(super) fn asked(&mut self, tuple: Tuple, now: i64) {
        let stable_ms = self.stable_ms;
        if let Some(shard) = self.shards.get_mut(&tuple)
            && let Some(at) = shard.ready_at.take()
            && now - at >= stable_ms
        {
            shard.streak = 0;
        }
    }

    pub(super) fn wasted_in_a_row(&self, tuple: Tuple, now: i64) -> u32 {
        self.shards
            .get(&tuple)
            .map_or(0, |s| s.wasted(now, self.stable_ms))
    }

    /// From when on the shard's own brake lets it go.
    pub(super) fn eligible_at(&self, tuple: Tuple, now: i64) -> i64 {
        let Some(shard) = self.shards.get(&tuple) else {
            return now;
        };
        let wasted = shard.wasted(now, self.stable_ms);
        if wasted < FREE_TRIES {
            return now;
        }
        let wait = SHARD_WAIT_MS
            .saturating_mul(1_i64 << (wasted - FREE_TRIES).min(16))
            .min(SHARD_WAIT_MAX_MS);
        (shard.last + wait).max(now)
    }

    /// Whether the bot's brake lets the shard go.
    pub(super) fn passes(&self, tuple: Tuple, now: i64) -> bool {
        self.slow
            .is_none_or(|slow| slow.credits > 0 || self.wasted_in_a_row(tuple, now) == 0)
    }

    /// Whether the bot's brake is on.
    pub(super) fn is_slow(&self) -> bool {
        self.slow.is_some()
    }

    /// When the bot's brake next lets one go.
    pub(super) fn next_probe(&self) -> Option<i64> {
        let slow = self.slow?;
        self.shards
            .values()
            .filter(|s| !s.credited)
            .filter_map(|s| s.ready_at.map(|at| at + self.stable_ms))
            .chain([slow.next_probe])
            .min()
    }

    /// A permit was given. Returns the wasted ones in a row before it.
    pub(super) fn granted(&mut self, tuple: Tuple, now: i64) -> u32 {
        let before = self.wasted_in_a_row(tuple, now);
        self.replay(tuple, now, before);
        before
    }

    /// Like [`Self::granted`], from the ledger.
    pub(super) fn replay(&mut self, tuple: Tuple, at: i64, before: u32) {
        if before > 0 {
            self.wasted.push_back(at);
            if let Some(slow) = &mut self.slow {
                slow.credits = slow.credits.saturating_sub(1);
            }
        }
        self.shards.insert(
            tuple,
            ShardGuard {
                streak: before.saturating_add(1),
                last: at,
                ready_at: None,
                credited: false,
            },
        );
    }

    /// What is known of a shard, for [`Self::undo`].
    pub(super) fn memory_of(&self, tuple: Tuple) -> Option<ShardGuard> {
        self.shards.get(&tuple).copied()
    }

    /// The permit given since `before` was never seen by anyone.
    pub(super) fn undo(&mut self, tuple: Tuple, before: Option<ShardGuard>, wasted: bool) {
        match before {
            Some(shard) => self.shards.insert(tuple, shard),
            None => self.shards.remove(&tuple),
        };
        if wasted {
            self.wasted.pop_back();
        }
    }

    /// The shard is ready.
    pub(super) fn ready(&mut self, tuple: Tuple, at: i64) -> bool {
        match self.shards.get_mut(&tuple) {
            Some(shard) if shard.ready_at.is_none() => {
                shard.ready_at = Some(at);
                true
            }
            _ => false,
        }
    }

    /// Shards that are ready since, for the ledger.
    pub(super) fn ready_since(&self) -> impl Iterator<Item = (Tuple, i64)> + '_ {
        self.shards
            .iter()
            .filter_map(|(tuple, shard)| shard.ready_at.map(|at| (*tuple, at)))
    }

    /// Takes over what `other` knows of shards whose latest permit is the same.
    pub(super) fn adopt_ready(&mut self, other: &Self) {
        for (tuple, shard) in &mut self.shards {
            if let Some(known) = other.shards.get(tuple)
                && known.last == shard.last
                && shard.ready_at.is_none()
            {
                shard.ready_at = known.ready_at;
            }
        }
    }

    /// Forgets shards that have been quiet for long, which bounds the memory.
    pub(super) fn prune(&mut self, now: i64) {
        self.shards.retain(|_, s| now - s.last < DAY_MS);
    }
}
