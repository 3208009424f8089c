//! A bot's records: what is made of those in the store, and the fewest that say all that must be
//! known.

use std::collections::{HashMap, HashSet};

use super::{
    PERSIST_MAX_MS, ReportedLimits, Via,
    bot::{Bot, Knows, Released, on_wall},
    budget::{FLOORS_MAX, Spent, WINDOW_MS},
    messages::{Effect, Notice},
    record::{Clocks, Entry, Record, Stamp},
    spacing_ms,
    storm::Candidate,
};

/// Permits that are recorded one by one. Of older ones only the sum is kept, which no bot reaches
/// that is not among the largest there are.
const SINGLE_MAX: usize = 6_000;
/// Most records that [`Ledger::records`](super::Ledger::records) returns: the permits, whose shards
/// are ready, the sums of a day, and what was reported.
pub const RECORDS_MAX: usize = 2 * SINGLE_MAX + (WINDOW_MS / SUM_MS) as usize + 5 + FLOORS_MAX;
/// Permits so close to each other are summed up; the sum counts as long as the youngest.
const SUM_MS: i64 = 15 * 60_000;

impl Bot {
    /// Begins again from what the store holds. Only those that wait are kept, and what Discord said.
    pub(super) fn loaded(
        &mut self,
        name: &str,
        now: Stamp,
        seq: u64,
        records: Vec<Option<Record>>,
        out: &mut Vec<Effect>,
    ) {
        if !matches!(self.knows, Knows::Asked { seq: asked, .. } if asked == seq) {
            return;
        }
        self.knows = Knows::All;
        // A permit that waits for its bucket is in the store by now, and counts as spent.
        self.requeue_pending();
        let guard = std::mem::take(&mut self.guard);
        let reported = self.budget.report.take();
        self.budget.clear();
        self.storm = super::storm::Storm::default();
        self.released.clear();
        self.forget_given();
        self.blocked_until = i64::MIN;

        let damaged = records.iter().filter(|record| record.is_none()).count();
        let clocks = Clocks::new(now, records.iter().flatten());
        let last = last_permits(records.iter().flatten());
        for record in records {
            match record {
                Some(record) => {
                    self.replay(&clocks, record);
                    self.lock(now, &clocks, &last, record);
                }
                None => self.count_damaged(now),
            }
        }
        // The clocks of several hosts may disagree about the order; the window needs it.
        self.budget.spent.make_contiguous().sort_by_key(|s| s.at);
        if let Some(report) = reported {
            self.budget.absorb(now.boot_ms, report);
            self.report_unsynced = true;
        }
        // What was to be noted, and may not have been.
        self.guard.adopt_ready(&guard);
        if self.storm.is_probing() {
            self.tell(name, Some(super::storm::Change::On), out);
        }
        if damaged > 0 {
            out.push(Effect::Notice(Notice::Damaged {
                bot: name.to_owned(),
                records: damaged,
            }));
        }
    }

    /// A permit may have been given, just now, to anyone, by anyone.
    fn count_damaged(&mut self, now: Stamp) {
        self.last_permit += 1;
        self.budget.spend(Spent {
            at: now.boot_ms,
            stamp: now,
            permit: self.last_permit,
            permits: 1,
            shard: 0,
            count: 0,
            streak: 0,
            valid_ms: 0,
        });
        self.budget.settle(1);
        let valid_ms = Via::Start.valid_ms();
        self.blocked_until = now.boot_ms + PERSIST_MAX_MS + spacing_ms(valid_ms);
    }

    /// Locks the bucket of a permit for as long as its IDENTIFY may be less than the rule ago.
    fn lock(
        &mut self,
        now: Stamp,
        clocks: &Clocks,
        last: &HashMap<(u32, u32), u64>,
        record: Record,
    ) {
        let Entry::Grant {
            permit,
            shard,
            count,
            valid_ms,
            ..
        } = record.entry
        else {
            return;
        };
        let at = clocks.place(record.at);
        // Released after the record; if whoever made it is dead, then before now.
        let latest = if clocks.is_own(record.at) {
            at.saturating_add(PERSIST_MAX_MS).min(now.boot_ms)
        } else if last.get(&(shard, count)) == Some(&permit) {
            // Two wall clocks may be apart by anything. Whatever they say, it may be of this moment.
            now.boot_ms.saturating_add(PERSIST_MAX_MS)
        } else {
            // Whoever gave the shard a later one has waited for this one.
            return;
        };
        let free_at = latest.saturating_add(spacing_ms(i64::from(valid_ms)));
        if free_at > now.boot_ms {
            self.released.push(Released {
                permit,
                shard,
                count,
                free_at,
            });
        }
    }

