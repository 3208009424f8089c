//! A Discord, a store and a bot of many shards in virtual time, around one ledger.

use std::collections::{BTreeMap, VecDeque, btree_map::OccupiedEntry};

use super::*;

/// What Discord does with those who connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Discord {
    /// Works.
    Up,
    /// Nobody gets a Hello.
    Unreachable,
    /// Says Hello, and answers each IDENTIFY with "invalid session".
    Refusing,
    /// Says Hello, and answers no IDENTIFY at all.
    Silent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Connect(u32),
    Written(u64),
    Identify {
        shard: u32,
        of: RequestId,
    },
    Answer {
        shard: u32,
        well: bool,
        of: RequestId,
    },
}

/// How a shard misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    Well,
    /// Its process dies so long after its READY and starts anew.
    DiesAfter(i64),
    /// Its process dies before its READY.
    DiesAtOnce,
}

#[derive(Debug)]
pub(super) struct Shard {
    pub(super) health: Health,
    pub(super) ready: bool,
    attempt: u64,
    /// The request it waits with, or has identified by.
    request: RequestId,
    backoff: i64,
}

pub(super) struct Fleet {
    pub(super) ledger: Ledger,
    pub(super) now: i64,
    pub(super) discord: Discord,
    pub(super) shards: Vec<Shard>,
    /// When each IDENTIFY arrived at Discord, and of which shard.
    pub(super) identifies: Vec<(i64, u32)>,
    /// Of those, how many came to nothing.
    pub(super) wasted: usize,
    pub(super) notices: Vec<Notice>,
    pub(super) refused: usize,
    /// The store takes so long.
    pub(super) store_ms: (i64, i64),
    /// READY, and all guilds, come so long after the IDENTIFY.
    pub(super) ready_ms: (i64, i64),
    mc: u32,
    events: BTreeMap<(i64, u64), Event>,
    next: u64,
    writes: VecDeque<u64>,
    random: u64,
}

impl Fleet {
    pub(super) fn new(shards: u32, mc: u32, seed: u64) -> Self {
        let mut ledger = empty();
        configure(&mut ledger, mc, None);
        let shards = (0..shards).map(|_| Shard {
            health: Health::Well,
            ready: false,
            attempt: 0,
            request: 0,
            backoff: 1_000,
        });
        Self {
            ledger,
            now: 0,
            discord: Discord::Up,
            shards: shards.collect(),
            identifies: Vec::new(),
            wasted: 0,
            notices: Vec::new(),
            refused: 0,
            store_ms: (1, 40),
            ready_ms: (300, 3_000),
            mc,
            events: BTreeMap::new(),
            next: 1,
            writes: VecDeque::new(),
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    /// Between `from` and `to`, both included.
    pub(super) fn random(&mut self, (from, to): (i64, i64)) -> i64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        from + (self.random % (to - from + 1).unsigned_abs()) as i64
    }

    fn plan(&mut self, after: i64, event: Event) {
        self.next += 1;
        self.events.insert((self.now + after, self.next), event);
    }

    /// Every shard loses its session and connects anew within `within` ms.
    pub(super) fn drop_all(&mut self, within: i64) {
        for shard in 0..self.shards.len() as u32 {
            self.lose(shard);
            let wait = self.random((0, within));
            self.plan(wait, Event::Connect(shard));
        }
    }

    fn lose(&mut self, shard: u32) {
        let state = &mut self.shards[shard as usize];
        state.ready = false;
        // Whatever is under way of the old connection is nobody's any more.
        let id = std::mem::take(&mut state.request);
        self.step(Input::Cancel { id });
    }

    /// Lets time pass until `end`, or until `done`.
    pub(super) fn run(&mut self, end: i64, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            let tick = self.ledger.deadline();
            let next = self.events.keys().next().map(|(at, _)| *at);
            let at = tick.into_iter().chain(next).min();
            let Some(at) = at.filter(|at| *at < end) else {
                self.now = end;
                return;
            };
            self.now = at;
            if tick == Some(at) {
                self.step(Input::Tick);
                assert!(
                    self.ledger.deadline().is_none_or(|next| next > at),
                    "a deadline that is over would spin"
                );
                continue;
            }
            if let Some(event) = self.events.first_entry().map(OccupiedEntry::remove) {
                self.happen(event);
            }
        }
    }

