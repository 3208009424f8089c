//! The ledger against a world of two hosts that crash, reboot, lead by turns, ask twice, hear late
//! or never from the store, and do not agree about the time.
//!
//! The store is modelled as the shell uses it: one write at a time from each leader; each names the
//! state it builds on and is refused when that is not the newest, or when its leader is not the
//! leader any more. A write that was given up may still arrive.

use std::{
    collections::{BTreeMap, HashSet},
    num::NonZeroU64,
};

use proptest::prelude::*;

use super::*;

const SHARDS: u32 = 12;
/// Each host's wall clock is wrong by up to so much.
const WRONG_MS: i64 = SKEW_MAX_MS / 2;

#[derive(Debug, Clone)]
enum Act {
    Pass(i64),
    Tick,
    Ask {
        shard: u32,
        newer: bool,
        via: Via,
    },
    AskStale(u32),
    CancelSome(u64),
    /// Sends what waits; `whole` replaces all there is.
    Send {
        whole: bool,
    },
    Land,
    Answer {
        twice: bool,
    },
    /// Nobody knows what became of the write; it may still land.
    GiveUp,
    LandLate,
    ReadStore,
    TakeRead,
    ReadFails,
    Ready(u32),
    /// The latest permit of the shard came too late for its worker.
    Unused(u32),
    /// Something that was said about an unused permit is heard again, by either host.
    UnusedAgain(u64),
    Report {
        remaining: u32,
    },
    Elect,
    /// A turn of a store that works: everything is written, answered and read.
    Turn,
    Crash {
        rot: bool,
    },
    Reboot {
        down: i64,
    },
    Wall(i64),
}

const TURN: [Act; 5] = [
    Act::Send { whole: false },
    Act::Land,
    Act::Answer { twice: false },
    Act::ReadStore,
    Act::TakeRead,
];

/// Which host, and what happens to it.
fn acts() -> impl Strategy<Value = (usize, Act)> {
    let via = prop_oneof![
        4 => Just(Via::Worker),
        1 => Just(Via::Start),
        1 => Just(Via::Queue),
    ];
    let act = prop_oneof![
        6 => (0_i64..9_000).prop_map(Act::Pass),
        1 => (0_i64..40_000_000).prop_map(Act::Pass),
        6 => Just(Act::Tick),
        12 => (0..SHARDS, any::<bool>(), via)
            .prop_map(|(shard, newer, via)| Act::Ask { shard, newer, via }),
        1 => (0..SHARDS).prop_map(Act::AskStale),
        2 => any::<u64>().prop_map(Act::CancelSome),
        12 => prop::bool::weighted(0.2).prop_map(|whole| Act::Send { whole }),
        12 => Just(Act::Land),
        12 => prop::bool::weighted(0.1).prop_map(|twice| Act::Answer { twice }),
        1 => Just(Act::GiveUp),
        1 => Just(Act::LandLate),
        10 => Just(Act::ReadStore),
        10 => Just(Act::TakeRead),
        1 => Just(Act::ReadFails),
        4 => (0..SHARDS).prop_map(Act::Ready),
        4 => (0..SHARDS).prop_map(Act::Unused),
        1 => any::<u64>().prop_map(Act::UnusedAgain),
        2 => (0_u32..80).prop_map(|remaining| Act::Report { remaining }),
        3 => Just(Act::Elect),
        20 => Just(Act::Turn),
        1 => any::<bool>().prop_map(|rot| Act::Crash { rot }),
        1 => (0_i64..30_000).prop_map(|down| Act::Reboot { down }),
        1 => (-WRONG_MS..=WRONG_MS).prop_map(Act::Wall),
    ];
    // Mostly of one host, so that its leadership comes to something.
    (prop_oneof![2 => Just(0_usize), 1 => Just(1_usize)], act)
}

#[derive(Debug, Clone)]
struct Write {
    seqs: Vec<u64>,
    records: Vec<Record>,
    whole: bool,
    /// The state it builds on, and the leadership it was made in.
    head: u64,
    term: u64,
    landed: Option<bool>,
}

