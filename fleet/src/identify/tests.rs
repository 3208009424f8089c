//! The ledger against a world that crashes, reboots, asks twice, answers late and turns its wall
//! clock back.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;

const BOT: &str = "tanako";
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

fn at(boot_ms: i64) -> Stamp {
    Stamp {
        boot_id: 1,
        boot_ms,
        wall_ms: 1_700_000_000_000 + boot_ms,
    }
}

fn request(id: RequestId, shard: u32, attempt: u64) -> Request {
    Request {
        id,
        bot: BOT.to_owned(),
        process: format!("{BOT}/{shard}"),
        attempt,
        shard,
        count: 64,
    }
}

fn configure(ledger: &mut Ledger, max_concurrency: u32, reserve: Option<u32>) {
    ledger.step(
        at(0),
        Input::Configure {
            bot: BOT.to_owned(),
            max_concurrency: Some(max_concurrency),
            reserve,
        },
    );
}

fn persisted(seq: u64) -> Input {
    Input::Persisted {
        bot: BOT.to_owned(),
        seq,
    }
}

/// Steps, and says at once that everything was written. Returns what else happened.
fn step(ledger: &mut Ledger, now: Stamp, input: Input) -> Vec<Effect> {
    let mut out = Vec::new();
    let mut inputs = vec![input];
    while let Some(input) = inputs.pop() {
        for effect in ledger.step(now, input) {
            match effect {
                Effect::Persist { seq, .. } => inputs.push(persisted(seq)),
                Effect::Note { .. } => {}
                other => out.push(other),
            }
        }
    }
    out
}

fn granted(effects: &[Effect]) -> Vec<RequestId> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Grant { id, .. } => Some(*id),
            _ => None,
        })
        .collect()
}

#[test]
fn a_cold_start_takes_the_lowest_shard_of_each_bucket_and_little_longer_than_the_rule() {
    let mut ledger = Ledger::new();
    configure(&mut ledger, 8, None);
    let mut order = Vec::new();
    for shard in (0..64).rev() {
        let effects = step(
            &mut ledger,
            at(0),
            Input::Request(request(u64::from(shard), shard, 1)),
        );
        order.extend(granted(&effects));
    }
    // All buckets were free, so the first eight asked-for went at once.
    assert_eq!(order, (56..64).rev().collect::<Vec<_>>());
    let mut now = 0;
    while order.len() < 64 {
        now = ledger.deadline().expect("shards wait");
        let effects = step(&mut ledger, at(now), Input::Tick);
        let batch = granted(&effects);
        assert_eq!(batch.len(), 8);
        order.extend(batch);
    }
    assert_eq!(order[8..16], (0..8).collect::<Vec<_>>());
    assert_eq!(now, 7 * SPACING_MS);
    assert!(now as f64 <= 1.05 * 8.0 * RULE_MS as f64);
    let status = &ledger.status(at(now))[0];
    assert_eq!((status.used, status.total, status.reserve), (64, 1000, 100));
    assert_eq!(status.buckets.iter().map(|b| b.granted).sum::<u64>(), 64);
}

#[test]
fn nothing_is_given_out_before_it_is_on_disk() {
    let mut ledger = Ledger::new();
    configure(&mut ledger, 1, None);
    let effects = ledger.step(at(0), Input::Request(request(1, 0, 1)));
    let [Effect::Persist { seq, records, .. }] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(records.len(), 1);
    assert_eq!(ledger.deadline(), None, "only the disk can bring news");
    // Written late: the five seconds count from the release.
    let effects = ledger.step(at(3_000), persisted(*seq));
    assert_eq!(granted(&effects), [1]);
    ledger.step(at(3_000), Input::Request(request(2, 1, 1)));
    assert_eq!(ledger.deadline(), Some(3_000 + SPACING_MS));
    // Said twice: nothing happens twice.
    assert!(ledger.step(at(3_001), persisted(*seq)).is_empty());
}