    pub(super) fn all_ready(&self) -> bool {
        self.shards.iter().all(|shard| shard.ready)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Written(seq) => self.step(persisted(seq)),
            Event::Connect(shard) => self.connect(shard),
            Event::Identify { shard, of } => self.identify(shard, of),
            Event::Answer { shard, well, of } => self.answer(shard, well, of),
        }
    }

    fn connect(&mut self, shard: u32) {
        if self.discord == Discord::Unreachable {
            let state = &mut self.shards[shard as usize];
            state.backoff = (state.backoff * 2).min(15_000);
            let most = state.backoff;
            let wait = self.random((most / 2, most));
            return self.plan(wait, Event::Connect(shard));
        }
        // Hello: only now is a permit asked for.
        self.next += 1;
        let id = self.next;
        let count = self.shards.len() as u32;
        let state = &mut self.shards[shard as usize];
        state.backoff = 1_000;
        state.attempt = state.attempt.max(1);
        state.request = id;
        let asked = Request {
            count,
            ..request(id, shard, state.attempt)
        };
        self.step(Input::Request(asked));
    }

    fn identify(&mut self, shard: u32, of: RequestId) {
        if self.shards[shard as usize].request != of {
            return; // It lost its connection before it could send.
        }
        self.identifies.push((self.now, shard));
        let in_bucket = |(_, other): &&(i64, u32)| other % self.mc == shard % self.mc;
        let mut bucket = self.identifies.iter().rev().filter(in_bucket);
        if let (Some((last, _)), Some((before, _))) = (bucket.next(), bucket.next()) {
            assert!(last - before >= RULE_MS, "{} ms apart", last - before);
        }
        let (well, after) = match (self.discord, self.shards[shard as usize].health) {
            (Discord::Up, Health::Well | Health::DiesAfter(_)) => {
                (true, self.random(self.ready_ms))
            }
            (Discord::Up, Health::DiesAtOnce) => (false, self.random((10, 500))),
            // Told at once, and Discord wants a pause of up to five seconds.
            (Discord::Refusing, _) => (false, self.random((1_000, 5_000))),
            // The bot gives up on its READY.
            (Discord::Silent | Discord::Unreachable, _) => (false, 30_000),
        };
        self.plan(after, Event::Answer { shard, well, of });
    }

    fn answer(&mut self, shard: u32, well: bool, of: RequestId) {
        let count = self.shards.len() as u32;
        let state = &mut self.shards[shard as usize];
        if state.request != of {
            return;
        }
        if well && !state.ready {
            state.ready = true;
            if let Health::DiesAfter(ms) = state.health {
                self.plan(
                    ms,
                    Event::Answer {
                        shard,
                        well: false,
                        of,
                    },
                );
            }
            let bot = BOT.to_owned();
            return self.step(Input::Ready { bot, shard, count });
        }
        // It did not hold. A process that dies starts as a new attempt.
        self.wasted += 1;
        state.attempt += u64::from(state.health != Health::Well);
        self.lose(shard);
        let wait = self.random((10, 500));
        self.plan(wait, Event::Connect(shard));
    }

    fn step(&mut self, input: Input) {
        for effect in self.ledger.step(at(self.now), input) {
            match effect {
                Effect::Persist { seq, .. } => {
                    // One write after the other.
                    let took = self.random(self.store_ms);
                    self.writes.push_back(seq);
                    self.plan(took, Event::Written(seq));
                }
                Effect::Grant { id, .. } => {
                    let shard = self.shards.iter().position(|s| s.request == id);
                    let shard = shard.expect("nobody gets a permit but those who wait") as u32;
                    let delay = self.random((0, VALID_MS)) + self.random((0, JITTER_MS));
                    self.plan(delay, Event::Identify { shard, of: id });
                }
                Effect::Refuse { id, .. } => {
                    self.refused += 1;
                    let shard = self.shards.iter().position(|s| s.request == id);
                    let shard = shard.expect("nobody is refused but those who wait") as u32;
                    self.plan(60_000, Event::Connect(shard));
                }
                Effect::Notice(notice) => self.notices.push(notice),
                Effect::Note { .. } => {}
                Effect::Load { .. } => panic!("the store never fails here"),
            }
        }
    }
}
