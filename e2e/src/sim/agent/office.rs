//! The office of the coordinator, as `agent/src/office` has it: an election in the store, terms that are
//! fenced by it, and orders to the host that carry its epoch.
//!
//! In some runs the host's own agent decides, and dies with its office. In others two agents elsewhere
//! seek the office: what they see of the host is a little old, their orders are under way for a while, and
//! one that was stopped goes on with orders that are no longer its own to give.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use tanako_agent::{operations::Operation, supervisor::Table, worker::States};
use tanako_store::{Condition, Outcome, StoreError, Txn};
use tokio::sync::{Notify, mpsc};

use super::{
    super::{
        executor::{Group, WORLD},
        store::SimStore,
        trace::trace,
        world::Sim,
    },
    Agent,
    coordinator::{self, Command},
};

/// Key of the office.
pub const KEY: &str = "coordinator";
/// Life of the lease of an office elsewhere, in milliseconds.
const TTL: u64 = 5_000;
/// It is renewed this often, in milliseconds.
const RENEW: u64 = 1_000;
/// One that seeks the office looks this often, in milliseconds.
const SEEK: u64 = 300;
/// An order that cannot be delivered is given up after so long, in milliseconds.
const DELIVER_WITHIN: u64 = 30_000;
/// The view of the host is waited for this long, in milliseconds.
const FOLLOW_WITHIN: u64 = 5_000;
/// What a host has done is in its table this much later, in milliseconds.
const PUBLISHED: u64 = 45;

/// One who decides, or would like to.
pub struct Office {
    /// Names it.
    pub number: u64,
    /// Its tasks.
    pub group: Group,
    /// Elsewhere, or on the host itself.
    pub remote: bool,
    /// Fencing revision of its latest election.
    pub epoch: Cell<u64>,
    /// To its coordinator.
    pub commands: mpsc::UnboundedSender<Command>,
    /// What it is at work on, for whoever looks.
    pub active: RefCell<Vec<Operation>>,
    /// Whether a term is under way.
    pub serving: Cell<bool>,
    /// Its lease lasts until then, as it knows.
    lease_until: Cell<u64>,
    view: RefCell<View>,
    followed: Notify,
}

/// What is known of the host.
#[derive(Clone, Default)]
pub struct View {
    /// Its processes.
    pub table: Arc<Table>,
    /// Its workers.
    pub workers: Rc<States>,
    /// The agent's life, and when it was looked at.
    pub life: u64,
    at: u64,
}

/// The lease of the office elsewhere, as the store has it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lease {
    epoch: u64,
    until: u64,
}

impl Office {
    fn new(
        sim: &Sim,
        number: u64,
        group: Group,
        remote: bool,
    ) -> (Rc<Self>, mpsc::UnboundedReceiver<Command>) {
        let (commands, inbox) = mpsc::unbounded_channel();
        let office = Rc::new(Self {
            number,
            group,
            remote,
            epoch: Cell::new(0),
            commands,
            active: RefCell::default(),
            serving: Cell::new(false),
            lease_until: Cell::new(0),
            view: RefCell::default(),
            followed: Notify::new(),
        });
        trace!(sim, [number], "office: {number} begins");
        (office, inbox)
    }

    /// The coordinator of the host's own agent: it ends the office of the life before, whose owner is gone.
    pub async fn local(sim: Sim, agent: Rc<Agent>) {
        let (office, mut inbox) = Self::new(&sim, agent.life, agent.group, false);
        loop {
            sim.sleep(sim.draw(0..=20)).await;
            let elected = async {
                let own = format!("life {}", agent.life);
                let known = tanako_store::Store::get(&*sim.store, KEY).await?;
                let mut txn = Txn::new();
                if let Some(known) = &known {
                    txn = txn.if_unchanged(KEY, known.mod_revision).delete(KEY);
                    SimStore::commit_in(&sim, txn).await?;
                }
                SimStore::commit_in(&sim, Txn::new().if_absent(KEY).put(KEY, own)).await
            };
            match elected.await {
                Ok(Outcome::Committed { revision }) => {
                    office.epoch.set(revision);
                    office.lease_until.set(u64::MAX);
                    let now = Rc::clone(&office);
                    *sim.office.borrow_mut() = Some(now);
                    coordinator::terms(&sim, &office, &mut inbox).await;
                }
                Ok(Outcome::Conflict { .. }) | Err(_) => sim.sleep(500).await,
            }
        }
    }