#[test]
fn a_failed_write_costs_nothing_and_is_tried_again_later() {
    let mut ledger = Ledger::new();
    configure(&mut ledger, 1, None);
    let mut now = 0;
    ledger.step(at(now), Input::Request(request(1, 0, 1)));
    for seq in 0..20 {
        let failed = Input::PersistFailed {
            bot: BOT.to_owned(),
            seq,
        };
        let effects = ledger.step(at(now), failed);
        assert!(effects.is_empty(), "{effects:?}");
        assert_eq!(ledger.status(at(now))[0].used, 0);
        let next = ledger.deadline().expect("it is tried again");
        assert!(next - now >= RETRY_MS && next - now <= RETRY_MAX_MS);
        now = next;
        let effects = ledger.step(at(now), Input::Tick);
        assert!(
            matches!(effects[..], [Effect::Persist { .. }]),
            "{effects:?}"
        );
    }
    assert_eq!(granted(&ledger.step(at(now), persisted(20))), [1]);
    assert_eq!(ledger.status(at(now))[0].used, 1);
}

#[test]
fn a_permit_that_took_too_long_to_write_is_thrown_away() {
    let mut ledger = Ledger::new();
    configure(&mut ledger, 1, None);
    ledger.step(at(0), Input::Request(request(1, 0, 1)));
    let late = PERSIST_MAX_MS + 1;
    let effects = ledger.step(at(late), persisted(0));
    assert!(granted(&effects).is_empty());
    assert!(
        matches!(
            effects[..],
            [Effect::Note { .. }, Effect::Persist { seq: 1, .. }]
        ),
        "{effects:?}"
    );
    assert_eq!(granted(&ledger.step(at(late), persisted(1))), [1]);
    assert_eq!(ledger.status(at(late))[0].used, 1);
}

#[test]
fn the_reserve_is_never_touched_and_the_day_gives_back_what_it_took() {
    let mut ledger = Ledger::new();
    configure(&mut ledger, 1, Some(995));
    let mut now = 0;
    for id in 0..5 {
        let effects = step(
            &mut ledger,
            at(now),
            Input::Request(request(id, id as u32, 1)),
        );
        assert_eq!(granted(&effects), [id]);
        now += SPACING_MS;
    }
    let effects = step(&mut ledger, at(now), Input::Request(request(9, 9, 1)));
    let free_at = Some(at(DAY_MS).wall_ms);
    assert_eq!(
        effects,
        [
            Effect::Notice(Notice::Exhausted {
                bot: BOT.to_owned(),
                free_at
            }),
            Effect::Refuse {
                id: 9,
                why: Refusal::Exhausted { free_at }
            },
        ]
    );
    // Asked again: refused again, but the operator is not told again.
    let effects = step(&mut ledger, at(now), Input::Request(request(10, 9, 1)));
    assert!(
        matches!(effects[..], [Effect::Refuse { .. }]),
        "{effects:?}"
    );
    let effects = step(&mut ledger, at(DAY_MS), Input::Request(request(11, 9, 1)));
    assert_eq!(granted(&effects), [11]);
}

#[test]
fn the_worse_of_both_counts_decides() {
    let mut ledger = Ledger::new();
    configure(&mut ledger, 1, None);
    let report = |remaining, max_concurrency| Input::Limits {
        bot: BOT.to_owned(),
        limits: ReportedLimits {
            total: 2000,
            remaining,
            reset_after_ms: 3_600_000,
            max_concurrency,
            recommended: 7,
        },
    };
    step(&mut ledger, at(0), report(1990, 16));
    let status = ledger.status(at(0));
    assert_eq!(
        (status[0].used, status[0].total, status[0].reserve),
        (10, 2000, 200)
    );
    assert_eq!((status[0].max_concurrency, status[0].recommended), (16, 7));
    step(&mut ledger, at(0), Input::Request(request(1, 0, 1)));
    assert_eq!(ledger.status(at(0))[0].used, 11);
    // Fetched before that permit, arrived after it.
    step(&mut ledger, at(5), report(1990, 16));
    assert_eq!(ledger.status(at(5))[0].used, 11);
    // Someone else identifies with the same token.
    step(&mut ledger, at(6), report(100, 16));
    assert_eq!(ledger.status(at(6))[0].used, 1900);
    let effects = step(&mut ledger, at(6), Input::Request(request(2, 1, 1)));
    assert!(
        matches!(effects[1], Effect::Refuse { id: 2, .. }),
        "{effects:?}"
    );
    // Discord's window ends, ours goes on.
    assert_eq!(ledger.status(at(3_700_000))[0].used, 1);
    // Nonsense is not believed.
    let effects = step(&mut ledger, at(3_700_000), report(5, 0));
    assert!(matches!(
        effects[..],
        [Effect::Notice(Notice::BadLimits { .. })]
    ));
}

