//! The guilds of a shard: which are there, how many members they have, which are still to come.
//!
//! RESUME sends no GUILD_CREATE, so this goes to the successor with the session.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A shard counts as ready when no guild has arrived for this long, although some are still missing:
/// a guild that Discord cannot serve would otherwise hold it up for ever.
const QUIET: Duration = Duration::from_secs(5);

/// Member counts drift all the time; the copy for a successor follows at most this often.
const MEMBERS_FRESH: Duration = Duration::from_secs(30);

/// Ids and member counts, in order of ids, as handed to a successor.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Grows with each new snapshot of a process.
    pub version: u64,
    /// Snowflakes, ascending.
    pub ids: Vec<u64>,
    /// Members of each.
    pub members: Vec<u32>,
}

/// What is known of the guilds of one shard.
#[derive(Debug)]
pub struct Guilds {
    members: HashMap<u64, u32>,
    pending: HashSet<u64>,
    total_members: u64,
    /// This shard's number and of how many.
    shard: (u32, u32),
    /// Guilds that are there and belong to another shard.
    misplaced: u64,
    quiet_since: Instant,
    snapshot: Arc<Snapshot>,
    snapshot_at: Instant,
    set_changed: bool,
    counts_changed: bool,
}

impl Guilds {
    /// Nothing known yet of the guilds of shard `id` of `count`.
    pub fn new(now: Instant, id: u32, count: u32) -> Self {
        Self {
            shard: (id, count.max(1)),
            misplaced: 0,
            members: HashMap::new(),
            pending: HashSet::new(),
            total_members: 0,
            quiet_since: now,
            snapshot: Arc::default(),
            snapshot_at: now,
            set_changed: false,
            counts_changed: false,
        }
    }

    /// Takes over what the previous holder of the session knew.
    pub fn restore(&mut self, ids: &[u64], members: &[u32]) {
        self.pending.clear();
        self.members = ids.iter().copied().zip(members.iter().copied()).collect();
        self.total_members = self.members.values().map(|count| u64::from(*count)).sum();
        self.misplaced = self
            .members
            .keys()
            .filter(|id| self.is_misplaced(**id))
            .count() as u64;
        self.set_changed = true;
    }

    /// Whether the shard formula gives this guild to another shard.
    fn is_misplaced(&self, id: u64) -> bool {
        let (shard, count) = self.shard;
        (id >> 22) % u64::from(count) != u64::from(shard)
    }

    /// Guilds that are there although the shard formula gives them to another shard.
    pub const fn misplaced(&self) -> u64 {
        self.misplaced
    }

    /// READY: these guilds will arrive. What was known of others is out of date.
    pub fn expect(&mut self, ids: impl IntoIterator<Item = u64>, now: Instant) {
        self.members.clear();
        self.total_members = 0;
        self.misplaced = 0;
        self.pending = ids.into_iter().collect();
        self.quiet_since = now;
        self.set_changed = true;
    }

    /// GUILD_CREATE. True when the guild was not known before.
    pub fn create(&mut self, id: u64, members: u32, now: Instant) -> bool {
        self.quiet_since = now;
        self.pending.remove(&id);
        let before = self.members.insert(id, members);
        self.misplaced += u64::from(before.is_none() && self.is_misplaced(id));
        self.total_members =
            self.total_members - u64::from(before.unwrap_or(0)) + u64::from(members);
        self.set_changed |= before.is_none();
        self.counts_changed |= before != Some(members);
        before.is_none()
    }

    /// GUILD_DELETE of a guild that the bot left. One that is only unavailable stays.
    pub fn delete(&mut self, id: u64) {
        self.pending.remove(&id);
        if let Some(members) = self.members.remove(&id) {
            self.total_members -= u64::from(members);
            self.misplaced -= u64::from(self.is_misplaced(id));
            self.set_changed = true;
        }
    }

    /// A member came or left.
    pub fn member(&mut self, id: u64, joined: bool) {
        if let Some(members) = self.members.get_mut(&id) {
            let before = *members;
            *members = if joined {
                before.saturating_add(1)
            } else {
                before.saturating_sub(1)
            };
            self.total_members = self.total_members - u64::from(before) + u64::from(*members);
            self.counts_changed |= before != *members;
        }
    }