#[derive(Debug, Default)]
struct Host {
    ledger: Ledger,
    boot_id: u64,
    booted_at: i64,
    wall_wrong: i64,
    term: u64,
    /// The state that it builds on; unknown until it has read.
    head: Option<u64>,
    outbox: Vec<(Option<u64>, Vec<Record>)>,
    flying: Option<Write>,
    asked: Option<u64>,
    read: Option<(u64, Vec<Option<Record>>, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    time: i64,
    shard: u32,
    via: Via,
    host: usize,
    permit: u64,
}

struct World {
    time: i64,
    hosts: [Host; 2],
    next_boot: u64,
    term: u64,
    head: u64,
    log: Vec<Option<Record>>,
    late: Vec<Write>,
    max_concurrency: u32,
    total: u32,
    reserve: u32,
    next_id: RequestId,
    requests: BTreeMap<RequestId, Request>,
    newest: HashMap<u32, u64>,
    /// Permits that were used: when they were released, of which shard, by which host, what the bucket owes
    /// them, and their number.
    sent: Vec<Sent>,
    unused: Vec<(u32, u64)>,
    numbers: HashSet<u64>,
    /// By how much more than they may be the wall clocks are wrong.
    times_wrong: i64,
}

impl World {
    fn new(max_concurrency: u32, total: u32, reserve: u32) -> Self {
        let mut world = Self {
            time: 10_000_000,
            hosts: [Host::default(), Host::default()],
            next_boot: 0,
            term: 0,
            head: 0,
            log: Vec::new(),
            late: Vec::new(),
            max_concurrency,
            total,
            reserve,
            next_id: 0,
            requests: BTreeMap::new(),
            newest: HashMap::new(),
            sent: Vec::new(),
            unused: Vec::new(),
            numbers: HashSet::new(),
            times_wrong: 1,
        };
        world.reboot(0, 0);
        world.reboot(1, 0);
        world.elect(0);
        world
    }

    fn now(&self, host: usize) -> Stamp {
        let host = &self.hosts[host];
        Stamp {
            boot_id: host.boot_id,
            boot_ms: self.time - host.booted_at,
            wall_ms: 1_700_000_000_000 + self.time + host.wall_wrong,
        }
    }

    fn step(&mut self, host: usize, input: Input) {
        let now = self.now(host);
        let effects = self.hosts[host].ledger.step(now, input);
        for effect in effects {
            match effect {
                Effect::Load { seq, .. } => self.hosts[host].asked = Some(seq),
                Effect::Persist { seq, records, .. } => {
                    self.hosts[host].outbox.push((Some(seq), records));
                }
                Effect::Note { record, .. } => {
                    self.hosts[host].outbox.push((None, vec![record]));
                }
                Effect::Grant { id, permit, .. } => self.sent(host, id, permit),
                Effect::Refuse { .. } | Effect::Notice(_) => {}
            }
        }
        if let Some(deadline) = self.hosts[host].ledger.deadline() {
            assert!(
                deadline > self.now(host).boot_ms,
                "a deadline that is over would spin"
            );
        }
    }

    fn sent(&mut self, host: usize, id: RequestId, permit: u64) {
        let request = &self.requests[&id];
        let known = &self.hosts[host].ledger.bots[BOT].attempts;
        assert_eq!(
            known[&request.process], request.attempt,
            "only the newest attempt gets a permit"
        );
        assert!(self.numbers.insert(permit), "two permits of one number");
        let bucket = |shard: u32| shard % self.max_concurrency;
        for other in &self.sent {
            let passed = self.time - other.time;
            assert!(
                bucket(other.shard) != bucket(request.shard)
                    || passed >= spacing_ms(other.via.valid_ms()),
                "bucket used twice within {passed} ms"
            );
        }
        self.sent.push(Sent {
            time: self.time,
            shard: request.shard,
            via: request.via,
            host,
            permit,
        });
        let day = self.sent.iter().filter(|s| self.time - s.time < DAY_MS);
        assert!(
            self.times_wrong > 1 || day.count() <= (self.total - self.reserve) as usize,
            "the reserve was touched"
        );
    }

    fn elect(&mut self, host: usize) {
        self.term += 1;
        self.hosts[host].term = self.term;
    }

    /// A new process on the host.
    fn restart(&mut self, host: usize) {
        let was = &mut self.hosts[host];
        was.ledger = Ledger::new();
        was.outbox.clear();
        (was.asked, was.read, was.head) = (None, None, None);
        self.late.extend(was.flying.take());
        if was.term == self.term {
            // Whoever leads next does so anew.
            self.elect(host);
        }
        self.step(
            host,
            Input::Open {
                bot: BOT.to_owned(),
            },
        );
        self.step(
            host,
            Input::Configure {
                bot: BOT.to_owned(),
                max_concurrency: Some(self.max_concurrency),
                reserve: Some(self.reserve),
            },
        );
        self.report(host, self.total);
    }

    fn reboot(&mut self, host: usize, down: i64) {
        self.time += down;
        self.next_boot += 1;
        self.hosts[host].boot_id = self.next_boot;
        self.hosts[host].booted_at = self.time;
        self.restart(host);
    }

