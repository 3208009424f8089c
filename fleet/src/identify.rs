//! The identify ledger: who may send an IDENTIFY, and when (discord-rules, "IDENTIFY is the scarce
//! resource").
//!
//! For each bot: buckets `shard_id % max_concurrency`, one permit per bucket per 5 s; a rolling
//! 24-hour count with a reserve that is never spent automatically; permits numbered upwards; a
//! queue that serves the lowest shard of each free bucket; and two brakes on crash loops (the
//! `guard` module).
//!
//! # How the rules hold across crashes
//!
//! A permit is written to disk **before** it is given out: a step asks for [`Effect::Persist`], and
//! only [`Input::Persisted`] releases the permit ([`Effect::Grant`]). Until then its bucket is
//! locked. The 5 s count from the release. What disk holds may therefore be more than what was
//! given out, never less.
//!
//! After a restart the moment of release is unknown, but it is at most [`PERSIST_MAX_MS`] after the
//! record's own time, since a permit whose record took longer is thrown away. A bucket is therefore
//! free 5 s after the restart, or earlier where the record is old enough to prove it.
//!
//! # Time
//!
//! Everything is computed on CLOCK_BOOTTIME, which neither steps nor stops during suspend. The wall
//! clock serves only to place records of an earlier boot, and there at least the uptime has passed.

mod budget;
mod guard;
mod record;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};

pub use budget::ReportedLimits;
pub use record::{Entry, RECORD_BYTES, Record, Stamp};

use self::{
    budget::{Budget, Spent},
    guard::{Guard, ShardGuard, Tuple},
};

/// Discord's rule: one IDENTIFY per bucket in this time.
pub const RULE_MS: i64 = 5_000;
/// Between two permits of a bucket: the rule, and what permits and packets may differ in delay. A
/// cold start takes at most 1.05 times the time that the rule alone would take.
pub const SPACING_MS: i64 = 5_200;
/// An IDENTIFY that is not out within this time after its permit must not be sent. It and the
/// network's jitter have to fit into the margin above.
pub const VALID_MS: i64 = 150;
/// A permit whose record took longer than this to reach the disk is thrown away.
pub const PERSIST_MAX_MS: i64 = 10_000;
/// Shards of a bot that may wait at once.
const WAITING_MAX: usize = 16_384;
/// First wait after a failed write, doubled up to [`RETRY_MAX_MS`].
const RETRY_MS: i64 = 500;
const RETRY_MAX_MS: i64 = 30_000;

/// Names a request of the shell's.
pub type RequestId = u64;

/// What happens to the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A bot's ledger as found on disk, `None` for each damaged record. Once, before all else.
    Load {
        /// The bot.
        bot: String,
        /// In the order in which they were written.
        records: Vec<Option<Record>>,
    },
    /// What the spec says about a bot.
    Configure {
        /// The bot.
        bot: String,
        /// `max_concurrency` until Discord has been asked.
        max_concurrency: Option<u32>,
        /// IDENTIFYs never spent automatically; a tenth of the total when unset.
        reserve: Option<u32>,
    },
    /// A shard wants to identify.
    Request(Request),
    /// Whoever asked is gone.
    Cancel {
        /// The request.
        id: RequestId,
    },
    /// Discord was asked.
    Limits {
        /// The bot.
        bot: String,
        /// The answer.
        limits: ReportedLimits,
    },
    /// The records of [`Effect::Persist`] are on disk.
    Persisted {
        /// The bot.
        bot: String,
        /// Its number.
        seq: u64,
    },
    /// They are not, or nobody knows.
    PersistFailed {
        /// The bot.
        bot: String,
        /// Its number.
        seq: u64,
    },
    /// A shard became ready.
    Ready {
        /// The bot.
        bot: String,
        /// The shard.
        shard: u32,
        /// Of so many.
        count: u32,
    },
    /// The deadline has come.
    Tick,
}

