//! The session vault: what a successor needs to RESUME, kept while nobody holds the shard.
//!
//! Sessions live in memory and, a moment later, in the page cache of `DIR/vault/`, which a kill -9
//! of the agent does not touch. A deposit that asks for an acknowledgement (the last one of a
//! process) is synced to disk first.
//!
//! A shard has one **holder**, the latest attempt that attached. Only its deposits and discards
//! count: what an earlier one still sends, late, must not replace a session that goes on.
//!
//! Session ids are secrets: nothing here prints them.

mod slots;

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tanako_fleet::{ProcessName, ProcessSpec};
use tanako_proto::worker::v1::{GuildCounts, SessionDeposit, SessionDiscard};
use tokio::sync::{Notify, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::slots::{HANDLED_MAX, Slots, Stored, Write};
use crate::history::{History, Severity};

/// Deposits that come within this time are written together.
const GATHER: Duration = Duration::from_millis(50);
/// After a failed write the next waits this long.
const RETRY: Duration = Duration::from_secs(2);
/// A session older than this is not worth a RESUME: Discord keeps one "for a few minutes"
/// (discord-rules), and how many is not published.
const OFFER_MS_MAX: i64 = 60 * 60 * 1000;
/// Bounds of the fields; far above what Discord sends.
const TEXT_MAX: usize = 512;
const GUILDS_MAX: usize = 100_000;
const INTERACTIONS_MAX: usize = 4096;

/// Handle to the vault; cheap to clone.
#[derive(Clone)]
pub struct Vault {
    shared: Arc<Shared>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault")
            .field("sessions", &self.lock().sessions.len())
            .finish_non_exhaustive()
    }
}

struct Shared {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    sessions: HashMap<Key, Session>,
    holders: HashMap<Key, (ProcessName, u64)>,
    /// Keys to write; those in the map, with their new guild list.
    dirty: HashMap<Key, Option<Arc<GuildCounts>>>,
    acks: Vec<oneshot::Sender<bool>>,
}

/// A shard of a bot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    bot: String,
    shard: u32,
    count: u32,
}

struct Session {
    stored: Stored,
    guilds: Option<Arc<GuildCounts>>,
}

/// The vault cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its directory cannot be used.
    #[error("session vault in {directory} cannot be opened")]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Why a deposit was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DepositError {
    /// Another attempt holds the shard.
    #[error("a newer attempt holds the shard")]
    Superseded,
    /// A field is missing or too large.
    #[error("the deposit is malformed: {0}")]
    Malformed(&'static str),
    /// It could not be made safe on disk.
    #[error("the deposit could not be written to disk")]
    NotSafe,
}

