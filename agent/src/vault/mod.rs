//! The session vault: what a successor needs to RESUME, kept while nobody holds the shard.
//!
//! The rules are [`tanako_fleet::vault`]'s: who holds a shard, which deposits count, who is offered
//! what. Here they are kept alive:
//!
//! - Sessions live in memory and, a moment later, in the page cache of `DIR/vault/` (`slots`), which
//!   a kill -9 of the agent does not touch. A deposit that asks for an acknowledgement (the last one
//!   of a process) is synced to disk first. A RESUME needs nothing but this.
//! - A compact form is copied to the fleet's store now and then (`copy`), so that another host can
//!   RESUME, and the guild lists, less often (`lists`). Nothing waits for the store.
//!
//! Session ids are secrets: nothing here prints them.

mod copy;
mod lists;
mod moving;
mod slots;
mod stored;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tanako_fleet::{
    ProcessName, ProcessSpec,
    vault::{Holder, Last, Refused, SessionId, ShardKey, Vault as Rules, Wanted},
};
use tanako_proto::worker::v1::{GuildCounts, SessionDeposit, SessionDiscard};
use tokio::sync::{Notify, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::slots::{HANDLED_MAX, Slots, Write};
pub use self::{copy::Pace, moving::Kept};
use crate::{
    clock::now_ms,
    history::{History, Severity},
};

/// Deposits that come within this time are written together.
const GATHER: Duration = Duration::from_millis(50);
/// After a failed write the next waits this long.
const RETRY: Duration = Duration::from_secs(2);
/// A sign of life of a session that does not move is written down this often.
const SEEN_EVERY_MS: i64 = 10 * 60 * 1000;
/// Between two looks for sessions that are of no use any more.
const EXPIRE_EVERY_MS: i64 = 10 * 60 * 1000;
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
            .field("shards", &self.lock().rules.slots().count())
            .finish_non_exhaustive()
    }
}

struct Shared {
    state: Mutex<State>,
    wake: Notify,
    /// Wakes the copier before its time.
    hurry: Notify,
    store: OnceLock<Arc<dyn tanako_store::Store>>,
    history: History,
}

#[derive(Default)]
struct State {
    rules: Rules,
    guilds: HashMap<ShardKey, GuildList>,
    /// Keys to write; those in the map, with their new guild list.
    dirty: HashMap<ShardKey, Option<Arc<GuildCounts>>>,
    /// Keys of which nothing shall be kept.
    gone: HashSet<ShardKey>,
    acks: Vec<oneshot::Sender<bool>>,
    /// Keys to copy to the store, with a number that rises with each change.
    uncopied: HashMap<ShardKey, u64>,
    changes: u64,
    /// The sessions that the store has, as this host last knew it.
    in_store: HashMap<ShardKey, SessionId>,
    /// When a sign of life was last written down.
    seen: HashMap<ShardKey, i64>,
    status: VaultStatus,
}

/// The guild list of a session.
struct GuildList {
    session: SessionId,
    list: Arc<GuildCounts>,
}

/// How the vault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VaultStatus {
    /// Sessions that could be offered.
    pub sessions: usize,
    /// Its files cannot be written: sessions are in memory only.
    pub unwritable: bool,
    /// The store does not take the copy.
    pub copy_failing: bool,
    /// Shards of which something newer waits to be copied; while events come, most of them.
    pub uncopied: usize,
    /// Sessions that the store does not have at all: their shards would IDENTIFY if this host were lost
    /// now.
    pub only_here: usize,
    /// Transactions that copied sessions.
    pub copies: u64,
}

/// Where the work of a holder on a shard ended, for the gap in a receipt.
pub type LastDeposit = Last;

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
    /// Another attempt or process holds the shard.
    #[error("another process or a newer attempt holds the shard")]
    Superseded,
    /// The session was given up before.
    #[error("the session has ended")]
    Ended,
    /// A field is missing or too large.
    #[error("the deposit is malformed: {0}")]
    Malformed(&'static str),
    /// It could not be made safe on disk.
    #[error("the deposit could not be written to disk")]
    NotSafe,
}

