//! What the spec says of placement, and of acting on advice.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::placement::Rules;

/// What a host can hold, as far as the operator says; the rest is what its agent found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct HostCapacity {
    /// Most processes; unset = no bound.
    pub processes: Option<u32>,
    /// Memory that processes may need together, in bytes; unset = no bound.
    pub memory_bytes: Option<u64>,
    /// Its part of the load relative to other hosts; unset = its processors.
    pub share: Option<u32>,
}

/// Where the processes of a bot may run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BotPlacement {
    /// Labels and anti-affinity.
    pub rules: Rules,
    /// Load of one process relative to others; unset = its shards.
    pub weight: Option<u32>,
}

/// Something that the fleet may do by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Act {
    /// Level the load of the hosts.
    Rebalance,
    /// Give a bot more shards.
    Reshard,
}

impl Act {
    /// The word in the spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rebalance => "rebalance",
            Self::Reshard => "reshard",
        }
    }
}

/// What the fleet may do about its own advice, and when. Nothing, unless the operator says so.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Advise {
    /// What it may do.
    pub act: BTreeSet<Act>,
    /// Most shards that it gives a bot by itself.
    pub max_shards: Option<u32>,
    /// Minutes of the day (UTC) between which it acts, the second one excluded; a range may go over
    /// midnight. Unset = at any time.
    pub quiet_hours: Option<(u32, u32)>,
}

impl Advise {
    /// Whether it may act at this minute of the day (UTC).
    pub fn is_quiet(&self, minute: u32) -> bool {
        match self.quiet_hours {
            None => true,
            Some((from, to)) if from <= to => (from..to).contains(&minute),
            Some((from, to)) => minute >= from || minute < to,
        }
    }
}