#[test]
fn a_newer_attempt_takes_the_place_of_an_older_one() {
    let mut ledger = Ledger::new();
    configure(&mut ledger, 1, None);
    step(&mut ledger, at(0), Input::Request(request(1, 1, 5)));
    let refused = |id| Effect::Refuse {
        id,
        why: Refusal::Superseded,
    };
    let again = |id, attempt| {
        Input::Request(Request {
            process: "tanako/1".to_owned(),
            ..request(id, 2, attempt)
        })
    };
    assert!(step(&mut ledger, at(1), again(2, 5)).is_empty());
    assert_eq!(step(&mut ledger, at(2), again(3, 4)), [refused(3)]);
    assert_eq!(
        step(&mut ledger, at(3), again(4, 5)),
        [refused(2)],
        "same attempt, asked again"
    );
    assert_eq!(step(&mut ledger, at(4), again(5, 6)), [refused(4)]);
    ledger.step(at(5), Input::Cancel { id: 5 });
    assert_eq!(ledger.deadline(), None);
}

#[test]
fn a_crash_loop_is_slowed_down_and_cannot_burn_the_budget() {
    let mut ledger = Ledger::new();
    configure(&mut ledger, 16, None);
    // 48 shards, each asks again at once whenever it got a permit, and none ever becomes ready.
    let mut ids = 0_u64;
    let mut ask = |ledger: &mut Ledger, now: i64, shard: u32| {
        ids += 1;
        step(ledger, at(now), Input::Request(request(ids, shard, ids)))
    };
    let mut shard_of: HashMap<RequestId, u32> = HashMap::new();
    let mut given = 0_u32;
    let mut slowed = false;
    let mut delayed = false;
    let mut queue: Vec<u32> = (0..48).collect();
    let mut now = 0;
    while now < DAY_MS {
        let mut effects = step(&mut ledger, at(now), Input::Tick);
        while let Some(shard) = queue.pop() {
            let more = ask(&mut ledger, now, shard);
            effects.extend(more);
            let waiting = ledger.bots[BOT].waiting.values();
            shard_of.extend(waiting.map(|w| (w.request.id, w.request.shard)));
            for id in granted(&effects) {
                shard_of.entry(id).or_insert(shard);
            }
        }
        for effect in &effects {
            match effect {
                Effect::Grant { id, .. } => {
                    given += 1;
                    queue.push(shard_of[id]);
                }
                Effect::Notice(Notice::Slowed { .. }) => slowed = true,
                Effect::Notice(Notice::Delayed { .. }) => delayed = true,
                Effect::Refuse { .. } => panic!("the budget is spent: {given} given"),
                _ => {}
            }
        }
        now = match ledger.deadline() {
            Some(next) if queue.is_empty() => next.max(now + 1),
            _ => now + 1_000,
        };
    }
    assert!(slowed && delayed);
    assert!(given < 450, "{given} of 900 were spent on a crash loop");
    assert!(given > 225, "probes go on: {given}");

    // A shard that was fine is not held back by the others.
    let fine = 1 << 40;
    let mut effects = step(&mut ledger, at(now), Input::Request(request(fine, 60, 1)));
    for _ in 0..3 {
        now += SPACING_MS;
        effects.extend(step(&mut ledger, at(now), Input::Tick));
    }
    assert!(granted(&effects).contains(&fine), "{effects:?}");
}

#[test]
fn after_an_outage_slow_start_lets_everyone_back_in() {
    let mut ledger = Ledger::new();
    configure(&mut ledger, 16, None);
    // An outage wastes four IDENTIFYs of each of 60 shards.
    let mut id = 0;
    let mut now = 0;
    for round in 0..5 {
        for shard in 0..60 {
            id += 1;
            step(
                &mut ledger,
                at(now),
                Input::Request(request(id, shard, round)),
            );
        }
        for _ in 0..40 {
            now += SPACING_MS;
            step(&mut ledger, at(now), Input::Tick);
        }
    }
    assert!(
        ledger.bots[BOT].guard.next_probe().is_some(),
        "the brake is on"
    );
    // It is over: whoever gets a permit becomes ready and stays so.
    for shard in 0..60 {
        id += 1;
        step(&mut ledger, at(now), Input::Request(request(id, shard, 9)));
    }
    let began = now;
    while !ledger.bots[BOT].waiting.is_empty() {
        now += 1_000;
        assert!(
            now - began < 90 * 60_000,
            "{} still wait",
            ledger.bots[BOT].waiting.len()
        );
        let effects = step(&mut ledger, at(now), Input::Tick);
        if granted(&effects).is_empty() {
            continue;
        }
        for shard in 0..60 {
            if !ledger.bots[BOT].waiting.contains_key(&(shard, 64)) {
                let ready = Input::Ready {
                    bot: BOT.to_owned(),
                    shard,
                    count: 64,
                };
                step(&mut ledger, at(now), ready);
            }
        }
    }
}

