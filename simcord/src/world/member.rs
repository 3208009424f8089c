//! People: users of the world and members of guilds.
//!
//! Users have indices; a guild's members are its owner, the bot, and a run of neighbouring indices. Joining
//! lengthens the run at its end, leaving shortens it at its start: membership is arithmetic.

use std::ops::Range;

use serde_json::{Value, json};

use super::{GuildIndex, USER_FIRST_MS, USER_STRIDE_MS, USERS, World, low_bits, words};
use crate::snowflake::{DISCORD_EPOCH_MS, LOW_BITS, iso8601, mix};

impl World {
    fn user_id(&self, user: u64) -> u64 {
        let ms = USER_FIRST_MS + user * USER_STRIDE_MS;
        (ms << LOW_BITS) | low_bits(mix(self.seed ^ 0x05e4, user))
    }

    fn user_index(&self, id: u64) -> Option<u64> {
        let user = (id >> LOW_BITS).checked_sub(USER_FIRST_MS)? / USER_STRIDE_MS;
        (user < USERS && self.user_id(user) == id).then_some(user)
    }

    /// The user object of anybody in the world, the bot included.
    pub(crate) fn user(&self, id: u64) -> Option<Value> {
        if id == self.bot.id {
            return Some(self.bot_user());
        }
        let hash = mix(self.seed ^ 0x4a3e, self.user_index(id)?);
        let name = self.user_name(id);
        let global_name = (!hash.is_multiple_of(3))
            .then(|| words::FIRST[(hash >> 20) as usize % words::FIRST.len()]);
        Some(json!({
            "id": id.to_string(), "username": name, "discriminator": "0", "global_name": global_name,
            "avatar": null, "banner": null, "accent_color": null, "public_flags": 0, "bot": false,
            "avatar_decoration_data": null, "collectibles": null, "clan": null, "primary_guild": null,
        }))
    }

    /// The bot's own user object.
    pub(crate) fn bot_user(&self) -> Value {
        json!({
            "id": self.bot.id.to_string(), "username": self.bot.name, "discriminator": "0000",
            "global_name": null, "avatar": null, "banner": null, "accent_color": null,
            "public_flags": 0, "flags": 0, "bot": true, "verified": true, "mfa_enabled": true, "email": null,
            "avatar_decoration_data": null, "collectibles": null, "clan": null, "primary_guild": null,
        })
    }

    pub(crate) fn user_name(&self, id: u64) -> String {
        let hash = mix(self.seed ^ 0x4a3e, self.user_index(id).unwrap_or(id));
        let first = words::FIRST[hash as usize % words::FIRST.len()];
        let second = words::SECOND[(hash >> 8) as usize % words::SECOND.len()];
        format!("{first}_{second}{}", (hash >> 32) % 10_000)
    }

    fn first_user(&self, guild: GuildIndex) -> u64 {
        mix(self.seed ^ 0x0ff5, u64::from(guild)) % USERS
    }

    /// Members at the start, besides owner and bot: most guilds are small, a few are large.
    fn first_members(&self, guild: GuildIndex) -> u64 {
        let hash = mix(self.seed ^ 0x517e, u64::from(guild));
        let (low, high) = match hash % 100 {
            0..60 => (5, 50),
            60..90 => (50, 500),
            90..99 => (500, 5_000),
            _ => (5_000, 50_000),
        };
        low + (hash >> 16) % (high - low)
    }

    /// The members' numbers within the guild; the owner is number 0 and never leaves.
    fn numbers(&self, guild: GuildIndex) -> Range<u64> {
        let (joined, left) = self.overlay(guild).map_or((0, 0), |overlay| {
            (u64::from(overlay.joined), u64::from(overlay.left))
        });
        1 + left..1 + self.first_members(guild) + joined
    }

    pub(crate) fn owner(&self, guild: GuildIndex) -> u64 {
        self.user_id(self.first_user(guild))
    }

