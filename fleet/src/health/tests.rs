//! The judge over days of virtual time, and against nonsense.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const TYPES: [(&str, f64); 5] = [
    // Events per guild and hour at noon.
    ("MESSAGE_CREATE", 20.0),
    ("TYPING_START", 12.0),
    ("PRESENCE_UPDATE", 40.0),
    ("VOICE_STATE_UPDATE", 2.0),
    ("GUILD_MEMBER_ADD", 0.2),
];

type Spoil = fn(&mut World);
type Change = fn(&mut Body);

/// A small generator, so that a failure repeats.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn poisson(&mut self, mean: f64) -> u64 {
        if mean > 30.0 {
            let normal = (0..12).map(|_| self.next()).sum::<f64>() - 6.0;
            return (mean + normal * mean.sqrt()).round().max(0.0) as u64;
        }
        let (limit, mut product, mut count) = ((-mean).exp(), self.next(), 0);
        while product > limit {
            product *= self.next();
            count += 1;
        }
        count
    }
}

/// A shard as Discord and the bot have it.
struct Body {
    process: ProcessName,
    attempt: u64,
    shard: u32,
    stage: Stage,
    serial: i64,
    guilds: u32,
    /// Activity of its guilds by the hour at which their day begins.
    zones: [f64; 4],
    counts: Counts,
    resumes: u64,
    identifies: u64,
    muted: Option<&'static str>,
    /// A raid or game night: until when, and how much more comes.
    burst: (i64, f64),
    attached: bool,
    busy: bool,
    wanted: bool,
    latency_ms: f64,
    event_lag_ms: f64,
    misplaced: u64,
    zombies: u64,
    last_error: &'static str,
}

struct World {
    dice: Dice,
    now: i64,
    step: i64,
    bodies: Vec<Body>,
    health: Health,
    bots: BTreeMap<String, BotView>,
    /// What nobody gets at the moment; `*` = anything.
    outage: Option<&'static str>,
    acts: Vec<(i64, Action)>,
    events: Vec<(i64, &'static str, Grade, String)>,
    silent_seen: Vec<(i64, u32, String)>,
    bursty: bool,
    /// Activity at night, relative to noon.
    night: f64,
}

impl World {
    fn new(seed: u64, shards: u32, per_process: u32, guilds: u32) -> Self {
        let mut dice = Dice(seed);
        let bodies = (0..shards)
            .map(|shard| {
                let mut zones = [0.0; 4];
                for _ in 0..guilds {
                    // A few guilds make most of the noise.
                    let activity = 0.2 / (dice.next() + 0.02);
                    // Three in five of a bot's guilds live in its own part of the world.
                    let zone = if dice.next() < 0.6 {
                        0
                    } else {
                        (dice.next() * 4.0) as usize
                    };
                    zones[zone] += activity;
                }
                Body {
                    process: format!("bot/{}", shard / per_process)
                        .parse()
                        .expect("a name"),
                    attempt: 1,
                    shard,
                    stage: Stage::Ready,
                    serial: 0,
                    guilds,
                    zones,
                    counts: Counts::new(),
                    resumes: 0,
                    identifies: 1,
                    muted: None,
                    burst: (0, 1.0),
                    attached: true,
                    busy: false,
                    wanted: true,
                    latency_ms: 40.0,
                    event_lag_ms: 80.0,
                    misplaced: 0,
                    zombies: 0,
                    last_error: "",
                }
            })
            .collect();
        let view = BotView {
            silent: Some(SILENT_DEFAULT),
            affordable: true,
        };
        Self {
            dice,
            now: 7 * HOUR,
            step: 10 * SECOND,
            bodies,
            health: Health::new(),
            bots: BTreeMap::from([("bot".to_owned(), view)]),
            outage: None,
            acts: Vec::new(),
            events: Vec::new(),
            silent_seen: Vec::new(),
            bursty: false,
            night: 0.05,
        }
    }

    fn view(&mut self) -> &mut BotView {
        self.bots.get_mut("bot").expect("the bot")
    }

    /// How busy a part of the world is that rises `zone` quarters of a day later.
    fn busy(&self, zone: usize) -> f64 {
        let hour = (self.now % DAY) as f64 / HOUR as f64 - zone as f64 * 6.0;
        let wave = (1.0 - ((hour - 3.0) / 24.0 * std::f64::consts::TAU).cos()) / 2.0;
        self.night + (1.0 - self.night) * wave * wave
    }

