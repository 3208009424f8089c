//! Events: to whom they go, and where they come from.

use std::time::Instant;

use serde_json::json;

use super::Hub;
use crate::gateway::session::Item;
use crate::gateway::{Event, Intents};
use crate::world::{GuildIndex, shard_of};

impl Hub {
    /// Gives an event of a guild to every session that covers it. Tells how many sessions that are.
    pub(crate) fn dispatch(&mut self, now: Instant, guild_id: u64, event: &Event) -> usize {
        if self.faults.muted.contains(event.name.as_ref()) {
            self.account.events_muted += 1;
            return 0;
        }
        let bounds = self.bounds();
        let event = event.followed();
        let mut covered = 0;
        for (count, shards) in &self.routes {
            for key in &shards[shard_of(guild_id, *count) as usize] {
                let Some(live) = self.sessions.get_mut(key) else {
                    continue;
                };
                covered += 1;
                if !live.session.intents.let_through(event.needs) {
                    continue;
                }
                if live.session.muted.contains(event.name.as_ref()) {
                    self.account.events_muted += 1;
                    continue;
                }
                event.given();
                live.session.push(now, Item::Event(event.clone()), bounds);
                if let Some(link) = &live.link {
                    link.wake();
                }
            }
        }
        if covered == 0 {
            self.account.events_unrouted += 1;
        }
        covered
    }

    /// Generates and dispatches the next event of the seed's sequence.
    pub(crate) fn generate(&mut self, now: Instant) {
        let Some(generated) = self.world.generate(self.next_event) else {
            return;
        };
        self.next_event += 1;
        self.account.events_generated += 1;
        self.account.generated_by_type.count(&generated.event.name);
        self.dispatch(now, self.world.guild_id(generated.guild), &generated.event);
    }

    /// Adds guilds; sessions that cover them get GUILD_CREATE.
    pub(crate) fn add_guilds(&mut self, now: Instant, n: u32) -> Vec<u64> {
        let added: Vec<GuildIndex> = self.world.add_guilds(n).collect();
        let mut ids = Vec::with_capacity(added.len());
        for index in added {
            let id = self.world.guild_id(index);
            let event = Event::new(
                "GUILD_CREATE",
                Intents::GUILDS,
                &self.world.guild_create(index),
            );
            self.dispatch(now, id, &event);
            ids.push(id);
        }
        ids
    }

    /// Removes a guild; sessions that cover it get GUILD_DELETE. False when the bot was not in it.
    pub(crate) fn remove_guild(&mut self, now: Instant, id: u64) -> bool {
        let Some(index) = self.world.guild_index(id) else {
            return false;
        };
        self.world.remove_guild(index);
        let event = Event::new(
            "GUILD_DELETE",
            Intents::GUILDS,
            &json!({ "id": id.to_string() }),
        );
        self.dispatch(now, id, &event);
        true
    }
}
