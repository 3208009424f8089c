//! Sharding arithmetic (discord-rules, "Sharding").

use std::fmt;

use serde::{Deserialize, Serialize};

/// A shard tuple: this shard of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId {
    /// 0-based number of the shard.
    pub id: u32,
    /// How many shards the bot has.
    pub count: u32,
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.id, self.count)
    }
}

/// The shard that receives a guild's events: `(guild_id >> 22) % count`.
///
/// `count` 0 is treated as 1, so that a fleet that has not yet been sized still answers.
pub fn shard_of(guild_id: u64, count: u32) -> u32 {
    ((guild_id >> 22) % u64::from(count.max(1))) as u32
}

/// The IDENTIFY bucket of a shard: `shard_id % max_concurrency`; one IDENTIFY per bucket per 5 s.
pub fn bucket_of(shard_id: u32, max_concurrency: u32) -> u32 {
    shard_id % max_concurrency.max(1)
}

/// The shards of one instance when `count` shards are laid out `per_process` at a time:
/// instance 0 holds 0, 1, …; the last may hold fewer.
pub fn shards_of_instance(instance: u32, count: u32, per_process: u32) -> Vec<u32> {
    let per_process = per_process.max(1);
    let start = instance.saturating_mul(per_process).min(count);
    let end = start.saturating_add(per_process).min(count);
    (start..end).collect()
}

/// How many instances hold `count` shards at `per_process` each.
pub fn instances(count: u32, per_process: u32) -> u32 {
    count.div_ceil(per_process.max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn discords_own_example() {
        // 81384788765712384 >> 22 = 19403645698
        assert_eq!(shard_of(81_384_788_765_712_384, 1), 0);
        assert_eq!(
            shard_of(81_384_788_765_712_384, 16),
            (19_403_645_698_u64 % 16) as u32
        );
    }

    proptest! {
        #[test]
        fn every_shard_has_exactly_one_instance(count in 1_u32..500, per in 1_u32..40) {
            let all: Vec<u32> = (0..instances(count, per))
                .flat_map(|i| shards_of_instance(i, count, per))
                .collect();
            prop_assert_eq!(all, (0..count).collect::<Vec<_>>());
            prop_assert!(shards_of_instance(instances(count, per), count, per).is_empty());
        }
    }
}
