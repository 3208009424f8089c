//! Opcode 8: members of a guild by request, in chunks.

use std::time::Instant;

use serde_json::{Value, json};

use super::{Hub, SessionKey};
use crate::gateway::session::Item;
use crate::gateway::{Event, Intents, RequestGuildMembers};
use crate::world::shard_of;

/// Members in one chunk.
const CHUNK: usize = 1000;
/// Members that one request can bring.
const MEMBERS_MAX: usize = 20_000;

impl Hub {
    /// Answers with GUILD_MEMBERS_CHUNK events to this session. Requests for guilds of other shards, or for all
    /// members without the intent, get no answer, as from Discord.
    pub(crate) fn request_members(
        &mut self,
        now: Instant,
        session: Option<SessionKey>,
        request: &RequestGuildMembers,
    ) {
        let Some(key) = session else { return };
        let guild = id(&request.guild_id);
        let Some((guild_id, guild)) = guild.and_then(|id| Some((id, self.world.guild_index(id)?)))
        else {
            return;
        };
        let Some(live) = self.session_mut(key) else {
            return;
        };
        let (shard, intents) = (live.session.shard, live.session.intents);
        if shard_of(guild_id, shard.count) != shard.id {
            return;
        }
        let (found, missing) = if let Some(ids) = &request.user_ids {
            let ids: Vec<u64> = match ids {
                Value::Array(ids) => ids.iter().filter_map(id).take(100).collect(),
                one => id(one).into_iter().collect(),
            };
            ids.into_iter()
                .partition(|id| self.world.is_member(guild, *id))
        } else {
            let query = request.query.as_deref().unwrap_or_default();
            if query.is_empty() && request.limit == 0 && !intents.contains(Intents::GUILD_MEMBERS) {
                return;
            }
            let limit = if query.is_empty() && request.limit == 0 {
                MEMBERS_MAX
            } else {
                request.limit.clamp(1, 100)
            };
            let found = if query.is_empty() {
                self.world.members_after(guild, 0, limit)
            } else {
                self.world.search_members(guild, query, limit)
            };
            (found, Vec::new())
        };
        let chunks: Vec<&[u64]> = if found.is_empty() {
            vec![&[]]
        } else {
            found.chunks(CHUNK).collect()
        };
        let events: Vec<Event> = chunks
            .iter()
            .enumerate()
            .map(|(index, ids)| {
                let members: Vec<Value> = ids
                    .iter()
                    .filter_map(|id| self.world.member(guild, *id))
                    .collect();
                let not_found: Vec<String> = missing.iter().map(u64::to_string).collect();
                let mut body = json!({
                    "guild_id": guild_id.to_string(), "members": members,
                    "chunk_index": index, "chunk_count": chunks.len(), "not_found": not_found,
                });
                if let Some(nonce) = request.nonce.as_ref().filter(|nonce| nonce.len() <= 32) {
                    body["nonce"] = nonce.as_str().into();
                }
                Event::new("GUILD_MEMBERS_CHUNK", Intents::NONE, &body)
            })
            .collect();
        let bounds = self.bounds();
        let Some(live) = self.session_mut(key) else {
            return;
        };
        for event in events {
            live.session.push(now, Item::Event(event), bounds);
        }
        if let Some(link) = &live.link {
            link.wake();
        }
    }
}

fn id(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}
