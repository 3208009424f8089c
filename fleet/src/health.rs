//! What the fleet thinks of each shard, and what it does about one that is not well.
//!
//! Once a second the shell says what the shards of this host report ([`Reading`]); out come a
//! [`Verdict`] for each shard and, seldom, an [`Effect`]: replace a connection, restart a process, tell
//! people. Silent death is judged in `silence`, what is done about it in `ladder`:
//!
//! RESUME, then IDENTIFY, then a new process, with growing waits; each only while the identify budget
//! is well above its reserve; never for a process under an operation or one that the operator
//! stopped; and never while many shards of the bot are in trouble at once: such a loss is Discord's or
//! the network's, and restarting helps nobody (the *storm brake*).
//!
//! Times are milliseconds of a clock that does not go back.

mod ladder;
mod silence;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

pub use self::{
    ladder::{Action, Step},
    silence::{Counts, Silent},
};
use self::{
    ladder::{Group, Ladder, Trouble},
    silence::{Bucket, History, Pool, Scale},
};
use crate::process::ProcessName;

/// How often the shell says what it sees.
pub const TICK_MS: i64 = 1_000;
/// How long a type must be silent, unless the spec says otherwise.
pub const SILENT_DEFAULT: Duration = Duration::from_secs(300);
/// A connection may take this long before it makes the fleet unhealthy.
const CONNECTING_MS: i64 = 60_000;
/// A zombie connection is spoken of for this long.
const ZOMBIE_MS: i64 = 60_000;
/// Two within this time make the fleet unhealthy.
const ZOMBIE_AGAIN_MS: i64 = 10 * 60_000;
/// Latency and lag above their bounds for this long make a shard lag.
const LAGGING_MS: i64 = 30_000;
/// Guilds that have not come this long after the connection stands.
const GUILDS_MS: i64 = 120_000;
/// Heartbeats slower than this and [`SLOW_FACTOR`] times the shard's own median are slow.
const LATENCY_FLOOR_MS: f64 = 1_000.0;
const SLOW_FACTOR: f64 = 4.0;
/// Events older than their median by this much are late.
const LAG_FLOOR_MS: f64 = 5_000.0;
/// Samples of a median, one each ten seconds.
const SAMPLES: usize = 60;
const SAMPLE_EVERY_MS: i64 = 10_000;

/// Stage of a shard's connection, as reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Not known.
    Unknown,
    /// Opening the connection.
    Connecting,
    /// Waits for a permit to IDENTIFY.
    WaitingPermit,
    /// IDENTIFY is out.
    Identifying,
    /// RESUME is out.
    Resuming,
    /// Connected.
    Ready,
    /// No connection.
    Disconnected,
    /// Discord forbids to reconnect.
    Fatal,
    /// Prepared, by intention not connected.
    Standby,
}

/// What a shard reports.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// Names the report: the same again is not a new one.
    pub serial: i64,
    /// Stage of the connection.
    pub stage: Stage,
    /// Guilds that have come.
    pub guilds: u32,
    /// Guilds announced.
    pub guilds_expected: u32,
    /// Heartbeat round trip; 0 = not known.
    pub latency_ms: f64,
    /// From an event's time to its handling; 0 = not known.
    pub event_lag_ms: f64,
    /// Guilds that belong to another shard.
    pub misplaced: u64,
    /// Connections given up for a missing heartbeat acknowledgement.
    pub zombies: u64,
    /// RESUMEs that succeeded.
    pub resumes: u64,
    /// IDENTIFYs sent.
    pub identifies: u64,
    /// Dispatches by type since the process started.
    pub events: &'a Counts,
    /// What last went wrong.
    pub last_error: &'a str,
}