impl From<Refused> for DepositError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotHolder => Self::Superseded,
            Refused::Ended => Self::Ended,
        }
    }
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
            let key = ShardKey {
                bot,
                shard: stored.shard_id,
                count: stored.shard_count,
            };
            let slot = stored::slot(stored);
            if let (Some(session), Some(list)) = (&slot.session, guilds) {
                let session = session.id.clone();
                let list = Arc::new(list);
                state
                    .guilds
                    .insert(key.clone(), GuildList { session, list });
            }
            state.touch(&key);
            state.rules.load(key, slot);
        }
        let vault = Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                wake: Notify::new(),
                hurry: Notify::new(),
                store: OnceLock::new(),
                history,
            }),
        };
        tracker.spawn(vault.clone().write_loop(slots, cancel));
        Ok(vault)
    }

    /// Copies sessions to the store from now on, and takes in those that another host left there.
    /// Once at most.
    pub fn copy_to(
        &self,
        store: Arc<dyn tanako_store::Store>,
        pace: Pace,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) {
        if self.shared.store.set(store.clone()).is_ok() {
            tracker.spawn(copy::run(self.clone(), store, pace, cancel));
        }
    }

    /// Takes in what other hosts have copied to the store, before this process is started here that ran
    /// there. False when the store did not answer in time: then the process may have to identify.
    pub async fn refresh(&self, spec: &ProcessSpec, within: Duration) -> bool {
        let Some(store) = self.shared.store.get() else {
            return true; // One machine: there is nobody else.
        };
        let both = async {
            copy::take_in(self, &**store).await?;
            lists::take_in(self, &**store, spec).await
        };
        match tokio::time::timeout(within, both).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(%error, "copied sessions could not be read");
                false
            }
            Err(_) => false,
        }
    }

    /// This attempt now holds the shards of `spec`: what earlier ones deposit is refused from now
    /// on. An attempt older than the holder changes nothing, nor does a process that has handed
    /// the shards over. Not for a process that is warm or a shadow: it holds nothing until
    /// [`Self::handover`].
    pub fn attach(&self, spec: &ProcessSpec, attempt: u64) {
        let who = holder(&spec.name, attempt);
        let mut state = self.lock();
        for key in keys(spec) {
            state.rules.attach(&key, &who);
        }
    }

    /// Moves the shards that both processes have from one to the other, with their sessions: the
    /// deposits of `from` are refused from now on, until they are handed back. `attempt` is that of
    /// `to`. Asking twice is the same as once. The shards that `to` holds now; one that a third
    /// process holds is left alone.
    pub fn handover(&self, from: &ProcessSpec, to: &ProcessSpec, attempt: u64) -> Vec<u32> {
        let who = holder(&to.name, attempt);
        let mut moved = Vec::new();
        let mut state = self.lock();
        if from.shard_count == to.shard_count && from.name.group() == to.name.group() {
            for key in keys(to).filter(|key| from.shard_ids.contains(&key.shard)) {
                if state.rules.handover(&key, &from.name, &who) {
                    moved.push(key.shard);
                    state.change(key, None);
                }
            }
        }
        drop(state);
        self.shared.wake.notify_one();
        self.shared.hurry.notify_one();
        moved
    }

    /// Keeps a session. Returns once it is in memory, or, when `deposit.ack` is set, on disk.
    pub async fn deposit(
        &self,
        process: &ProcessName,
        attempt: u64,
        mut deposit: SessionDeposit,
    ) -> Result<(), DepositError> {
        check(&deposit)?;
        let key = ShardKey {
            bot: process.group().to_owned(),
            shard: deposit.shard_id,
            count: deposit.shard_count,
        };
        let wants_ack = deposit.ack != 0;
        let is_final = wants_ack || deposit.stopped_at != 0;
        let new_guilds = deposit.guilds.take().map(Arc::new);
        let now = now_ms();
        let mut session = stored::session(deposit, now, now)
            .ok_or(DepositError::Malformed("token_sha256 is not 32 bytes"))?;
        if let Some(list) = &new_guilds {
            session.guilds = u32::try_from(list.ids.len()).unwrap_or(u32::MAX);
        }
        let id = session.id.clone();
        let is_new;
        let answered = {
            let mut state = self.lock();
            is_new = state
                .rules
                .deposit(&key, &holder(process, attempt), session)?;
            let list_to_write = state.keep_list(&key, id, new_guilds);
            state.change(key, list_to_write);
            wants_ack.then(|| {
                let (ack, answered) = oneshot::channel();
                state.acks.push(ack);
                answered
            })
        };
        self.shared.wake.notify_one();
        if is_final || is_new {
            self.shared.hurry.notify_one();
        }
        match answered {
            None => Ok(()),
            Some(answered) => match answered.await {
                Ok(true) => Ok(()),
                _ => Err(DepositError::NotSafe),
            },
        }
    }

    /// The attempt is connected with its sessions of `shards`: they are fresh, also where no event
    /// moves them.
    pub fn alive(&self, spec: &ProcessSpec, attempt: u64, shards: impl IntoIterator<Item = u32>) {
        let who = holder(&spec.name, attempt);
        let now = now_ms();
        let mut state = self.lock();
        let mut written = false;
        for shard in shards {
            let key = ShardKey {
                bot: spec.name.group().to_owned(),
                shard,
                count: spec.shard_count,
            };
            state.rules.seen(now, &key, &who);
            let idle = state
                .seen
                .get(&key)
                .is_none_or(|at| now.saturating_sub(*at) >= SEEN_EVERY_MS);
            if idle
                && state
                    .rules
                    .slot(&key)
                    .is_some_and(|slot| slot.session.is_some())
            {
                state.change(key, None);
                written = true;
            }
        }
        drop(state);
        if written {
            self.shared.wake.notify_one();
        }
    }

    /// Forgets a session that is void. One that has been replaced by another is left alone.
    pub fn discard(&self, process: &ProcessName, attempt: u64, discard: &SessionDiscard) {
        let key = ShardKey {
            bot: process.group().to_owned(),
            shard: discard.shard_id,
            count: discard.shard_count,
        };
        let id = SessionId(discard.session_id.clone());
        let mut state = self.lock();
        if state.rules.discard(&key, &holder(process, attempt), &id) {
            state.guilds.remove(&key);
            state.change(key, None);
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
        let now = now_ms();
        let wanted = Wanted {
            token_sha256,
            ..Wanted::default()
        };
        let state = self.lock();
        keys(spec)
            .filter_map(|key| {
                let session = state.rules.offer(now, &key, &wanted)?;
                let mut deposit = stored::deposit(&key, session, INTERACTIONS_MAX);
                deposit.guilds = state
                    .guilds
                    .get(&key)
                    .filter(|known| known.session == session.id)
                    .map(|known| known.list.as_ref().clone());
                Some(deposit)
            })
            .collect()
    }

    /// The latest deposit of a shard, also of a session that is void by now.
    pub fn last_deposit(&self, bot: &str, shard: u32, count: u32) -> Option<LastDeposit> {
        let key = ShardKey {
            bot: bot.to_owned(),
            shard,
            count,
        };
        self.lock().rules.slot(&key)?.last.clone()
    }

    /// The latest deposit of whoever held the shard before this attempt, also when it has deposited
    /// itself by now.
    pub fn last_deposit_before(
        &self,
        shard: u32,
        count: u32,
        process: &ProcessName,
        attempt: u64,
    ) -> Option<LastDeposit> {
        let key = ShardKey {
            bot: process.group().to_owned(),
            shard,
            count,
        };
        let state = self.lock();
        state
            .rules
            .last_before(&key, &holder(process, attempt))
            .cloned()
    }

    /// A set of shards is no more (a reshard has ended, and with it the way back): drops its
    /// sessions.
    pub fn forget(&self, bot: &str, count: u32) {
        let mut state = self.lock();
        let keys = state.rules.forget(bot, count);
        state.drop_keys(keys);
        drop(state);
        self.shared.wake.notify_one();
        self.shared.hurry.notify_one();
    }

    /// How many guilds the latest deposit of a shard lists, and whether `guild` is among them.
    /// `None` when no list is known.
    pub fn has_guild(&self, bot: &str, shard: u32, count: u32, guild: u64) -> Option<bool> {
        let key = ShardKey {
            bot: bot.to_owned(),
            shard,
            count,
        };
        let state = self.lock();
        Some(state.guilds.get(&key)?.list.ids.contains(&guild))
    }

    /// How it is.
    pub fn status(&self) -> VaultStatus {
        let state = self.lock();
        let (mut sessions, mut only_here) = (0, 0);
        for (key, slot) in state.rules.slots() {
            if let Some(session) = &slot.session {
                sessions += 1;
                only_here += usize::from(state.in_store.get(key) != Some(&session.id));
            }
        }
        let (uncopied, only_here) = match self.shared.store.get() {
            Some(_) => (state.uncopied.len(), only_here),
            None => (0, 0),
        };
        VaultStatus {
            sessions,
            uncopied,
            only_here,
            ..state.status
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is dirty until cancelled, and then once more.
    async fn write_loop(self, mut slots: Slots, cancel: CancellationToken) {
        let mut expired_at = 0;
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
            let now = now_ms();
            if now.saturating_sub(expired_at) >= EXPIRE_EVERY_MS {
                expired_at = now;
                let mut state = self.lock();
                let keys = state.rules.expire(now);
                state.drop_keys(keys);
            }
            let batch = self.lock().take_batch();
            if !batch.is_empty() {
                let sync = !batch.acks.is_empty() || stopping;
                let outcome = tokio::task::spawn_blocking(move || {
                    let result = batch
                        .gone
                        .iter()
                        .try_for_each(|key| slots.drop_slot(&key.bot, (key.shard, key.count)))
                        .and_then(|()| slots.write(&batch.writes, sync));
                    (slots, batch, result)
                })
                .await;
                let Ok((back, batch, result)) = outcome else {
                    return; // The runtime is shutting down.
                };
                slots = back;
                if !self.written(batch, result) {
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => self.shared.wake.notify_one(),
                        () = cancel.cancelled() => {}
                    }
                }
            }
            if stopping {
                return;
            }
        }
    }

    /// Answers for a batch. Whether it was written.
    fn written(&self, batch: Batch, result: std::io::Result<()>) -> bool {
        for ack in batch.acks {
            // The worker may be gone.
            let _ = ack.send(result.is_ok());
        }
        let mut state = self.lock();
        let was = std::mem::replace(&mut state.status.unwritable, result.is_err());
        if let Err(error) = result {
            state.put_back(batch.writes, batch.gone);
            drop(state);
            if !was {
                tracing::warn!(error = %error, "session vault cannot be written");
                self.shared.history.event(
                    Severity::Warning,
                    "vault-unwritable",
                    "vault",
                    format!(
                        "sessions are kept in memory only: {error}; free some space or mend the \
                         data directory, the agent tries again"
                    ),
                );
            }
            return false;
        }
        drop(state);
        if was {
            self.shared.history.event(
                Severity::Info,
                "vault-writable",
                "vault",
                "sessions are kept on disk again",
            );
        }
        true
    }
}