    fn tick(&mut self) {
        self.now += self.step;
        let hours = self.step as f64 / HOUR as f64;
        let busy: Vec<f64> = (0..4).map(|zone| self.busy(zone)).collect();
        for body in &mut self.bodies {
            if self.bursty && self.dice.next() < hours / 8.0 {
                let length = (self.dice.next() * 40.0 * MINUTE as f64) as i64;
                body.burst = (self.now + length, 1.0 + self.dice.next() * 20.0);
            }
            if !body.attached {
                continue;
            }
            body.serial += 1;
            if body.stage != Stage::Ready {
                continue;
            }
            let more = if self.now < body.burst.0 {
                body.burst.1
            } else {
                1.0
            };
            let activity: f64 = body.zones.iter().zip(&busy).map(|(a, b)| a * b).sum();
            for (kind, rate) in TYPES {
                let more = if kind == "PRESENCE_UPDATE" { 1.0 } else { more };
                let mean = rate * hours * activity * more;
                let came = self.dice.poisson(mean);
                let out = self.outage.is_some_and(|out| out == kind || out == "*");
                if came > 0 && body.muted != Some(kind) && !out {
                    *body.counts.entry(kind.to_owned()).or_default() += came;
                }
            }
        }
        self.observe();
    }

    fn observe(&mut self) {
        let readings: Vec<Reading<'_>> = self
            .bodies
            .iter()
            .map(|body| Reading {
                process: &body.process,
                attempt: body.attempt,
                shard: body.shard,
                count: 64,
                wanted: body.wanted,
                busy: body.busy,
                attached: body.attached,
                report: Some(Report {
                    serial: body.serial,
                    stage: body.stage,
                    guilds: body.guilds,
                    guilds_expected: body.guilds,
                    latency_ms: body.latency_ms,
                    event_lag_ms: body.event_lag_ms,
                    misplaced: body.misplaced,
                    zombies: body.zombies,
                    resumes: body.resumes,
                    identifies: body.identifies,
                    events: &body.counts,
                    last_error: body.last_error,
                }),
            })
            .collect();
        let input = Input::Observed {
            readings: &readings,
            bots: &self.bots,
        };
        for effect in self.health.step(self.now, input) {
            match effect {
                Effect::Act(action) => self.acts.push((self.now, action)),
                Effect::Event {
                    grade,
                    kind,
                    message,
                    ..
                } => self.events.push((self.now, kind, grade, message)),
            }
        }
        for (_, shard, verdict) in self.health.verdicts() {
            if verdict.word == Word::Silent {
                self.silent_seen
                    .push((self.now, shard, verdict.detail.clone()));
            }
        }
    }

    fn run(&mut self, time: i64) {
        let until = self.now + time;
        while self.now < until {
            self.tick();
        }
    }

    /// Runs until something is done; how long that took.
    fn until_act(&mut self, within: i64) -> Option<(i64, Action)> {
        let (began, known) = (self.now, self.acts.len());
        while self.now < began + within {
            self.tick();
            if let Some((at, action)) = self.acts.get(known) {
                return Some((at - began, action.clone()));
            }
        }
        None
    }

    fn reconnect(&mut self, index: usize, identify: bool) {
        let body = &mut self.bodies[index];
        if identify {
            body.identifies += 1;
        } else {
            body.resumes += 1;
        }
    }

    fn restart(&mut self, process: &str) {
        for body in self
            .bodies
            .iter_mut()
            .filter(|b| b.process.as_str() == process)
        {
            body.attempt += 1;
            body.counts.clear();
            body.resumes = 1;
            body.identifies = 0;
        }
    }

    fn word(&self, index: usize) -> (Word, String) {
        let body = &self.bodies[index];
        let verdict = self
            .health
            .verdict(&body.process, body.shard)
            .expect("judged");
        (verdict.word, verdict.detail.clone())
    }

    fn events_of(&self, kind: &str) -> usize {
        self.events.iter().filter(|event| event.1 == kind).count()
    }