impl Vault {
    /// Loads the sessions in `directory` and starts the writer.
    pub async fn start(
        directory: PathBuf,
        history: History,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) -> Result<Self, StartError> {
        let opened = {
            let directory = directory.clone();
            tokio::task::spawn_blocking(move || Slots::open(directory)).await
        };
        let (slots, found) = opened
            .unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
            .map_err(|source| StartError::Directory { directory, source })?;
        for (bot, count) in found.damaged {
            history.event(
                Severity::Warning,
                "session-damaged",
                &bot,
                format!(
                    "{count} stored sessions or guild lists were damaged and are ignored; their \
                     shards may have to identify"
                ),
            );
        }
        let mut state = State::default();
        for (bot, stored, guilds) in found.sessions {
            let key = Key {
                bot,
                shard: stored.shard_id,
                count: stored.shard_count,
            };
            if let Ok(process) = stored.process.parse() {
                state.holders.insert(key.clone(), (process, stored.attempt));
            }
            if stored.deposit.is_some() {
                let guilds = guilds.map(Arc::new);
                state.sessions.insert(key, Session { stored, guilds });
            }
        }
        let vault = Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                wake: Notify::new(),
            }),
        };
        tracker.spawn(vault.clone().write_loop(slots, history, cancel));
        Ok(vault)
    }

    /// This attempt now holds the shards of `spec`: what earlier ones deposit is refused from now
    /// on. An attempt older than the holder changes nothing.
    pub fn attach(&self, spec: &ProcessSpec, attempt: u64) {
        let mut state = self.lock();
        for shard in &spec.shard_ids {
            let key = Key {
                bot: spec.name.group().to_owned(),
                shard: *shard,
                count: spec.shard_count,
            };
            let older = state
                .holders
                .get(&key)
                .is_some_and(|(process, held)| *process == spec.name && *held > attempt);
            if !older {
                state.holders.insert(key, (spec.name.clone(), attempt));
            }
        }
    }

    /// Keeps a session. Returns once it is in memory, or, when `deposit.ack` is set, on disk.
    pub async fn deposit(
        &self,
        process: &ProcessName,
        attempt: u64,
        mut deposit: SessionDeposit,
    ) -> Result<(), DepositError> {
        check(&deposit)?;
        let key = Key {
            bot: process.group().to_owned(),
            shard: deposit.shard_id,
            count: deposit.shard_count,
        };
        let wants_ack = std::mem::take(&mut deposit.ack) != 0;
        // A slice of the network buffer would keep all of it.
        deposit.token_sha256 = bytes::Bytes::copy_from_slice(&deposit.token_sha256);
        let new_guilds = deposit.guilds.take().map(Arc::new);
        let answered = {
            let mut state = self.lock();
            state.may_write(&key, process, attempt)?;
            let before = state.sessions.get(&key);
            let known = before.filter(|session| {
                session
                    .stored
                    .deposit
                    .as_ref()
                    .is_some_and(|old| old.session_id == deposit.session_id)
            });
            let known_guilds = known.and_then(|session| session.guilds.clone());
            let changed = new_guilds
                .as_ref()
                .is_some_and(|new| known_guilds.as_ref() != Some(new));
            let guilds = new_guilds.or(known_guilds);
            let list_to_write = guilds.clone().filter(|_| changed);
            let stored = Stored {
                process: process.to_string(),
                attempt,
                deposited_at: jiff::Timestamp::now().as_millisecond(),
                shard_id: deposit.shard_id,
                shard_count: deposit.shard_count,
                deposit: Some(deposit),
            };
            state
                .sessions
                .insert(key.clone(), Session { stored, guilds });
            let entry = state.dirty.entry(key).or_default();
            if list_to_write.is_some() {
                *entry = list_to_write;
            }
            wants_ack.then(|| {
                let (ack, answered) = oneshot::channel();
                state.acks.push(ack);
                answered
            })
        };
        self.shared.wake.notify_one();
        match answered {
            None => Ok(()),
            Some(answered) => match answered.await {
                Ok(true) => Ok(()),
                _ => Err(DepositError::NotSafe),
            },
        }
    }

    /// Forgets a session that is void. One that has been replaced by another is left alone.
    pub fn discard(&self, process: &ProcessName, attempt: u64, discard: &SessionDiscard) {
        let key = Key {
            bot: process.group().to_owned(),
            shard: discard.shard_id,
            count: discard.shard_count,
        };
        let mut state = self.lock();
        let same = state
            .sessions
            .get(&key)
            .and_then(|session| session.stored.deposit.as_ref())
            .is_some_and(|known| known.session_id == discard.session_id);
        if same && state.may_write(&key, process, attempt).is_ok() {
            state.sessions.remove(&key);
            state.dirty.insert(key, None);
            drop(state);
            self.shared.wake.notify_one();
        }
    }

    /// The sessions that an attempt of `spec` may resume; with `token_sha256`, only that token's.
    pub fn sessions_for(
        &self,
        spec: &ProcessSpec,
        token_sha256: Option<[u8; 32]>,
    ) -> Vec<SessionDeposit> {
        let now = jiff::Timestamp::now().as_millisecond();
        let state = self.lock();
        spec.shard_ids
            .iter()
            .filter_map(|shard| {
                let session = state.sessions.get(&Key {
                    bot: spec.name.group().to_owned(),
                    shard: *shard,
                    count: spec.shard_count,
                })?;
                let mut deposit = session.stored.deposit.clone()?;
                let fits = now.saturating_sub(session.stored.deposited_at) <= OFFER_MS_MAX
                    && token_sha256.is_none_or(|sha| *deposit.token_sha256 == sha);
                deposit.guilds = session.guilds.as_deref().cloned();
                fits.then_some(deposit)
            })
            .collect()
    }

    /// How many guilds the latest deposit of a shard lists, and whether `guild` is among them.
    /// `None` when no list is known.
    pub fn has_guild(&self, bot: &str, shard: u32, count: u32, guild: u64) -> Option<bool> {
        let state = self.lock();
        let session = state.sessions.get(&Key {
            bot: bot.to_owned(),
            shard,
            count,
        })?;
        Some(session.guilds.as_ref()?.ids.contains(&guild))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is dirty until cancelled, and then once more.
    async fn write_loop(self, mut slots: Slots, history: History, cancel: CancellationToken) {
        let mut told = false;
        loop {
            let stopping = tokio::select! {
                () = self.shared.wake.notified() => false,
                () = cancel.cancelled() => true,
            };
            let urgent = !self.lock().acks.is_empty();
            if !stopping && !urgent {
                tokio::select! {
                    () = tokio::time::sleep(GATHER) => {}
                    () = cancel.cancelled() => {}
                }
            }
            let (batch, acks) = self.lock().take_batch();
            if !batch.is_empty() || !acks.is_empty() {
                let sync = !acks.is_empty() || stopping;
                let outcome = tokio::task::spawn_blocking(move || {
                    let result = slots.write(&batch, sync);
                    (slots, batch, result)
                })
                .await;
                let Ok((back, batch, result)) = outcome else {
                    return; // The runtime is shutting down.
                };
                slots = back;
                let safe = result.is_ok();
                for ack in acks {
                    // The worker may be gone.
                    let _ = ack.send(safe);
                }
                if let Err(error) = result {
                    self.lock().put_back(batch);
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(error = %error, "session vault cannot be written");
                        history.event(
                            Severity::Warning,
                            "vault-unwritable",
                            "vault",
                            format!(
                                "sessions are kept in memory only: {error}; free some space or \
                                 mend the data directory, the agent tries again"
                            ),
                        );
                    }
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => self.shared.wake.notify_one(),
                        () = cancel.cancelled() => {}
                    }
                } else {
                    told = false;
                }
            }
            if stopping {
                return;
            }
        }
    }
}

