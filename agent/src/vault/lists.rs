//! The guild lists of sessions in the fleet's store, for a host that takes over from one that is gone: a
//! RESUME does not tell them again.
//!
//! A key for each shard, `guilds/BOT/COUNT/SHARD`, of some 30 kB at most with Discord's 2,500 guilds a shard.
//! It names its session and counts for no other, so that who writes last does no harm. It is written at once
//! when the session is new or much has changed, as while its guilds arrive; some guilds more or less wait for
//! [`GUILDS_EVERY`], members for [`EVERY`]. What came since then is missing from the figures of the shard until
//! it identifies, nothing else.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use prost::Message as _;
use tanako_fleet::{ProcessSpec, vault::ShardKey};
use tanako_proto::worker::v1::GuildCounts;
use tanako_store::{Outcome, Store, StoreError, Txn};

use super::{GUILDS_MAX, GuildList, Vault, keys, slots::StoredGuilds};

/// Between two copies of the list of one session.
const EVERY: Duration = Duration::from_secs(60);
/// The same when guilds came or went.
const GUILDS_EVERY: Duration = Duration::from_secs(5);
/// Keys and bytes of one transaction.
const KEYS_MAX: usize = 64;
const BYTES_MAX: usize = 512 * 1024;
/// A longer list is not copied.
const VALUE_MAX: usize = 256 * 1024;

/// What has been copied: the list, of which session, and when.
#[derive(Default)]
pub(super) struct Copied(HashMap<ShardKey, (String, Arc<GuildCounts>, Instant)>);

/// Where the list of a shard is.
pub(super) fn name(key: &ShardKey) -> String {
    format!("guilds/{}/{}/{}", key.bot, key.count, key.shard)
}

impl Copied {
    /// Copies the lists that are due.
    pub(super) async fn pass(
        &mut self,
        vault: &Vault,
        store: &dyn Store,
    ) -> Result<(), StoreError> {
        loop {
            let due = self.due(vault);
            if due.is_empty() {
                return Ok(());
            }
            let txn = due.iter().fold(Txn::new(), |txn, (key, session, list)| {
                let value = StoredGuilds {
                    session_id: session.clone(),
                    guilds: Some(list.as_ref().clone()),
                };
                txn.put(name(key), value.encode_to_vec())
            });
            if let Outcome::Conflict { .. } = store.commit(txn).await? {
                return Err(StoreError::Unavailable(
                    "this host does not hold its lease".to_owned(),
                ));
            }
            let now = Instant::now();
            for (key, session, list) in due {
                self.0.insert(key, (session, list, now));
            }
        }
    }

    fn due(&mut self, vault: &Vault) -> Vec<(ShardKey, String, Arc<GuildCounts>)> {
        let state = vault.lock();
        self.0.retain(|key, _| state.guilds.contains_key(key));
        let (mut due, mut bytes) = (Vec::new(), 0);
        for (key, known) in &state.guilds {
            let id = &known.session.0;
            let is_due = self.0.get(key).is_none_or(|(session, list, at)| {
                session != id
                    || !Arc::ptr_eq(list, &known.list) && at.elapsed() >= pause(list, &known.list)
            });
            let size = known.list.encoded_len();
            // Without its slot it is of no use; somebody is at work with it here, or was at last.
            if !is_due || size > VALUE_MAX || state.rules.slot(key).is_none() {
                continue;
            }
            if due.len() >= KEYS_MAX || bytes + size > BYTES_MAX {
                break;
            }
            bytes += size;
            due.push((key.clone(), id.clone(), Arc::clone(&known.list)));
        }
        due
    }
}

/// How long a list that was copied holds back the next one.
fn pause(copied: &GuildCounts, new: &GuildCounts) -> Duration {
    let (before, now) = (copied.ids.len(), new.ids.len());
    if before.abs_diff(now) * 10 > before.max(now) {
        Duration::ZERO
    } else if before != now {
        GUILDS_EVERY
    } else {
        EVERY
    }
}

/// Reads the lists of the sessions of a process that are not known here.
pub(super) async fn take_in(
    vault: &Vault,
    store: &dyn Store,
    spec: &ProcessSpec,
) -> Result<(), StoreError> {
    let missing: Vec<ShardKey> = {
        let state = vault.lock();
        keys(spec)
            .filter(|key| {
                let slot = state.rules.slot(key);
                let session = slot.and_then(|slot| slot.session.as_ref());
                session.is_some_and(|session| {
                    let known = state.guilds.get(key);
                    known.is_none_or(|known| known.session != session.id)
                })
            })
            .collect()
    };
    for key in missing {
        let Some(item) = store.get(&name(&key)).await? else {
            continue;
        };
        let Ok(stored) = StoredGuilds::decode(item.value.clone()) else {
            continue;
        };
        let list = stored
            .guilds
            .filter(|list| list.ids.len() == list.members.len() && list.ids.len() <= GUILDS_MAX);
        let mut state = vault.lock();
        let slot = state.rules.slot(&key);
        let session = slot.and_then(|slot| Some(slot.session.as_ref()?.id.clone()));
        if let (Some(list), Some(session)) = (list, session)
            && session.0 == stored.session_id
        {
            let list = Arc::new(list);
            let kept = Arc::clone(&list);
            state.guilds.insert(
                key.clone(),
                GuildList {
                    session,
                    list: kept,
                },
            );
            state.change(key, Some(list));
        }
    }
    vault.shared.wake.notify_one();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_still_arriving_is_not_held_back() {
        let list = |guilds: u64| GuildCounts {
            ids: (0..guilds).collect(),
            members: vec![1; guilds as usize],
        };
        for (copied, new, wanted) in [
            (0, 100, Duration::ZERO),
            (80, 100, Duration::ZERO),
            (100, 101, GUILDS_EVERY),
            (100, 100, EVERY),
            (0, 0, EVERY),
        ] {
            assert_eq!(pause(&list(copied), &list(new)), wanted, "{copied} {new}");
        }
    }
}
