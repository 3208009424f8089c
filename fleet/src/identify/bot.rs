//! One bot's ledger: its queue, its permits on their way, and whether it knows its records.

use std::collections::{BTreeMap, HashMap, hash_map};

use super::{
    JITTER_MS, LEAD_MS, PERSIST_MAX_MS, RULE_MS,
    budget::{Budget, Spent},
    guard::{Guard, ShardGuard, Tuple},
    messages::{Effect, Notice, Refusal, Request, RequestId},
    record::{Entry, Record, Stamp},
    spacing_ms,
    storm::{Candidate, Change, OUTCOME_MS, Storm},
};

/// Shards of a bot that may wait at once.
const WAITING_MAX: usize = 16_384;
/// First wait after the store failed, doubled up to [`RETRY_MAX_MS`].
pub(super) const RETRY_MS: i64 = 500;
pub(super) const RETRY_MAX_MS: i64 = 5_000;
/// Records that are asked for come within this time, or are asked for again.
const LOAD_MAX_MS: i64 = 60_000;

#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) request: Request,
    /// Whether the operator has been told that it is delayed.
    noticed: bool,
}

impl Waiting {
    fn candidate(&self) -> Candidate<'_> {
        Candidate {
            via: self.request.via,
            process: &self.request.process,
            attempt: self.request.attempt,
        }
    }
}

/// A permit that is not released yet.
#[derive(Debug)]
pub(super) struct Pending {
    seq: u64,
    at: i64,
    permit: u64,
    /// When its bucket is free.
    not_before: i64,
    /// Its record is in the store.
    written: bool,
    pub(super) waiting: Waiting,
    cancelled: bool,
    /// What the guard knew before, and whether the permit showed an earlier one wasted.
    guard_before: Option<ShardGuard>,
    wasted: bool,
}

/// The latest permit of a worker's shard that may yet turn out not to have been used.
#[derive(Debug)]
struct Given {
    at: i64,
    permit: u64,
    /// What the guard knew before, and whether the permit showed an earlier one wasted.
    guard_before: Option<ShardGuard>,
    wasted: bool,
    /// [`Budget::reports`] when it was given.
    reports: u64,
}

/// A permit that still locks its bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Released {
    pub(super) permit: u64,
    pub(super) shard: u32,
    pub(super) count: u32,
    pub(super) free_at: i64,
}

/// Whether the bot's records are known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Knows {
    #[default]
    Nothing,
    Asked {
        seq: u64,
        at: i64,
    },
    All,
}

/// What a bucket waits for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    /// A permit of it is on its way.
    pub(super) busy: bool,
    /// Free by what was released.
    pub(super) free_at: i64,
}

#[derive(Debug, Default)]
pub(super) struct Bot {
    pub(super) budget: Budget,
    pub(super) guard: Guard,
    pub(super) storm: Storm,
    pub(super) waiting: BTreeMap<Tuple, Waiting>,
    /// By number, which is the order in which they are released.
    pub(super) pending: Vec<Pending>,
    pub(super) released: Vec<Released>,
    given: HashMap<Tuple, Given>,
    /// No bucket is free before this (a record was damaged).
    pub(super) blocked_until: i64,
    pub(super) knows: Knows,
    /// Nothing is asked of the store before this (it failed).
    retry_at: i64,
    retry_wait: i64,
    pub(super) last_permit: u64,
    /// Whether the latest report may not be in the store yet; the next permit takes it along.
    pub(super) report_unsynced: bool,
    /// Newest attempt seen of each process.
    pub(super) attempts: HashMap<String, u64>,
    exhausted: bool,
}

/// A moment of the boot clock on the wall clock.
pub(super) fn on_wall(now: Stamp, at: i64) -> i64 {
    now.wall_ms.saturating_add(at.saturating_sub(now.boot_ms))
}