#[test]
fn a_rewritten_ledger_says_the_same() {
    let mut ledger = Ledger::new();
    configure(&mut ledger, 4, None);
    for (n, shard) in [0, 1, 2, 3, 0, 1].into_iter().enumerate() {
        let now = at(n as i64 * 6_000);
        step(
            &mut ledger,
            now,
            Input::Request(request(n as u64, shard, n as u64)),
        );
        let ready = Input::Ready {
            bot: BOT.to_owned(),
            shard,
            count: 64,
        };
        step(&mut ledger, now, ready);
    }
    let limits = Input::Limits {
        bot: BOT.to_owned(),
        limits: ReportedLimits {
            total: 1000,
            remaining: 900,
            reset_after_ms: 500_000,
            max_concurrency: 4,
            recommended: 1,
        },
    };
    let now = at(60_000);
    step(&mut ledger, now, limits);
    let mut again = Ledger::new();
    configure(&mut again, 4, None);
    let records = ledger.records(BOT, now);
    assert_eq!(records.len(), 6 + 4 + 1);
    let load = Input::Load {
        bot: BOT.to_owned(),
        records: records.iter().copied().map(Some).collect(),
    };
    assert!(again.step(now, load).is_empty());
    assert_eq!(again.status(now), ledger.status(now));
    assert_eq!(again.records(BOT, now), records);
}

#[test]
fn damaged_records_count_as_permits_given_just_now() {
    let mut ledger = Ledger::new();
    let load = Input::Load {
        bot: BOT.to_owned(),
        records: vec![None, None],
    };
    let effects = ledger.step(at(1_000), load);
    assert!(matches!(
        effects[..],
        [Effect::Notice(Notice::Damaged { records: 2, .. })]
    ));
    assert_eq!(ledger.status(at(1_000))[0].used, 2);
    step(&mut ledger, at(1_000), Input::Request(request(1, 7, 1)));
    assert_eq!(ledger.deadline(), Some(1_000 + SPACING_MS));
}

/// The world around a ledger: time, disk, and what Discord would have seen.
struct World {
    ledger: Ledger,
    /// True time since the beginning.
    time: i64,
    booted_at: i64,
    boot_id: u64,
    /// How far the wall clock is behind.
    wall_lag: i64,
    disk: Vec<Option<Record>>,
    /// Not synced: a crash may lose these.
    cache: Vec<Record>,
    /// Writes under way: when the crash comes, they may or may not be on disk.
    writes: Vec<(u64, Vec<Record>)>,
    /// The latest write that is done, in this life of the ledger.
    written: Option<u64>,
    max_concurrency: u32,
    spendable: usize,
    next_id: RequestId,
    attempts: BTreeMap<RequestId, (u32, u64)>,
    newest: HashMap<u32, u64>,
    /// Released permits: when, shard.
    sent: Vec<(i64, u32)>,
    last_permit: u64,
}

const SHARDS: u32 = 12;

#[derive(Debug, Clone)]
enum Act {
    Pass(i64),
    Tick,
    Ask { shard: u32, newer: bool },
    AskStale { shard: u32 },
    CancelSome(u64),
    Written,
    WrittenTwice,
    WriteFailed { kept: bool },
    Ready(u32),
    Report { remaining: u32 },
    Crash { kept: u8 },
    Reboot { kept: u8, down: i64 },
    WallBack(i64),
}

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0_i64..9_000).prop_map(Act::Pass),
        2 => (0_i64..40_000_000).prop_map(Act::Pass),
        6 => Just(Act::Tick),
        12 => (0..SHARDS, any::<bool>()).prop_map(|(shard, newer)| Act::Ask { shard, newer }),
        2 => (0..SHARDS).prop_map(|shard| Act::AskStale { shard }),
        2 => any::<u64>().prop_map(Act::CancelSome),
        14 => Just(Act::Written),
        1 => Just(Act::WrittenTwice),
        2 => any::<bool>().prop_map(|kept| Act::WriteFailed { kept }),
        3 => (0..SHARDS).prop_map(Act::Ready),
        2 => (0_u32..80).prop_map(|remaining| Act::Report { remaining }),
        2 => any::<u8>().prop_map(|kept| Act::Crash { kept }),
        1 => (any::<u8>(), 0_i64..30_000).prop_map(|(kept, down)| Act::Reboot { kept, down }),
        1 => (0_i64..90_000_000).prop_map(Act::WallBack),
    ]
}

