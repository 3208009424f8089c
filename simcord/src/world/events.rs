//! Generated guild events. The n-th event of a seed is always the same in kind, guild and people; ids and
//! timestamps follow the clock.

use serde_json::{Value, json};

use super::{GuildIndex, World, words};
use crate::gateway::{Event, Intents};
use crate::snowflake::{self, created_at, mix};

/// The kinds of generated events with their share in a thousand.
pub(crate) const KINDS: [(&str, u32); 9] = [
    ("MESSAGE_CREATE", 520),
    ("TYPING_START", 190),
    ("PRESENCE_UPDATE", 130),
    ("MESSAGE_REACTION_ADD", 60),
    ("GUILD_MEMBER_ADD", 25),
    ("GUILD_MEMBER_REMOVE", 25),
    ("MESSAGE_DELETE", 25),
    ("GUILD_MEMBER_UPDATE", 15),
    ("CHANNEL_UPDATE", 10),
];

/// One generated event.
pub(crate) struct Generated {
    pub guild: GuildIndex,
    pub event: Event,
}

impl World {
    /// The n-th event. None when the bot is in no guild.
    pub(crate) fn generate(&mut self, n: u64) -> Option<Generated> {
        let mut rng = fastrand::Rng::with_seed(mix(self.seed ^ 0xe7e47, n));
        let guild = self.pick(&mut rng)?;
        let mut draw = rng.u32(0..1000);
        let kind = KINDS
            .iter()
            .find(|(_, share)| {
                let hit = draw < *share;
                draw = draw.saturating_sub(*share);
                hit
            })
            .map_or(KINDS[0].0, |(kind, _)| *kind);
        self.event(kind, guild, &mut rng)
            .map(|event| Generated { guild, event })
    }

    /// An event of a kind in a guild. None for a kind that cannot be generated.
    pub(crate) fn event(
        &mut self,
        kind: &str,
        guild: GuildIndex,
        rng: &mut fastrand::Rng,
    ) -> Option<Event> {
        let guild_id = self.guild_id(guild).to_string();
        let member = self.pick_member(guild, rng);
        let channel_id = self.channel_id(guild, rng.u64(..)).to_string();
        let event = match kind {
            "MESSAGE_CREATE" => {
                let content = words::SENTENCES[rng.usize(0..words::SENTENCES.len())];
                return self.message_event(guild, member, &channel_id, content);
            }
            "TYPING_START" => Event::new(
                "TYPING_START",
                Intents::GUILD_MESSAGE_TYPING,
                &json!({
                    "channel_id": channel_id, "guild_id": guild_id, "user_id": member.to_string(),
                    "timestamp": snowflake::unix_ms() / 1000, "member": self.member(guild, member),
                }),
            ),
            "PRESENCE_UPDATE" => {
                let status = ["online", "idle", "dnd", "offline"][rng.usize(0..4)];
                Event::new(
                    "PRESENCE_UPDATE",
                    Intents::GUILD_PRESENCES,
                    &json!({
                        "user": { "id": member.to_string() }, "guild_id": guild_id, "status": status,
                        "activities": [], "client_status": { "desktop": status },
                    }),
                )
            }
            "MESSAGE_REACTION_ADD" => Event::new(
                "MESSAGE_REACTION_ADD",
                Intents::GUILD_MESSAGE_REACTIONS,
                &json!({
                    "user_id": member.to_string(), "channel_id": channel_id, "guild_id": guild_id,
                    "message_id": snowflake::now().to_string(), "member": self.member(guild, member),
                    "emoji": { "id": null, "name": "\u{1f44d}" }, "burst": false, "type": 0,
                    "message_author_id": self.owner(guild).to_string(),
                }),
            ),
            "MESSAGE_DELETE" => Event::new(
                "MESSAGE_DELETE",
                Intents::GUILD_MESSAGES,
                &json!({
                    "id": snowflake::now().to_string(), "channel_id": channel_id, "guild_id": guild_id,
                }),
            ),
            "GUILD_MEMBER_ADD" => {
                let new = self.join(guild);
                let mut member = self.member(guild, new)?;
                member["guild_id"] = guild_id.into();
                member["joined_at"] = snowflake::iso8601(snowflake::unix_ms()).into();
                Event::new("GUILD_MEMBER_ADD", Intents::GUILD_MEMBERS, &member)
            }
            "GUILD_MEMBER_REMOVE" => {
                // A guild that is down to its last few members gains one instead: the total stays level.
                let Some(gone) = self.leave(guild) else {
                    return self.event("GUILD_MEMBER_ADD", guild, rng);
                };
                Event::new(
                    "GUILD_MEMBER_REMOVE",
                    Intents::GUILD_MEMBERS,
                    &json!({
                        "guild_id": guild_id, "user": self.user(gone),
                    }),
                )
            }
            "GUILD_MEMBER_UPDATE" => self.member_update(guild, member)?,
            "CHANNEL_UPDATE" => {
                let channel = self.channels(guild).into_iter().next()?;
                Event::new("CHANNEL_UPDATE", Intents::GUILDS, &channel)
            }
            _ => return None,
        };
        Some(event)
    }

    /// GUILD_MEMBER_UPDATE with a member as they are now.
    pub(crate) fn member_update(&self, guild: GuildIndex, member: u64) -> Option<Event> {
        let mut object = self.member(guild, member)?;
        object["guild_id"] = self.guild_id(guild).to_string().into();
        Some(Event::new(
            "GUILD_MEMBER_UPDATE",
            Intents::GUILD_MEMBERS,
            &object,
        ))
    }

    fn message_event(
        &self,
        guild: GuildIndex,
        author: u64,
        channel: &str,
        content: &str,
    ) -> Option<Event> {
        let id = snowflake::now();
        // The content is filled in as the part that not every session sees.
        let mut message = Self::message(id, channel, self.user(author)?, "");
        message["guild_id"] = self.guild_id(guild).to_string().into();
        message["member"] = self.member_without_user(guild, author);
        let event = Event::new("MESSAGE_CREATE", Intents::GUILD_MESSAGES, &message);
        Some(event.with_content(content))
    }

    /// A message object.
    pub(crate) fn message(id: u64, channel: &str, author: Value, content: &str) -> Value {
        json!({
            "id": id.to_string(), "channel_id": channel, "author": author, "content": content,
            "timestamp": created_at(id), "edited_timestamp": null, "tts": false, "mention_everyone": false,
            "mentions": [], "mention_roles": [], "mention_channels": [], "attachments": [], "embeds": [],
            "reactions": [], "pinned": false, "type": 0, "flags": 0, "components": [], "nonce": null,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_world;
    use super::*;

    fn kinds(seed_world: u32, n: u64) -> Vec<(GuildIndex, String)> {
        let mut world = test_world(seed_world);
        (0..n)
            .filter_map(|n| world.generate(n))
            .map(|generated| (generated.guild, generated.event.name.to_string()))
            .collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_events() {
        assert_eq!(kinds(100, 500), kinds(100, 500));
    }

    #[test]
    fn shares_add_up_and_every_kind_occurs() {
        assert_eq!(KINDS.iter().map(|(_, share)| share).sum::<u32>(), 1000);
        let seen: std::collections::HashSet<String> =
            kinds(100, 3000).into_iter().map(|(_, kind)| kind).collect();
        for (kind, _) in KINDS {
            assert!(seen.contains(kind), "{kind}");
        }
    }

    #[test]
    fn without_guilds_nothing_happens() {
        assert!(test_world(0).generate(1).is_none());
    }
}