/// A shard wants to identify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Unique.
    pub id: RequestId,
    /// The bot.
    pub bot: String,
    /// The process that holds the shard.
    pub process: String,
    /// Its attempt.
    pub attempt: u64,
    /// The shard.
    pub shard: u32,
    /// Of so many.
    pub count: u32,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Append to the bot's ledger and sync, then say [`Input::Persisted`] or
    /// [`Input::PersistFailed`].
    Persist {
        /// The bot.
        bot: String,
        /// Comes back with the outcome.
        seq: u64,
        /// What to append.
        records: Vec<Record>,
    },
    /// Append to the bot's ledger when convenient; losing it does no harm.
    Note {
        /// The bot.
        bot: String,
        /// What to append.
        record: Record,
    },
    /// Give out the permit.
    Grant {
        /// To this request.
        id: RequestId,
        /// The permit's number.
        permit: u64,
        /// Left of the day's budget, reserve included.
        remaining: u32,
    },
    /// Refuse the request.
    Refuse {
        /// This request.
        id: RequestId,
        /// Why.
        why: Refusal,
    },
    /// The operator would want to know.
    Notice(Notice),
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The budget is spent down to the reserve.
    Exhausted {
        /// When the next one is free, milliseconds since 1970; `None` when the reserve is all.
        free_at: Option<i64>,
    },
    /// A newer attempt, or a newer request for the same shard, has taken its place.
    Superseded,
    /// Too many wait.
    Full,
}

/// Something the operator would want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The budget is spent down to the reserve.
    Exhausted {
        /// The bot.
        bot: String,
        /// When the next one is free, milliseconds since 1970.
        free_at: Option<i64>,
    },
    /// A shard wasted several IDENTIFYs in a row and has to wait.
    Delayed {
        /// The bot.
        bot: String,
        /// The process.
        process: String,
        /// The shard.
        shard: u32,
        /// Wasted ones in a row.
        wasted: u32,
        /// How long, in milliseconds.
        wait_ms: i64,
    },
    /// A quarter of the budget was wasted: shards in trouble go by slow start from now on.
    Slowed {
        /// The bot.
        bot: String,
    },
    /// A report of Discord's limits made no sense and was ignored.
    BadLimits {
        /// The bot.
        bot: String,
    },
    /// Records were damaged; each counts as a permit given just now.
    Damaged {
        /// The bot.
        bot: String,
        /// How many.
        records: usize,
    },
}

/// The state of one bot, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BotStatus {
    /// The bot.
    pub bot: String,
    /// IDENTIFYs a day.
    pub total: u32,
    /// Of those, used.
    pub used: u32,
    /// Never spent automatically.
    pub reserve: u32,
    /// Buckets.
    pub max_concurrency: u32,
    /// Shards that Discord recommends; 0 = not asked yet.
    pub recommended: u32,
    /// Milliseconds since 1970.
    pub resets_at: i64,
    /// Buckets that wait or have given a permit today.
    pub buckets: Vec<BucketStatus>,
    /// Until every waiting shard has its permit, brakes not counted.
    pub forecast_ms: u64,
}

/// The state of one bucket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BucketStatus {
    /// Its number.
    pub bucket: u32,
    /// When it is free, milliseconds since 1970.
    pub next_at: i64,
    /// Shards that wait, in the order in which they are served.
    pub waiting: Vec<u32>,
    /// Permits of the last 24 hours.
    pub granted: u64,
}

#[derive(Debug, Clone)]
struct Waiting {
    request: Request,
    /// Whether the operator has been told that it is delayed.
    noticed: bool,
}

/// A permit that is not released yet.
#[derive(Debug)]
struct Pending {
    seq: u64,
    at: i64,
    permit: u64,
    waiting: Waiting,
    cancelled: bool,
    /// What the guard knew before, and whether the permit showed an earlier one wasted.
    guard_before: Option<ShardGuard>,
    wasted: bool,
}

