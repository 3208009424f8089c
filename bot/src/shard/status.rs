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
    /// Connections lost.
    pub reconnects: u64,
    /// Events that a RESUME brought.
    pub replayed: u64,
    /// Interactions taken up.
    pub interactions: u64,
    /// Those that failed.
    pub interactions_failed: u64,
    /// Interactions that a replay brought again and that were not answered again.
    pub interactions_repeated: u64,
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
    /// The handlers have finished (or their time was up) and the deposit is final.
    pub quiesced: bool,
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