    fn report(&mut self, host: usize, remaining: u32) {
        let limits = ReportedLimits {
            total: self.total,
            remaining: remaining.min(self.total),
            reset_after_ms: 1_000_000,
            max_concurrency: self.max_concurrency,
            recommended: 1,
        };
        let bot = BOT.to_owned();
        self.step(host, Input::Limits { bot, limits });
    }

    fn ask(&mut self, host: usize, shard: u32, attempt: u64, via: Via) {
        self.next_id += 1;
        let asked = Request {
            via,
            ..request(self.next_id, shard, attempt)
        };
        self.requests.insert(self.next_id, asked.clone());
        self.step(host, Input::Request(asked));
    }

    fn send(&mut self, host: usize, whole: bool) {
        let now = self.now(host);
        let term = self.term_of(host);
        let from = &mut self.hosts[host];
        if from.flying.is_some() || from.outbox.is_empty() {
            return;
        }
        let Some(head) = from.head else {
            // Notes wait; permits learn that nobody knows what they build on.
            return self.fail(host, Vec::new());
        };
        let (seqs, records): (Vec<_>, Vec<_>) = from.outbox.drain(..).unzip();
        let all = from.ledger.records(BOT, now).filter(|_| whole);
        let whole = all.is_some();
        let records = all.unwrap_or_else(|| records.into_iter().flatten().collect());
        from.flying = Some(Write {
            seqs: seqs.into_iter().flatten().collect(),
            records,
            whole,
            head,
            term,
            landed: None,
        });
    }

    fn term_of(&self, host: usize) -> u64 {
        self.hosts[host].term
    }

    fn land(&mut self, write: &Write) -> bool {
        let good = write.term == self.term && write.head == self.head;
        if good {
            self.head += 1;
            if write.whole {
                self.log.clear();
            }
            self.log.extend(write.records.iter().copied().map(Some));
        }
        good
    }

    fn fail(&mut self, host: usize, seqs: Vec<u64>) {
        self.hosts[host].head = None;
        // What waited behind it fails with it.
        let behind = std::mem::take(&mut self.hosts[host].outbox);
        let notes = behind.iter().filter(|(seq, _)| seq.is_none()).cloned();
        self.hosts[host].outbox = notes.collect();
        for seq in seqs
            .into_iter()
            .chain(behind.iter().filter_map(|(seq, _)| *seq))
        {
            let bot = BOT.to_owned();
            self.step(host, Input::PersistFailed { bot, seq });
        }
    }

    fn act(&mut self, host: usize, act: Act) {
        match act {
            Act::Pass(ms) => self.time += ms,
            Act::Tick => self.step(host, Input::Tick),
            Act::Ask { shard, newer, via } => {
                let attempt = self.newest.entry(shard).or_insert(1);
                *attempt += u64::from(newer);
                let attempt = *attempt;
                self.ask(host, shard, attempt, via);
            }
            Act::AskStale(shard) => {
                let ledger = &self.hosts[host].ledger;
                let known = ledger.bots[BOT].attempts.get(&format!("{BOT}/{shard}"));
                if let Some(attempt) = known.copied().filter(|attempt| *attempt > 0) {
                    self.ask(host, shard, attempt - 1, Via::Worker);
                }
            }
            Act::CancelSome(id) => {
                let id = id % (self.next_id + 1);
                self.step(host, Input::Cancel { id });
            }
            Act::Send { whole } => self.send(host, whole),
            Act::Land => {
                if let Some(mut write) = self.hosts[host].flying.take() {
                    if write.landed.is_none() {
                        write.landed = Some(self.land(&write));
                    }
                    self.hosts[host].flying = Some(write);
                }
            }
            Act::Answer { twice } => self.answer(host, twice),
            Act::GiveUp => {
                if let Some(write) = self.hosts[host].flying.take() {
                    let seqs = write.seqs.clone();
                    if write.landed.is_none() {
                        self.late.push(write);
                    }
                    self.fail(host, seqs);
                }
            }
            Act::LandLate => {
                if !self.late.is_empty() {
                    let write = self.late.remove(0);
                    self.land(&write);
                }
            }
            Act::ReadStore => {
                // After whatever is under way.
                if let (Some(seq), None) = (self.hosts[host].asked, &self.hosts[host].flying) {
                    self.hosts[host].read = Some((seq, self.log.clone(), self.head));
                    self.hosts[host].asked = None;
                }
            }
            Act::TakeRead => {
                if let Some((seq, records, head)) = self.hosts[host].read.take() {
                    self.hosts[host].head = Some(head);
                    let bot = BOT.to_owned();
                    self.step(host, Input::Load { bot, seq, records });
                }
            }
            Act::ReadFails => {
                if let Some(seq) = self.hosts[host].asked.take() {
                    let bot = BOT.to_owned();
                    self.step(host, Input::LoadFailed { bot, seq });
                }
            }
            Act::Ready(shard) => self.step(host, ready(shard)),
            Act::Unused(shard) => {
                let latest = self.sent.iter().rposition(|s| s.shard == shard);
                if let Some(latest) = latest.filter(|at| self.sent[*at].via == Via::Worker) {
                    let sent = self.sent.remove(latest);
                    self.unused.push((shard, sent.permit));
                    self.step(sent.host, unused(shard, sent.permit));
                }
            }
            Act::UnusedAgain(which) => {
                if let Some(count) = NonZeroU64::new(self.unused.len() as u64) {
                    let (shard, permit) = self.unused[(which % count) as usize];
                    self.step(host, unused(shard, permit));
                }
            }
            Act::Report { remaining } => self.report(host, remaining),
            Act::Elect => self.elect(host),
            Act::Turn => {
                for act in TURN {
                    self.act(host, act);
                }
            }
            Act::Crash { rot } => {
                if rot {
                    self.log.push(None);
                }
                self.restart(host);
            }
            Act::Reboot { down } => self.reboot(host, down),
            Act::Wall(wrong) => self.hosts[host].wall_wrong = wrong * self.times_wrong,
        }
    }