#[derive(Debug, Default)]
struct Bot {
    budget: Budget,
    guard: Guard,
    waiting: BTreeMap<Tuple, Waiting>,
    pending: Vec<Pending>,
    /// Permits released within the spacing: shard, when.
    released: VecDeque<(u32, i64)>,
    /// No bucket is free before this (a record was damaged).
    blocked_until: i64,
    /// No new write before this (the last one failed).
    retry_at: i64,
    retry_wait: i64,
    last_permit: u64,
    /// Whether the latest report may not be on disk yet; the next permit takes it along.
    report_unsynced: bool,
    /// Newest attempt seen of each process.
    attempts: HashMap<String, u64>,
    exhausted: bool,
}

/// The ledger of all bots. See the module's documentation.
#[derive(Debug, Default)]
pub struct Ledger {
    bots: BTreeMap<String, Bot>,
    next_seq: u64,
    /// The newest time seen: a clock that went back is not believed.
    newest: i64,
}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an input; says what to do.
    pub fn step(&mut self, mut now: Stamp, input: Input) -> Vec<Effect> {
        self.newest = self.newest.max(now.boot_ms);
        now.boot_ms = self.newest;
        let mut out = Vec::new();
        self.take(now, input, &mut out);
        let newest = self.newest;
        for (name, bot) in &mut self.bots {
            bot.advance(now, newest, name, &mut self.next_seq, &mut out);
        }
        out
    }

    fn take(&mut self, now: Stamp, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Load { bot, records } => {
                let damaged = records.iter().filter(|r| r.is_none()).count();
                self.bots.entry(bot.clone()).or_default().load(now, records);
                if damaged > 0 {
                    out.push(Effect::Notice(Notice::Damaged {
                        bot,
                        records: damaged,
                    }));
                }
            }
            Input::Configure {
                bot,
                max_concurrency,
                reserve,
            } => {
                let budget = &mut self.bots.entry(bot).or_default().budget;
                budget.hint = max_concurrency;
                budget.reserve = reserve;
            }
            Input::Request(request) => {
                let bot = self.bots.entry(request.bot.clone()).or_default();
                bot.request(request, out);
            }
            Input::Cancel { id } => {
                for bot in self.bots.values_mut() {
                    bot.waiting.retain(|_, w| w.request.id != id);
                    for pending in &mut bot.pending {
                        pending.cancelled |= pending.waiting.request.id == id;
                    }
                }
            }
            Input::Limits { bot: name, limits } => {
                let bot = self.bots.entry(name.clone()).or_default();
                let before = bot.budget.report;
                if !bot.budget.merge(now.boot_ms, limits) {
                    out.push(Effect::Notice(Notice::BadLimits { bot: name }));
                } else if before != bot.budget.report
                    && let Some(record) = bot.limits_record(now, bot.budget.unreleased)
                {
                    bot.report_unsynced = true;
                    out.push(Effect::Note { bot: name, record });
                }
            }
            Input::Persisted { bot: name, seq } => {
                if let Some(bot) = self.bots.get_mut(&name) {
                    bot.persisted(&name, now, seq, out);
                }
            }
            Input::PersistFailed { bot, seq } => {
                if let Some(bot) = self.bots.get_mut(&bot) {
                    bot.persist_failed(now.boot_ms, seq);
                }
            }
            Input::Ready { bot, shard, count } => {
                if let Some(known) = self.bots.get_mut(&bot)
                    && known.guard.ready((shard, count), now.boot_ms)
                {
                    out.push(Effect::Note {
                        bot,
                        record: Record {
                            at: now,
                            entry: Entry::Ready { shard, count },
                        },
                    });
                }
            }
            Input::Tick => {}
        }
    }

    /// When to come back with [`Input::Tick`], on the boot clock; `None` = only when something
    /// happens.
    pub fn deadline(&self) -> Option<i64> {
        self.bots
            .values()
            .filter_map(|bot| bot.deadline(self.newest))
            .min()
    }

    /// Everything a bot's ledger must hold, as few records as possible, for rewriting its file.
    pub fn records(&self, bot: &str, now: Stamp) -> Vec<Record> {
        self.bots.get(bot).map_or_else(Vec::new, |b| b.records(now))
    }

    /// The state of all bots.
    pub fn status(&self, now: Stamp) -> Vec<BotStatus> {
        self.bots
            .iter()
            .map(|(name, bot)| bot.status(name, now))
            .collect()
    }
}