impl World {
    fn new(max_concurrency: u32, total: u32, reserve: u32) -> Self {
        let mut world = Self {
            ledger: Ledger::new(),
            time: 10_000_000,
            booted_at: 0,
            boot_id: 1,
            wall_lag: 0,
            disk: Vec::new(),
            cache: Vec::new(),
            writes: Vec::new(),
            written: None,
            max_concurrency,
            spendable: (total - reserve) as usize,
            next_id: 0,
            attempts: BTreeMap::new(),
            newest: HashMap::new(),
            sent: Vec::new(),
            last_permit: 0,
        };
        world.configure(reserve);
        world.report(total, total);
        world
    }

    fn now(&self) -> Stamp {
        Stamp {
            boot_id: self.boot_id,
            boot_ms: self.time - self.booted_at,
            wall_ms: 1_700_000_000_000 + self.time - self.wall_lag,
        }
    }

    fn configure(&mut self, reserve: u32) {
        self.step(Input::Configure {
            bot: BOT.to_owned(),
            max_concurrency: Some(self.max_concurrency),
            reserve: Some(reserve),
        });
    }

    fn report(&mut self, total: u32, remaining: u32) {
        self.step(Input::Limits {
            bot: BOT.to_owned(),
            limits: ReportedLimits {
                total,
                remaining,
                reset_after_ms: 1_000_000,
                max_concurrency: self.max_concurrency,
                recommended: 1,
            },
        });
    }

    fn step(&mut self, input: Input) {
        for effect in self.ledger.step(self.now(), input) {
            match effect {
                Effect::Persist { seq, records, .. } => {
                    self.writes.push((seq, records));
                }
                Effect::Note { record, .. } => self.cache.push(record),
                Effect::Grant { id, permit, .. } => self.sent(id, permit),
                Effect::Refuse { .. } | Effect::Notice(_) => {}
            }
        }
        if let Some(deadline) = self.ledger.deadline() {
            assert!(
                deadline > self.now().boot_ms,
                "a deadline that is over would spin"
            );
        }
    }

    fn sent(&mut self, id: RequestId, permit: u64) {
        let (shard, attempt) = self.attempts[&id];
        assert!(permit > self.last_permit, "permit numbers rise");
        self.last_permit = permit;
        assert_eq!(
            self.newest[&shard], attempt,
            "only the newest attempt gets a permit"
        );
        for (time, other) in &self.sent {
            assert!(
                other % self.max_concurrency != shard % self.max_concurrency
                    || self.time - time >= RULE_MS,
                "bucket used twice within {} ms",
                self.time - time
            );
        }
        self.sent.push((self.time, shard));
        let within_a_day = self
            .sent
            .iter()
            .filter(|(time, _)| self.time - time < DAY_MS)
            .count();
        assert!(within_a_day <= self.spendable, "the reserve was touched");
    }

    fn restart(&mut self, kept: u8, total: u32, reserve: u32) {
        // Of what was not synced some survives, in order; of a write under way maybe all, maybe a
        // torn part.
        for record in std::mem::take(&mut self.cache) {
            if kept & 1 != 0 {
                self.disk.push(Some(record));
            }
        }
        for (_, records) in std::mem::take(&mut self.writes) {
            match kept >> 1 & 3 {
                0 => {}
                1 => self.disk.push(None),
                _ => self.disk.extend(records.into_iter().map(Some)),
            }
        }
        self.ledger = Ledger::new();
        self.written = None;
        self.step(Input::Load {
            bot: BOT.to_owned(),
            records: self.disk.clone(),
        });
        self.configure(reserve);
        if self.ledger.bots[BOT].budget.report.is_none() {
            // No permit was given since the report, so nothing made it durable.
            self.report(total, total);
        }
        if kept & 8 != 0 {
            // The shell replaces a file that has grown.
            self.disk = self
                .ledger
                .records(BOT, self.now())
                .into_iter()
                .map(Some)
                .collect();
        }
    }