    fn answer(&mut self, host: usize, twice: bool) {
        let Some(write) = self.hosts[host].flying.take_if(|w| w.landed.is_some()) else {
            return;
        };
        if write.landed == Some(false) {
            return self.fail(host, write.seqs);
        }
        self.hosts[host].head = Some(write.head + 1);
        for seq in write.seqs {
            self.step(host, persisted(seq));
            if twice {
                self.step(host, persisted(seq));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_bucket_twice_and_never_below_the_reserve_whatever_happens(
        max_concurrency in 1_u32..5,
        total in 6_u32..40,
        acts in prop::collection::vec(acts(), 1..300),
    ) {
        let mut world = World::new(max_concurrency, total, total / 3);
        for (host, act) in acts {
            world.act(host, act);
        }
    }

    /// Nothing but the count of the day may hang on what wall clocks say.
    #[test]
    fn no_bucket_twice_however_wrong_the_wall_clocks_are(
        max_concurrency in 1_u32..5,
        acts in prop::collection::vec(acts(), 1..300),
    ) {
        let mut world = World::new(max_concurrency, 1000, 0);
        // Up to two days.
        world.times_wrong = 600;
        for (host, act) in acts {
            world.act(host, act);
        }
    }

    #[test]
    fn whoever_waits_is_served_or_refused(
        max_concurrency in 1_u32..5,
        acts in prop::collection::vec(acts(), 1..150),
    ) {
        let mut world = World::new(max_concurrency, 1000, 0);
        for (host, act) in acts {
            world.act(host, act);
        }
        world.elect(0);
        for _ in 0..4_000 {
            let permits = |host: &Host| host.outbox.iter().any(|(seq, _)| seq.is_some());
            let busy = permits(&world.hosts[0]);
            world.act(0, Act::Turn);
            if world.hosts[0].ledger.bots[BOT].waiting.is_empty() {
                break;
            }
            if !busy
                && let Some(deadline) = world.hosts[0].ledger.deadline()
            {
                world.time = world.time.max(world.hosts[0].booted_at + deadline);
                world.act(0, Act::Tick);
            }
        }
        prop_assert!(world.hosts[0].ledger.bots[BOT].waiting.is_empty());
    }

    #[test]
    fn records_survive_and_damage_is_noticed(
        permit in any::<u64>(),
        words in any::<[u32; 4]>(),
        clocks in any::<(u64, i64, i64)>(),
        kind in 0..5,
        flip in 0..RECORD_BYTES * 8,
    ) {
        let entry = match kind {
            0 => Entry::Grant {
                permit,
                shard: words[0],
                count: words[1],
                streak: words[2],
                valid_ms: words[3],
            },
            1 => Entry::Ready { shard: words[0], count: words[1] },
            2 => Entry::Refund { permit },
            3 => Entry::Sum { permits: words[0], newest: permit },
            _ => Entry::Limits {
                total: words[0],
                used: words[1],
                reset_after_ms: permit,
                max_concurrency: words[2],
                recommended: words[3],
            },
        };
        let record = Record {
            at: Stamp { boot_id: clocks.0, boot_ms: clocks.1, wall_ms: clocks.2 },
            entry,
        };
        let mut bytes = record.encode();
        prop_assert_eq!(Record::decode(&bytes), Some(record));
        bytes[flip / 8] ^= 1 << (flip % 8);
        prop_assert_eq!(Record::decode(&bytes), None);
    }
}
