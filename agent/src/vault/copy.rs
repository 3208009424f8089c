//! The copy of the sessions in the fleet's store, for other hosts.
//!
//! A key for each shard, `vault/BOT/COUNT/SHARD`, its value at most a few kB: the guild list is beside
//! (`lists`), and only the newest handled interactions (a successor looks up the others, see the bot). Changes of a
//! few seconds are written together, in transactions well within the store's limits, each key only
//! if it is as this host last saw it; otherwise everything is read and merged by the vault's rules,
//! and written anew. While the store is out, changes gather (one a shard) and nothing else waits.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use prost::Message as _;
use tanako_fleet::vault::{SessionId, ShardKey};
use tanako_store::{Outcome, Revision, Store, StoreError, Txn};
use tokio_util::sync::CancellationToken;

use super::{
    Vault,
    lists::{self, Copied},
    slots::Stored,
    stored,
};
use crate::history::Severity;

const PREFIX: &str = "vault/";
/// Keys of one transaction; each has a comparison and at most two changes.
const KEYS_MAX: usize = 63;
/// Bytes of one transaction.
const BYTES_MAX: usize = 512 * 1024;
/// A session larger than this is not copied; ten times what a bot of ours has.
const VALUE_MAX: usize = 64 * 1024;
/// Interactions copied with a session.
const HANDLED_MAX: usize = 200;
/// Deposits that end within this time (a whole fleet drains at once) are copied together.
const GATHER: Duration = Duration::from_millis(100);
/// One pass over all changes takes no longer.
const PASS_MAX: Duration = Duration::from_secs(30);
/// What the last pass, at the agent's end, may take.
const LAST_PASS_MAX: Duration = Duration::from_secs(2);
/// Waits after failures double from the first to the second.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// How often sessions are copied.
///
/// Measured with 64 shards that deposit every second, unoptimised, on the embedded store: 0.40 % of a
/// core without a copy; 0.42 % and a commit (one fsync) in five minutes with [`Pace::lone`]; 0.52 % and a
/// commit every three seconds with [`Pace::fleet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Between two passes.
    pub every: Duration,
    /// Whether new sessions, last deposits, handovers and ended sets are copied without that wait.
    pub at_once: bool,
}

impl Pace {
    /// For a store that other hosts read.
    pub fn fleet() -> Self {
        Self {
            every: Duration::from_secs(3),
            at_once: true,
        }
    }

    /// For the store of a lone machine. Nobody else reads it, and it lies on the same disk as the
    /// vault's own files, which are newer; all that the copy is good for is a vault directory that
    /// was lost or damaged. So it costs one commit now and then.
    pub fn lone() -> Self {
        Self {
            every: Duration::from_secs(5 * 60),
            at_once: false,
        }
    }
}

/// Copies until cancelled, and then once more.
pub(super) async fn run(
    vault: Vault,
    store: Arc<dyn Store>,
    pace: Pace,
    cancel: CancellationToken,
) {
    let mut copier = Copier {
        vault,
        store,
        known: None,
        lists: Copied::default(),
        failures: 0,
    };
    // The first pass takes in what other hosts left.
    let mut next = Instant::now();
    loop {
        let stopping = tokio::select! {
            () = cancel.cancelled() => true,
            () = tokio::time::sleep_until(next.into()) => false,
            () = copier.vault.shared.hurry.notified(), if pace.at_once && copier.failures == 0 => {
                tokio::select! {
                    () = cancel.cancelled() => true,
                    () = tokio::time::sleep(GATHER) => false,
                }
            }
        };
        let too_long = async {
            let asked_to_stop = tokio::time::timeout(PASS_MAX, cancel.cancelled()).await;
            if asked_to_stop.is_ok() {
                tokio::time::sleep(LAST_PASS_MAX).await;
            }
        };
        let outcome = tokio::select! {
            outcome = copier.pass() => outcome,
            () = too_long => Err(StoreError::Unavailable("no answer in time".to_owned())),
        };
        let gave_up = outcome.is_err() && cancel.is_cancelled();
        let wait = copier.judge(outcome);
        if stopping || gave_up {
            return;
        }
        next = Instant::now() + wait.unwrap_or(pace.every);
    }
}

struct Copier {
    vault: Vault,
    store: Arc<dyn Store>,
    /// The revisions of the keys as last seen; `None` = not read yet, or no longer known.
    known: Option<HashMap<String, Revision>>,
    lists: Copied,
    failures: u32,
}

impl Copier {
    /// Brings the copy up to what is known now; what changes meanwhile is for the next pass. What
    /// fails stays to be done.
    async fn pass(&mut self) -> Result<(), StoreError> {
        self.sessions().await?;
        self.lists.pass(&self.vault, &*self.store).await
    }

    async fn sessions(&mut self) -> Result<(), StoreError> {
        let mut conflicts = 0;
        let mut upto = self.vault.lock().changes;
        loop {
            let known = if let Some(known) = self.known.take() {
                known
            } else {
                let known = take_in(&self.vault, &*self.store).await?;
                // What was merged is to be written back as well.
                upto = self.vault.lock().changes;
                known
            };
            let Some(batch) = self.batch(&known, upto) else {
                self.known = Some(known);
                return Ok(());
            };
            // Until the outcome is certain, `known` is not: an error or a timeout here makes the
            // next pass read again.
            match self.store.commit(batch.txn).await? {
                Outcome::Committed { revision } => {
                    let mut known = known;
                    let mut state = self.vault.lock();
                    for written in batch.keys {
                        if state.uncopied.get(&written.key) == Some(&written.change) {
                            state.uncopied.remove(&written.key);
                        }
                        if written.exists {
                            known.insert(written.name, revision);
                        } else {
                            known.remove(&written.name);
                        }
                        state.is_in_store(written.key, written.session);
                    }
                    state.status.copies += 1;
                    drop(state);
                    self.known = Some(known);
                }
                Outcome::Conflict { .. } => {
                    conflicts += 1;
                    if conflicts > 3 {
                        // Two hosts that both mean to hold a shard: not faster than the backoff.
                        return Err(StoreError::Unavailable(
                            "another host writes the same sessions".to_owned(),
                        ));
                    }
                }
            }
        }
    }

