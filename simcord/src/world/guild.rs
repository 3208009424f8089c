//! Guild, channel and role objects.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{GuildIndex, World, words};
use crate::snowflake::{DISCORD_EPOCH_MS, LOW_BITS, is_id, iso8601, mix};

/// Places of channels and roles within their guild: milliseconds after its creation.
const CHANNEL_FIRST_MS: u64 = 1;
const ROLE_FIRST_MS: u64 = 1_001;
/// Members sent along in GUILD_CREATE: the bot and a few more. Others come by request.
const MEMBERS_IN_GUILD: usize = 4;

/// Permission sets in the form of Discord's decimal strings.
pub(crate) struct Permissions;

impl Permissions {
    /// Everything, ADMINISTRATOR included.
    pub(crate) const ALL: &'static str = "2251799813685247";
    /// What @everyone has: view, send, embed, history, reactions, application commands.
    pub(crate) const EVERYONE: &'static str = "2248473465835073";
}

impl World {
    pub(crate) fn guild_name(&self, guild: GuildIndex) -> String {
        let hash = mix(self.seed ^ 0x6a3e, u64::from(guild));
        let first = words::FIRST[hash as usize % words::FIRST.len()];
        let second = words::SECOND[(hash >> 8) as usize % words::SECOND.len()];
        format!("{first} {second} {}", guild + 1)
    }

    fn channels_at_start(&self, guild: GuildIndex) -> u64 {
        3 + mix(self.seed ^ 0xc4, u64::from(guild)) % (words::CHANNELS.len() as u64 - 2)
    }

    /// The id of a guild's first channels by number.
    pub(crate) fn channel_id(&self, guild: GuildIndex, number: u64) -> u64 {
        self.part_id(
            guild,
            CHANNEL_FIRST_MS + number % self.channels_at_start(guild),
        )
    }

    /// The id of a guild's first roles by number, @everyone not counted.
    pub(crate) fn role_id(&self, guild: GuildIndex, number: u64) -> u64 {
        self.part_id(guild, ROLE_FIRST_MS + number)
    }

    /// The guild of a channel, if the channel exists.
    pub(crate) fn guild_of_channel(&self, channel: u64) -> Option<GuildIndex> {
        if let Some((guild, offset)) = self.within_guild(channel) {
            let exists = (CHANNEL_FIRST_MS..CHANNEL_FIRST_MS + self.channels_at_start(guild))
                .contains(&offset)
                && !self
                    .overlay(guild)
                    .is_some_and(|overlay| overlay.channels_deleted.contains(&channel));
            return exists.then_some(guild);
        }
        // A channel made since: few guilds have any.
        self.overlays
            .iter()
            .find_map(|(guild, overlay)| overlay.channels.contains_key(&channel).then_some(*guild))
    }

    /// The channels of a guild, in order.
    pub(crate) fn channels(&self, guild: GuildIndex) -> Vec<Value> {
        let overlay = self.overlay(guild);
        let mut channels: Vec<Value> = (0..self.channels_at_start(guild))
            .filter_map(|number| {
                let id = self.channel_id(guild, number);
                let changed = overlay.and_then(|overlay| overlay.channels.get(&id));
                let deleted = overlay.is_some_and(|overlay| overlay.channels_deleted.contains(&id));
                (!deleted && changed.is_none())
                    .then(|| self.text_channel(guild, id, words::CHANNELS[number as usize], number))
            })
            .collect();
        channels.extend(
            overlay
                .into_iter()
                .flat_map(|overlay| overlay.channels.values().cloned()),
        );
        channels
    }

    /// One channel.
    pub(crate) fn channel(&self, id: u64) -> Option<Value> {
        let guild = self.guild_of_channel(id)?;
        let text = id.to_string();
        self.channels(guild)
            .into_iter()
            .find(|channel| channel["id"] == text)
    }

    /// A text channel's object.
    pub(crate) fn text_channel(
        &self,
        guild: GuildIndex,
        id: u64,
        name: &str,
        position: u64,
    ) -> Value {
        json!({
            "id": id.to_string(), "type": 0, "guild_id": self.guild_id(guild).to_string(), "name": name,
            "position": position, "permission_overwrites": [], "topic": null, "nsfw": false,
            "last_message_id": null, "rate_limit_per_user": 0, "parent_id": null, "flags": 0,
        })
    }

    /// The roles of a guild, @everyone first.
    pub(crate) fn roles(&self, guild: GuildIndex) -> Vec<Value> {
        let overlay = self.overlay(guild);
        let mut roles = vec![role(
            self.guild_id(guild),
            "@everyone",
            0,
            Permissions::EVERYONE,
        )];
        roles.extend(words::ROLES.iter().enumerate().map(|(number, name)| {
            let permissions = if number < 3 {
                Permissions::ALL
            } else {
                Permissions::EVERYONE
            };
            let position = words::ROLES.len() - number;
            role(
                self.role_id(guild, number as u64),
                name,
                position,
                permissions,
            )
        }));
        if let Some(overlay) = overlay {
            let is = |value: &Value, id: &u64| is_id(&value["id"], *id);
            roles.retain(|role| !overlay.roles_deleted.iter().any(|id| is(role, id)));
            for (id, changed) in &overlay.roles {
                match roles.iter_mut().find(|role| is(role, id)) {
                    Some(role) => *role = changed.clone(),
                    None => roles.push(changed.clone()),
                }
            }
        }
        roles
    }