    /// Members of one guild.
    pub fn members_of(&self, id: u64) -> Option<u32> {
        self.members.get(&id).copied()
    }

    /// Guilds that are there.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// True when none is there.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Guilds that are there or were announced.
    pub fn expected(&self) -> usize {
        self.members.len() + self.pending.len()
    }

    /// Members over all guilds.
    pub const fn total_members(&self) -> u64 {
        self.total_members
    }

    /// True once every announced guild arrived, or none did for a while.
    pub fn settled(&self, now: Instant) -> bool {
        self.pending.is_empty() || now.saturating_duration_since(self.quiet_since) >= QUIET
    }

    /// The copy for a successor; a new one only when the guilds changed, or the counts a while ago.
    pub fn snapshot(&mut self, now: Instant) -> Arc<Snapshot> {
        let stale =
            self.counts_changed && now.saturating_duration_since(self.snapshot_at) >= MEMBERS_FRESH;
        if self.set_changed || stale {
            let mut entries: Vec<(u64, u32)> = self
                .members
                .iter()
                .map(|(id, count)| (*id, *count))
                .collect();
            entries.sort_unstable();
            let (ids, members) = entries.into_iter().unzip();
            self.snapshot = Arc::new(Snapshot {
                version: self.snapshot.version + 1,
                ids,
                members,
            });
            self.snapshot_at = now;
            self.set_changed = false;
            self.counts_changed = false;
        }
        Arc::clone(&self.snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Input {
        Expect(Vec<u64>),
        Create(u64, u32),
        Delete(u64),
        Member(u64, bool),
        Wait(u64),
    }

    fn guild() -> impl Strategy<Value = u64> {
        (0..20u64).prop_map(|n| n << 22)
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            1 => prop::collection::vec(guild(), 0..20).prop_map(Input::Expect),
            6 => (guild(), 0..1000u32).prop_map(|(id, members)| Input::Create(id, members)),
            2 => guild().prop_map(Input::Delete),
            4 => (guild(), any::<bool>()).prop_map(|(id, joined)| Input::Member(id, joined)),
            2 => (0..40u64).prop_map(Input::Wait),
        ]
    }

    proptest! {
        #[test]
        fn totals_agree_and_a_successor_knows_the_same_guilds(inputs in prop::collection::vec(input(), 0..120)) {
            let mut now = Instant::now();
            let mut guilds = Guilds::new(now, 1, 3);
            let mut version = 0;
            for input in inputs {
                match input {
                    Input::Expect(ids) => guilds.expect(ids, now),
                    Input::Create(id, members) => { guilds.create(id, members, now); }
                    Input::Delete(id) => guilds.delete(id),
                    Input::Member(id, joined) => guilds.member(id, joined),
                    Input::Wait(seconds) => now += Duration::from_secs(seconds),
                }
                let sum: u64 = guilds.members.values().map(|count| u64::from(*count)).sum();
                prop_assert_eq!(sum, guilds.total_members());
                let misplaced = guilds.members.keys().filter(|id| (**id >> 22) % 3 != 1).count();
                prop_assert_eq!(misplaced as u64, guilds.misplaced());
                prop_assert!(guilds.expected() >= guilds.len());
                let snapshot = guilds.snapshot(now);
                prop_assert!(snapshot.version >= version);
                version = snapshot.version;
                let mut successor = Guilds::new(now, 1, 3);
                successor.restore(&snapshot.ids, &snapshot.members);
                prop_assert_eq!(successor.len(), guilds.len());
                prop_assert_eq!(successor.misplaced(), guilds.misplaced());
                prop_assert!(snapshot.ids.iter().all(|id| guilds.members.contains_key(id)));
                prop_assert!(guilds.settled(now + QUIET));
            }
        }
    }

    #[test]
    fn an_unchanged_set_makes_no_new_snapshot() {
        let now = Instant::now();
        let mut guilds = Guilds::new(now, 0, 1);
        guilds.create(1, 10, now);
        let first = guilds.snapshot(now);
        guilds.member(1, true);
        assert_eq!(guilds.snapshot(now), first);
        let later = guilds.snapshot(now + MEMBERS_FRESH);
        assert_eq!(
            (later.version, later.members.as_slice()),
            (first.version + 1, &[11][..])
        );
    }
}
