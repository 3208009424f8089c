//! Silent death: a connection that lives and no longer brings some type of event.
//!
//! Time is cut into buckets; a type is *active* on a shard in a bucket when at least one came. Counting
//! active buckets instead of events makes a burst (a raid, a game night) count little. While a type is
//! silent on a shard, what would have come is reckoned in three ways, and the **least** counts:
//!
//! - the siblings' active buckets meanwhile, times this shard's share of them so far;
//! - the same by guilds: siblings' active buckets times this shard's guilds over theirs;
//! - the shard's own rate before the gap.
//!
//! Chance is excluded when at least [`EXPECTED_MIN`] were expected and none came (Poisson:
//! e^-25 = 1.4e-11), more with few siblings, and several times the longest natural gap of this type on
//! this shard. A quiet night, or an outage at Discord, silences the siblings as well, so that nothing
//! is expected. A shard without siblings is compared with its own other types instead, and has to be
//! silent four times as long.

use std::collections::BTreeMap;

/// So many active buckets must have been expected while none was.
const EXPECTED_MIN: f64 = 25.0;
/// How much more where there are no siblings.
const ALONE_FACTOR: f64 = 4.0;
/// What is expected must be this many times more than in the longest gap that ended by itself.
const NATURAL_FACTOR: f64 = 4.0;
/// Active buckets of a type, decayed, before its silence means anything.
const OWN_MIN: f64 = 30.0;
/// Guilds of a shard below which no rate is steady enough: a handful of people may simply sleep.
const GUILDS_MIN: u32 = 25;
/// History fades to a half over so many times the time that counts as silent.
const HALF_LIFE: f64 = 12.0;
/// The memory of long gaps fades to a half over so many half-lives.
const WORST_HALF_LIVES: f64 = 24.0;
/// A gap that begins this close to the leaving of a guild is explained by it.
const LEFT_MS: i64 = 60_000;
/// Types remembered for a shard.
const TYPES_MAX: usize = 192;

/// Types that come with connecting or by request, and say nothing about the stream.
const NOT_STEADY: [&str; 6] = [
    "READY",
    "RESUMED",
    "GUILD_CREATE",
    "GUILD_DELETE",
    "GUILD_MEMBERS_CHUNK",
    "USER_UPDATE",
];

/// Dispatches by type.
pub type Counts = BTreeMap<String, u64>;

/// How long is silent, and what follows from it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    /// The least time that counts as silent, in milliseconds.
    pub(super) silent_ms: i64,
    /// Length of a bucket, in milliseconds.
    pub(super) bucket_ms: i64,
}

impl Scale {
    pub(super) fn of(silent: std::time::Duration) -> Self {
        let silent_ms = i64::try_from(silent.as_millis()).unwrap_or(i64::MAX / 100);
        Self {
            silent_ms,
            bucket_ms: (silent_ms / 30).clamp(1_000, 60_000),
        }
    }

    /// What is left of history after a bucket.
    fn decay(self) -> f64 {
        0.5_f64.powf(self.bucket_ms as f64 / (self.silent_ms as f64 * HALF_LIFE))
    }
}

/// What one shard brought in a bucket.
pub(super) struct Bucket<'a> {
    /// Types that came.
    pub(super) active: Vec<&'a str>,
    /// Guilds on the shard.
    pub(super) guilds: u32,
}

/// All comparable shards of a bot in a bucket.
pub(super) struct Pool<'a> {
    active: BTreeMap<&'a str, u32>,
    guilds: u64,
    shards: u32,
}

impl<'a> Pool<'a> {
    pub(super) fn of(buckets: &[&Bucket<'a>]) -> Self {
        let mut pool = Self {
            active: BTreeMap::new(),
            guilds: 0,
            shards: 0,
        };
        for bucket in buckets {
            for kind in &bucket.active {
                *pool.active.entry(kind).or_default() += 1;
            }
            pool.guilds += u64::from(bucket.guilds);
            pool.shards += 1;
        }
        pool
    }
}

/// What came in the buckets between `before` and `now`. Types that fell were restarted and count as
/// nothing.
pub(super) fn active<'a>(before: &Counts, now: &'a Counts) -> Vec<&'a str> {
    now.iter()
        .filter(|(kind, count)| {
            is_steady(kind) && before.get(*kind).is_some_and(|before| before < count)
                || is_steady(kind) && !before.contains_key(*kind) && **count > 0
        })
        .map(|(kind, _)| kind.as_str())
        .collect()
}

fn is_steady(kind: &str) -> bool {
    !NOT_STEADY.contains(&kind)
}

/// A type that is silent on a shard.
#[derive(Debug, Clone, PartialEq)]
pub struct Silent {
    /// The type of event.
    pub kind: String,
    /// Since when, on the clock of [`super::Health::step`].
    pub since: i64,
    /// Parts of time in which it should have come.
    pub expected: f64,
}

/// What one shard has brought so far.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    types: BTreeMap<String, Type>,
    /// When a guild last left.
    left_at: Option<i64>,
    guilds: u32,
}

/// One type on one shard. `own`, `pool`, `others` and `time` fade together.
#[derive(Debug, Clone, Default)]
struct Type {
    own: f64,
    /// Siblings' active buckets meanwhile.
    pool: f64,
    /// Other types' active buckets on this shard meanwhile.
    others: f64,
    /// Buckets looked at.
    time: f64,
    /// The most that was ever expected in a gap that ended by itself.
    worst: f64,
    /// Whether it has come since the process started; if not, it may not be meant to.
    seen: bool,
    /// When it last came.
    came_at: i64,
    gap: Gap,
}