    /// The guild object that REST gives.
    pub(crate) fn guild(&self, guild: GuildIndex, with_counts: bool) -> Value {
        let mut object = self.guild_base(guild);
        object["roles"] = self.roles(guild).into();
        if with_counts {
            let members = self.member_count(guild);
            object["approximate_member_count"] = members.into();
            object["approximate_presence_count"] = (members / 3 + 1).into();
        }
        object
    }

    /// The body of GUILD_CREATE.
    pub(crate) fn guild_create(&self, guild: GuildIndex) -> Value {
        let mut object = self.guild_base(guild);
        let member_count = self.member_count(guild);
        let mut shown: Vec<u64> = vec![self.bot.id, self.owner(guild)];
        shown.extend(self.members_after(guild, 0, MEMBERS_IN_GUILD));
        shown.sort_unstable();
        shown.dedup();
        let members: Vec<Value> = shown
            .into_iter()
            .filter_map(|id| self.member(guild, id))
            .collect();
        let joined_at = (self.guild_id(guild) >> LOW_BITS) + DISCORD_EPOCH_MS + 86_400_000;
        object["roles"] = self.roles(guild).into();
        object["channels"] = self.channels(guild).into();
        object["members"] = members.into();
        object["member_count"] = member_count.into();
        object["joined_at"] = iso8601(joined_at).into();
        object["large"] = (member_count > 250).into();
        object["unavailable"] = false.into();
        for list in [
            "voice_states",
            "threads",
            "presences",
            "stage_instances",
            "guild_scheduled_events",
            "soundboard_sounds",
        ] {
            object[list] = json!([]);
        }
        object
    }

    fn guild_base(&self, guild: GuildIndex) -> Value {
        let hash = mix(self.seed ^ 0x9b, u64::from(guild));
        json!({
            "id": self.guild_id(guild).to_string(), "name": self.guild_name(guild),
            "owner_id": self.owner(guild).to_string(),
            "icon": null, "splash": null, "discovery_splash": null, "banner": null, "description": null,
            "afk_channel_id": null, "afk_timeout": 300, "widget_enabled": false, "widget_channel_id": null,
            "verification_level": hash % 4, "default_message_notifications": 1, "explicit_content_filter": hash % 3,
            "emojis": [], "stickers": [], "features": [], "mfa_level": 0, "application_id": null,
            "system_channel_id": self.channel_id(guild, 0).to_string(), "system_channel_flags": 0,
            "rules_channel_id": null, "public_updates_channel_id": null, "safety_alerts_channel_id": null,
            "max_presences": null, "max_members": 500_000, "max_video_channel_users": 25,
            "max_stage_video_channel_users": 50, "vanity_url_code": null, "premium_tier": hash % 2,
            "premium_subscription_count": hash % 5, "premium_progress_bar_enabled": false,
            "preferred_locale": Cow::from(if hash.is_multiple_of(7) { "de" } else { "en-US" }),
            "nsfw": false, "nsfw_level": 0, "hub_type": null, "latest_onboarding_question_id": null,
            "incidents_data": null, "home_header": null,
        })
    }
}

fn role(id: u64, name: &str, position: usize, permissions: &str) -> Value {
    json!({
        "id": id.to_string(), "name": name, "description": null, "permissions": permissions,
        "position": position, "color": 0,
        "colors": { "primary_color": 0, "secondary_color": null, "tertiary_color": null },
        "hoist": false, "managed": false, "mentionable": false, "icon": null, "unicode_emoji": null, "flags": 0,
    })
}

#[cfg(test)]
mod tests {
    use super::super::test_world;

    #[test]
    fn channels_and_roles_lead_back_to_their_guild() {
        let world = test_world(50);
        for guild in 0..50 {
            for channel in world.channels(guild) {
                let id: u64 = channel["id"]
                    .as_str()
                    .and_then(|id| id.parse().ok())
                    .expect("an id");
                assert_eq!(world.guild_of_channel(id), Some(guild));
                assert_eq!(world.channel(id), Some(channel));
            }
        }
        assert_eq!(
            world.guild_of_channel(world.role_id(3, 1)),
            None,
            "a role is no channel"
        );
        assert_eq!(
            world.guild_of_channel(world.guild_id(3)),
            None,
            "nor is a guild"
        );
    }

    #[test]
    fn a_guild_is_the_same_whenever_it_is_looked_at() {
        assert_eq!(
            test_world(10).guild_create(4),
            test_world(10).guild_create(4)
        );
        assert_ne!(
            test_world(10).guild_create(4)["name"],
            test_world(10).guild_create(5)["name"]
        );
    }
}
