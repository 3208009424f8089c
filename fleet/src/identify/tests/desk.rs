//! Permits over hosts: askers with clocks of their own, leaders that change and do not know it at once,
//! questions and answers that are late or lost, around the real ledgers and desks. Discord keeps the
//! account.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

const SHARDS: u32 = 9;
/// How late a question or an answer may be.
const LATE_MS: i64 = 400;
/// After so long without an answer an asker asks again.
const PATIENCE_MS: i64 = 1_500;
const STEP_MS: i64 = 10;

#[derive(Debug, Clone)]
enum Letter {
    Ask {
        to: usize,
        id: AskId,
        poll: PollId,
    },
    Answer {
        shard: usize,
        poll: PollId,
        reply: DeskReply,
    },
    Identify {
        shard: usize,
    },
    Depose(usize),
}

struct Leader {
    ledger: Ledger,
    desk: Desk,
    booted_at: i64,
    /// The state of the store that it builds on.
    head: Option<u64>,
    requests: BTreeMap<RequestId, AskId>,
}

struct Asker {
    /// Its host's clock began then.
    booted_at: i64,
    ask: u64,
    /// The poll that it waits for, and when it was sent, by its own clock.
    poll: Option<(PollId, i64)>,
    /// Does not ask before, in true time.
    rests_until: i64,
    /// Its latest permit, if that came too late.
    unused: Option<u64>,
    identified: u32,
}

struct World {
    time: i64,
    rng: fastrand::Rng,
    losses: bool,
    leading: usize,
    leaders: Vec<Leader>,
    askers: Vec<Asker>,
    letters: BTreeMap<(i64, u64), Letter>,
    next: u64,
    log: Vec<Option<Record>>,
    head: u64,
    max_concurrency: u32,
    /// Arrivals at Discord, and by whom.
    arrivals: Vec<(i64, u32)>,
}