#[derive(Debug, Clone, Default)]
struct Gap {
    since: i64,
    pool: f64,
    by_guilds: f64,
    own: f64,
    others: f64,
    buckets: f64,
    siblings: f64,
    /// A guild left when it began.
    explained: bool,
}

impl History {
    /// The connection is a new one: what is missing from now on counts anew.
    pub(super) fn reconnected(&mut self, now: i64) {
        for kind in self.types.values_mut() {
            kind.gap = Gap {
                since: now,
                ..Gap::default()
            };
        }
    }

    /// The process is a new one: its program may want other types.
    pub(super) fn restarted(&mut self, now: i64) {
        self.reconnected(now);
        for kind in self.types.values_mut() {
            kind.seen = false;
        }
    }

    /// Takes it for normal that these types do not come.
    pub(super) fn accept(&mut self, kinds: &[String]) {
        for kind in kinds {
            self.types.remove(kind);
        }
    }

    /// Adds a bucket that ended `now`.
    pub(super) fn add(&mut self, now: i64, scale: Scale, bucket: &Bucket<'_>, pool: &Pool<'_>) {
        if bucket.guilds < self.guilds {
            self.left_at = Some(now);
        }
        self.guilds = bucket.guilds;
        let decay = scale.decay();
        for kind in &bucket.active {
            if !self.types.contains_key(*kind) && self.types.len() < TYPES_MAX {
                let gap = Gap {
                    since: now - scale.bucket_ms,
                    ..Gap::default()
                };
                let new = Type {
                    gap,
                    ..Type::default()
                };
                self.types.insert((*kind).to_owned(), new);
            }
        }
        let siblings = pool.shards.saturating_sub(1);
        let sibling_guilds = pool.guilds.saturating_sub(u64::from(bucket.guilds));
        let left_at = self.left_at;
        for (name, kind) in &mut self.types {
            let came = bucket.active.contains(&name.as_str());
            let all = pool.active.get(name.as_str()).copied().unwrap_or(0);
            let theirs = f64::from(all - u32::from(came).min(all));
            let others = bucket.active.len() as f64 - f64::from(u8::from(came));
            kind.gap.pool += theirs;
            if sibling_guilds > 0 {
                kind.gap.by_guilds += theirs * f64::from(bucket.guilds) / sibling_guilds as f64;
            }
            kind.gap.others += others;
            kind.gap.buckets += 1.0;
            kind.gap.siblings = f64::from(siblings);
            if came {
                kind.end_gap(now, decay);
            } else {
                if kind.time > 0.0 {
                    kind.gap.own += kind.own / kind.time;
                }
                kind.gap.explained |=
                    left_at.is_some_and(|at| (at - kind.gap.since).abs() <= LEFT_MS);
            }
        }
    }

    /// The types that are silent, and not by chance.
    pub(super) fn silent(&self, now: i64, scale: Scale) -> Vec<Silent> {
        if self.guilds < GUILDS_MIN {
            return Vec::new();
        }
        self.types
            .iter()
            .filter_map(|(name, kind)| {
                let alone = kind.gap.siblings < 1.0;
                let factor = if alone {
                    ALONE_FACTOR
                } else {
                    1.0 + 1.0 / kind.gap.siblings
                };
                let least = scale.silent_ms * if alone { 3 } else { 1 };
                let expected = kind.expected();
                let mature = kind.seen
                    && kind.own >= OWN_MIN
                    && kind.time * scale.bucket_ms as f64 >= 2.0 * scale.silent_ms as f64;
                let silent = mature
                    && !kind.gap.explained
                    && now - kind.gap.since >= least
                    && expected >= EXPECTED_MIN * factor
                    && expected >= NATURAL_FACTOR * kind.worst;
                silent.then(|| Silent {
                    kind: name.clone(),
                    since: kind.gap.since,
                    expected,
                })
            })
            .collect()
    }

    /// Whether a type has come since `since`.
    pub(super) fn came_since(&self, kind: &str, since: i64) -> bool {
        self.types
            .get(kind)
            .is_some_and(|kind| kind.came_at > since)
    }
}

impl Type {
    /// What should have come in the gap, by the most cautious reckoning.
    fn expected(&self) -> f64 {
        if self.gap.siblings < 1.0 {
            let by_others = if self.others > 0.0 {
                self.gap.others * self.own / self.others
            } else {
                0.0
            };
            return self.gap.own.min(by_others);
        }
        let by_share = if self.pool > 0.0 {
            self.gap.pool * self.own / self.pool
        } else {
            0.0
        };
        by_share.min(self.gap.by_guilds).min(self.gap.own)
    }

    /// It has come.
    fn end_gap(&mut self, now: i64, decay: f64) {
        let faded = decay.powf(self.gap.buckets);
        self.worst *= faded.powf(1.0 / WORST_HALF_LIVES);
        if self.seen && !self.gap.explained {
            self.worst = self.worst.max(self.expected());
        }
        self.own = self.own * faded + 1.0;
        self.pool = self.pool * faded + self.gap.pool;
        self.others = self.others * faded + self.gap.others;
        self.time = self.time * faded + self.gap.buckets;
        self.seen = true;
        self.came_at = now;
        self.gap = Gap {
            since: now,
            siblings: self.gap.siblings,
            ..Gap::default()
        };
    }
}