impl Bot {
    pub(super) fn request(
        &mut self,
        name: &str,
        now: i64,
        request: Request,
        out: &mut Vec<Effect>,
    ) {
        let newest = self.attempts.entry(request.process.clone()).or_default();
        if request.attempt < *newest {
            out.push(refuse(request.id, Refusal::Superseded));
            return;
        }
        if request.attempt > *newest {
            *newest = request.attempt;
            let older = |w: &Waiting| {
                w.request.process == request.process && w.request.attempt < request.attempt
            };
            for (_, old) in self.waiting.extract_if(.., |_, w| older(w)) {
                out.push(refuse(old.request.id, Refusal::Superseded));
            }
            for pending in &mut self.pending {
                if !pending.cancelled && older(&pending.waiting) {
                    pending.cancelled = true;
                    out.push(refuse(pending.waiting.request.id, Refusal::Superseded));
                }
            }
        }
        let tuple = (request.shard, request.count);
        self.budget.shards = self.budget.shards.max(request.count);
        // Asked again, for example over a new connection: the earlier one is not heard any more.
        for pending in &mut self.pending {
            let old = &pending.waiting.request;
            if !pending.cancelled && (old.shard, old.count) == tuple {
                pending.cancelled = true;
                out.push(refuse(old.id, Refusal::Superseded));
            }
        }
        self.guard.asked(tuple, now);
        let change = self.storm.asked(tuple, now);
        self.tell(name, change, out);
        if self.waiting.len() >= WAITING_MAX && !self.waiting.contains_key(&tuple) {
            out.push(refuse(request.id, Refusal::Full));
            return;
        }
        let waiting = Waiting {
            request,
            noticed: false,
        };
        if let Some(old) = self.waiting.insert(tuple, waiting) {
            out.push(refuse(old.request.id, Refusal::Superseded));
        }
    }

    pub(super) fn cancel(&mut self, id: RequestId) {
        self.waiting.retain(|_, w| w.request.id != id);
        for pending in &mut self.pending {
            pending.cancelled |= pending.waiting.request.id == id;
        }
    }

    /// True when that is news.
    pub(super) fn ready(
        &mut self,
        name: &str,
        tuple: Tuple,
        now: i64,
        out: &mut Vec<Effect>,
    ) -> bool {
        self.given.remove(&tuple);
        let change = self.storm.ready(tuple);
        self.tell(name, change, out);
        self.guard.ready(tuple, now)
    }

    /// Takes a permit back that has not been used and will not be. True when it counted until now.
    pub(super) fn unused(&mut self, tuple: Tuple, permit: u64) -> bool {
        let given = match self.given.entry(tuple) {
            hash_map::Entry::Occupied(given) if given.get().permit == permit => given.remove(),
            // Used, told before, or not known to be the shard's latest.
            _ => return false,
        };
        self.budget.give_back(permit, given.reports);
        self.guard.undo(tuple, given.guard_before, given.wasted);
        self.storm.undo(permit);
        self.released.retain(|released| released.permit != permit);
        true
    }

    /// The shard's IDENTIFY went out at `at`. A host that is short of time may be late with it although
    /// the permit was good a moment before: the rule counts from when it was sent.
    pub(super) fn sent(&mut self, tuple: Tuple, at: i64) {
        self.given.remove(&tuple);
        for released in &mut self.released {
            if (released.shard, released.count) == tuple {
                released.free_at = released.free_at.max(at + RULE_MS + JITTER_MS);
            }
        }
    }

    pub(super) fn persisted(&mut self, seq: u64) {
        for pending in self.pending.iter_mut().filter(|p| p.seq == seq) {
            pending.written = true;
            self.retry_wait = 0;
        }
    }

    pub(super) fn persist_failed(&mut self, now: i64, seq: u64) {
        if self.pending.iter().any(|p| p.seq == seq && !p.written) {
            self.distrust(now);
        }
    }

    /// Nobody knows what the store holds: nothing is given before it has been read.
    fn distrust(&mut self, now: i64) {
        // Nobody saw these, so they were not spent, whatever the store holds.
        let failed: Vec<Pending> = self.pending.extract_if(.., |p| !p.written).collect();
        for pending in failed {
            self.take_back(pending);
        }
        self.report_unsynced = self.budget.report.is_some();
        self.knows = Knows::Nothing;
        self.back_off(now);
    }

    fn back_off(&mut self, now: i64) {
        self.retry_wait = (self.retry_wait * 2).clamp(RETRY_MS, RETRY_MAX_MS);
        self.retry_at = now + self.retry_wait;
    }

    pub(super) fn load_failed(&mut self, now: i64, seq: u64) {
        if matches!(self.knows, Knows::Asked { seq: asked, .. } if asked == seq) {
            self.knows = Knows::Nothing;
            self.back_off(now);
        }
    }

    fn take_back(&mut self, pending: Pending) {
        self.budget.refund(pending.permit);
        let request = &pending.waiting.request;
        let tuple = (request.shard, request.count);
        self.guard.undo(tuple, pending.guard_before, pending.wasted);
        if !pending.cancelled {
            self.requeue(pending.waiting);
        }
    }

