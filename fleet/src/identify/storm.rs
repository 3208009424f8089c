//! The storm brake: tells trouble of everyone's from trouble of one shard's.
//!
//! A permit *holds* when its shard becomes ready, and *comes to nothing* when the shard asks again
//! before, or is silent for too long. When several in a row came to nothing, over several shards,
//! then it is Discord that is ill: from then on there is one IDENTIFY at a time, with growing waits,
//! until one holds. Then buckets decide again, at full speed.
//!
//! ```text
//!            ROW in a row came to nothing, of SHARDS shards
//!   normal ───────────────────────────────────────────────► probing ─┐ each that came to nothing
//!      ▲                                                      │  ▲    │ doubles the wait
//!      └──────────────────── one holds ───────────────────────┘  └────┘
//! ```
//!
//! What is out before the first outcome is known is bounded too: [`WINDOW_ROUNDS`] rounds of all
//! buckets, one more permit for each that held. So an outage that answers no IDENTIFY wastes at most
//! `WINDOW_ROUNDS * max_concurrency` permits (at least [`ROW`]) and then one a wait. A gateway that
//! cannot be reached at all wastes none: permits are asked for after its Hello.

use std::collections::{BTreeMap, BTreeSet};

use super::{guard::Tuple, messages::Via};

/// So many permits in a row that came to nothing are a storm…
pub(super) const ROW: u32 = 4;
/// …when they are of so many shards at least. One shard alone is the guard's business.
const SHARDS: usize = 2;
/// A worker that got a permit is ready within this time, or its IDENTIFY came to nothing. Workers
/// themselves give up on a READY after 30 s; then their guilds have to arrive.
pub(super) const OUTCOME_MS: i64 = 90_000;
/// Nothing is known of another bot's IDENTIFY after this time.
const OUTCOME_FOREIGN_MS: i64 = 5 * 60_000;
/// Between two probes at first, doubled while none holds. The first goes out at once.
const PROBE_WAIT_MS: i64 = 5_000;
/// Between two probes at most: what a recovery may have to wait for.
pub(super) const PROBE_WAIT_MAX_MS: i64 = 120_000;
/// Rounds of all buckets whose outcome may be unknown, while nothing has held yet.
pub(super) const WINDOW_ROUNDS: u32 = 4;
/// The window grows to so many rounds.
const WINDOW_ROUNDS_MAX: u32 = 16;

/// A permit whose outcome is not known.
#[derive(Debug, Clone)]
struct Open {
    at: i64,
    permit: u64,
    via: Via,
    process: String,
    attempt: u64,
}

impl Open {
    fn until(&self) -> i64 {
        let wait = match self.via {
            Via::Worker => OUTCOME_MS,
            Via::Start | Via::Queue => OUTCOME_FOREIGN_MS,
        };
        self.at.saturating_add(wait)
    }

    fn is_same_start(&self, process: &str, attempt: u64) -> bool {
        self.via == Via::Start && self.attempt == attempt && self.process == process
    }
}

#[derive(Debug, Clone, Copy)]
struct Probing {
    since: i64,
    next_at: i64,
    wait: i64,
}

/// What the brake has just done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It went on.
    On,
    /// It went off.
    Off,
}

/// Who wants a permit, as far as the brake is concerned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub(super) via: Via,
    pub(super) process: &'a str,
    pub(super) attempt: u64,
}

/// The brake of one bot.
#[derive(Debug, Default)]
pub(super) struct Storm {
    open: BTreeMap<Tuple, Open>,
    /// Of those, workers'.
    open_workers: usize,
    /// Permits in a row that came to nothing, and whose.
    row: u32,
    shards: BTreeSet<Tuple>,
    /// Permits that held since the last one that did not.
    held: u32,
    probing: Option<Probing>,
}

impl Storm {
    /// The permit was given out. An earlier one of the same shard came to nothing.
    pub(super) fn granted(
        &mut self,
        tuple: Tuple,
        now: i64,
        permit: u64,
        who: Candidate<'_>,
    ) -> Option<Change> {
        let change = self.asked(tuple, now);
        self.open_workers += usize::from(who.via == Via::Worker);
        self.open.insert(
            tuple,
            Open {
                at: now,
                permit,
                via: who.via,
                process: who.process.to_owned(),
                attempt: who.attempt,
            },
        );
        change
    }

    /// The shard asks for a permit.
    pub(super) fn asked(&mut self, tuple: Tuple, now: i64) -> Option<Change> {
        let open = self.close(tuple)?;
        if open.via == Via::Start {
            // A start that failed is one failure, however many shards it had.
            self.open
                .retain(|_, other| !other.is_same_start(&open.process, open.attempt));
        }
        self.came_to_nothing(tuple, open.at, now)
    }

