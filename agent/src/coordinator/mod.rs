//! The planner of the fleet: accepts operations, carries them forward, keeps desired and observed
//! state together.
//!
//! One task (`task`) owns the operations, the desired state and the audit log, so that requests are
//! decided one after the other. It selects over requests, the supervisor's table, the reports of
//! backup jobs, one deadline and cancellation.
//!
//! - [`planning`]: from a request and what is to the steps; pure.
//! - `draft`, `rollouts`, `reshards`: what a request must satisfy before it becomes an operation.
//! - `leveling`, `marks`: cordons, drains and rebalances; what the operator decides about hosts.
//! - `submit`: how it becomes one.
//! - `places`: which host has which process; makes hosts agree with what is wanted of them.
//! - `failover`: what lost hosts had goes to others.
//! - `carry`, `orders`, `books`: carries operations forward, gives orders, keeps receipts.
//! - `advice`: what the fleet should have, and does by itself within bounds.
//! - [`schedule`]: when the daily backup is due; pure.

mod advice;
mod carry;
mod draft;
mod failover;
mod jobs;
mod leveling;
mod marks;
mod orders;
mod places;
pub mod planning;
mod reshards;
mod rollouts;
pub mod schedule;
mod submit;
mod task;

use std::{collections::BTreeMap, sync::Arc};

pub use reshards::proposals;
use tanako_fleet::{ProcessName, access::Role};
use tanako_proto::fleet::v1::{self as wire, Problem};
use tanako_store::Store;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    audit::{Audit, Record},
    desired::{Desired, DesiredError},
    history::History,
    hosts::{Dial, Hosts, Local, assigned::Stored},
    identify::Broker,
    operations::{Kind, duties, ledger},
    problem,
    registry::Registry,
    tenure::{Tenure, failover::Losses},
    worker::duties::Assignment,
};

/// What operations on archives hold, besides database nodes.
pub const ARCHIVES: &str = "backups";
/// Requests that wait; more are refused by making the caller wait.
const COMMANDS_MAX: usize = 64;
/// Ended operations that status shows.
pub const RECENT_MAX: usize = 10;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// `uid 0 (root)`.
    pub who: String,
    /// `unix socket, pid 4711`.
    pub from: String,
    /// What they may do.
    pub role: Role,
}

impl Caller {
    /// The agent itself.
    pub fn agent(who: &str) -> Self {
        Self {
            who: who.to_owned(),
            from: "agent".to_owned(),
            role: Role::Agent,
        }
    }
}

type Answer<T> = oneshot::Sender<Result<T, Problem>>;

enum Command {
    Submit(wire::OperationRequest, Caller, Answer<wire::Operation>),
    Apply(wire::ApplyRequest, Caller, Answer<wire::Operation>),
    Plan(wire::PlanRequest, Answer<wire::PlanReply>),
    Control(wire::ControlRequest, Caller, Answer<wire::Operation>),
    Relocate(
        Kind,
        String,
        Vec<planning::Relocation>,
        Caller,
        Answer<wire::Operation>,
    ),
    Advise(Answer<wire::Advice>),
    Audit(Record, Answer<()>),
}

/// The operations that run, and those that ended lately, newest last.
pub type Operations = Vec<Arc<wire::Operation>>;

/// The duties of workers as the stored operations have them: before the first of them says hello.
pub async fn duties(store: &dyn Store) -> Result<BTreeMap<String, Assignment>, DesiredError> {
    let loaded = ledger::load(store, 0).await?;
    Ok(loaded.active.iter().flat_map(duties::assignments).collect())
}

/// What the coordinator needs of the rest of the agent.
#[derive(Clone)]
pub struct Parts {
    /// The durable state.
    pub store: Arc<dyn Store>,
    /// This host: its processes, their reports and sessions.
    pub local: Local,
    /// All hosts.
    pub registry: Registry,
    /// The way to the others.
    pub dial: Arc<dyn Dial>,
    /// Whether this host owns what it runs.
    pub tenure: Tenure,
    /// The budget of IDENTIFYs.
    pub broker: Broker,
    /// What happened.
    pub history: History,
}

/// A handle on the coordinator; clones are cheap.
#[derive(Clone)]
pub struct Coordinator {
    commands: mpsc::Sender<Command>,
    operations: watch::Receiver<Arc<Operations>>,
    desired: watch::Receiver<Arc<Desired>>,
    losses: watch::Receiver<Losses>,
    hosts: Hosts,
    store: Arc<dyn Store>,
}

