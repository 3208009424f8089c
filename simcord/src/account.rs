//! The account: what happened, so that a test can prove what was missed and what came twice.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use crate::gateway::Shard;
use crate::gateway::session::Lost;

/// IDENTIFYs kept in the log.
const IDENTIFY_LOG_MAX: usize = 20_000;
/// Event types counted apart; more can only come from the admin API.
const TYPES_MAX: usize = 256;

/// Counters since the start or the last reset. The README explains each.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Account {
    pub connections: u64,
    pub identifies: u64,
    pub identifies_refused: u64,
    pub resumes: u64,
    pub resumes_refused: u64,
    pub resumes_while_connected: u64,
    pub sessions_voided: u64,
    pub tokens_reset: u64,
    pub sends: u64,
    pub heartbeats: u64,
    pub heartbeats_bogus: u64,
    /// Dispatches written to connections, replayed ones included.
    pub events_sent: u64,
    pub events_replayed: u64,
    pub events_replayed_again: u64,
    pub events_evicted: u64,
    pub events_lost: u64,
    pub events_lost_undelivered: u64,
    pub events_lost_unproven: u64,
    /// Of the lost ones: those that no other session's client got either.
    pub missed: u64,
    /// Events for guilds that no session covered.
    pub events_unrouted: u64,
    /// Events held back by a mute.
    pub events_muted: u64,
    pub events_generated: u64,
    pub generated_by_type: ByType,
    pub sent_by_type: ByType,
    /// Connections closed by us, by code.
    pub closes_sent: BTreeMap<u16, u64>,
    /// Connections closed by clients, by code; 1005 is none, 1006 a connection that just ended.
    pub closes_received: BTreeMap<u16, u64>,
    pub rest: Rest,
    /// By shard count and number.
    #[serde(serialize_with = "as_list")]
    pub shards: BTreeMap<(u32, u32), OfShard>,
    #[serde(skip)]
    pub identify_log: VecDeque<IdentifyRecord>,
}

/// Counters of one shard, over all its sessions.
#[derive(Debug, Default, Serialize)]
pub(crate) struct OfShard {
    pub shard: u32,
    pub count: u32,
    pub identifies: u64,
    pub resumes: u64,
    pub replayed: u64,
    pub replayed_again: u64,
    pub missed: u64,
}

fn as_list<S: serde::Serializer>(
    shards: &BTreeMap<(u32, u32), OfShard>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(shards.values())
}

/// Counters of the REST API.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Rest {
    pub requests: u64,
    pub rate_limited: u64,
    pub rate_limited_global: u64,
    /// 401, 403 and 429 of other than shared scope.
    pub invalid_requests: u64,
    /// Requests refused because the address was banned for too many invalid ones.
    pub banned: u64,
    pub unauthorized: u64,
}

/// Counts by event type.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct ByType(BTreeMap<String, u64>);

impl ByType {
    pub(crate) fn count(&mut self, name: &str) {
        if let Some(count) = self.0.get_mut(name) {
            *count += 1;
        } else if self.0.len() < TYPES_MAX {
            self.0.insert(name.to_owned(), 1);
        }
    }
}

/// One IDENTIFY.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct IdentifyRecord {
    /// Milliseconds since the start of the simulation, by the monotonic clock.
    pub at_ms: u64,
    pub shard: [u32; 2],
    pub bucket: u32,
    /// `granted`, `refused` or `budget_exceeded`.
    pub outcome: &'static str,
    pub session: Option<String>,
}

impl Account {
    pub(crate) fn log_identify(&mut self, record: IdentifyRecord) {
        if self.identify_log.len() >= IDENTIFY_LOG_MAX {
            self.identify_log.pop_front();
        }
        self.identify_log.push_back(record);
    }

    /// The counters of a shard. Counts of shards are bounded by what IDENTIFY takes, their sum by the day's budget.
    pub(crate) fn of_shard(&mut self, shard: Shard) -> &mut OfShard {
        self.shards
            .entry((shard.count, shard.id))
            .or_insert_with(|| OfShard {
                shard: shard.id,
                count: shard.count,
                ..OfShard::default()
            })
    }

    pub(crate) fn voided(&mut self, lost: Lost, evicted: u64, missed: u64) {
        self.sessions_voided += 1;
        self.missed += missed;
        self.events_lost_undelivered += lost.undelivered;
        self.events_lost_unproven += lost.unproven;
        self.events_lost += lost.undelivered + lost.unproven;
        self.events_evicted += evicted;
    }

    pub(crate) fn close_sent(&mut self, code: u16) {
        *self.closes_sent.entry(code).or_default() += 1;
    }

    pub(crate) fn close_received(&mut self, code: u16) {
        // Clients can make up codes; count the defined range one by one and the rest together.
        let code = if (1000..=1015).contains(&code) || (4000..=4999).contains(&code) {
            code
        } else {
            0
        };
        *self.closes_received.entry(code).or_default() += 1;
    }
}