    fn act(&mut self, act: Act, total: u32, reserve: u32) {
        match act {
            Act::Pass(ms) => self.time += ms,
            Act::Tick => self.step(Input::Tick),
            Act::Ask { shard, newer } => {
                let attempt = self.newest.entry(shard).or_insert(1);
                *attempt += u64::from(newer);
                let attempt = *attempt;
                self.next_id += 1;
                self.attempts.insert(self.next_id, (shard, attempt));
                self.step(Input::Request(request(self.next_id, shard, attempt)));
            }
            Act::AskStale { shard } => {
                // After a restart of the ledger nobody knows the newest attempt but the supervisor,
                // which lets no stale one through; within a life the ledger itself checks.
                let known = self
                    .ledger
                    .bots
                    .get(BOT)
                    .and_then(|bot| bot.attempts.get(&format!("{BOT}/{shard}")));
                if let Some(attempt) = known.copied().filter(|attempt| *attempt > 0) {
                    self.next_id += 1;
                    self.attempts.insert(self.next_id, (shard, attempt - 1));
                    self.step(Input::Request(request(self.next_id, shard, attempt - 1)));
                }
            }
            Act::CancelSome(id) => self.step(Input::Cancel {
                id: id % (self.next_id + 1),
            }),
            Act::Written => {
                // The shell writes one after the other.
                if !self.writes.is_empty() {
                    let (seq, records) = self.writes.remove(0);
                    self.disk.extend(self.cache.drain(..).map(Some));
                    self.disk.extend(records.into_iter().map(Some));
                    self.written = Some(seq);
                    self.step(persisted(seq));
                }
            }
            Act::WrittenTwice => {
                if let Some(seq) = self.written {
                    self.step(persisted(seq));
                }
            }
            Act::WriteFailed { kept } => {
                if !self.writes.is_empty() {
                    let (seq, records) = self.writes.remove(0);
                    if kept {
                        // It failed after it had reached the disk.
                        self.disk.extend(records.into_iter().map(Some));
                    }
                    self.step(Input::PersistFailed {
                        bot: BOT.to_owned(),
                        seq,
                    });
                }
            }
            Act::Ready(shard) => self.step(Input::Ready {
                bot: BOT.to_owned(),
                shard,
                count: 64,
            }),
            Act::Report { remaining } => self.report(total, remaining.min(total)),
            Act::Crash { kept } => self.restart(kept, total, reserve),
            Act::Reboot { kept, down } => {
                self.time += down;
                self.boot_id += 1;
                self.booted_at = self.time;
                self.restart(kept, total, reserve);
            }
            Act::WallBack(ms) => self.wall_lag += ms,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn no_bucket_twice_and_never_below_the_reserve_whatever_happens(
        max_concurrency in 1_u32..5,
        total in 6_u32..40,
        acts in prop::collection::vec(acts(), 1..300),
    ) {
        let reserve = total / 3;
        let mut world = World::new(max_concurrency, total, reserve);
        for act in acts {
            world.act(act, total, reserve);
        }
    }

    #[test]
    fn whoever_waits_is_served_or_refused(
        max_concurrency in 1_u32..5,
        acts in prop::collection::vec(acts(), 1..100),
    ) {
        let mut world = World::new(max_concurrency, 1000, 0);
        for act in acts {
            world.act(act, 1000, 0);
        }
        for _ in 0..4_000 {
            for (seq, records) in std::mem::take(&mut world.writes) {
                world.disk.extend(records.into_iter().map(Some));
                world.step(persisted(seq));
            }
            let Some(deadline) = world.ledger.deadline() else {
                if world.writes.is_empty() {
                    break;
                }
                continue;
            };
            world.time = world.booted_at + deadline;
            world.step(Input::Tick);
        }
        prop_assert!(world.ledger.bots[BOT].waiting.is_empty());
    }

    #[test]
    fn records_survive_and_damage_is_noticed(
        permit in any::<u64>(),
        words in any::<[u32; 3]>(),
        clocks in any::<(u64, i64, i64)>(),
        flip in 0..RECORD_BYTES * 8,
    ) {
        let record = Record {
            at: Stamp { boot_id: clocks.0, boot_ms: clocks.1, wall_ms: clocks.2 },
            entry: Entry::Grant { permit, shard: words[0], count: words[1], streak: words[2] },
        };
        let mut bytes = record.encode();
        prop_assert_eq!(Record::decode(&bytes), Some(record));
        bytes[flip / 8] ^= 1 << (flip % 8);
        prop_assert_eq!(Record::decode(&bytes), None);
    }
}
