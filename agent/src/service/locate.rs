//! Where a guild lives: its shard in every bot, and its database node; pure.

use tanako_fleet::{
    ProcessName, Spec,
    ring::{PartitionKey, Ring, RingNode},
    shard,
};

use crate::desired::Desired;

/// A guild's shard in one bot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// The bot.
    pub bot: String,
    /// The shard.
    pub id: u32,
    /// Of how many.
    pub count: u32,
    /// The process that holds it.
    pub process: ProcessName,
}

/// The guild's shard in every bot of the fleet, in the set of processes that serves it.
pub fn shards(desired: &Desired, guild_id: u64) -> Vec<Shard> {
    let Some(spec) = &desired.spec else {
        return Vec::new();
    };
    spec.bots
        .keys()
        .filter_map(|bot| {
            let set = desired.active(bot)?;
            let id = shard::shard_of(guild_id, set.shards);
            Some(Shard {
                bot: bot.clone(),
                id,
                count: set.shards,
                process: set.process_of(bot, id),
            })
        })
        .collect()
}

/// Name and URL of the database node that is the guild's primary.
pub fn node(spec: &Spec, guild_id: u64) -> Option<(String, String)> {
    let database = spec.database.as_ref()?;
    let nodes: Vec<RingNode> = database
        .nodes
        .iter()
        .map(|node| RingNode {
            name: node.name.clone(),
            weight: node.weight,
        })
        .collect();
    let ring = Ring::new(&nodes, []).ok()?;
    let name = ring.primary(PartitionKey::guild(guild_id.cast_signed()));
    let node = database.nodes.iter().find(|node| node.name == name)?;
    Some((node.name.clone(), node.url()))
}
