//! The session vault: as `agent/src/vault/mod.rs`, around the real rules. Deposits reach the page
//! cache a moment later; one that asks for an acknowledgement is synced first.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use tanako_fleet::{
    ProcessName, ProcessSpec,
    vault::{Holder, Last, Session, SessionId, ShardKey, Vault as Rules, Wanted},
};
use tokio::sync::{Notify, oneshot};

use super::{
    super::{trace::trace, world::Sim},
    Agent,
};

/// Deposits that come within this time are written together, in milliseconds.
const GATHER: u64 = 50;
/// After a failed write the next waits this long, in milliseconds.
const RETRY: u64 = 2_000;

/// The vault of one life.
pub struct Vault {
    state: RefCell<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    rules: Rules,
    dirty: BTreeSet<ShardKey>,
    acks: Vec<oneshot::Sender<bool>>,
}

/// The keys of a process's shards.
pub fn keys(spec: &ProcessSpec) -> impl Iterator<Item = ShardKey> + '_ {
    spec.shard_ids
        .iter()
        .map(|shard| key(&spec.name, *shard, spec.shard_count))
}

/// The key of a shard.
pub fn key(name: &ProcessName, shard: u32, count: u32) -> ShardKey {
    ShardKey {
        bot: name.group().to_owned(),
        shard,
        count,
    }
}

fn holder(process: &ProcessName, attempt: u64) -> Holder {
    Holder {
        process: process.clone(),
        attempt,
    }
}

impl Vault {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            state: RefCell::default(),
            wake: Notify::new(),
        }
    }

    /// Reads what is on the disk.
    pub fn load(&self, sim: &Sim) {
        let slots = sim.host.borrow().disk.vault.clone();
        let mut state = self.state.borrow_mut();
        for (key, slot) in slots {
            state.rules.load(key, slot);
        }
    }

    /// This attempt holds its shards now.
    pub fn attach(&self, spec: &ProcessSpec, attempt: u64) {
        let mut state = self.state.borrow_mut();
        for key in keys(spec) {
            state.rules.attach(&key, &holder(&spec.name, attempt));
        }
    }

    /// Keeps a session; with `ack`, returns once it is safe on disk.
    pub async fn deposit(
        &self,
        sim: &Sim,
        (process, attempt): (&ProcessName, u64),
        key: ShardKey,
        session: Session,
        ack: bool,
    ) -> bool {
        let answered = {
            let mut state = self.state.borrow_mut();
            if let Err(refused) = state
                .rules
                .deposit(&key, &holder(process, attempt), session)
            {
                trace!(
                    sim,
                    [key.shard],
                    "vault: deposit of {process}, shard {}: {refused}",
                    key.shard
                );
                return false;
            }
            state.dirty.insert(key);
            ack.then(|| {
                let (ack, answered) = oneshot::channel();
                state.acks.push(ack);
                answered
            })
        };
        self.wake.notify_one();
        match answered {
            None => true,
            Some(answered) => answered.await == Ok(true),
        }
    }

    /// Forgets a session that is void.
    pub fn discard(&self, process: &ProcessName, attempt: u64, key: ShardKey, id: &SessionId) {
        let mut state = self.state.borrow_mut();
        if state.rules.discard(&key, &holder(process, attempt), id) {
            state.dirty.insert(key);
            drop(state);
            self.wake.notify_one();
        }
    }

    /// The attempt is connected with its sessions.
    pub fn alive(
        &self,
        sim: &Sim,
        spec: &ProcessSpec,
        attempt: u64,
        shards: impl IntoIterator<Item = u32>,
    ) {
        let now = sim.wall_ms();
        let who = holder(&spec.name, attempt);
        let mut state = self.state.borrow_mut();
        for shard in shards {
            let key = key(&spec.name, shard, spec.shard_count);
            state.rules.seen(now, &key, &who);
        }
    }

    /// Moves the shards that both processes have from one to the other.
    pub fn handover(&self, from: &ProcessSpec, to: &ProcessSpec, attempt: u64) -> usize {
        let who = holder(&to.name, attempt);
        let mut moved = 0;
        let mut state = self.state.borrow_mut();
        if from.shard_count == to.shard_count && from.name.group() == to.name.group() {
            for key in keys(to).filter(|key| from.shard_ids.contains(&key.shard)) {
                if state.rules.handover(&key, &from.name, &who) {
                    moved += 1;
                    state.dirty.insert(key);
                }
            }
        }
        drop(state);
        self.wake.notify_one();
        moved
    }

    /// A set of shards is no more: drops its sessions.
    pub fn forget(&self, sim: &Sim, bot: &str, count: u32) {
        let keys = self.state.borrow_mut().rules.forget(bot, count);
        let mut host = sim.host.borrow_mut();
        for key in keys {
            host.disk.vault.remove(&key);
            host.disk.vault_synced.remove(&key);
        }
        drop(host);
        sim.discord.borrow_mut().abandoned(count);
    }

    /// The latest deposit of whoever held a shard before this attempt.
    pub fn last_before(
        &self,
        process: &ProcessName,
        attempt: u64,
        shard: u32,
        count: u32,
    ) -> Option<Last> {
        let state = self.state.borrow();
        let key = key(process, shard, count);
        state
            .rules
            .last_before(&key, &holder(process, attempt))
            .cloned()
    }

    /// The sessions that an attempt may resume.
    pub fn sessions_for(&self, sim: &Sim, spec: &ProcessSpec) -> Vec<(u32, Session)> {
        let now = sim.wall_ms();
        let state = self.state.borrow();
        keys(spec)
            .filter_map(|key| {
                let session = state.rules.offer(now, &key, &Wanted::default())?;
                Some((key.shard, session.clone()))
            })
            .collect()
    }
}