    /// The shard is ready.
    pub(super) fn ready(&mut self, tuple: Tuple) -> Option<Change> {
        self.held = self.held.saturating_add(1);
        if self.close(tuple).is_none() {
            self.held -= 1;
            return None;
        }
        self.row = 0;
        self.shards.clear();
        self.probing.take().map(|_| Change::Off)
    }

    /// Nobody ever saw the permit.
    pub(super) fn undo(&mut self, permit: u64) {
        let tuple = self.open.iter().find(|(_, open)| open.permit == permit);
        if let Some(tuple) = tuple.map(|(tuple, _)| *tuple) {
            self.close(tuple);
        }
    }

    fn close(&mut self, tuple: Tuple) -> Option<Open> {
        let open = self.open.remove(&tuple)?;
        self.open_workers -= usize::from(open.via == Via::Worker);
        if self.open_workers == 0 {
            // The next burst begins with a small window again.
            self.held = 0;
        }
        Some(open)
    }

    /// Keeps the books.
    pub(super) fn advance(&mut self, now: i64) -> Option<Change> {
        let mut change = None;
        let over: Vec<(Tuple, Open)> = self
            .open
            .extract_if(.., |_, open| now >= open.until())
            .collect();
        for (tuple, open) in over {
            self.open_workers -= usize::from(open.via == Via::Worker);
            match (open.via, &mut self.probing) {
                (Via::Worker, _) => {
                    change = self.came_to_nothing(tuple, open.at, now).or(change);
                }
                // Nobody says how it went, which is no reason to hurry.
                (Via::Start | Via::Queue, Some(probing)) if open.at >= probing.since => {
                    probing.lengthen(now);
                }
                (Via::Start | Via::Queue, _) => {}
            }
        }
        change
    }

    fn came_to_nothing(&mut self, tuple: Tuple, at: i64, now: i64) -> Option<Change> {
        self.held = 0;
        self.row = self.row.saturating_add(1);
        if self.shards.len() < SHARDS {
            self.shards.insert(tuple);
        }
        match &mut self.probing {
            Some(probing) => {
                // What was out when the brake went on is no probe.
                if at >= probing.since {
                    probing.lengthen(now);
                }
                None
            }
            None if self.row >= ROW && self.shards.len() >= SHARDS => {
                self.probing = Some(Probing {
                    since: now,
                    next_at: now,
                    wait: PROBE_WAIT_MS,
                });
                Some(Change::On)
            }
            None => None,
        }
    }

    pub(super) fn in_a_row(&self) -> u32 {
        self.row
    }

    pub(super) fn is_probing(&self) -> bool {
        self.probing.is_some()
    }

    /// Whether one more may be given at `now`. `pending` are those on their way to the store,
    /// `workers` those of them for workers.
    pub(super) fn passes(
        &self,
        who: Candidate<'_>,
        now: i64,
        pending: usize,
        workers: usize,
        mc: u32,
    ) -> bool {
        self.passes_at(who, pending, workers, mc)
            .is_some_and(|at| now >= at)
    }

    /// From when on it may, if only time has to pass.
    pub(super) fn passes_at(
        &self,
        who: Candidate<'_>,
        pending: usize,
        workers: usize,
        mc: u32,
    ) -> Option<i64> {
        if let Some(probing) = self.probing {
            // A start needs the permits of all its shards before anything can come of it.
            let same_start = who.via == Via::Start
                && self
                    .open
                    .values()
                    .any(|open| open.is_same_start(who.process, who.attempt));
            return if same_start {
                Some(i64::MIN)
            } else if pending == 0 && self.open.is_empty() {
                Some(probing.next_at)
            } else {
                None
            };
        }
        let unknown = self.open_workers + workers;
        (who.via != Via::Worker || unknown < self.window(mc)).then_some(i64::MIN)
    }

    fn window(&self, mc: u32) -> usize {
        let first = mc.saturating_mul(WINDOW_ROUNDS).max(ROW);
        let most = mc.saturating_mul(WINDOW_ROUNDS_MAX).max(first);
        first.saturating_add(self.held).min(most) as usize
    }

    /// When the next permit's outcome is known without a word of its shard.
    pub(super) fn outcome_deadline(&self) -> Option<i64> {
        self.open.values().map(Open::until).min()
    }

    /// When the next probe may go out, if only time has to pass.
    pub(super) fn next_probe(&self, waiting: bool) -> Option<i64> {
        self.probing
            .filter(|_| waiting && self.open.is_empty())
            .map(|probing| probing.next_at)
    }
}

impl Probing {
    fn lengthen(&mut self, now: i64) {
        self.next_at = now.saturating_add(self.wait);
        self.wait = (self.wait * 2).min(PROBE_WAIT_MAX_MS);
    }
}
