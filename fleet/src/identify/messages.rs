//! What goes into the ledger and what comes out of it.

use super::{FOREIGN_VALID_MS, ReportedLimits, VALID_MS, record::Record};

/// Names a request of the shell's.
pub type RequestId = u64;

/// What happens to the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// There is a ledger of this bot: load it.
    Open {
        /// The bot.
        bot: String,
    },
    /// The answer to [`Effect::Load`]. Replaces all that the ledger knew of the bot but its queue.
    Load {
        /// The bot.
        bot: String,
        /// The number of the question.
        seq: u64,
        /// In the order in which they were written, `None` for each damaged one.
        records: Vec<Option<Record>>,
    },
    /// The records could not be read.
    LoadFailed {
        /// The bot.
        bot: String,
        /// The number of the question.
        seq: u64,
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
    /// A worker says when its latest IDENTIFY went out.
    Sent {
        /// The bot.
        bot: String,
        /// The shard.
        shard: u32,
        /// Of so many.
        count: u32,
        /// When, on the ledger's boot clock, in milliseconds. What lies in the future is taken for now.
        at: i64,
    },
    /// A worker has not used this permit and will not: it came too late. Nothing is taken back where another
    /// permit of the shard followed, or where the IDENTIFY is known to have gone out.
    Unused {
        /// The bot.
        bot: String,
        /// The shard.
        shard: u32,
        /// Of so many.
        count: u32,
        /// The permit's number.
        permit: u64,
    },
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
    /// The records of [`Effect::Persist`] are in the store.
    Persisted {
        /// The bot.
        bot: String,
        /// Its number.
        seq: u64,
    },
    /// They are not, or nobody knows, or the store takes no more from this leader.
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

/// How a permit reaches the one who identifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Via {
    /// A worker: identifies in time or not at all, and reports each shard that became ready.
    #[default]
    Worker,
    /// A bot that knows nothing of permits, about to be started. All permits of its shards are one
    /// attempt to come up.
    Start,
    /// A bot that asks before each IDENTIFY, but promises no time and reports no shard.
    Queue,
}

impl Via {
    /// How long after its permit the IDENTIFY may still go out.
    pub const fn valid_ms(self) -> i64 {
        match self {
            Self::Worker => VALID_MS,
            Self::Start | Self::Queue => FOREIGN_VALID_MS,
        }
    }
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
    /// How the permit gets to it.
    pub via: Via,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Read the bot's records, after every write that is under way has ended, then say
    /// [`Input::Load`] or [`Input::LoadFailed`].
    Load {
        /// The bot.
        bot: String,
        /// Comes back with the answer.
        seq: u64,
    },
    /// Write the records to the store, then say [`Input::Persisted`] or [`Input::PersistFailed`].
    Persist {
        /// The bot.
        bot: String,
        /// Comes back with the outcome.
        seq: u64,
        /// What to append.
        records: Vec<Record>,
    },
    /// Write the record when convenient; losing it does no harm.
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
    /// The latest IDENTIFYs of several shards came to nothing: one at a time until one holds.
    Probing {
        /// The bot.
        bot: String,
        /// So many in a row.
        in_a_row: u32,
    },
    /// One held: bucket order again.
    Recovered {
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

/// How a bot's IDENTIFYs are given out at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// By bucket, at Discord's full speed.
    #[default]
    Normal,
    /// One at a time until one holds, or shards in trouble by slow start.
    Probing,
    /// None: the budget is spent down to the reserve.
    Exhausted,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Normal, Self::Probing, Self::Exhausted];

    /// The word for it, which is part of the contract of `tanakoctl identify`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Probing => "probing",
            Self::Exhausted => "exhausted",
        }
    }
}

/// The state of one bot, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BotStatus {
    /// The bot.
    pub bot: String,
    /// How its IDENTIFYs are given out.
    pub mode: Mode,
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
    /// Until every waiting shard has its permit, if each one given holds.
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
