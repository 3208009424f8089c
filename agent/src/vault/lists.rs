//! The guild lists of sessions in the fleet's store, for a host that takes over from one that is gone: a
//! RESUME does not tell them again.
//!
//! A key for each shard, `guilds/BOT/COUNT/SHARD`, of some 30 kB at most with Discord's 2,500 guilds a shard.
//! It names its session and counts for no other, so that who writes last does no harm. It is written when
//! the session is new and at most once in [`EVERY`] after that: guilds that came since then are missing from
//! the figures of the shard until it identifies, nothing else.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use prost::Message as _;
use tanako_fleet::{ProcessSpec, vault::ShardKey};
use tanako_proto::worker::v1::GuildCounts;
use tanako_store::{Store, StoreError, Txn};

use super::{GUILDS_MAX, GuildList, Vault, keys, slots::StoredGuilds};

/// Between two copies of the list of one session.
const EVERY: Duration = Duration::from_secs(60);
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
            store.commit(txn).await?;
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
                session != id || !Arc::ptr_eq(list, &known.list) && at.elapsed() >= EVERY
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