    /// One of two agents elsewhere that seek the office.
    pub fn candidate(sim: &Sim, number: u64) {
        let group = sim.executor.group();
        let (office, inbox) = Self::new(sim, number, group, true);
        sim.candidates.borrow_mut().push(Rc::clone(&office));
        sim.spawn(group, follow(sim.clone(), Rc::clone(&office)));
        sim.spawn(group, campaign(sim.clone(), office, inbox));
    }

    /// kill -9.
    pub fn kill(sim: &Sim, office: &Rc<Self>) {
        trace!(sim, [office.number], "office: {} is killed", office.number);
        sim.executor.kill(office.group);
        sim.candidates
            .borrow_mut()
            .retain(|other| other.number != office.number);
        let mut serves = sim.office.borrow_mut();
        if serves
            .as_ref()
            .is_some_and(|now| now.number == office.number)
        {
            *serves = None;
        }
    }

    /// Whether it may still act, as far as it knows.
    pub fn is_held(&self, sim: &Sim) -> bool {
        sim.now() < self.lease_until.get()
    }

    /// Commits, if the office is still its own.
    pub async fn commit(&self, sim: &Sim, txn: Txn) -> Result<Outcome, StoreError> {
        let fencing = self.epoch.get();
        let txn = txn.when(KEY.to_owned(), Condition::CreateRevision(fencing));
        let outcome = SimStore::commit_in(sim, txn).await?;
        if let Outcome::Conflict { .. } = outcome {
            let office = tanako_store::Store::get(&*sim.store, KEY).await?;
            if office.is_none_or(|office| office.create_revision != fencing) {
                trace!(sim, [self.number], "office: {} is fenced", self.number);
                self.lease_until.set(0);
                return Err(StoreError::Fenced {
                    key: KEY.to_owned(),
                });
            }
        }
        Ok(outcome)
    }

    /// What is known of the host now.
    pub fn view(&self, sim: &Sim) -> View {
        if self.remote {
            return self.view.borrow().clone();
        }
        let agent = sim.agent.borrow().clone();
        agent.map_or_else(View::default, |agent| look(sim, &agent))
    }

    /// Gives the host an order: it arrives after a while, as often as it takes, unless the host refuses it.
    /// What it brought about is in the view when this returns.
    pub async fn order<T, F: Future<Output = Result<T, String>>>(
        &self,
        sim: &Sim,
        act: impl Fn(Rc<Agent>) -> F,
    ) -> Result<T, String> {
        let deadline = sim.now() + DELIVER_WITHIN;
        let result = loop {
            sim.sleep(self.way(sim)).await;
            let agent = sim.agent.borrow().clone();
            let Some(agent) = agent.filter(|agent| agent.serving.get()) else {
                if !self.remote || sim.now() >= deadline {
                    break Err("the host does not answer".to_owned());
                }
                sim.sleep(500).await;
                continue;
            };
            Agent::admit(sim, self.epoch.get())?;
            let life = agent.life;
            let done = act(agent).await;
            let lives = |agent: &Rc<Agent>| agent.life == life;
            let answers = sim.agent.borrow().as_ref().is_some_and(lives);
            if answers || !self.remote || sim.now() >= deadline {
                break done;
            }
            // The call broke: it may have been carried out, and is made again.
        };
        if self.remote {
            sim.sleep(self.way(sim)).await;
            let wanted = sim.now() + PUBLISHED;
            let deadline = sim.now() + FOLLOW_WITHIN;
            while self.view.borrow().at < wanted && sim.now() < deadline {
                tokio::select! {
                    biased;
                    () = self.followed.notified() => {}
                    () = sim.sleep_until(deadline) => {}
                }
            }
        }
        result
    }

    /// How long a message to the host or back is under way.
    fn way(&self, sim: &Sim) -> u64 {
        if !self.remote {
            return sim.draw(0..=1);
        }
        if sim.weather.borrow().slow_orders > sim.now() && sim.chance(300) {
            return sim.draw(100..=12_000);
        }
        sim.draw(1..=30)
    }
}

fn look(sim: &Sim, agent: &Rc<Agent>) -> View {
    View {
        table: agent.table.borrow().clone(),
        workers: agent.workers.states().borrow().clone(),
        life: agent.life,
        at: sim.now(),
    }
}