/// What is to be written together.
struct Batch {
    writes: Vec<Write>,
    gone: Vec<ShardKey>,
    acks: Vec<oneshot::Sender<bool>>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.gone.is_empty() && self.acks.is_empty()
    }
}

impl State {
    /// Keeps the guild list of a session; returns it when it is to be written.
    fn keep_list(
        &mut self,
        key: &ShardKey,
        session: SessionId,
        new: Option<Arc<GuildCounts>>,
    ) -> Option<Arc<GuildCounts>> {
        let known = self.guilds.get(key).filter(|list| list.session == session);
        match new {
            Some(list) if known.is_none_or(|known| known.list != list) => {
                let kept = Arc::clone(&list);
                self.guilds.insert(
                    key.clone(),
                    GuildList {
                        session,
                        list: kept,
                    },
                );
                Some(list)
            }
            Some(_) => None,
            None => {
                if known.is_none() {
                    self.guilds.remove(key);
                }
                None
            }
        }
    }

    /// Something about a shard has changed.
    fn change(&mut self, key: ShardKey, list: Option<Arc<GuildCounts>>) {
        self.gone.remove(&key);
        self.seen.insert(key.clone(), now_ms());
        self.touch(&key);
        let entry = self.dirty.entry(key).or_default();
        if list.is_some() {
            *entry = list;
        }
    }