/// A moment of the boot clock on the wall clock.
fn on_wall(now: Stamp, at: i64) -> i64 {
    now.wall_ms.saturating_add(at.saturating_sub(now.boot_ms))
}

impl Bot {
    fn load(&mut self, now: Stamp, records: Vec<Option<Record>>) {
        for record in records {
            let Some(record) = record else {
                // A permit may have been given, just now, to anyone.
                self.last_permit += 1;
                self.budget.spend(Spent {
                    at: now.boot_ms,
                    permit: self.last_permit,
                    shard: 0,
                    count: 0,
                    streak: 0,
                });
                self.budget.settle();
                self.blocked_until = now.boot_ms + SPACING_MS;
                continue;
            };
            let at = record.at.on_clock_of(now);
            match record.entry {
                Entry::Grant {
                    permit,
                    shard,
                    count,
                    streak,
                } => {
                    self.last_permit = self.last_permit.max(permit);
                    self.budget.spend(Spent {
                        at,
                        permit,
                        shard,
                        count,
                        streak,
                    });
                    self.budget.settle();
                    self.guard.replay((shard, count), at, streak);
                    // Released after the record, but not after what followed it.
                    let latest = if record.at.boot_id == now.boot_id {
                        now.boot_ms
                    } else {
                        now.boot_ms.min(0)
                    };
                    self.released
                        .push_back((shard, (at + PERSIST_MAX_MS).min(latest)));
                }
                Entry::Ready { shard, count } => {
                    self.guard.ready((shard, count), at);
                }
                // Only our own count: whether a report since contained it is not known.
                Entry::Refund { permit } => {
                    self.last_permit = self.last_permit.max(permit);
                    self.budget.spent.retain(|s| s.permit != permit);
                }
                Entry::Limits {
                    total,
                    used,
                    reset_after_ms,
                    max_concurrency,
                    recommended,
                } => {
                    self.budget.merge(
                        at,
                        ReportedLimits {
                            total,
                            remaining: total.saturating_sub(used),
                            reset_after_ms,
                            max_concurrency,
                            recommended,
                        },
                    );
                }
            }
        }
        // Clocks of several boots may disagree about the order; the window needs it.
        self.budget.spent.make_contiguous().sort_by_key(|s| s.at);
    }

    fn request(&mut self, request: Request, out: &mut Vec<Effect>) {
        let newest = self.attempts.entry(request.process.clone()).or_default();
        if request.attempt < *newest {
            out.push(Effect::Refuse {
                id: request.id,
                why: Refusal::Superseded,
            });
            return;
        }
        if request.attempt > *newest {
            *newest = request.attempt;
            let older = |w: &Waiting| {
                w.request.process == request.process && w.request.attempt < request.attempt
            };
            for (_, old) in self.waiting.extract_if(.., |_, w| older(w)) {
                out.push(Effect::Refuse {
                    id: old.request.id,
                    why: Refusal::Superseded,
                });
            }
            for pending in &mut self.pending {
                if !pending.cancelled && older(&pending.waiting) {
                    pending.cancelled = true;
                    out.push(Effect::Refuse {
                        id: pending.waiting.request.id,
                        why: Refusal::Superseded,
                    });
                }
            }
        }
        let tuple = (request.shard, request.count);
        // Asked again, for example over a new connection: the earlier one is not heard any more.
        for pending in &mut self.pending {
            let old = &pending.waiting.request;
            if !pending.cancelled && (old.shard, old.count) == tuple {
                pending.cancelled = true;
                out.push(Effect::Refuse {
                    id: old.id,
                    why: Refusal::Superseded,
                });
            }
        }
        if self.waiting.len() >= WAITING_MAX && !self.waiting.contains_key(&tuple) {
            out.push(Effect::Refuse {
                id: request.id,
                why: Refusal::Full,
            });
            return;
        }
        let waiting = Waiting {
            request,
            noticed: false,
        };
        if let Some(old) = self.waiting.insert(tuple, waiting) {
            out.push(Effect::Refuse {
                id: old.request.id,
                why: Refusal::Superseded,
            });
        }
    }