    /// Members of a guild, owner and bot included.
    pub(crate) fn member_count(&self, guild: GuildIndex) -> u64 {
        let numbers = self.numbers(guild);
        let gone = self.overlay(guild).map_or(0, |overlay| {
            overlay.members.values().filter(|patch| patch.gone).count() as u64
        });
        (2 + numbers.end - numbers.start).saturating_sub(gone)
    }

    /// A member, other than the bot, drawn by a random number.
    pub(crate) fn pick_member(&self, guild: GuildIndex, rng: &mut fastrand::Rng) -> u64 {
        let numbers = self.numbers(guild);
        for _ in 0..8 {
            let id = self.user_id((self.first_user(guild) + rng.u64(numbers.clone())) % USERS);
            if self.is_member(guild, id) {
                return id;
            }
        }
        self.owner(guild)
    }

    /// Somebody new joins; their id.
    pub(crate) fn join(&mut self, guild: GuildIndex) -> u64 {
        let id = self.user_id((self.first_user(guild) + self.numbers(guild).end) % USERS);
        self.overlay_mut(guild).joined += 1;
        id
    }

    /// The longest-standing member leaves, if there is one besides owner and bot.
    pub(crate) fn leave(&mut self, guild: GuildIndex) -> Option<u64> {
        let numbers = self.numbers(guild);
        // The last few stay, so that there is always somebody to write and to be moderated.
        if numbers.end - numbers.start <= 3 {
            return None;
        }
        let id = self.user_id((self.first_user(guild) + numbers.start) % USERS);
        let overlay = self.overlay_mut(guild);
        overlay.left += 1;
        // Somebody kicked before is not a member who leaves, but their place in the run ends here.
        let was_gone = overlay.members.remove(&id).is_some_and(|patch| patch.gone);
        (!was_gone).then_some(id)
    }

    pub(crate) fn is_member(&self, guild: GuildIndex, id: u64) -> bool {
        if self
            .overlay(guild)
            .and_then(|overlay| overlay.members.get(&id))
            .is_some_and(|patch| patch.gone)
        {
            return false;
        }
        if id == self.bot.id || id == self.owner(guild) {
            return true;
        }
        self.user_index(id).is_some_and(|user| {
            let number = (user + USERS - self.first_user(guild)) % USERS;
            self.numbers(guild).contains(&number)
        })
    }

    /// The member object, with its user.
    pub(crate) fn member(&self, guild: GuildIndex, id: u64) -> Option<Value> {
        if !self.is_member(guild, id) {
            return None;
        }
        let mut member = self.member_without_user(guild, id);
        member["user"] = self.user(id)?;
        Some(member)
    }

    /// The partial member object that stands beside a user, as in messages and resolved data.
    pub(crate) fn member_without_user(&self, guild: GuildIndex, id: u64) -> Value {
        let patch = self
            .overlay(guild)
            .and_then(|overlay| overlay.members.get(&id));
        let hash = mix(self.seed ^ u64::from(guild), id);
        let roles: Vec<String> = match patch.and_then(|patch| patch.roles.as_ref()) {
            Some(roles) => roles.iter().map(u64::to_string).collect(),
            None if id == self.bot.id => vec![self.role_id(guild, 2).to_string()],
            None if id == self.owner(guild) => vec![self.role_id(guild, 0).to_string()],
            None if hash.is_multiple_of(4) => vec![self.role_id(guild, 4).to_string()],
            None => Vec::new(),
        };
        let made = (self.guild_id(guild) >> LOW_BITS).max(id >> LOW_BITS) + DISCORD_EPOCH_MS;
        json!({
            "nick": patch.and_then(|patch| patch.nick.as_deref()),
            "roles": roles,
            "joined_at": iso8601(made + hash % 1_000_000_000),
            "premium_since": null, "deaf": false, "mute": false, "flags": 0, "pending": false,
            "avatar": null, "banner": null, "avatar_decoration_data": null,
            "communication_disabled_until": patch.and_then(|patch| patch.timeout_until.as_deref()),
        })
    }