/// A shard of this host.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// The process that holds it.
    pub process: &'a ProcessName,
    /// Its attempt.
    pub attempt: u64,
    /// The shard.
    pub shard: u32,
    /// Of so many.
    pub count: u32,
    /// Whether the operator wants the process to run.
    pub wanted: bool,
    /// Whether an operation works on it.
    pub busy: bool,
    /// Whether the process lives and its stream to the agent is up.
    pub attached: bool,
    /// What it reports.
    pub report: Option<Report<'a>>,
}

/// What is known of a bot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BotView {
    /// How long a type must be silent; `None` = nothing is judged silent, and nothing is done.
    pub silent: Option<Duration>,
    /// Whether an IDENTIFY could be afforded: the budget is known and above its reserve, and the broker
    /// works normally.
    pub affordable: bool,
}

/// What happens.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// What the shards report; all of them, once a second.
    Observed {
        /// The shards.
        readings: &'a [Reading<'a>],
        /// Their bots.
        bots: &'a BTreeMap<String, BotView>,
    },
    /// What became of an [`Action`]. A failed one counts as tried.
    Acted {
        /// The process.
        process: &'a ProcessName,
        /// The attempt that the action was for.
        attempt: u64,
        /// The shard.
        shard: u32,
        /// Why it failed, if it did.
        failed: Option<&'a str>,
    },
}

/// How grave an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    /// For the record.
    Info,
    /// Something was wrong and is dealt with.
    Warning,
    /// A human must look.
    Error,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Do this.
    Act(Action),
    /// Tell this.
    Event {
        /// How grave.
        grade: Grade,
        /// Stable, kebab-case.
        kind: &'static str,
        /// What it is about: a bot, or `shard:7 of tanako/1`'s process.
        object: String,
        /// For people.
        message: String,
    },
}

/// The word for a shard's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Word {
    /// Well.
    Ok,
    /// On its way to a connection, or its guilds are.
    Connecting,
    /// Events or heartbeats are late.
    Lagging,
    /// Guilds of other shards come here.
    Misplaced,
    /// Some type of event no longer comes.
    Silent,
    /// The connection did not answer heartbeats.
    Zombie,
    /// Nobody serves it.
    Down,
}

impl Word {
    /// All words.
    pub const ALL: [Self; 7] = [
        Self::Ok,
        Self::Connecting,
        Self::Lagging,
        Self::Misplaced,
        Self::Silent,
        Self::Zombie,
        Self::Down,
    ];

    /// As shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Connecting => "connecting",
            Self::Lagging => "lagging",
            Self::Misplaced => "misplaced",
            Self::Silent => "silent",
            Self::Zombie => "zombie",
            Self::Down => "down",
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is thought of a shard.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The word.
    pub word: Word,
    /// Why, for people; empty when there is nothing to say.
    pub detail: String,
    /// Since when the word has been this.
    pub since: i64,
    /// Whether the fleet is unhealthy by it. A connection on its way has a minute.
    pub unhealthy: bool,
    /// Types that are silent.
    pub silent: Vec<String>,
    /// RESUMEs among this process's connections after the first; `None` = there was no second.
    pub resume_ratio: Option<f64>,
}

/// A bot's set of shards: siblings.
type GroupKey = (String, u32);
type ShardId = (ProcessName, u32);

/// The judge of all shards of a host.
#[derive(Debug, Default)]
pub struct Health {
    shards: BTreeMap<ShardId, Shard>,
    groups: BTreeMap<GroupKey, Group>,
    looked_at: Option<i64>,
}

/// What is remembered of a shard.
#[derive(Debug)]
struct Shard {
    attempt: u64,
    count: u32,
    serial: i64,
    stage: Stage,
    stage_since: i64,
    /// Connections made: RESUMEs and IDENTIFYs.
    connections: u64,
    first_connections: u64,
    first_resumes: u64,
    zombies: u64,
    zombie_at: Option<i64>,
    /// Whether there was another shortly before.
    zombie_again: bool,
    latency: Median,
    lag: Median,
    late_since: Option<i64>,
    /// Whether it was ever connected while we looked.
    was_ready: bool,
    /// Counters at the end of the last bucket, if that was a whole one.
    counted: Option<(i64, Counts)>,
    history: History,
    ladder: Ladder,
    verdict: Verdict,
}