    fn persisted(&mut self, name: &str, now: Stamp, seq: u64, out: &mut Vec<Effect>) {
        self.retry_wait = 0;
        let done: Vec<Pending> = self.pending.extract_if(.., |p| p.seq == seq).collect();
        for pending in done {
            let late = now.boot_ms - pending.at > PERSIST_MAX_MS;
            if pending.cancelled || late {
                // Nobody saw it: nothing was spent, the bucket is free. Should the note be lost,
                // the count after the next start is one too high, which does no harm.
                self.budget.refund(pending.permit);
                self.undo_guard(&pending);
                out.push(Effect::Note {
                    bot: name.to_owned(),
                    record: Record {
                        at: now,
                        entry: Entry::Refund {
                            permit: pending.permit,
                        },
                    },
                });
                if !pending.cancelled {
                    self.requeue(pending.waiting);
                }
                continue;
            }
            self.budget.settle();
            let now = now.boot_ms;
            let request = &pending.waiting.request;
            self.released.push_back((request.shard, now));
            out.push(Effect::Grant {
                id: request.id,
                permit: pending.permit,
                remaining: self.budget.total() - self.budget.used(now),
            });
        }
    }

    fn persist_failed(&mut self, now: i64, seq: u64) {
        let failed: Vec<Pending> = self.pending.extract_if(.., |p| p.seq == seq).collect();
        if failed.is_empty() {
            return;
        }
        self.report_unsynced = self.budget.report.is_some();
        self.retry_wait = (self.retry_wait * 2).clamp(RETRY_MS, RETRY_MAX_MS);
        self.retry_at = now + self.retry_wait;
        for pending in failed {
            // Nobody saw it, so it was not spent, whatever disk holds.
            self.budget.refund(pending.permit);
            self.undo_guard(&pending);
            if !pending.cancelled {
                self.requeue(pending.waiting);
            }
        }
    }

    fn undo_guard(&mut self, pending: &Pending) {
        let request = &pending.waiting.request;
        let tuple = (request.shard, request.count);
        self.guard.undo(tuple, pending.guard_before, pending.wasted);
    }

    /// Back into the queue, unless the shard has asked again meanwhile.
    fn requeue(&mut self, waiting: Waiting) {
        let tuple = (waiting.request.shard, waiting.request.count);
        self.waiting.entry(tuple).or_insert(waiting);
    }

    /// When a bucket is free; `None` while a permit of it is being written.
    fn bucket_free_at(&self, bucket: u32, mc: u32) -> Option<i64> {
        let in_bucket = |shard: u32| shard % mc == bucket;
        if self
            .pending
            .iter()
            .any(|p| !p.cancelled && in_bucket(p.waiting.request.shard))
        {
            return None;
        }
        let last = self
            .released
            .iter()
            .filter(|(shard, _)| in_bucket(*shard))
            .map(|(_, at)| at + SPACING_MS)
            .max()
            .unwrap_or(i64::MIN);
        Some(last.max(self.blocked_until).max(self.retry_at))
    }

