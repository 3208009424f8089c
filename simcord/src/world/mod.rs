//! The world behind the gateway: guilds, members, channels and roles.
//!
//! Everything is a function of the seed and an index, so that 50,000 guilds cost no memory. Kept are only
//! differences: members who joined or left, timeouts, bans, roles, channels and messages made since.

mod events;
mod guild;
mod interactions;
mod member;
mod overlay;
mod words;

pub(crate) use events::KINDS;
pub(crate) use guild::Permissions;
pub(crate) use interactions::{Invocation, InvocationError};
pub(crate) use overlay::{Ban, Overlay};

use std::collections::{BTreeSet, HashMap};

use crate::snowflake::{LOW_BITS, mix};

/// Milliseconds between two neighbouring guilds. A prime above every shard count in use, so that guilds
/// spread evenly over any number of shards; a million of them fit between 2016 and today.
const GUILD_STRIDE_MS: u64 = 300_007;
/// Milliseconds from Discord's epoch to the first guild.
const GUILD_FIRST_MS: u64 = 40_000_000_000;
/// People in the world.
const USERS: u64 = 1 << 24;
const USER_STRIDE_MS: u64 = 20_011;
const USER_FIRST_MS: u64 = 10_000_000_000;

/// Index of a guild, its place in the order of creation.
pub(crate) type GuildIndex = u32;

/// The bot's own identity.
#[derive(Debug, Clone)]
pub(crate) struct Bot {
    /// The id of the application and of its user.
    pub id: u64,
    /// The bot's user name.
    pub name: String,
}

/// All guilds and their people.
#[derive(Debug)]
pub(crate) struct World {
    seed: u64,
    /// Guilds ever made; those in `removed` are gone.
    created: u32,
    removed: BTreeSet<GuildIndex>,
    overlays: HashMap<GuildIndex, Overlay>,
    /// Messages made through REST, newest last, over all channels.
    pub messages: overlay::Messages,
    pub bot: Bot,
}

impl World {
    pub(crate) fn new(seed: u64, guilds: u32, bot: Bot) -> Self {
        Self {
            seed,
            created: guilds,
            removed: BTreeSet::new(),
            overlays: HashMap::new(),
            messages: overlay::Messages::default(),
            bot,
        }
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Guilds that the bot is in now.
    pub(crate) fn guild_count(&self) -> u32 {
        self.created - self.removed.len() as u32
    }

    /// The guilds that the bot is in now, oldest first.
    pub(crate) fn guilds(&self) -> impl Iterator<Item = GuildIndex> + '_ {
        (0..self.created).filter(|index| !self.removed.contains(index))
    }

    /// The id of the guild at an index.
    pub(crate) fn guild_id(&self, index: GuildIndex) -> u64 {
        let ms = GUILD_FIRST_MS + u64::from(index) * GUILD_STRIDE_MS;
        (ms << LOW_BITS) | low_bits(mix(self.seed ^ 0x61d, u64::from(index)))
    }

    /// The guild with this id, if the bot is in it.
    pub(crate) fn guild_index(&self, id: u64) -> Option<GuildIndex> {
        let ms = (id >> LOW_BITS).checked_sub(GUILD_FIRST_MS)?;
        let index = u32::try_from(ms / GUILD_STRIDE_MS).ok()?;
        (self.has(index) && self.guild_id(index) == id).then_some(index)
    }

    /// The guild that a channel or role belongs to, and the number of the thing within the guild.
    /// Ids of channels and roles follow that of their guild by a few milliseconds.
    fn within_guild(&self, id: u64) -> Option<(GuildIndex, u64)> {
        let ms = (id >> LOW_BITS).checked_sub(GUILD_FIRST_MS)?;
        let index = u32::try_from(ms / GUILD_STRIDE_MS).ok()?;
        let offset = ms % GUILD_STRIDE_MS;
        (self.has(index) && offset > 0 && self.part_id(index, offset) == id)
            .then_some((index, offset))
    }

    fn part_id(&self, index: GuildIndex, offset_ms: u64) -> u64 {
        let ms = GUILD_FIRST_MS + u64::from(index) * GUILD_STRIDE_MS + offset_ms;
        (ms << LOW_BITS) | low_bits(mix(self.seed ^ 0xc4a, u64::from(index) << 20 | offset_ms))
    }

