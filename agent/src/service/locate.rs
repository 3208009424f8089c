//! Where a guild lives: its shard in every bot, and its database node.

use std::{collections::HashSet, sync::Arc};

use tanako_fleet::{
    ProcessName, Spec,
    ring::{PartitionKey, Ring, RingNode},
    shard,
};
use tanako_proto::fleet::v1 as wire;

use super::Service;
use crate::{desired::Desired, hub::peer};

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

/// The answer. `find`: the host of a process, and what that told last.
pub fn compose(
    guild_id: u64,
    shards: &[Shard],
    node: Option<(String, String)>,
    find: impl Fn(&str) -> Option<(String, Arc<wire::Process>)>,
) -> wire::GuildLocation {
    let shards = shards.iter().map(|shard| {
        let found = find(shard.process.as_str());
        let stage = found
            .iter()
            .flat_map(|(_, process)| &process.shards)
            .find(|told| told.id == shard.id)
            .map_or("unknown", |told| &told.stage)
            .to_owned();
        let (host, state) = found.map_or_else(
            || (String::new(), "unknown".to_owned()),
            |(host, process)| (host, process.state.clone()),
        );
        wire::GuildShard {
            bot: shard.bot.clone(),
            shard_id: shard.id,
            shard_count: shard.count,
            process: shard.process.to_string(),
            host,
            state,
            stage,
            present: None,
        }
    });
    let shards = shards.collect();
    let (db_node, db_url) = node
        .map(|(name, url)| (format!("db/{name}"), url))
        .unwrap_or_default();
    let db_host = find(&db_node).map(|(host, _)| host).unwrap_or_default();
    wire::GuildLocation {
        guild_id,
        shards,
        db_node,
        db_url,
        db_host,
    }
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

impl Service {
    /// Asks the hosts of a guild's shards whether those have reported it; only they have the sessions.
    pub(super) async fn find_guild(&self, location: &mut wire::GuildLocation, passed_on: bool) {
        let own = self.sources.hub.host();
        let guild_id = location.guild_id;
        let table = self.sources.supervisor.status().borrow().clone();
        let mut elsewhere: HashSet<String> = HashSet::new();
        for shard in &mut location.shards {
            if shard.host != own {
                elsewhere.insert(shard.host.clone());
                continue;
            }
            let Some(process) = shard
                .process
                .parse()
                .ok()
                .and_then(|name: ProcessName| table.get(&name))
            else {
                continue;
            };
            let sessions = self.sources.vault.sessions_for(&process.spec, None);
            shard.present = sessions
                .iter()
                .find(|session| session.shard_id == shard.shard_id)
                .and_then(|session| session.guilds.as_ref())
                .map(|guilds| guilds.ids.contains(&guild_id));
        }
        if passed_on {
            return;
        }
        // One per bot at most.
        for host in elsewhere {
            let asked = peer::ask(&self.sources.hub, &host, |mut client| async move {
                client
                    .locate_guild(peer::hop(wire::GuildRequest { guild_id }))
                    .await
            });
            let Ok(answer) = asked.await else { continue };
            for shard in location
                .shards
                .iter_mut()
                .filter(|shard| shard.host == host)
            {
                let theirs = answer.shards.iter().find(|theirs| theirs.bot == shard.bot);
                shard.present = theirs.and_then(|theirs| theirs.present);
            }
        }
    }
}