    fn assert_quiet(&self, what: &str) {
        let seen = self.silent_seen.first();
        assert!(
            self.silent_seen.is_empty() && self.acts.is_empty(),
            "{what}: a false alarm: {seen:?}, {:?}",
            self.acts.first()
        );
    }
}

#[test]
fn days_and_nights_raise_no_alarm() {
    // Shards, shards a process, guilds a shard, activity at night, raids.
    let fleets = [
        (12, 4, 1_000, 0.05, false),
        (12, 4, 200, 0.02, true),
        (6, 1, 60, 0.01, true),
        (4, 2, 30, 0.005, false),
        (8, 4, 6, 0.01, true),
        (2, 1, 400, 0.02, true),
        (1, 1, 2_000, 0.02, false),
        (1, 1, 30, 0.005, true),
    ];
    // More worlds: TANAKO_HEALTH_ROUNDS=50.
    let rounds = std::env::var("TANAKO_HEALTH_ROUNDS").ok();
    let rounds: usize = rounds.and_then(|text| text.parse().ok()).unwrap_or(1);
    let worlds = fleets.iter().copied().cycle().take(rounds * fleets.len());
    for (seed, (shards, per_process, guilds, night, bursty)) in (1..).zip(worlds) {
        let what = format!("{shards} shards of {guilds} guilds, seed {seed}");
        let mut world = World::new(seed, shards, per_process, guilds);
        (world.night, world.bursty) = (night, bursty);
        for hour in 0..48 {
            world.run(HOUR);
            match hour % 12 {
                // What Discord does every few hours.
                3 => world.reconnect(hour % shards as usize, false),
                // A restart sets the counters back.
                5 => world.restart("bot/0"),
                // Nobody gets a type for an hour. Where there is one shard only, that it alone does
                // not get it cannot be told from that.
                7 => world.outage = Some(if shards > 1 { "MESSAGE_CREATE" } else { "*" }),
                8 => world.outage = None,
                // The loudest guild leaves, and takes a third of the noise along.
                10 => {
                    let body = &mut world.bodies[0];
                    body.guilds -= 1;
                    body.zones[0] *= 0.66;
                }
                _ => {}
            }
        }
        world.assert_quiet(&what);
    }
}

#[test]
fn a_pause_of_the_agent_or_of_reports_is_no_silence() {
    let mut world = World::new(5, 8, 2, 500);
    world.run(6 * HOUR);
    // The agent was suspended: one long step, in which events came or not.
    world.now += 2 * HOUR;
    world.run(MINUTE);
    // One process's reports do not come, or come again.
    for _ in 0..200 {
        let stuck: Vec<(i64, Counts)> = world.bodies[..2]
            .iter()
            .map(|body| (body.serial, body.counts.clone()))
            .collect();
        world.tick();
        for (body, (serial, counts)) in world.bodies.iter_mut().zip(stuck) {
            (body.serial, body.counts) = (serial, counts);
        }
    }
    world.run(HOUR);
    world.assert_quiet("pauses");
}

#[test]
fn a_type_that_dies_is_seen_and_what_is_done_grows() {
    for (seed, guilds) in [(1, 2_000), (2, 300)] {
        let mut world = World::new(seed, 16, 4, guilds);
        world.run(8 * HOUR);
        world.assert_quiet("before");
        world.bodies[5].muted = Some("MESSAGE_CREATE");
        let (after, first) = world.until_act(30 * MINUTE).expect("seen");
        assert!(after >= 5 * MINUTE, "{after}");
        assert_eq!((first.step, first.shard), (Step::Resume, 5));
        let (word, why) = world.word(5);
        assert!(
            word == Word::Silent && why.contains("MESSAGE_CREATE"),
            "{why}"
        );
        world.reconnect(5, false);
        let (after, second) = world.until_act(30 * MINUTE).expect("still");
        assert!(after >= 5 * MINUTE, "{after}");
        assert_eq!((second.step, second.shard), (Step::Identify, 5));
        // The new session has it again.
        world.bodies[5].muted = None;
        world.reconnect(5, true);
        world.run(10 * MINUTE);
        assert_eq!(world.word(5).0, Word::Ok, "{}", world.word(5).1);
        assert_eq!(world.events_of("shard-recovered"), 1);
        // It comes back: the same again, after a longer wait.
        world.bodies[5].muted = Some("MESSAGE_CREATE");
        let (_, third) = world.until_act(HOUR).expect("again");
        assert_eq!(third.step, Step::Resume);
        world.reconnect(5, false);
        let (longer, fourth) = world.until_act(HOUR).expect("again");
        assert_eq!(fourth.step, Step::Identify);
        assert!(longer >= 10 * MINUTE, "{longer}");
        world.reconnect(5, true);
        let (longer, fifth) = world.until_act(2 * HOUR).expect("again");
        assert_eq!(fifth.step, Step::Respawn);
        assert!(longer >= 20 * MINUTE, "{longer}");
        world.restart("bot/1");
        // A new process does not help either: it is not the connection.
        assert_eq!(world.until_act(6 * HOUR), None);
        assert_eq!(world.events_of("shard-given-up"), 1);
        world.run(HOUR);
        assert_eq!(world.word(5).0, Word::Ok);
        let others = world.acts.iter().filter(|(_, act)| act.shard != 5).count();
        assert_eq!(others, 0, "{:?}", world.acts);
    }
}

#[test]
fn a_shard_without_siblings_is_judged_by_itself_and_later() {
    let mut world = World::new(3, 1, 1, 2_000);
    world.run(10 * HOUR);
    world.assert_quiet("before");
    world.bodies[0].muted = Some("MESSAGE_CREATE");
    let (after, action) = world.until_act(2 * HOUR).expect("seen");
    assert_eq!(action.step, Step::Resume);
    assert!(after >= 15 * MINUTE, "{after}");
}

#[test]
fn nothing_is_done_where_it_must_not_be() {
    let spoil: [(&str, Spoil); 4] = [
        ("under an operation", |w| {
            w.bodies[5].busy = true;
        }),
        ("stopped by the operator", |w| w.bodies[5].wanted = false),
        ("no budget", |w| w.view().affordable = false),
        ("switched off", |w| w.view().silent = None),
    ];
    for (what, spoil) in spoil {
        let mut world = World::new(1, 16, 4, 1_000);
        world.run(8 * HOUR);
        world.bodies[5].muted = Some("MESSAGE_CREATE");
        spoil(&mut world);
        world.run(3 * HOUR);
        assert!(world.acts.is_empty(), "{what}: {:?}", world.acts);
        let said = usize::from(what == "no budget");
        assert_eq!(world.events_of("shard-held"), said, "{what}, and told once");
    }
}

#[test]
fn a_storm_restarts_nothing() {
    for lost in [16, 5] {
        let mut world = World::new(1, 16, 4, 1_000);
        world.run(2 * HOUR);
        for body in &mut world.bodies[..lost] {
            body.stage = Stage::Disconnected;
        }
        world.run(10 * MINUTE);
        assert!(world.acts.is_empty(), "{:?}", world.acts);
        assert_eq!(world.events_of("storm-brake-on"), 1);
        assert_eq!(world.health.storms().count(), 1);
        for index in 0..lost {
            world.bodies[index].stage = Stage::Ready;
            world.reconnect(index, index % 2 == 0);
            world.tick();
        }
        world.run(HOUR);
        assert!(world.acts.is_empty(), "{:?}", world.acts);
        assert_eq!(world.events_of("storm-brake-on"), 1);
        assert_eq!(world.events_of("storm-brake-off"), 1);
        assert_eq!(world.health.storms().count(), 0);
    }
    // Many shards silent at once is Discord's as well.
    let mut world = World::new(1, 16, 4, 1_000);
    world.run(8 * HOUR);
    for body in &mut world.bodies[..6] {
        body.muted = Some("MESSAGE_CREATE");
    }
    world.run(2 * HOUR);
    let one_by_one = world.acts.len();
    assert!(
        one_by_one <= 3,
        "the first few may come before it is seen: {:?}",
        world.acts
    );
    assert_eq!(world.events_of("storm-brake-on"), 1);
}

#[test]
fn a_connection_that_alone_does_not_come_back_is_helped() {
    let mut world = World::new(1, 16, 4, 1_000);
    world.run(HOUR);
    world.bodies[9].stage = Stage::Resuming;
    let (after, action) = world.until_act(HOUR).expect("helped");
    assert_eq!((action.step, action.shard), (Step::Resume, 9));
    assert!(after >= 5 * MINUTE, "{after}");
    let (word, why) = world.word(9);
    assert!(
        word == Word::Connecting && why.starts_with("resuming for"),
        "{why}"
    );
    world.bodies[9].stage = Stage::Ready;
    world.run(MINUTE);
    assert_eq!(world.events_of("shard-recovered"), 1);
    // One that waits for its turn is helped by nobody but the broker.
    world.bodies[3].stage = Stage::WaitingPermit;
    assert_eq!(world.until_act(2 * HOUR), None);
}

#[test]
fn each_word_has_its_reason() {
    let mut world = World::new(1, 8, 4, 500);
    world.run(30 * MINUTE);
    let set: [(Word, &str, Change); 6] = [
        (Word::Lagging, "heartbeats take 4000 ms", |b| {
            b.latency_ms = 4_000.0;
        }),
        (Word::Lagging, "events are 20.0 s old", |b| {
            b.event_lag_ms = 20_000.0;
        }),
        (Word::Misplaced, "3 guilds came", |b| b.misplaced = 3),
        (Word::Down, "Discord forbids", |b| b.stage = Stage::Fatal),
        (Word::Zombie, "heartbeat was not", |b| b.zombies = 1),
        (Word::Down, "not connected to the agent", |b| {
            b.attached = false;
        }),
    ];
    for (index, (_, _, change)) in set.iter().enumerate() {
        change(&mut world.bodies[index]);
    }
    world.bodies[3].last_error = "close code 4014";
    world.run(40 * SECOND);
    for (index, (word, why, _)) in set.iter().enumerate() {
        let (found, detail) = world.word(index);
        assert!(
            found == *word && detail.contains(why),
            "{index}: {found} {detail}"
        );
    }
    assert!(world.word(3).1.ends_with("last: close code 4014"));
    assert_eq!(world.word(6), (Word::Ok, String::new()));
    world.bodies[6].stage = Stage::Standby;
    world.bodies[7].wanted = false;
    world.bodies[7].attached = false;
    world.tick();
    assert_eq!(world.word(6).0, Word::Ok);
    assert!(world.word(7).1.contains("stopped"));
    let unhealthy = world
        .health
        .verdicts()
        .filter(|(.., v)| v.unhealthy)
        .count();
    assert_eq!(
        unhealthy, 4,
        "one zombie is dealt with, and what is said of a process is not said twice"
    );
    world.bodies[4].zombies = 2;
    world.tick();
    let unhealthy = world
        .health
        .verdicts()
        .filter(|(.., v)| v.unhealthy)
        .count();
    assert_eq!(unhealthy, 5, "a second one is not");
    assert!(world.acts.is_empty());
}

#[derive(Debug, Clone)]
struct Noise {
    shard: usize,
    attempt: u64,
    stage: u8,
    serial: i64,
    counts: Vec<u64>,
    flags: u8,
    wait: i64,
}

fn noise() -> impl Strategy<Value = Noise> {
    (
        0..6_usize,
        1..4_u64,
        0..9_u8,
        0..40_i64,
        prop::collection::vec(0..1_000_u64, 0..5),
        any::<u8>(),
        0..400_000_i64,
    )
        .prop_map(
            |(shard, attempt, stage, serial, counts, flags, wait)| Noise {
                shard,
                attempt,
                stage,
                serial,
                counts,
                flags,
                wait,
            },
        )
}

fn stage(n: u8) -> Stage {
    [
        Stage::Unknown,
        Stage::Connecting,
        Stage::WaitingPermit,
        Stage::Identifying,
        Stage::Resuming,
        Stage::Ready,
        Stage::Disconnected,
        Stage::Fatal,
        Stage::Standby,
    ][usize::from(n) % 9]
}

proptest! {
    #[test]
    fn no_report_makes_it_do_what_it_must_not(noises in prop::collection::vec(noise(), 1..200)) {
        let mut world = World::new(1, 6, 2, 100);
        let mut last_act = i64::MIN / 2;
        for noise in noises {
            world.now += noise.wait;
            let body = &mut world.bodies[noise.shard];
            body.attempt = noise.attempt;
            body.stage = stage(noise.stage);
            body.serial = noise.serial;
            body.counts = TYPES
                .iter()
                .zip(&noise.counts)
                .map(|((kind, _), count)| ((*kind).to_owned(), *count))
                .collect();
            body.attached = noise.flags & 1 == 0;
            body.busy = noise.flags & 0b110 == 0b110;
            body.wanted = noise.flags & 0b1_1000 != 0b1_1000;
            world.view().affordable = noise.flags & 0b110_0000 != 0b110_0000;
            let known = world.acts.len();
            world.observe();
            let affordable = world.bots["bot"].affordable;
            for (at, act) in &world.acts[known..] {
                let body = &world.bodies[act.shard as usize];
                prop_assert!(affordable && body.attached && body.wanted && !body.busy);
                prop_assert_eq!(body.attempt, act.attempt);
                prop_assert!(world.health.storms().next().is_none());
                prop_assert!(at - last_act >= 10_000, "two at once");
                last_act = *at;
            }
            for (.., verdict) in world.health.verdicts() {
                if let Some(ratio) = verdict.resume_ratio {
                    prop_assert!((0.0..=1.0).contains(&ratio));
                }
            }
        }
    }
}