    /// Back into the queue, unless the shard has asked again meanwhile.
    fn requeue(&mut self, waiting: Waiting) {
        let tuple = (waiting.request.shard, waiting.request.count);
        self.waiting.entry(tuple).or_insert(waiting);
    }

    /// Of permits given so far nothing is taken back any more.
    pub(super) fn forget_given(&mut self) {
        self.given.clear();
    }

    /// Whoever waits for a permit on its way goes back into the queue.
    pub(super) fn requeue_pending(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            if !pending.cancelled {
                self.requeue(pending.waiting);
            }
        }
    }

    pub(super) fn tell(&self, name: &str, change: Option<Change>, out: &mut Vec<Effect>) {
        let bot = name.to_owned();
        out.extend(change.map(|change| {
            Effect::Notice(match change {
                Change::On => Notice::Probing {
                    bot,
                    in_a_row: self.storm.in_a_row(),
                },
                Change::Off => Notice::Recovered { bot },
            })
        }));
    }

    /// Every bucket with a permit on its way or just released; the others are free.
    pub(super) fn buckets(&self, mc: u32) -> HashMap<u32, Bucket> {
        let free = Bucket {
            busy: false,
            free_at: i64::MIN,
        };
        let mut buckets: HashMap<u32, Bucket> = HashMap::new();
        for pending in self.pending.iter().filter(|p| !p.cancelled) {
            let bucket = pending.waiting.request.shard % mc;
            buckets.entry(bucket).or_insert(free).busy = true;
        }
        for released in &self.released {
            let bucket = buckets.entry(released.shard % mc).or_insert(free);
            bucket.free_at = bucket.free_at.max(released.free_at);
        }
        buckets
    }

    /// Does what is due at `now`.
    pub(super) fn advance(
        &mut self,
        stamp: Stamp,
        name: &str,
        next_seq: &mut u64,
        out: &mut Vec<Effect>,
    ) {
        let now = stamp.boot_ms;
        self.budget.prune(now);
        self.released.retain(|released| now < released.free_at);
        self.given.retain(|_, given| now - given.at < OUTCOME_MS);
        self.guard.prune(now);
        let (used, spendable) = (self.budget.used(now), self.budget.spendable());
        if self.guard.advance(now, used, spendable) {
            out.push(Effect::Notice(Notice::Slowed {
                bot: name.to_owned(),
            }));
        }
        let change = self.storm.advance(now);
        self.tell(name, change, out);
        // An answer that did not come by now would come too late.
        if self
            .pending
            .iter()
            .any(|p| !p.written && now - p.at > PERSIST_MAX_MS)
        {
            self.distrust(now);
        }
        self.release(stamp, name, out);
        if self.know(now, name, next_seq, out) && !self.waiting.is_empty() {
            self.give(stamp, name, next_seq, out);
            self.refuse_what_is_spent(stamp, name, out);
        }
    }

    /// Whether the records are known; sees to it that they will be.
    fn know(&mut self, now: i64, name: &str, next_seq: &mut u64, out: &mut Vec<Effect>) -> bool {
        if matches!(self.knows, Knows::Asked { at, .. } if now - at >= LOAD_MAX_MS) {
            self.knows = Knows::Nothing;
            self.back_off(now);
        }
        if self.knows == Knows::Nothing && now >= self.retry_at {
            let seq = *next_seq;
            *next_seq += 1;
            self.knows = Knows::Asked { seq, at: now };
            out.push(Effect::Load {
                bot: name.to_owned(),
                seq,
            });
        }
        self.knows == Knows::All
    }

    /// Gives out the permits whose record is in the store and whose bucket is free, in the order of
    /// their numbers.
    fn release(&mut self, stamp: Stamp, name: &str, out: &mut Vec<Effect>) {
        let now = stamp.boot_ms;
        // What was sent late is told after the next permit of its bucket was recorded.
        let mc = self.budget.max_concurrency();
        for released in &self.released {
            for pending in &mut self.pending {
                if pending.waiting.request.shard % mc == released.shard % mc {
                    pending.not_before = pending.not_before.max(released.free_at);
                }
            }
        }
        let mut due = 0;
        while let Some(pending) = self.pending.get(due) {
            let over = pending.cancelled || now - pending.at > PERSIST_MAX_MS;
            if !pending.written || !over && now < pending.not_before {
                break;
            }
            due += 1;
        }
        let due: Vec<Pending> = self.pending.drain(..due).collect();
        for pending in due {
            if pending.cancelled || now - pending.at > PERSIST_MAX_MS {
                // Nobody saw it: nothing was spent, the bucket is free. Should the note be lost,
                // the count after the next start is one too high, which does no harm.
                out.push(Effect::Note {
                    bot: name.to_owned(),
                    record: Record {
                        at: stamp,
                        entry: Entry::Refund {
                            permit: pending.permit,
                        },
                    },
                });
                self.take_back(pending);
                continue;
            }
            self.budget.settle(1);
            let request = &pending.waiting.request;
            let tuple = (request.shard, request.count);
            self.released.push(Released {
                permit: pending.permit,
                shard: request.shard,
                count: request.count,
                free_at: now + spacing_ms(request.via.valid_ms()),
            });
            self.given.remove(&tuple);
            if request.via == super::Via::Worker {
                let given = Given {
                    at: now,
                    permit: pending.permit,
                    guard_before: pending.guard_before,
                    wasted: pending.wasted,
                    reports: self.budget.reports,
                };
                self.given.insert(tuple, given);
            }
            let who = pending.waiting.candidate();
            let change = self.storm.granted(tuple, now, pending.permit, who);
            self.tell(name, change, out);
            out.push(Effect::Grant {
                id: request.id,
                permit: pending.permit,
                remaining: self.budget.total() - self.budget.used(now),
            });
        }
    }

    /// Who is served first: the lowest shard. While there is one at a time, the one that wasted
    /// least, so that a shard with a trouble of its own does not stand for all.
    fn order(&self, now: i64) -> Vec<Tuple> {
        let mut order: Vec<Tuple> = self.waiting.keys().copied().collect();
        if self.storm.is_probing() {
            order.sort_by_key(|tuple| (self.guard.wasted_in_a_row(*tuple, now), *tuple));
        }
        order
    }

    /// Permits on their way that somebody waits for: all, and those of workers.
    fn under_way(&self) -> (usize, usize) {
        let alive = self.pending.iter().filter(|p| !p.cancelled);
        let workers = alive
            .clone()
            .filter(|p| p.waiting.request.via == super::Via::Worker);
        (alive.count(), workers.count())
    }

    /// Records every permit that can be given at `now`.
    fn give(&mut self, stamp: Stamp, name: &str, next_seq: &mut u64, out: &mut Vec<Effect>) {
        let now = stamp.boot_ms;
        let mc = self.budget.max_concurrency();
        let mut buckets = self.buckets(mc);
        if self.earliest(&buckets, mc).is_none_or(|at| now < at) {
            return;
        }
        let (mut all, mut workers) = self.under_way();
        let mut records = Vec::new();
        for tuple in self.order(now) {
            if self.budget.exhausted(now) {
                break;
            }
            let waiting = self
                .waiting
                .get_mut(&tuple)
                .expect("invariant: only waiting shards are in the order");
            let eligible = self.guard.eligible_at(tuple, now);
            if eligible > now {
                if !waiting.noticed {
                    waiting.noticed = true;
                    out.push(Effect::Notice(Notice::Delayed {
                        bot: name.to_owned(),
                        process: waiting.request.process.clone(),
                        shard: tuple.0,
                        wasted: self.guard.wasted_in_a_row(tuple, now),
                        wait_ms: eligible - now,
                    }));
                }
                continue;
            }
            let bucket = buckets.entry(tuple.0 % mc).or_insert(Bucket {
                busy: false,
                free_at: i64::MIN,
            });
            if bucket.busy
                || now < bucket.free_at.saturating_sub(LEAD_MS)
                || !self.guard.passes(tuple, now)
                || !self
                    .storm
                    .passes(waiting.candidate(), now, all, workers, mc)
            {
                continue;
            }
            bucket.busy = true;
            let not_before = bucket.free_at.max(self.blocked_until);
            let waiting = self
                .waiting
                .remove(&tuple)
                .expect("invariant: it was there a moment ago");
            let via = waiting.request.via;
            all += 1;
            workers += usize::from(via == super::Via::Worker);
            self.last_permit += 1;
            let guard_before = self.guard.memory_of(tuple);
            let streak = self.guard.granted(tuple, now);
            let spent = Spent {
                at: now,
                stamp,
                permit: self.last_permit,
                permits: 1,
                shard: tuple.0,
                count: tuple.1,
                streak,
                valid_ms: via.valid_ms() as u32,
            };
            self.budget.spend(spent);
            self.pending.push(Pending {
                seq: *next_seq,
                at: now,
                permit: spent.permit,
                not_before,
                written: false,
                waiting,
                cancelled: false,
                guard_before,
                wasted: streak > 0,
            });
            records.push(super::load::spent_record(spent));
        }
        if records.is_empty() {
            return;
        }
        if self.report_unsynced {
            // First: its count does not contain the permits that follow.
            self.report_unsynced = false;
            let earlier = self.budget.unreleased - records.len() as u32;
            let limits = self.limits_records(stamp, earlier);
            records.splice(0..0, limits);
        }
        out.push(Effect::Persist {
            bot: name.to_owned(),
            seq: *next_seq,
            records,
        });
        *next_seq += 1;
    }

    fn refuse_what_is_spent(&mut self, stamp: Stamp, name: &str, out: &mut Vec<Effect>) {
        let now = stamp.boot_ms;
        if !self.budget.exhausted(now) {
            self.exhausted = false;
            return;
        }
        let free_at = self.budget.free_at(now).map(|at| on_wall(stamp, at));
        if !self.exhausted && !self.waiting.is_empty() {
            self.exhausted = true;
            out.push(Effect::Notice(Notice::Exhausted {
                bot: name.to_owned(),
                free_at,
            }));
        }
        for waiting in std::mem::take(&mut self.waiting).into_values() {
            out.push(refuse(waiting.request.id, Refusal::Exhausted { free_at }));
        }
    }

    pub(super) fn deadline(&self, now: i64) -> Option<i64> {
        let answers = self.pending.iter().enumerate().filter_map(|(place, p)| {
            if p.written {
                // The others wait for the first.
                (place == 0).then_some(p.not_before.min(p.at + PERSIST_MAX_MS + 1))
            } else {
                Some(p.at + PERSIST_MAX_MS + 1)
            }
        });
        let records = match self.knows {
            Knows::Nothing => Some(self.retry_at),
            Knows::Asked { at, .. } => Some(at + LOAD_MAX_MS),
            Knows::All => None,
        };
        let storm = self.storm.outcome_deadline();
        let served = match self.knows {
            Knows::All => self.next_served(now),
            Knows::Nothing | Knows::Asked { .. } => None,
        };
        answers.chain(records).chain(storm).chain(served).min()
    }

    /// When the first of those that wait may be served, as far as only time has to pass.
    fn next_served(&self, now: i64) -> Option<i64> {
        let mc = self.budget.max_concurrency();
        let buckets = self.buckets(mc);
        let (all, workers) = self.under_way();
        let earliest = self.earliest(&buckets, mc)?.max(now);
        let mut soonest = None;
        for (tuple, waiting) in &self.waiting {
            let free_at = match buckets.get(&(tuple.0 % mc)) {
                Some(bucket) if bucket.busy => continue,
                Some(bucket) => bucket.free_at.saturating_sub(LEAD_MS),
                None => i64::MIN,
            };
            let who = waiting.candidate();
            let Some(storm) = self.storm.passes_at(who, all, workers, mc) else {
                continue;
            };
            let mut at = free_at
                .max(earliest)
                .max(storm)
                .max(self.guard.eligible_at(*tuple, now));
            if !self.guard.passes(*tuple, now) {
                at = at.max(self.guard.next_probe().unwrap_or(at));
            }
            if soonest.is_none_or(|soonest| at < soonest) {
                soonest = Some(at);
            }
            if at <= earliest {
                break; // Nobody can be sooner.
            }
        }
        soonest
    }

    /// Before this no bucket takes a permit; `None` = all wait for the store.
    fn earliest(&self, buckets: &HashMap<u32, Bucket>, mc: u32) -> Option<i64> {
        let free_at = if buckets.len() < mc as usize {
            i64::MIN
        } else {
            let idle = buckets.values().filter(|bucket| !bucket.busy);
            idle.map(|bucket| bucket.free_at).min()?
        };
        let free_at = free_at.max(self.blocked_until).saturating_sub(LEAD_MS);
        Some(free_at.max(self.retry_at))
    }
}

fn refuse(id: RequestId, why: Refusal) -> Effect {
    Effect::Refuse { id, why }
}