/// The middle of the latest samples.
#[derive(Debug, Default)]
struct Median {
    samples: VecDeque<f64>,
    sampled_at: Option<i64>,
}

impl Median {
    fn add(&mut self, now: i64, value: f64) {
        let due = self
            .sampled_at
            .is_none_or(|at| now.saturating_sub(at) >= SAMPLE_EVERY_MS);
        if due && value > 0.0 {
            self.sampled_at = Some(now);
            self.samples.push_back(value);
            if self.samples.len() > SAMPLES {
                self.samples.pop_front();
            }
        }
    }

    fn get(&self) -> Option<f64> {
        if self.samples.len() < 6 {
            return None;
        }
        let mut sorted: Vec<f64> = self.samples.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }
}

impl Health {
    /// Knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is thought of a shard.
    pub fn verdict(&self, process: &ProcessName, shard: u32) -> Option<&Verdict> {
        self.shards
            .get(&(process.clone(), shard))
            .map(|known| &known.verdict)
    }

    /// What is thought of all.
    pub fn verdicts(&self) -> impl Iterator<Item = (&ProcessName, u32, &Verdict)> {
        self.shards
            .iter()
            .map(|((process, shard), known)| (process, *shard, &known.verdict))
    }

    /// Bots whose brake is on, with the shards in trouble and all of them.
    pub fn storms(&self) -> impl Iterator<Item = (&str, u32, u32)> {
        self.groups
            .iter()
            .filter(|(_, group)| group.storm)
            .map(|((bot, _), group)| (bot.as_str(), group.troubled, group.total))
    }

    /// When the next observation is due.
    pub fn deadline(&self) -> Option<i64> {
        self.looked_at.map(|at| at + TICK_MS)
    }

    /// Takes an input in.
    pub fn step(&mut self, now: i64, input: Input<'_>) -> Vec<Effect> {
        match input {
            Input::Observed { readings, bots } => self.observe(now, readings, bots),
            Input::Acted {
                process,
                attempt,
                shard,
                failed,
            } => {
                let known = self.shards.get_mut(&(process.clone(), shard));
                match (known, failed) {
                    (Some(known), Some(why)) if known.attempt == attempt => {
                        known.ladder.failed(process, shard, why)
                    }
                    _ => Vec::new(),
                }
            }
        }
    }