impl Coordinator {
    /// Reads what is stored, makes all hosts that answer agree with it, the others when they do, and
    /// goes on with the operations that were under way. `epoch` is the fencing revision of the office.
    pub async fn start(
        parts: Parts,
        desired: Desired,
        epoch: u64,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) -> Result<Self, DesiredError> {
        let (commands, commands_rx) = mpsc::channel(COMMANDS_MAX);
        let (operations_tx, operations) = watch::channel(Arc::default());
        let (desired_tx, desired_rx) = watch::channel(Arc::new(desired.clone()));
        let loaded = ledger::load(&*parts.store, RECENT_MAX).await?;
        let audit = Audit::load(&*parts.store).await?;
        let stored = Stored::load(&*parts.store).await?;
        let store = parts.store.clone();
        let hosts = Hosts::start(
            parts.local.clone(),
            epoch,
            parts.dial.clone(),
            parts.registry.clone(),
            stored.assignment.clone(),
            cancel.clone(),
            tracker,
        );
        let watchman = parts.tenure.is_bounded().then(|| {
            let parts = crate::tenure::failover::Parts {
                store: parts.store.clone(),
                registry: parts.registry.clone(),
                dial: parts.dial.clone(),
                tenure: parts.tenure.clone(),
                history: parts.history.clone(),
                share: tanako_fleet::failover::SHARE,
            };
            crate::tenure::failover::Watchman::start(parts, cancel.clone(), tracker)
        });
        let losses = match &watchman {
            Some(watchman) => watchman.losses(),
            None => watch::channel(Losses::default()).1,
        };
        let mut task = task::Task::new(
            task::Office {
                parts,
                hosts: hosts.clone(),
                epoch,
                watchman,
            },
            (desired, stored),
            audit,
            loaded,
            operations_tx,
            desired_tx,
            tracker.clone(),
        );
        task.settle_places().await?;
        tracker.spawn(task.run(commands_rx, cancel));
        Ok(Self {
            commands,
            operations,
            desired: desired_rx,
            losses,
            hosts,
            store,
        })
    }

    /// Starts an operation, or returns the one that the same request id has started.
    pub async fn submit(
        &self,
        request: wire::OperationRequest,
        caller: Caller,
    ) -> Result<wire::Operation, Problem> {
        self.ask(|answer| Command::Submit(request, caller, answer))
            .await
    }

    /// Makes a new spec the desired state, as an operation.
    pub async fn apply(
        &self,
        request: wire::ApplyRequest,
        caller: Caller,
    ) -> Result<wire::Operation, Problem> {
        self.ask(|answer| Command::Apply(request, caller, answer))
            .await
    }

    /// What a request would do and cost.
    pub async fn plan(&self, request: wire::PlanRequest) -> Result<wire::PlanReply, Problem> {
        self.ask(|answer| Command::Plan(request, answer)).await
    }

    /// Pauses, resumes or aborts an operation.
    pub async fn control(
        &self,
        request: wire::ControlRequest,
        caller: Caller,
    ) -> Result<wire::Operation, Problem> {
        self.ask(|answer| Command::Control(request, caller, answer))
            .await
    }

    /// Starts an operation that moves these processes, or returns the one that the same request id has
    /// started. Not for database nodes: their data is where it is.
    pub async fn relocate(
        &self,
        kind: Kind,
        request_id: String,
        relocations: Vec<planning::Relocation>,
        caller: Caller,
    ) -> Result<wire::Operation, Problem> {
        self.ask(|answer| Command::Relocate(kind, request_id, relocations, caller, answer))
            .await
    }

    /// What the fleet should have.
    pub async fn advise(&self) -> Result<wire::Advice, Problem> {
        self.ask(Command::Advise).await
    }

    /// Writes a record for a change that is made elsewhere.
    pub async fn audit(&self, record: Record) -> Result<(), Problem> {
        self.ask(|answer| Command::Audit(record, answer)).await
    }

    /// The operation of that id, however old.
    pub async fn operation(&self, id: &str) -> Result<wire::Operation, Problem> {
        if let Some(found) = self.operations.borrow().iter().find(|op| op.id == id) {
            return Ok((**found).clone());
        }
        ledger::by_id(&*self.store, id).await
    }

    /// The latest operations, newest first.
    pub async fn operations(&self, limit: usize) -> Result<Vec<wire::Operation>, Problem> {
        let stored = ledger::list(&*self.store, limit)
            .await
            .map_err(|error| problem::from_store(&error))?;
        // What runs is fresher here than on disk.
        let fresh = self.operations.borrow().clone();
        Ok(stored
            .iter()
            .map(|op| {
                let known = fresh.iter().find(|known| known.id == op.id);
                known.map_or_else(|| op.to_wire(), |known| (**known).clone())
            })
            .collect())
    }

    /// The operations that run or ended lately, as a value that changes.
    pub fn watch_operations(&self) -> watch::Receiver<Arc<Operations>> {
        self.operations.clone()
    }

    /// The desired state, as a value that changes.
    pub fn watch_desired(&self) -> watch::Receiver<Arc<Desired>> {
        self.desired.clone()
    }

    /// Which hosts are lost, as a value that changes.
    pub fn watch_losses(&self) -> watch::Receiver<Losses> {
        self.losses.clone()
    }

    /// The host that has a process.
    pub fn host_of(&self, process: &ProcessName) -> Option<String> {
        self.hosts.assignment().host_of(process).map(str::to_owned)
    }

    /// Whether its task lives.
    pub fn is_running(&self) -> bool {
        !self.commands.is_closed()
    }

    async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, Problem> {
        let (answer, reply) = oneshot::channel();
        self.commands
            .send(command(answer))
            .await
            .map_err(|_| problem::stopping())?;
        match reply.await {
            Ok(answer) => answer,
            Err(_) => Err(problem::stopping()),
        }
    }
}