impl State {
    fn may_write(
        &mut self,
        key: &Key,
        process: &ProcessName,
        attempt: u64,
    ) -> Result<(), DepositError> {
        if let Some((holder, held)) = self.holders.get(key)
            && (holder != process || *held > attempt)
        {
            return Err(DepositError::Superseded);
        }
        self.holders.insert(key.clone(), (process.clone(), attempt));
        Ok(())
    }

    fn take_batch(&mut self) -> (Vec<Write>, Vec<oneshot::Sender<bool>>) {
        let dirty = std::mem::take(&mut self.dirty);
        let batch = dirty
            .into_iter()
            .map(|(key, guilds)| {
                let stored = if let Some(session) = self.sessions.get(&key) {
                    let mut stored = session.stored.clone();
                    if let Some(deposit) = &mut stored.deposit {
                        let handled = &mut deposit.handled_interactions;
                        let over = handled.len().saturating_sub(HANDLED_MAX);
                        handled.drain(..over);
                    }
                    stored
                } else {
                    let (process, attempt) = self.holders.get(&key).map_or_else(
                        || (String::new(), 0),
                        |(process, attempt)| (process.to_string(), *attempt),
                    );
                    Stored {
                        process,
                        attempt,
                        deposited_at: jiff::Timestamp::now().as_millisecond(),
                        deposit: None,
                        shard_id: key.shard,
                        shard_count: key.count,
                    }
                };
                Write {
                    bot: key.bot,
                    stored,
                    guilds: guilds.map(|list| list.as_ref().clone()),
                }
            })
            .collect();
        (batch, std::mem::take(&mut self.acks))
    }

    /// A batch was not written: it is dirty still, unless something newer is.
    fn put_back(&mut self, batch: Vec<Write>) {
        for write in batch {
            let key = Key {
                bot: write.bot,
                shard: write.stored.shard_id,
                count: write.stored.shard_count,
            };
            // The newest list is the one in memory.
            let guilds = self
                .sessions
                .get(&key)
                .and_then(|session| session.guilds.clone());
            self.dirty.insert(key, guilds);
        }
    }
}

fn check(deposit: &SessionDeposit) -> Result<(), DepositError> {
    use DepositError::Malformed;
    if deposit.session_id.is_empty() || deposit.session_id.len() > TEXT_MAX {
        return Err(Malformed("session_id"));
    }
    if deposit.resume_url.len() > TEXT_MAX {
        return Err(Malformed("resume_url"));
    }
    if deposit.shard_id >= deposit.shard_count {
        return Err(Malformed("shard_id is not below shard_count"));
    }
    if deposit.token_sha256.len() != 32 {
        return Err(Malformed("token_sha256 is not 32 bytes"));
    }
    if deposit.handled_interactions.len() > INTERACTIONS_MAX {
        return Err(Malformed("too many handled_interactions"));
    }
    if let Some(guilds) = &deposit.guilds
        && (guilds.ids.len() > GUILDS_MAX || guilds.ids.len() != guilds.members.len())
    {
        return Err(Malformed("guilds"));
    }
    Ok(())
}