    fn has(&self, index: GuildIndex) -> bool {
        index < self.created && !self.removed.contains(&index)
    }

    /// A guild drawn by a random number.
    pub(crate) fn pick(&self, rng: &mut fastrand::Rng) -> Option<GuildIndex> {
        if self.guild_count() == 0 {
            return None;
        }
        // Few guilds are ever removed: a handful of draws nearly always hits, else the scan does.
        for _ in 0..16 {
            let index = rng.u32(0..self.created);
            if self.has(index) {
                return Some(index);
            }
        }
        self.guilds().next()
    }

    /// Adds guilds to the end, up to the most that can be, and returns their indices.
    pub(crate) fn add_guilds(&mut self, n: u32) -> std::ops::Range<GuildIndex> {
        let first = self.created;
        self.created = first.saturating_add(n).min(crate::config::GUILDS_MAX);
        first..self.created
    }

    /// Takes the bot out of a guild. Its id is never used again.
    pub(crate) fn remove_guild(&mut self, index: GuildIndex) -> bool {
        let was = self.has(index);
        if was {
            self.removed.insert(index);
            self.overlays.remove(&index);
        }
        was
    }

    /// What changed in a guild since its creation.
    pub(crate) fn overlay(&self, index: GuildIndex) -> Option<&Overlay> {
        self.overlays.get(&index)
    }

    /// What changed in a guild, to change it further.
    pub(crate) fn overlay_mut(&mut self, index: GuildIndex) -> &mut Overlay {
        self.overlays.entry(index).or_default()
    }

    /// Guilds of each shard number for a shard count.
    #[cfg(test)]
    fn spread(&self, count: u32) -> Vec<u32> {
        let mut spread = vec![0; count as usize];
        for index in self.guilds() {
            spread[shard_of(self.guild_id(index), count) as usize] += 1;
        }
        spread
    }
}

/// Discord's formula: the shard of a guild is `(guild_id >> 22) % num_shards`.
pub(crate) fn shard_of(guild_id: u64, count: u32) -> u32 {
    ((guild_id >> LOW_BITS) % u64::from(count.max(1))) as u32
}

fn low_bits(hash: u64) -> u64 {
    hash & ((1 << LOW_BITS) - 1)
}

#[cfg(test)]
pub(crate) fn test_world(guilds: u32) -> World {
    World::new(
        7,
        guilds,
        Bot {
            id: 1_100_000_000_000_000_000,
            name: "tester".to_owned(),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guilds_spread_evenly_over_any_shard_count() {
        let world = test_world(50_000);
        for count in [1, 2, 3, 7, 8, 16, 20, 50, 64, 100, 1000] {
            let spread = world.spread(count);
            let (low, high) = (spread.iter().min(), spread.iter().max());
            let (low, high) = (low.copied().unwrap_or(0), high.copied().unwrap_or(0));
            assert!(
                high - low <= 1 + 50_000 / count / 50,
                "{count} shards: {low}..{high}"
            );
        }
    }

    #[test]
    fn ids_lead_back_to_their_guild_and_no_other_id_does() {
        let world = test_world(5_000);
        for index in (0..5_000).step_by(7) {
            let id = world.guild_id(index);
            assert_eq!(world.guild_index(id), Some(index));
            assert_eq!(world.guild_index(id ^ 1), None);
            assert_eq!(world.guild_index(id + (1 << LOW_BITS)), None);
        }
        assert_eq!(
            world.guild_index(world.guild_id(5_000)),
            None,
            "not created"
        );
        assert_eq!(world.guild_index(0), None);
        assert_eq!(world.guild_index(u64::MAX), None);
    }

    #[test]
    fn the_last_possible_guild_is_older_than_today() {
        let world = test_world(crate::config::GUILDS_MAX);
        assert!(world.guild_id(crate::config::GUILDS_MAX - 1) < crate::snowflake::now());
    }

    #[test]
    fn removed_guilds_are_gone_and_added_ones_are_new() {
        let mut world = test_world(3);
        let gone = world.guild_id(1);
        assert!(world.remove_guild(1));
        assert!(!world.remove_guild(1));
        assert_eq!(world.guild_index(gone), None);
        assert_eq!(world.guild_count(), 2);
        assert_eq!(world.add_guilds(2), 3..5);
        assert_eq!(world.guilds().collect::<Vec<_>>(), [0, 2, 3, 4]);
    }
}