    /// Gives what can be given at `now`.
    fn advance(
        &mut self,
        stamp: Stamp,
        now: i64,
        name: &str,
        next_seq: &mut u64,
        out: &mut Vec<Effect>,
    ) {
        self.budget.prune(now);
        self.released.retain(|(_, at)| now - at < SPACING_MS);
        self.guard.prune(now);
        if self.guard.advance(now, self.budget.spendable()) {
            out.push(Effect::Notice(Notice::Slowed {
                bot: name.to_owned(),
            }));
        }
        if self.waiting.is_empty() {
            return;
        }

        let mc = self.budget.max_concurrency();
        let mut free: HashMap<u32, bool> = HashMap::new();
        let mut granted = Vec::new();
        for (tuple, waiting) in &mut self.waiting {
            if self.budget.exhausted(now) {
                break;
            }
            let eligible = self.guard.eligible_at(*tuple, now);
            if eligible > now {
                if !waiting.noticed {
                    waiting.noticed = true;
                    out.push(Effect::Notice(Notice::Delayed {
                        bot: name.to_owned(),
                        process: waiting.request.process.clone(),
                        shard: tuple.0,
                        wasted: self.guard.wasted_in_a_row(*tuple, now),
                        wait_ms: eligible - now,
                    }));
                }
                continue;
            }
            let bucket = tuple.0 % mc;
            if free.get(&bucket) == Some(&false) || !self.guard.passes(*tuple, now) {
                continue;
            }
            let pending = &self.pending;
            let open = *free.entry(bucket).or_insert_with(|| {
                now >= self.blocked_until
                    && now >= self.retry_at
                    && !pending
                        .iter()
                        .any(|p| !p.cancelled && p.waiting.request.shard % mc == bucket)
                    && !self
                        .released
                        .iter()
                        .any(|(shard, at)| shard % mc == bucket && now - at < SPACING_MS)
            });
            if !open {
                continue;
            }
            free.insert(bucket, false);
            self.last_permit += 1;
            let before = self.guard.memory_of(*tuple);
            let streak = self.guard.granted(*tuple, now);
            let spent = Spent {
                at: now,
                permit: self.last_permit,
                shard: tuple.0,
                count: tuple.1,
                streak,
            };
            self.budget.spend(spent);
            granted.push((spent, before));
        }
        if !granted.is_empty() {
            let seq = *next_seq;
            *next_seq += 1;
            let mut records = Vec::with_capacity(granted.len() + 1);
            if self.report_unsynced {
                // First: its count does not contain the permits that follow.
                self.report_unsynced = false;
                let earlier = self.budget.unreleased - granted.len() as u32;
                records.extend(self.limits_record(stamp, earlier));
            }
            for (spent, guard_before) in granted {
                let waiting = self
                    .waiting
                    .remove(&(spent.shard, spent.count))
                    .expect("invariant: only waiting shards are granted");
                self.pending.push(Pending {
                    seq,
                    at: now,
                    permit: spent.permit,
                    waiting,
                    cancelled: false,
                    guard_before,
                    wasted: spent.streak > 0,
                });
                records.push(grant_record(stamp, spent));
            }
            out.push(Effect::Persist {
                bot: name.to_owned(),
                seq,
                records,
            });
        }

        if self.budget.exhausted(now) {
            let free_at = self.budget.free_at(now).map(|at| on_wall(stamp, at));
            if !self.exhausted && !self.waiting.is_empty() {
                self.exhausted = true;
                out.push(Effect::Notice(Notice::Exhausted {
                    bot: name.to_owned(),
                    free_at,
                }));
            }
            for waiting in std::mem::take(&mut self.waiting).into_values() {
                out.push(Effect::Refuse {
                    id: waiting.request.id,
                    why: Refusal::Exhausted { free_at },
                });
            }
        } else {
            self.exhausted = false;
        }
    }