    /// The next transaction; `None` = there is nothing to do.
    fn batch(&self, known: &HashMap<String, Revision>, upto: u64) -> Option<Batch> {
        let mut state = self.vault.lock();
        let mut batch = Batch {
            txn: Txn::new(),
            keys: Vec::new(),
        };
        let mut bytes = 0;
        let mut useless = Vec::new();
        for (key, change) in state.uncopied.iter().filter(|(_, at)| **at <= upto) {
            let name = name(key);
            let revision = known.get(&name).copied();
            let slot = state.rules.slot(key);
            let value = slot
                .map(|slot| stored::stored(key, slot, HANDLED_MAX).encode_to_vec())
                .filter(|value| value.len() <= VALUE_MAX);
            let txn = std::mem::take(&mut batch.txn);
            let (txn, exists) = match (value, revision) {
                (Some(value), revision) => {
                    bytes += value.len();
                    let txn = txn.if_unchanged(&name, revision.unwrap_or(0));
                    (txn.put(&name, value), true)
                }
                (None, Some(revision)) => {
                    let txn = txn.if_unchanged(&name, revision).delete(lists::name(key));
                    (txn.delete(&name), false)
                }
                (None, None) => {
                    useless.push(key.clone());
                    (txn, false)
                }
            };
            batch.txn = txn;
            if batch.txn.ops.last().is_none_or(|op| op.key() != name) {
                continue;
            }
            let session = slot.and_then(|slot| slot.session.as_ref());
            batch.keys.push(Written {
                key: key.clone(),
                name,
                change: *change,
                exists,
                session: session.filter(|_| exists).map(|session| session.id.clone()),
            });
            if batch.keys.len() >= KEYS_MAX || bytes + VALUE_MAX > BYTES_MAX {
                break;
            }
        }
        for key in useless {
            state.uncopied.remove(&key);
        }
        (!batch.keys.is_empty()).then_some(batch)
    }

    /// How long to wait after a failure; `None` = all is well.
    fn judge(&mut self, outcome: Result<(), StoreError>) -> Option<Duration> {
        let failing = outcome.is_err();
        let was = std::mem::replace(&mut self.vault.lock().status.copy_failing, failing);
        let history = &self.vault.shared.history;
        let Err(error) = outcome else {
            self.failures = 0;
            if was {
                history.event(
                    Severity::Info,
                    "vault-copied",
                    "vault",
                    "sessions are copied to the store again",
                );
            }
            return None;
        };
        if !was {
            tracing::warn!(%error, "sessions cannot be copied to the store");
            history.event(
                Severity::Warning,
                "vault-not-copied",
                "vault",
                format!(
                    "sessions are kept on this host only: {error}; {}. A restart here still \
                     resumes, another host could not",
                    error.hint()
                ),
            );
        }
        let wait = RETRY
            .saturating_mul(1 << self.failures.min(6))
            .min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        Some(wait.mul_f64(0.75 + fastrand::f64() / 2.0))
    }
}

struct Batch {
    txn: Txn,
    keys: Vec<Written>,
}

/// A shard in a transaction.
struct Written {
    key: ShardKey,
    /// Its key in the store.
    name: String,
    /// The number of the latest change that is in it.
    change: u64,
    /// Whether the key exists afterwards.
    exists: bool,
    /// The session that the store has afterwards.
    session: Option<SessionId>,
}

/// Reads the whole copy and merges it into the vault; the revisions of its keys.
pub(super) async fn take_in(
    vault: &Vault,
    store: &dyn Store,
) -> Result<HashMap<String, Revision>, StoreError> {
    let listing = store.list(PREFIX).await?;
    let mut known = HashMap::with_capacity(listing.items.len());
    let mut state = vault.lock();
    let mut changed = false;
    for item in listing.items {
        known.insert(item.key.clone(), item.mod_revision);
        let Some(key) = parse(&item.key) else {
            continue;
        };
        // What cannot be read is replaced by what is known here.
        let Ok(stored) = Stored::decode(item.value.clone()) else {
            continue;
        };
        let session = stored.deposit.as_ref();
        let session = session.map(|deposit| SessionId(deposit.session_id.clone()));
        state.is_in_store(key.clone(), session);
        if state.rules.slot(&key).is_none() && state.uncopied.contains_key(&key) {
            continue; // Dropped here, and soon there.
        }
        if state.rules.merge(&key, &stored::slot(stored)) {
            changed = true;
            state.change(key.clone(), None);
        }
        let same = state.rules.slot(&key).is_some_and(|slot| {
            stored::stored(&key, slot, HANDLED_MAX).encode_to_vec() == item.value
        });
        if same {
            state.uncopied.remove(&key);
        }
    }
    drop(state);
    if changed {
        vault.shared.wake.notify_one();
    }
    Ok(known)
}

fn name(key: &ShardKey) -> String {
    format!("{PREFIX}{}/{}/{}", key.bot, key.count, key.shard)
}

fn parse(name: &str) -> Option<ShardKey> {
    let mut parts = name.strip_prefix(PREFIX)?.split('/');
    let (bot, count, shard) = (parts.next()?, parts.next()?, parts.next()?);
    let key = ShardKey {
        bot: bot.to_owned(),
        shard: shard.parse().ok()?,
        count: count.parse().ok()?,
    };
    parts.next().is_none().then_some(key)
}