impl World {
    fn new(seed: u64, max_concurrency: u32) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let leaders = (0..2)
            .map(|_| Leader {
                ledger: Ledger::new(),
                desk: Desk::new(),
                booted_at: rng.i64(-5_000_000..0),
                head: None,
                requests: BTreeMap::new(),
            })
            .collect();
        let askers = (0..SHARDS)
            .map(|_| Asker {
                booted_at: rng.i64(-5_000_000..0),
                ask: 1,
                poll: None,
                rests_until: rng.i64(0..2_000),
                unused: None,
                identified: 0,
            })
            .collect();
        let mut world = Self {
            time: 0,
            rng,
            losses: true,
            leading: 0,
            leaders,
            askers,
            letters: BTreeMap::new(),
            next: 1,
            log: Vec::new(),
            head: 0,
            max_concurrency,
            arrivals: Vec::new(),
        };
        for leader in 0..2 {
            let bot = BOT.to_owned();
            let configure = Input::Configure {
                bot: bot.clone(),
                max_concurrency: Some(max_concurrency),
                reserve: None,
            };
            world.ledger(leader, Input::Open { bot });
            world.ledger(leader, configure);
        }
        world
    }

    fn stamp(&self, leader: usize) -> Stamp {
        Stamp {
            boot_id: leader as u64 + 1,
            boot_ms: self.time - self.leaders[leader].booted_at,
            wall_ms: 1_700_000_000_000 + self.time,
        }
    }

    fn send(&mut self, letter: Letter) {
        if self.losses && self.rng.u8(0..100) < 12 {
            return;
        }
        let late = if self.losses && self.rng.u8(0..100) < 30 {
            LATE_MS
        } else {
            10
        };
        let at = self.time + self.rng.i64(0..late);
        self.post(at, letter);
    }

    fn post(&mut self, at: i64, letter: Letter) {
        self.next += 1;
        self.letters.insert((at, self.next), letter);
    }

    fn ledger(&mut self, leader: usize, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let now = self.stamp(leader);
            for effect in self.leaders[leader].ledger.step(now, input) {
                let bot = BOT.to_owned();
                let may_write =
                    leader == self.leading && self.leaders[leader].head == Some(self.head);
                match effect {
                    Effect::Load { seq, .. } => {
                        self.leaders[leader].head = Some(self.head);
                        let records = self.log.clone();
                        inputs.push_back(Input::Load { bot, seq, records });
                    }
                    Effect::Persist { seq, records, .. } if may_write => {
                        self.log.extend(records.into_iter().map(Some));
                        self.head += 1;
                        self.leaders[leader].head = Some(self.head);
                        inputs.push_back(Input::Persisted { bot, seq });
                    }
                    Effect::Persist { seq, .. } => {
                        inputs.push_back(Input::PersistFailed { bot, seq });
                    }
                    Effect::Note { record, .. } if may_write => self.log.push(Some(record)),
                    Effect::Note { .. } | Effect::Notice(_) => {}
                    Effect::Grant {
                        id,
                        permit,
                        remaining,
                    } => {
                        if let Some(id) = self.leaders[leader].requests.remove(&id) {
                            let permit = Granted {
                                number: permit,
                                until_boot_ms: now.boot_ms + VALID_MS,
                                remaining,
                            };
                            self.desk(leader, DeskInput::Granted { id, permit });
                        }
                    }
                    Effect::Refuse { id, why } => {
                        if let Some(id) = self.leaders[leader].requests.remove(&id) {
                            self.desk(leader, DeskInput::Refused { id, why });
                        }
                    }
                }
            }
        }
    }

    fn desk(&mut self, leader: usize, input: DeskInput) {
        let now = self.stamp(leader).boot_ms;
        for effect in self.leaders[leader].desk.step(now, input) {
            match effect {
                DeskEffect::Acquire(id) => {
                    self.next += 1;
                    let request = self.next;
                    let shard: u32 = id.0.parse().expect("a shard");
                    self.leaders[leader].requests.insert(request, id);
                    if let Some(permit) = self.askers[shard as usize].unused {
                        self.ledger(leader, super::unused(shard, permit));
                    }
                    let input = Input::Request(super::request(request, shard, 1));
                    self.ledger(leader, input);
                }
                DeskEffect::GiveUp(id) => {
                    let requests = &mut self.leaders[leader].requests;
                    let found = requests.iter().find(|(_, of)| **of == id);
                    if let Some(request) = found.map(|(request, _)| *request) {
                        requests.remove(&request);
                        self.ledger(leader, Input::Cancel { id: request });
                    }
                }
                DeskEffect::Reply(poll, reply) => {
                    let shard = (poll % u64::from(SHARDS)) as usize;
                    self.send(Letter::Answer { shard, poll, reply });
                }
            }
        }
    }

    fn ask(&mut self, shard: usize) {
        self.next += 1;
        let poll = self.next * u64::from(SHARDS) + shard as u64;
        let to = if self.losses && self.rng.u8(0..100) < 20 {
            1 - self.leading
        } else {
            self.leading
        };
        let asker = &mut self.askers[shard];
        asker.poll = Some((poll, self.time - asker.booted_at));
        let id = (shard.to_string(), asker.ask.to_string());
        self.send(Letter::Ask { to, id, poll });
    }

    fn answered(&mut self, shard: usize, poll: PollId, reply: DeskReply) {
        let time = self.time;
        let asker = &mut self.askers[shard];
        let Some((_, sent)) = asker.poll.filter(|(waits, _)| *waits == poll) else {
            return;
        };
        asker.poll = None;
        match reply {
            DeskReply::Pending | DeskReply::Deposed => {}
            DeskReply::Refused(_) => {
                asker.ask += 1;
                asker.rests_until = time + 1_000;
            }
            DeskReply::Granted {
                number, valid_ms, ..
            } => {
                asker.ask += 1;
                asker.unused = Some(number);
                if let Some(until) = until(sent, valid_ms, time - asker.booted_at) {
                    asker.unused = None;
                    // At any moment until then, and some way to Discord.
                    let last = until + asker.booted_at - 1;
                    let at = self.rng.i64(time..=last) + self.rng.i64(0..=JITTER_MS);
                    // At the end nobody comes twice: the lowest shard is served first.
                    let rest = if self.losses {
                        self.rng.i64(200..20_000)
                    } else {
                        i64::from(i32::MAX)
                    };
                    self.askers[shard].rests_until = at + rest;
                    self.post(at, Letter::Identify { shard });
                }
            }
        }
    }

    fn identify(&mut self, shard: usize) {
        let (time, number) = (self.time, shard as u32);
        let bucket = number % self.max_concurrency;
        for (at, other) in &self.arrivals {
            assert!(
                other % self.max_concurrency != bucket || time - at >= RULE_MS,
                "shards {other} and {number} identified {} ms apart in bucket {bucket}",
                time - at
            );
        }
        self.arrivals.push((time, number));
        self.askers[shard].identified += 1;
        let ready = Input::Ready {
            bot: BOT.to_owned(),
            shard: number,
            count: 64,
        };
        self.ledger(self.leading, ready);
    }

    fn elect(&mut self, leader: usize) {
        let old = std::mem::replace(&mut self.leading, leader);
        if old != leader {
            // It hears of it when it hears of it.
            let at = self.time + self.rng.i64(0..3_000);
            self.post(at, Letter::Depose(old));
        }
    }

    fn run(&mut self, ms: i64) {
        let end = self.time + ms;
        while self.time < end {
            self.time += STEP_MS;
            while let Some(entry) = self.letters.first_entry() {
                if entry.key().0 > self.time {
                    break;
                }
                match entry.remove() {
                    Letter::Ask { to, id, poll } => {
                        let wait_ms = WAIT_MAX_MS;
                        self.desk(to, DeskInput::Poll { id, poll, wait_ms });
                    }
                    Letter::Answer { shard, poll, reply } => self.answered(shard, poll, reply),
                    Letter::Identify { shard } => self.identify(shard),
                    Letter::Depose(leader) if leader != self.leading => {
                        self.desk(leader, DeskInput::Deposed);
                    }
                    Letter::Depose(_) => {}
                }
            }
            for leader in 0..2 {
                let now = self.stamp(leader).boot_ms;
                if self.leaders[leader]
                    .ledger
                    .deadline()
                    .is_some_and(|at| at <= now)
                {
                    self.ledger(leader, Input::Tick);
                }
                if self.leaders[leader]
                    .desk
                    .deadline()
                    .is_some_and(|at| at <= now)
                {
                    self.desk(leader, DeskInput::Tick);
                    let next = self.leaders[leader].desk.deadline();
                    assert!(
                        next.is_none_or(|at| at > now),
                        "a deadline that is over would spin"
                    );
                }
            }
            for shard in 0..self.askers.len() {
                let asker = &self.askers[shard];
                let gave_up = asker
                    .poll
                    .is_none_or(|(_, sent)| self.time - asker.booted_at - sent > PATIENCE_MS);
                if gave_up && self.time >= asker.rests_until {
                    self.ask(shard);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_bucket_sees_two_identifies_within_the_rule(
        seed in any::<u64>(),
        max_concurrency in 1_u32..5,
        elections in prop::collection::vec((0_usize..2, 500_i64..25_000), 1..8),
    ) {
        let mut world = World::new(seed, max_concurrency);
        for (leader, ms) in elections {
            world.elect(leader);
            world.run(ms);
        }
        // And once everything works, everybody is served.
        world.losses = false;
        let before: Vec<u32> = world.askers.iter().map(|asker| asker.identified).collect();
        let waits = |world: &World| {
            let served = world.askers.iter().map(|asker| asker.identified);
            served.zip(&before).any(|(now, before)| now == *before)
        };
        // A shard that lost many answers waits for half an hour.
        for _ in 0..2_400 {
            if !waits(&world) {
                break;
            }
            world.run(1_000);
        }
        prop_assert!(!waits(&world), "somebody was never served");
        prop_assert!(world.leaders.iter().all(|leader| leader.desk.len() <= SHARDS as usize));
    }
}

fn poll(id: &str, poll: PollId) -> DeskInput {
    DeskInput::Poll {
        id: ("b".to_owned(), id.to_owned()),
        poll,
        wait_ms: 1_000,
    }
}

fn grant(id: &str, until_boot_ms: i64) -> DeskInput {
    DeskInput::Granted {
        id: ("b".to_owned(), id.to_owned()),
        permit: Granted {
            number: 7,
            until_boot_ms,
            remaining: 90,
        },
    }
}

fn told(valid_ms: u64) -> DeskReply {
    DeskReply::Granted {
        number: 7,
        valid_ms,
        remaining: 90,
    }
}

#[test]
fn the_place_is_kept_between_polls_and_given_up_without_them() {
    let mut desk = Desk::new();
    let id = ("b".to_owned(), "x".to_owned());
    assert_eq!(
        desk.step(0, poll("x", 1)),
        [DeskEffect::Acquire(id.clone())]
    );
    assert_eq!(desk.deadline(), Some(1_000));
    assert_eq!(
        desk.step(1_000, DeskInput::Tick),
        [DeskEffect::Reply(1, DeskReply::Pending)]
    );
    assert_eq!(desk.step(1_100, poll("x", 2)), [], "asked for already");
    desk.step(1_200, DeskInput::Hangup { poll: 2 });
    assert_eq!(desk.step(1_200 + IDLE_MS - 1, DeskInput::Tick), []);
    assert_eq!(
        desk.step(1_200 + IDLE_MS, DeskInput::Tick),
        [DeskEffect::GiveUp(id)]
    );
    assert!(desk.is_empty());
    assert_eq!(desk.step(9_000, grant("x", 9_100)), [], "nobody is there");
}

#[test]
fn a_lost_answer_is_given_again_and_what_is_over_is_told_as_over() {
    let mut desk = Desk::new();
    desk.step(0, poll("x", 1));
    assert_eq!(
        desk.step(400, grant("x", 550)),
        [DeskEffect::Reply(1, told(550))],
        "from when the poll was received"
    );
    assert_eq!(
        desk.step(450, poll("x", 2)),
        [DeskEffect::Reply(2, told(100))]
    );
    assert_eq!(
        desk.step(550, poll("x", 3)),
        [DeskEffect::Reply(3, told(0))]
    );
    assert_eq!(until(1_000, 100, 1_099), Some(1_100));
    assert_eq!(until(1_000, 100, 1_100), None);
    assert_eq!(until(1_000, 0, 1_000), None);
}

#[test]
fn who_leads_no_more_sends_everybody_on() {
    let mut desk = Desk::new();
    let id = ("b".to_owned(), "x".to_owned());
    desk.step(0, poll("x", 1));
    assert_eq!(
        desk.step(10, DeskInput::Deposed),
        [
            DeskEffect::Reply(1, DeskReply::Deposed),
            DeskEffect::GiveUp(id)
        ]
    );
    assert!(desk.is_empty() && desk.deadline().is_none());
    // A poll at a time: the older one of the same permit is answered.
    desk.step(20, poll("y", 2));
    assert_eq!(
        desk.step(30, poll("y", 3)),
        [DeskEffect::Reply(2, DeskReply::Pending)]
    );
    // And no more places than there are.
    for n in 1..PLACES_MAX {
        desk.step(40, poll(&n.to_string(), 100 + n as u64));
    }
    assert_eq!(
        desk.step(50, poll("one more", 9)),
        [DeskEffect::Reply(9, DeskReply::Refused(Refusal::Full))]
    );
}