/// Writes what is dirty, until killed.
pub async fn write_loop(sim: Sim, agent: Rc<Agent>) {
    let vault = &agent.vault;
    loop {
        vault.wake.notified().await;
        let urgent = !vault.state.borrow().acks.is_empty();
        if !urgent {
            sim.sleep(GATHER).await;
        }
        let (keys, acks) = {
            let mut state = vault.state.borrow_mut();
            (
                std::mem::take(&mut state.dirty),
                std::mem::take(&mut state.acks),
            )
        };
        if keys.is_empty() && acks.is_empty() {
            continue;
        }
        // What is written is what was there when the batch was taken.
        let writes: Vec<_> = {
            let state = vault.state.borrow();
            keys.iter()
                .filter_map(|key| Some((key.clone(), state.rules.slot(key)?.clone())))
                .collect()
        };
        let sync = !acks.is_empty();
        sim.sleep(sim.draw(0..=4)).await;
        let fails = sim.is_busy() && sim.chance(sim.config.disk_faults / 4);
        if !fails {
            {
                let mut host = sim.host.borrow_mut();
                for (key, slot) in writes {
                    host.disk.vault.insert(key, slot);
                }
                if sync {
                    host.disk.vault_synced = host.disk.vault.clone();
                }
            }
            let mut discord = sim.discord.borrow_mut();
            let host = sim.host.borrow();
            for key in &keys {
                let session = host
                    .disk
                    .vault
                    .get(key)
                    .and_then(|slot| slot.session.as_ref());
                if let Some(id) = session.and_then(|session| session.id.0.parse().ok()) {
                    discord.deposited(id);
                }
            }
        }
        Agent::may_die(&sim, agent.life, "vault: written, not acknowledged").await;
        for ack in acks {
            // The worker may be gone.
            let _ = ack.send(!fails);
        }
        if fails {
            trace!(sim, [1], "vault: its files could not be written");
            vault.state.borrow_mut().dirty.extend(keys);
            sim.sleep(RETRY).await;
            vault.wake.notify_one();
        }
    }
}