    fn replay(&mut self, clocks: &Clocks, record: Record) {
        let at = clocks.place(record.at);
        match record.entry {
            Entry::Grant {
                permit,
                shard,
                count,
                streak,
                valid_ms,
            } => {
                let tuple = (shard, count);
                self.last_permit = self.last_permit.max(permit);
                self.budget.shards = self.budget.shards.max(count);
                self.budget.spend(Spent {
                    at,
                    stamp: record.at,
                    permit,
                    permits: 1,
                    shard,
                    count,
                    streak,
                    valid_ms,
                });
                self.budget.settle(1);
                self.guard.replay(tuple, at, streak);
                let via = if i64::from(valid_ms) > Via::Worker.valid_ms() {
                    Via::Queue
                } else {
                    Via::Worker
                };
                let who = Candidate {
                    via,
                    process: "",
                    attempt: 0,
                };
                let _ = self.storm.granted(tuple, at, permit, who);
            }
            Entry::Sum { permits, newest } => {
                self.last_permit = self.last_permit.max(newest);
                self.budget.spend(Spent {
                    at,
                    stamp: record.at,
                    permit: newest,
                    permits,
                    shard: 0,
                    count: 0,
                    streak: 0,
                    valid_ms: 0,
                });
                self.budget.settle(permits);
            }
            Entry::Ready { shard, count } => {
                let tuple = (shard, count);
                self.guard.ready(tuple, at);
                let _ = self.storm.ready(tuple);
            }
            // Only our own count: whether a report since contained it is not known.
            Entry::Refund { permit } => {
                self.last_permit = self.last_permit.max(permit);
                self.budget.forget(permit);
                self.storm.undo(permit);
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

    /// The report, and `more` permits that its count does not contain yet; before it what is left
    /// of earlier windows.
    pub(super) fn limits_records(&self, now: Stamp, more: u32) -> Vec<Record> {
        let Some(report) = self.budget.report else {
            return Vec::new();
        };
        let floors = self.budget.floors.iter();
        floors
            .filter(|floor| now.boot_ms < floor.until)
            .map(|floor| (floor.used, floor.until))
            .chain([(report.used, report.resets_at)])
            .map(|(used, resets_at)| Record {
                at: now,
                entry: Entry::Limits {
                    total: report.total,
                    used: used.saturating_add(more),
                    reset_after_ms: (resets_at - now.boot_ms).max(0) as u64,
                    max_concurrency: report.max_concurrency,
                    recommended: report.recommended,
                },
            })
            .collect()
    }

    pub(super) fn records(&self, now: Stamp) -> Vec<Record> {
        let stamp = |at: i64| Stamp {
            boot_id: now.boot_id,
            boot_ms: at,
            wall_ms: on_wall(now, at),
        };
        let spent = &self.budget.spent;
        let (old, single): (Vec<&Spent>, Vec<&Spent>) = {
            let old = spent.len().saturating_sub(SINGLE_MAX);
            (
                spent.iter().take(old).collect(),
                spent.iter().skip(old).collect(),
            )
        };
        let mut records: Vec<(i64, Record)> = Vec::new();
        for group in old.chunk_by(|a, b| a.at.div_euclid(SUM_MS) == b.at.div_euclid(SUM_MS)) {
            // The youngest, as it was stamped: a stamp is never moved.
            let Some(last) = group.last() else { continue };
            let sum = Spent {
                permits: group.iter().map(|s| s.permits).sum(),
                permit: group.iter().map(|s| s.permit).max().unwrap_or(0),
                count: 0,
                ..**last
            };
            records.push((sum.at, spent_record(sum)));
        }
        records.extend(single.iter().map(|s| (s.at, spent_record(**s))));
        if spent.iter().all(|s| s.permit < self.last_permit) {
            // Numbers rise for ever, also when the day is over.
            let entry = Entry::Refund {
                permit: self.last_permit,
            };
            records.push((now.boot_ms, Record { at: now, entry }));
        }
        // A stable sort: a shard that was ready in the very millisecond of its permit stays behind it.
        let singled: HashSet<(u32, u32)> = single.iter().map(|s| (s.shard, s.count)).collect();
        let ready = self
            .guard
            .ready_since()
            .filter(|(tuple, _)| singled.contains(tuple));
        records.extend(ready.map(|((shard, count), at)| {
            let entry = Entry::Ready { shard, count };
            (
                at,
                Record {
                    at: stamp(at),
                    entry,
                },
            )
        }));
        records.sort_by_key(|(at, _)| *at);
        let mut records: Vec<Record> = records.into_iter().map(|(_, record)| record).collect();
        // Last: its count already contains the permits above.
        records.extend(self.limits_records(now, self.budget.unreleased));
        records
    }
}

/// The latest permit of each shard that is recorded by itself.
fn last_permits<'a>(records: impl Iterator<Item = &'a Record>) -> HashMap<(u32, u32), u64> {
    let mut last: HashMap<(u32, u32), u64> = HashMap::new();
    for record in records {
        if let Entry::Grant {
            permit,
            shard,
            count,
            ..
        } = record.entry
        {
            let known = last.entry((shard, count)).or_default();
            *known = permit.max(*known);
        }
    }
    last
}

/// The record of a permit, or of the sum of several.
pub(super) fn spent_record(spent: Spent) -> Record {
    let entry = if spent.count == 0 {
        Entry::Sum {
            permits: spent.permits,
            newest: spent.permit,
        }
    } else {
        Entry::Grant {
            permit: spent.permit,
            shard: spent.shard,
            count: spent.count,
            streak: spent.streak,
            valid_ms: spent.valid_ms,
        }
    };
    Record {
        at: spent.stamp,
        entry,
    }
}
