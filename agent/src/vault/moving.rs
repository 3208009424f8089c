//! How the sessions of a process go from the vault of one host to that of another.
//!
//! The process has stopped, its last deposits are on disk. The old host hands out all that it knows of
//! the shards ([`Vault::hand_out`]) and is no longer at work with them; the new one takes it in
//! ([`Vault::take_in`]) before the process starts there, and copies it to the store; at last the old one
//! drops what it still has ([`Vault::depart`]). Each can be done again.

use std::sync::Arc;

use prost::Message as _;
use tanako_fleet::{
    ProcessName, ProcessSpec,
    vault::{Last, ShardKey, Wanted},
};
use tanako_proto::worker::v1::GuildCounts;

use super::{GUILDS_MAX, GuildList, Vault, keys, slots::Stored, stored};
use crate::clock::now_ms;

/// Interactions that travel with a session: all that may be asked for.
const HANDLED_MAX: usize = super::INTERACTIONS_MAX;
/// A shard with its interactions takes far less.
const SLOT_BYTES_MAX: usize = 256 * 1024;

/// All that is known of one shard. Holds a session id: no `Debug`.
#[derive(Clone)]
pub struct Kept {
    /// As the copy in the store has it, with more interactions.
    pub slot: Vec<u8>,
    /// The guilds of its session.
    pub guilds: Option<GuildCounts>,
}

impl Vault {
    /// What is known of the shards of a process that has stopped here. From now on a later hold of
    /// another host is not overruled, and nothing of it is copied to the store from here.
    pub fn hand_out(&self, spec: &ProcessSpec) -> Vec<Kept> {
        let mut state = self.lock();
        for key in state.rules.let_go(&spec.name) {
            state.uncopied.remove(&key);
        }
        keys(spec)
            .filter_map(|key| {
                let slot = state.rules.slot(&key)?;
                let session = slot.session.as_ref().map(|session| &session.id);
                let guilds = state
                    .guilds
                    .get(&key)
                    .filter(|known| Some(&known.session) == session)
                    .map(|known| known.list.as_ref().clone());
                Some(Kept {
                    slot: stored::stored(&key, slot, HANDLED_MAX).encode_to_vec(),
                    guilds,
                })
            })
            .collect()
    }

    /// Keeps what another host has handed out for the shards of `spec`; how many of them. What cannot
    /// be read, or is of another shard, is left out; so is a shard that somebody is at work with here.
    pub fn take_in(&self, spec: &ProcessSpec, kept: Vec<Kept>) -> usize {
        let mut taken = 0;
        let mut state = self.lock();
        for one in kept {
            if one.slot.len() > SLOT_BYTES_MAX {
                continue;
            }
            let Ok(found) = Stored::decode(one.slot.as_slice()) else {
                continue;
            };
            let key = ShardKey {
                bot: spec.name.group().to_owned(),
                shard: found.shard_id,
                count: found.shard_count,
            };
            let known =
                found.shard_count == spec.shard_count && spec.shard_ids.contains(&found.shard_id);
            if !known || !state.rules.take_in(&key, stored::slot(found)) {
                continue;
            }
            taken += 1;
            let session = state
                .rules
                .slot(&key)
                .and_then(|slot| Some(slot.session.as_ref()?.id.clone()));
            let list = one
                .guilds
                .filter(|list| list.ids.len() == list.members.len())
                .filter(|list| list.ids.len() <= GUILDS_MAX)
                .map(Arc::new);
            match (session, &list) {
                (Some(session), Some(list)) => {
                    let list = Arc::clone(list);
                    state
                        .guilds
                        .insert(key.clone(), GuildList { session, list });
                }
                _ => drop(state.guilds.remove(&key)),
            }
            state.change(key, list);
        }
        drop(state);
        self.shared.wake.notify_one();
        self.shared.hurry.notify_one();
        taken
    }

    /// Another host has the process now: drops what is kept here of the shards that it holds by what is
    /// known here. The copy in the store is left alone, it is the other host's.
    pub fn depart(&self, process: &ProcessName) {
        let mut state = self.lock();
        for key in state.rules.depart(process) {
            state.guilds.remove(&key);
            state.seen.remove(&key);
            state.dirty.remove(&key);
            state.uncopied.remove(&key);
            state.in_store.remove(&key);
            state.gone.insert(key);
        }
        drop(state);
        self.shared.wake.notify_one();
    }

    /// The highest attempt of a process that is known to hold a shard; 0 = none is known.
    pub fn attempt_of(&self, process: &ProcessName) -> u64 {
        self.lock().rules.attempt_of(process)
    }

    /// The latest deposits of the shards of `spec`, of whoever deposited last and of whoever did before;
    /// and how many sessions there are that it could resume.
    pub fn deposits(&self, spec: &ProcessSpec) -> (Vec<(u32, Last)>, usize) {
        let now = now_ms();
        let wanted = Wanted::default();
        let state = self.lock();
        let mut all = Vec::new();
        let mut sessions = 0;
        for key in keys(spec) {
            let Some(slot) = state.rules.slot(&key) else {
                continue;
            };
            sessions += usize::from(state.rules.offer(now, &key, &wanted).is_some());
            let both = [&slot.last, &slot.before].into_iter().flatten();
            all.extend(both.map(|last| (key.shard, last.clone())));
        }
        (all, sessions)
    }
}