    fn deadline(&self, now: i64) -> Option<i64> {
        let mc = self.budget.max_concurrency();
        let mut soonest: Option<i64> = None;
        let mut buckets: HashMap<u32, Option<i64>> = HashMap::new();
        for tuple in self.waiting.keys() {
            let bucket = tuple.0 % mc;
            let free = *buckets
                .entry(bucket)
                .or_insert_with(|| self.bucket_free_at(bucket, mc));
            let Some(free) = free else { continue };
            let mut at = free.max(self.guard.eligible_at(*tuple, now));
            if !self.guard.passes(*tuple, now) {
                at = at.max(self.guard.next_probe().unwrap_or(at));
            }
            soonest = Some(soonest.map_or(at, |s: i64| s.min(at)));
        }
        soonest
    }

    /// The report, and `more` permits that its count does not contain yet.
    fn limits_record(&self, now: Stamp, more: u32) -> Option<Record> {
        let report = self.budget.report?;
        Some(Record {
            at: now,
            entry: Entry::Limits {
                total: report.total,
                used: report.used.saturating_add(more),
                reset_after_ms: (report.resets_at - now.boot_ms).max(0) as u64,
                max_concurrency: report.max_concurrency,
                recommended: report.recommended,
            },
        })
    }

    fn records(&self, now: Stamp) -> Vec<Record> {
        let stamp = |at: i64| Stamp {
            boot_id: now.boot_id,
            boot_ms: at,
            wall_ms: on_wall(now, at),
        };
        let mut records: Vec<Record> = self
            .budget
            .spent
            .iter()
            .map(|spent| grant_record(stamp(spent.at), *spent))
            .collect();
        if self
            .budget
            .spent
            .iter()
            .all(|s| s.permit < self.last_permit)
        {
            // Numbers rise for ever, also when the day is over.
            records.push(Record {
                at: now,
                entry: Entry::Refund {
                    permit: self.last_permit,
                },
            });
        }
        // A stable sort: a shard that was ready in the very millisecond of its permit stays behind it.
        records.extend(self.guard.ready_since().map(|((shard, count), at)| Record {
            at: stamp(at),
            entry: Entry::Ready { shard, count },
        }));
        records.sort_by_key(|record| record.at.boot_ms);
        // Last: its count already contains the permits above.
        records.extend(self.limits_record(now, self.budget.unreleased));
        records
    }

    fn status(&self, name: &str, stamp: Stamp) -> BotStatus {
        let now = stamp.boot_ms;
        let mc = self.budget.max_concurrency();
        let mut buckets: BTreeMap<u32, BucketStatus> = BTreeMap::new();
        for spent in self.budget.spent.iter().filter(|s| s.count > 0) {
            buckets.entry(spent.shard % mc).or_default().granted += 1;
        }
        for (shard, _) in self.waiting.keys() {
            let bucket = buckets.entry(shard % mc).or_default();
            bucket.waiting.push(*shard);
        }
        let mut forecast = 0;
        for (number, bucket) in &mut buckets {
            let free = self
                .bucket_free_at(*number, mc)
                .unwrap_or(now + SPACING_MS)
                .max(now);
            bucket.bucket = *number;
            bucket.next_at = on_wall(stamp, free);
            if let Some(behind_first) = bucket.waiting.len().checked_sub(1) {
                forecast = forecast.max(free - now + behind_first as i64 * SPACING_MS);
            }
        }
        BotStatus {
            bot: name.to_owned(),
            total: self.budget.total(),
            used: self.budget.used(now),
            reserve: self.budget.reserve(),
            max_concurrency: mc,
            recommended: self.budget.report.map_or(0, |r| r.recommended),
            resets_at: on_wall(stamp, self.budget.resets_at(now)),
            buckets: buckets.into_values().collect(),
            forecast_ms: forecast as u64,
        }
    }
}

fn grant_record(at: Stamp, spent: Spent) -> Record {
    Record {
        at,
        entry: Entry::Grant {
            permit: spent.permit,
            shard: spent.shard,
            count: spent.count,
            streak: spent.streak,
        },
    }
}