    /// The copy in the store is older than what is here.
    fn touch(&mut self, key: &ShardKey) {
        self.changes += 1;
        self.uncopied.insert(key.clone(), self.changes);
    }

    /// What the store has of a shard.
    fn is_in_store(&mut self, key: ShardKey, session: Option<SessionId>) {
        match session {
            Some(session) => self.in_store.insert(key, session),
            None => self.in_store.remove(&key),
        };
    }

    fn drop_keys(&mut self, keys: Vec<ShardKey>) {
        for key in keys {
            self.guilds.remove(&key);
            self.seen.remove(&key);
            self.dirty.remove(&key);
            self.touch(&key);
            self.gone.insert(key);
        }
    }

    fn take_batch(&mut self) -> Batch {
        let dirty = std::mem::take(&mut self.dirty);
        let writes = dirty
            .into_iter()
            .filter_map(|(key, guilds)| {
                let stored = stored::stored(&key, self.rules.slot(&key)?, HANDLED_MAX);
                Some(Write {
                    bot: key.bot,
                    stored,
                    guilds: guilds.map(|list| list.as_ref().clone()),
                })
            })
            .collect();
        Batch {
            writes,
            gone: self.gone.drain().collect(),
            acks: std::mem::take(&mut self.acks),
        }
    }

    /// A batch was not written: it is dirty still, unless something newer is.
    fn put_back(&mut self, writes: Vec<Write>, gone: Vec<ShardKey>) {
        for write in writes {
            let key = ShardKey {
                bot: write.bot,
                shard: write.stored.shard_id,
                count: write.stored.shard_count,
            };
            if self.gone.contains(&key) {
                continue;
            }
            // The newest list is the one in memory.
            let guilds = self.guilds.get(&key).map(|known| Arc::clone(&known.list));
            self.dirty.insert(key, guilds);
        }
        for key in gone {
            if !self.dirty.contains_key(&key) {
                self.gone.insert(key);
            }
        }
    }
}

fn holder(process: &ProcessName, attempt: u64) -> Holder {
    Holder {
        process: process.clone(),
        attempt,
    }
}

fn keys(spec: &ProcessSpec) -> impl Iterator<Item = ShardKey> + '_ {
    spec.shard_ids.iter().map(|shard| ShardKey {
        bot: spec.name.group().to_owned(),
        shard: *shard,
        count: spec.shard_count,
    })
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
