//! How large a fleet should be for a number of guilds, with the reasons.

use serde::Serialize;

/// Discord's limit; a shard above it is closed with 4011 (discord-rules, "Sharding").
pub const GUILDS_PER_SHARD_MAX: u64 = 2_500;
/// What a shard should hold, so that it can grow before the next reshard.
pub const GUILDS_PER_SHARD: u64 = 1_000;
/// Sharding is compulsory from here; below it one process with one shard serves.
pub const GUILDS_UNSHARDED_MAX: u64 = 2_500;
/// From here Discord assigns the number that the shard count must be a multiple of.
pub const GUILDS_LARGE_BOT: u64 = 150_000;
/// Shards a process holds by default: what one core serves with room to spare, and no more guilds
/// than an operator would want to lose for the second that a restart takes.
const SHARDS_PER_PROCESS: u32 = 4;

/// A recommendation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sizing {
    /// The guilds it is for.
    pub guilds: u64,
    /// Shards recommended.
    pub shards: u32,
    /// Fewest shards that Discord accepts.
    pub shards_min: u32,
    /// Shard processes.
    pub processes: u32,
    /// Shards per process.
    pub shards_per_process: u32,
    /// Database nodes, least and most of the recommended range.
    pub db_nodes_min: u32,
    /// See `db_nodes_min`.
    pub db_nodes_max: u32,
    /// IDENTIFYs that one cold start costs.
    pub identifies_cold_start: u32,
    /// IDENTIFYs that Discord allows in 24 h.
    pub identifies_per_day: u32,
    /// Seconds a cold start takes at `max_concurrency` 1, and at 16.
    pub cold_start_s: [u32; 2],
    /// Why, one line each.
    pub reasons: Vec<String>,
}

/// What `guilds` guilds need.
pub fn recommend(guilds: u64) -> Sizing {
    let ceil = |per: u64| {
        u32::try_from(guilds.div_ceil(per))
            .unwrap_or(u32::MAX)
            .max(1)
    };
    let shards_min = ceil(GUILDS_PER_SHARD_MAX);
    let mut reasons = Vec::new();
    let (shards, processes) = if guilds < GUILDS_UNSHARDED_MAX {
        reasons.push(format!(
            "1 process: sharding is compulsory only from {GUILDS_UNSHARDED_MAX} guilds"
        ));
        (ceil(GUILDS_PER_SHARD), 1)
    } else {
        let mut shards = ceil(GUILDS_PER_SHARD);
        if guilds > GUILDS_LARGE_BOT {
            // The number assigned is not published; 16 divides most of those seen.
            shards = shards.div_ceil(16).saturating_mul(16);
            reasons.push(format!(
                "above {GUILDS_LARGE_BOT} guilds the shard count must be a multiple of the number Discord assigned: \
                 rounded up to a multiple of 16, check it against your number"
            ));
        }
        (shards, shards.div_ceil(SHARDS_PER_PROCESS))
    };
    let shards_per_process = shards.div_ceil(processes);
    reasons.insert(
        0,
        format!(
            "{shards} shard{}: {GUILDS_PER_SHARD} guilds each are recommended, {GUILDS_PER_SHARD_MAX} at most (then at least {shards_min})",
            if shards == 1 { "" } else { "s" },
        ),
    );
    if processes > 1 {
        reasons.push(format!(
            "{processes} processes of {shards_per_process} shards: one restart touches at most {} guilds",
            u64::from(shards_per_process) * GUILDS_PER_SHARD
        ));
    }
    let (db_nodes_min, db_nodes_max) = match guilds {
        0..1_000 => (1, 1),
        1_000..=10_000 => (2, 3),
        10_001..=50_000 => (3, 5),
        _ => (
            5,
            u32::try_from(guilds.div_ceil(10_000))
                .unwrap_or(u32::MAX)
                .max(5),
        ),
    };
    reasons.push(match (db_nodes_min, db_nodes_max) {
        (1, 1) => "1 database node: below 1000 guilds one is enough".to_owned(),
        (min, max) if guilds <= 50_000 => format!(
            "{min} to {max} database nodes: so that one can be restarted while the others answer for their guilds"
        ),
        (min, max) => format!("{min} or more database nodes: one per 10000 guilds is {max}"),
    });
    let identifies_per_day = if guilds > GUILDS_LARGE_BOT {
        u32::try_from(guilds / 1_000 * 5)
            .unwrap_or(u32::MAX)
            .max(2_000)
    } else {
        1_000
    };
    reasons.push(format!(
        "a cold start spends {shards} of {identifies_per_day} IDENTIFYs a day; a restart that resumes spends none"
    ));
    Sizing {
        guilds,
        shards,
        shards_min,
        processes,
        shards_per_process,
        db_nodes_min,
        db_nodes_max,
        identifies_cold_start: shards,
        identifies_per_day,
        cold_start_s: [1, 16]
            .map(|concurrency: u32| shards.div_ceil(concurrency).saturating_mul(5)),
        reasons,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_table_of_the_documentation() {
        let of = |guilds| {
            let sizing = recommend(guilds);
            (
                sizing.shards,
                sizing.processes,
                sizing.db_nodes_min,
                sizing.db_nodes_max,
            )
        };
        assert_eq!(of(0), (1, 1, 1, 1));
        assert_eq!(of(999), (1, 1, 1, 1));
        assert_eq!(of(2_499), (3, 1, 2, 3));
        assert_eq!(of(2_500), (3, 1, 2, 3));
        assert_eq!(of(10_000), (10, 3, 2, 3));
        assert_eq!(of(50_000), (50, 13, 3, 5));
        assert_eq!(of(200_000), (208, 52, 5, 20));
    }

    proptest! {
        #[test]
        fn never_more_guilds_on_a_shard_than_discord_allows(guilds in 0_u64..u64::MAX) {
            let sizing = recommend(guilds);
            prop_assert!(sizing.shards >= sizing.shards_min);
            if guilds < 1_000_000_000_000 {
                prop_assert!(guilds <= u64::from(sizing.shards) * GUILDS_PER_SHARD_MAX);
                prop_assert!(u64::from(sizing.processes) * u64::from(sizing.shards_per_process) >= u64::from(sizing.shards));
            }
            prop_assert!(sizing.db_nodes_min <= sizing.db_nodes_max && sizing.db_nodes_min >= 1);
            prop_assert!(!sizing.reasons.is_empty());
        }
    }
}
