//! What a shard publishes about itself, for reports, deposits and commands.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::guilds::Snapshot;

/// Where a shard stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// Opening a connection, or waiting before the next attempt.
    #[default]
    Connecting,
    /// Connected, waiting for the permit to IDENTIFY.
    WaitingPermit,
    /// IDENTIFY is out, or guilds are still arriving.
    Identifying,
    /// RESUME is out, missed events arrive.
    Resuming,
    /// Serving.
    Ready,
    /// Lost the connection.
    Disconnected,
    /// Closed with a code after which Discord forbids to reconnect.
    Fatal,
    /// No connection, on purpose: waits to be told to take over.
    Standby,
}

impl Stage {
    /// The name shown to people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::WaitingPermit => "waiting for a permit",
            Self::Identifying => "identifying",
            Self::Resuming => "resuming",
            Self::Ready => "ready",
            Self::Disconnected => "disconnected",
            Self::Fatal => "fatal",
            Self::Standby => "standby",
        }
    }
}

/// The session as a successor needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deposit {
    /// Session id.
    pub session_id: Arc<str>,
    /// Where to resume.
    pub resume_url: Arc<str>,
    /// Everything up to here has been handled.
    pub seq: u64,
    /// Interactions answered above `seq`.
    pub handled: Vec<u64>,
    /// Guilds and member counts.
    pub guilds: Arc<Snapshot>,
    /// The application that the session belongs to.
    pub application_id: u64,
    /// When the connection was given up on purpose, milliseconds since 1970; 0 = still open.
    pub stopped_at: i64,
}

/// A snapshot of one shard.
#[derive(Debug, Clone, Default)]
pub struct ShardStatus {
    /// Its number.
    pub id: u32,
    /// Of how many.
    pub count: u32,
    /// Where it stands.
    pub stage: Stage,
    /// Guilds that are there.
    pub guilds: u32,
    /// Guilds that are there or announced.
    pub guilds_expected: u32,
    /// Members over all guilds.
    pub members: u64,
    /// Average heartbeat round trip, milliseconds; 0 before the first.
    pub latency_ms: f64,
    /// Newest sequence number received.
    pub seq: u64,
    /// Dispatches.
    pub events: u64,
    /// Sessions resumed.
    pub resumes: u64,
    /// IDENTIFYs sent.
    pub identifies: u64,
    /// When the latest of them was written to its connection, on CLOCK_BOOTTIME, in milliseconds; 0 =
    /// none.
    pub identify_boot_ms: i64,
    /// Connections lost.
    pub reconnects: u64,
    /// Events that a RESUME brought.
    pub replayed: u64,
    /// Interactions taken up.
    pub interactions: u64,
    /// Those that failed.
    pub interactions_failed: u64,
    /// Replayed interactions that were recognised as handled and left alone.
    pub repeated: u64,
    /// Interactions that Discord said had been answered before, when they were answered here.
    pub duplicated: u64,
    /// Dispatches that never came: holes in the sequence numbers.
    pub lost: u64,
    /// First dispatch since the shard was set to work, milliseconds since 1970; 0 = none.
    pub first_event_at: i64,
    /// Latest dispatch, milliseconds since 1970; 0 = none.
    pub last_event_at: i64,
    /// First READY or RESUMED since the shard was set to work, milliseconds since 1970; 0 = not yet.
    pub established_at: i64,
    /// That was a RESUMED.
    pub resumed: bool,
    /// From Discord's time in an event's id to its arrival, milliseconds, smoothed; 0 = not known.
    pub event_lag_ms: f64,
    /// Guilds received that the shard formula gives to another shard.
    pub misplaced: u64,
    /// Time in the newest id that was handled, milliseconds since 1970; 0 = none.
    pub newest_handled: i64,
    /// Connections given up because a heartbeat was not acknowledged.
    pub zombies: u64,
    /// Events held because they are another set's for now.
    pub held: u32,
    /// Events held that nobody gave to this set in time.
    pub held_dropped: u64,
    /// Messages that could not be decoded.
    pub undecodable: u64,
    /// Dispatches by type.
    pub events_by_type: Arc<BTreeMap<String, u64>>,
    /// Why the connection was lost last, or why it is not up yet.
    pub last_error: String,
    /// Handlers that run.
    pub in_flight: usize,
    /// What a successor needs; absent without a session.
    pub deposit: Option<Deposit>,
    /// The latest session that became void.
    pub void_session: Option<Arc<str>>,
    /// Which stretch of work this is: 1 from the start, one more each time the shard takes over again.
    pub stretch: u64,
}

/// What a fatal close code means and what to do; `None` for codes after which one reconnects.
pub const fn close_code_advice(code: u16) -> Option<&'static str> {
    Some(match code {
        4004 => {
            "Discord refused the token: check that the token file holds the bot's current token"
        }
        4010 => {
            "invalid shard: SHARD_IDS and SHARD_COUNT do not fit (large bots need a multiple of the assigned count)"
        }
        4011 => {
            "sharding required: a shard would hold more than 2,500 guilds; raise the shard count"
        }
        4012 => "invalid gateway version",
        4013 => "invalid intents: check TANAKO_INTENTS",
        4014 => {
            "disallowed intents: enable the privileged intents of TANAKO_INTENTS in the developer portal"
        }
        _ => return None,
    })
}

/// The name of a close code that one reconnects after.
pub const fn close_code_name(code: u16) -> &'static str {
    match code {
        1000 => "normal closure",
        1001 => "going away",
        1006 => "connection lost",
        4000 => "unknown error",
        4001 => "unknown opcode",
        4002 => "decode error",
        4003 => "not authenticated",
        4005 => "already authenticated",
        4007 => "invalid seq",
        4008 => "rate limited",
        4009 => "session timed out",
        _ => "closed by the gateway",
    }
}