    /// Ids of members above `after`, in ascending order, as `GET /guilds/{id}/members` pages through them.
    pub(crate) fn members_after(&self, guild: GuildIndex, after: u64, limit: usize) -> Vec<u64> {
        let first_user = self.first_user(guild);
        let numbers = self.numbers(guild);
        let (start, end) = (first_user + numbers.start, first_user + numbers.end);
        // The run may go past the last user and goes on at the first then.
        let runs = [
            first_user..first_user + 1,
            start.min(USERS)..end.min(USERS),
            { start.max(USERS) - USERS..end.max(USERS) - USERS },
        ];
        let above = (after >> LOW_BITS).saturating_sub(USER_FIRST_MS) / USER_STRIDE_MS;
        let mut ids: Vec<u64> = Vec::new();
        for run in runs {
            let from = run.start.max(above);
            // A few more than asked for, since some may have been kicked.
            let gone = self
                .overlay(guild)
                .map_or(0, |overlay| overlay.members.len());
            ids.extend(
                (from..run.end)
                    .take(limit + gone + 2)
                    .map(|user| self.user_id(user)),
            );
        }
        ids.push(self.bot.id);
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|id| *id > after && self.is_member(guild, *id));
        ids.truncate(limit);
        ids
    }

    /// Members whose user name or nick begins with a text.
    pub(crate) fn search_members(&self, guild: GuildIndex, prefix: &str, limit: usize) -> Vec<u64> {
        let prefix = prefix.to_lowercase();
        let nick_begins = |id: &u64| {
            let patch = self
                .overlay(guild)
                .and_then(|overlay| overlay.members.get(id));
            let nick = patch.and_then(|patch| patch.nick.as_ref());
            nick.is_some_and(|nick| nick.to_lowercase().starts_with(&prefix))
        };
        self.members_after(guild, 0, SEARCHED_MAX)
            .into_iter()
            .filter(|id| self.user_name(*id).starts_with(&prefix) || nick_begins(id))
            .take(limit)
            .collect()
    }
}

/// Members looked through by one search.
const SEARCHED_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::super::test_world;

    #[test]
    fn every_listed_member_is_one_and_the_list_is_complete() {
        let world = test_world(400);
        for guild in 0..400 {
            let mut all = Vec::new();
            let mut after = 0;
            loop {
                let page = world.members_after(guild, after, 100);
                let Some(last) = page.last() else { break };
                after = *last;
                all.extend(page);
            }
            assert_eq!(all.len() as u64, world.member_count(guild), "guild {guild}");
            assert!(all.is_sorted());
            assert!(all.iter().all(|id| world.is_member(guild, *id)));
            assert!(all.contains(&world.owner(guild)) && all.contains(&world.bot.id));
        }
    }

    #[test]
    fn joining_and_leaving_keep_the_count_true() {
        let mut world = test_world(1);
        let before = world.member_count(0);
        let new = world.join(0);
        assert!(world.is_member(0, new));
        assert_eq!(world.member_count(0), before + 1);
        let old = world.leave(0).expect("a member can leave");
        assert!(!world.is_member(0, old));
        assert_eq!(world.member_count(0), before);
        // A guild never runs empty.
        for _ in 0..100_000 {
            world.leave(0);
        }
        assert!(world.member_count(0) >= 4);
        assert!(world.is_member(0, world.owner(0)));
    }

    #[test]
    fn a_kicked_member_is_counted_once() {
        let mut world = test_world(1);
        let member = world
            .members_after(0, 0, 100)
            .into_iter()
            .find(|id| *id != world.owner(0) && *id != world.bot.id);
        let member = member.expect("somebody is there");
        let before = world.member_count(0);
        world.overlay_mut(0).members.entry(member).or_default().gone = true;
        assert_eq!(world.member_count(0), before - 1);
        assert!(world.member(0, member).is_none());
        while world.leave(0).is_some() {}
        let listed = world.members_after(0, 0, 100_000).len() as u64;
        assert_eq!(world.member_count(0), listed);
    }
}