/// Nobody needs to look as often once faults and commands are over.
fn idle(sim: &Sim) -> u64 {
    if sim.is_busy() { 1 } else { 10 }
}

/// Looks at the host again and again.
async fn follow(sim: Sim, office: Rc<Office>) {
    loop {
        let active = !office.active.borrow().is_empty();
        sim.sleep(sim.draw(10..=120) * if active { 1 } else { idle(&sim) })
            .await;
        let agent = sim.agent.borrow().clone();
        let Some(agent) = agent.filter(|agent| agent.serving.get()) else {
            continue;
        };
        let seen = look(&sim, &agent);
        sim.sleep(office.way(&sim).min(200)).await;
        *office.view.borrow_mut() = seen;
        office.followed.notify_one();
    }
}

async fn campaign(sim: Sim, office: Rc<Office>, mut inbox: mpsc::UnboundedReceiver<Command>) {
    loop {
        sim.sleep(sim.draw(1..=SEEK) * idle(&sim)).await;
        let absent = tanako_store::Store::get(&*sim.store, KEY).await;
        if !matches!(absent, Ok(None)) || sim.weather.borrow().store_down > sim.now() {
            continue;
        }
        let asked_at = sim.now();
        let own = format!("office {}", office.number);
        let txn = Txn::new().if_absent(KEY).put(KEY, own);
        let outcome = SimStore::commit_in(&sim, txn).await;
        let Ok(Outcome::Committed { revision }) = outcome else {
            // The lease that it may have been put with ends by itself.
            let known = tanako_store::Store::get(&*sim.store, KEY).await;
            if let (Err(_), Ok(Some(known))) = (outcome, known)
                && sim.lease.get().epoch != known.create_revision
            {
                sim.lease.set(Lease {
                    epoch: known.create_revision,
                    until: asked_at + TTL,
                });
            }
            continue;
        };
        trace!(
            sim,
            [office.number, revision],
            "office: {} is elected, epoch {revision}",
            office.number
        );
        sim.lease.set(Lease {
            epoch: revision,
            until: asked_at + TTL,
        });
        office.epoch.set(revision);
        office.lease_until.set(asked_at + TTL);
        *sim.office.borrow_mut() = Some(Rc::clone(&office));
        tokio::select! {
            biased;
            () = keep(&sim, &office, revision) => {}
            () = coordinator::terms(&sim, &office, &mut inbox) => {}
        }
        office.serving.set(false);
        trace!(
            sim,
            [office.number],
            "office: {} has lost it",
            office.number
        );
    }
}

/// Keeps the lease alive; returns when it has surely or perhaps ended.
async fn keep(sim: &Sim, office: &Office, epoch: u64) {
    loop {
        sim.sleep(RENEW).await;
        let sent_at = sim.now();
        if sent_at >= office.lease_until.get() {
            return;
        }
        sim.sleep(sim.draw(0..=20)).await;
        if sim.weather.borrow().store_down > sim.now() {
            continue;
        }
        let lease = sim.lease.get();
        if lease.epoch != epoch || lease.until <= sim.now() {
            return;
        }
        let until = sent_at + TTL;
        sim.lease.set(Lease { epoch, until });
        office.lease_until.set(until);
    }
}

/// The store's side of the lease: the key goes with it.
pub async fn leases(sim: Sim) {
    loop {
        sim.sleep(200 * idle(&sim)).await;
        let lease = sim.lease.get();
        let down = sim.weather.borrow().store_down > sim.now();
        if lease.epoch > 0 && lease.until <= sim.now() && !down {
            vacate(&sim);
        }
    }
}

/// The office is vacant from now on, whatever its holder believes.
pub fn vacate(sim: &Sim) {
    trace!(sim, [sim.lease.get().epoch], "office: vacant");
    sim.lease.set(Lease::default());
    // It is there, or it is not.
    let _ = sim.store.apply(Txn::new().delete(KEY));
}

/// Two candidates, for as long as the run lasts.
pub async fn candidates(sim: Sim) {
    sim.spawn(WORLD, leases(sim.clone()));
    let mut number = 0;
    loop {
        while sim.candidates.borrow().len() < 2 {
            number += 1;
            Office::candidate(&sim, number);
        }
        sim.sleep(sim.draw(500..=4_000)).await;
    }
}