    fn observe(
        &mut self,
        now: i64,
        readings: &[Reading<'_>],
        bots: &BTreeMap<String, BotView>,
    ) -> Vec<Effect> {
        self.looked_at = Some(now);
        let mut groups: BTreeMap<GroupKey, Vec<&Reading<'_>>> = BTreeMap::new();
        let mut present = std::collections::BTreeSet::new();
        for reading in readings {
            let id = (reading.process.clone(), reading.shard);
            let key = (reading.process.group().to_owned(), reading.count);
            if !present.insert(id.clone()) {
                continue; // Twice in one observation.
            }
            groups.entry(key).or_default().push(reading);
            let shard = self
                .shards
                .entry(id)
                .or_insert_with(|| Shard::new(now, reading));
            if shard.count != reading.count {
                *shard = Shard::new(now, reading);
            }
            shard.read(now, reading);
        }
        self.shards.retain(|id, _| present.contains(id));
        self.groups.retain(|key, _| groups.contains_key(key));
        let mut effects = Vec::new();
        for (key, readings) in &groups {
            let view = bots.get(&key.0).copied().unwrap_or(BotView {
                silent: None,
                affordable: false,
            });
            if let Some(silent) = view.silent {
                self.count(now, key, readings, Scale::of(silent));
            }
            self.judge(now, key, readings, view, &mut effects);
        }
        effects
    }

    /// Closes a bucket of a group, if one is over.
    fn count(&mut self, now: i64, key: &GroupKey, readings: &[&Reading<'_>], scale: Scale) {
        let group = self.groups.entry(key.clone()).or_default();
        let over = group
            .bucket_at
            .is_none_or(|at| now.saturating_sub(at) >= scale.bucket_ms);
        if !over {
            return;
        }
        // A bucket that was cut short by a new scale, or stretched by a pause, is none.
        let whole = group
            .bucket_at
            .is_some_and(|at| now - at <= scale.bucket_ms + 2 * TICK_MS);
        group.bucket_at = Some(now);
        let mut buckets: Vec<(ShardId, Bucket<'_>)> = Vec::new();
        for reading in readings {
            let id = (reading.process.clone(), reading.shard);
            let Some(shard) = self.shards.get_mut(&id) else {
                continue;
            };
            let Some(report) = reading.report.filter(|_| {
                reading.attached && shard.stage == Stage::Ready && shard.stage_since < now
            }) else {
                shard.counted = None;
                continue;
            };
            let before = shard
                .counted
                .replace((report.serial, report.events.clone()));
            // Without a new report nothing is known to have come or not to have come.
            if let Some((serial, before)) = before
                && whole
                && serial != report.serial
            {
                let bucket = Bucket {
                    active: silence::active(&before, report.events),
                    guilds: report.guilds,
                };
                buckets.push((id, bucket));
            }
        }
        let pool = Pool::of(&buckets.iter().map(|(_, bucket)| bucket).collect::<Vec<_>>());
        for (id, bucket) in &buckets {
            if let Some(shard) = self.shards.get_mut(id) {
                shard.history.add(now, scale, bucket, &pool);
            }
        }
    }

    fn judge(
        &mut self,
        now: i64,
        key: &GroupKey,
        readings: &[&Reading<'_>],
        view: BotView,
        effects: &mut Vec<Effect>,
    ) {
        let scale = view.silent.map(Scale::of);
        let group = self.groups.entry(key.clone()).or_default();
        let mut troubles: Vec<(ShardId, Trouble)> = Vec::new();
        group.total = 0;
        group.troubled = 0;
        for reading in readings {
            let id = (reading.process.clone(), reading.shard);
            let Some(shard) = self.shards.get_mut(&id) else {
                continue;
            };
            let silent = scale.map_or_else(Vec::new, |scale| shard.history.silent(now, scale));
            shard.judge(now, reading, &silent);
            let judged = reading.wanted && !reading.busy && reading.attached;
            if !judged || !shard.was_ready {
                continue;
            }
            group.total += 1;
            let lost = shard.stage != Stage::Ready && shard.stage != Stage::Standby;
            let zombie = shard.verdict.word == Word::Zombie;
            group.troubled += u32::from(lost || zombie || !silent.is_empty());
            if let Some(scale) = scale {
                let stuck = lost
                    && !matches!(shard.stage, Stage::WaitingPermit | Stage::Fatal)
                    && now - shard.stage_since >= scale.silent_ms.max(CONNECTING_MS);
                let trouble = if stuck {
                    Some(Trouble::Stuck)
                } else if !silent.is_empty() {
                    Some(Trouble::Silent(
                        silent.iter().map(|one| one.kind.clone()).collect(),
                    ))
                } else {
                    None
                };
                let healed = shard.ladder.healed(now, scale, shard.stage, &shard.history);
                if healed {
                    effects.extend(shard.ladder.recovered(now, reading));
                }
                if let Some(trouble) = trouble {
                    troubles.push((id, trouble));
                }
            }
        }
        effects.extend(group.brake(now, &key.0));
        let Some(scale) = scale else {
            return;
        };
        for (id, trouble) in troubles {
            let Some(reading) = readings
                .iter()
                .find(|reading| *reading.process == id.0 && reading.shard == id.1)
            else {
                continue;
            };
            let Some(shard) = self.shards.get_mut(&id) else {
                continue;
            };
            let may = group.may_act(now) && view.affordable;
            effects.extend(shard.ladder.climb(
                now,
                scale,
                reading,
                trouble,
                may,
                view.affordable,
                &mut shard.history,
                group,
            ));
        }
    }
}

impl Shard {
    fn new(now: i64, reading: &Reading<'_>) -> Self {
        Self {
            attempt: reading.attempt,
            count: reading.count,
            serial: 0,
            stage: Stage::Unknown,
            stage_since: now,
            connections: 0,
            first_connections: 0,
            first_resumes: 0,
            zombies: 0,
            zombie_at: None,
            zombie_again: false,
            latency: Median::default(),
            lag: Median::default(),
            late_since: None,
            was_ready: false,
            counted: None,
            history: History::default(),
            ladder: Ladder::default(),
            verdict: Verdict {
                word: Word::Connecting,
                detail: String::new(),
                since: now,
                unhealthy: false,
                silent: Vec::new(),
                resume_ratio: None,
            },
        }
    }

    fn read(&mut self, now: i64, reading: &Reading<'_>) {
        if reading.attempt != self.attempt {
            self.attempt = reading.attempt;
            self.counted = None;
            self.zombies = 0;
            self.zombie_at = None;
            self.connections = 0;
            self.was_ready = false;
            self.stage = Stage::Unknown;
            self.stage_since = now;
            if self.ladder.is_respawned() {
                self.history.reconnected(now);
            } else {
                // Another program may want other events.
                self.history.restarted(now);
            }
        }
        let Some(report) = reading.report.filter(|report| report.serial != self.serial) else {
            return;
        };
        self.serial = report.serial;
        let connections = report.resumes + report.identifies;
        if report.stage != self.stage {
            self.stage = report.stage;
            self.stage_since = now;
        }
        if !self.was_ready && report.stage == Stage::Ready {
            self.was_ready = true;
            self.first_connections = connections;
            self.first_resumes = report.resumes;
            self.zombies = report.zombies;
            self.connections = connections;
            self.history.reconnected(now);
        }
        if connections != self.connections {
            self.connections = connections;
            self.counted = None;
            self.history.reconnected(now);
        }
        if report.zombies > self.zombies {
            self.zombie_again = self
                .zombie_at
                .is_some_and(|before| now - before < ZOMBIE_AGAIN_MS);
            self.zombie_at = Some(now);
        }
        self.zombies = report.zombies;
        if report.stage == Stage::Ready {
            self.latency.add(now, report.latency_ms);
            self.lag.add(now, report.event_lag_ms);
        }
    }

    fn judge(&mut self, now: i64, reading: &Reading<'_>, silent: &[Silent]) {
        let (word, detail, unhealthy) = self.word(now, reading, silent);
        if word != self.verdict.word {
            self.verdict.since = now;
        }
        self.verdict.word = word;
        self.verdict.detail = detail;
        self.verdict.unhealthy = unhealthy;
        self.verdict.silent = self.ladder.types(silent);
        self.verdict.resume_ratio = reading.report.and_then(|report| {
            let later = (report.resumes + report.identifies).checked_sub(self.first_connections)?;
            let resumed = report.resumes.checked_sub(self.first_resumes)?;
            (self.was_ready && later > 0).then(|| resumed as f64 / later as f64)
        });
    }

    fn word(&mut self, now: i64, reading: &Reading<'_>, silent: &[Silent]) -> (Word, String, bool) {
        let for_s = |since: i64| format_span(now - since);
        let Some(report) = reading.report.filter(|_| reading.attached) else {
            self.late_since = None;
            let detail = if reading.wanted {
                "its process is not connected to the agent"
            } else {
                "its process is stopped"
            };
            // That the process is not up is said of the process.
            return (Word::Down, detail.to_owned(), false);
        };
        let because = |text: String| {
            if report.last_error.is_empty() {
                text
            } else {
                format!("{text}; last: {}", report.last_error)
            }
        };
        let connecting = |what: &str| {
            let text = because(format!("{what} for {}", for_s(self.stage_since)));
            let long = now - self.stage_since >= CONNECTING_MS;
            (
                Word::Connecting,
                text,
                long && reading.wanted && !reading.busy,
            )
        };
        if self.stage != Stage::Ready {
            self.late_since = None;
        }
        match self.stage {
            Stage::Fatal => {
                return (
                    Word::Down,
                    because("Discord forbids to reconnect".to_owned()),
                    true,
                );
            }
            Stage::Standby => return (Word::Ok, "standby, not connected".to_owned(), false),
            Stage::Unknown => return connecting("not known"),
            Stage::Connecting => return connecting("connecting"),
            Stage::WaitingPermit => return connecting("waiting for its turn to IDENTIFY"),
            Stage::Identifying => return connecting("identifying"),
            Stage::Resuming => return connecting("resuming"),
            Stage::Disconnected => return connecting("disconnected"),
            Stage::Ready => {}
        }
        if let Some(at) = self.zombie_at.filter(|at| now - at < ZOMBIE_MS) {
            let text = format!(
                "a heartbeat was not acknowledged {} ago; the connection was replaced",
                for_s(at)
            );
            // Once is dealt with; again and again is not.
            return (Word::Zombie, text, self.zombie_again);
        }
        let types = self.ladder.types(silent);
        if !types.is_empty() {
            let mut text = silent
                .iter()
                .map(|one| {
                    format!(
                        "no {} for {}, though about {:.0} spells of it were due",
                        one.kind,
                        for_s(one.since),
                        one.expected
                    )
                })
                .collect::<Vec<_>>()
                .join("; ");
            if text.is_empty() {
                text = format!("waiting for {} to come again", types.join(", "));
            }
            if let Some(done) = self.ladder.done(now) {
                text = format!("{text}; {done}");
            }
            return (Word::Silent, text, true);
        }
        if report.misplaced > 0 {
            let text = format!(
                "{} guilds came that belong to another shard: is the shard count right?",
                report.misplaced
            );
            return (Word::Misplaced, text, true);
        }
        if let Some(why) = self.late(&report) {
            let since = *self.late_since.get_or_insert(now);
            if now - since >= LAGGING_MS {
                return (Word::Lagging, format!("{why} for {}", for_s(since)), true);
            }
        } else {
            self.late_since = None;
        }
        let missing = report.guilds_expected.saturating_sub(report.guilds);
        if u64::from(missing) * 10 > u64::from(report.guilds_expected) {
            let text = format!(
                "{} of {} guilds have come",
                report.guilds, report.guilds_expected
            );
            let long = now - self.stage_since >= GUILDS_MS;
            return (Word::Connecting, text, long);
        }
        (Word::Ok, String::new(), false)
    }

    fn late(&self, report: &Report<'_>) -> Option<String> {
        let slow = self.latency.get().filter(|median| {
            report.latency_ms > LATENCY_FLOOR_MS && report.latency_ms > median * SLOW_FACTOR
        });
        if let Some(median) = slow {
            return Some(format!(
                "heartbeats take {:.0} ms, usually {median:.0} ms,",
                report.latency_ms
            ));
        }
        let behind = self
            .lag
            .get()
            .filter(|median| report.event_lag_ms > median + LAG_FLOOR_MS);
        behind.map(|median| {
            format!(
                "events are {:.1} s old when they are handled, usually {:.1} s,",
                report.event_lag_ms / 1000.0,
                median / 1000.0
            )
        })
    }
}

/// `42s`, `13m`, `2h13m`.
fn format_span(ms: i64) -> String {
    let s = ms.max(0) / 1000;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m", s / 60),
        _ => format!("{}h{:02}m", s / 3600, s / 60 % 60),
    }
}
