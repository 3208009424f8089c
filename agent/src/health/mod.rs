//! The health of this host's shards: feeds the judge ([`tanako_fleet::health`]) with what the workers
//! report, carries out what it decides, and publishes what it thinks.
//!
//! One task (`task`) owns the judge. It selects over a second's tick, the outcomes of what it has
//! asked for, and cancellation. A RESUME or an IDENTIFY is a command to the worker, a new process is
//! the supervisor's; each is an event of the history and a record of the audit log. Beside that it
//! asks the store every few seconds whether it answers.
//!
//! - `observe`: from what the agent publishes to what the judge reads; pure.

mod observe;
mod task;

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::BoxFuture;
use tanako_fleet::{
    ProcessName,
    health::{Step, Verdict},
};
use tanako_proto::fleet::v1::IdentifyStatus;
use tanako_store::Store;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    audit::Record, coordinator::Operations, desired::Desired, history::History,
    supervisor::Supervisor, worker::Workers,
};

/// Takes a record for the audit log. What the store does not take is lost; the event remains.
pub type AuditSink = Arc<dyn Fn(Record) -> BoxFuture<'static, ()> + Send + Sync>;

/// What the task needs of the rest of the agent.
#[derive(Clone)]
pub struct Parts {
    /// The processes.
    pub supervisor: Supervisor,
    /// Their reports, and the way to give them commands.
    pub workers: Workers,
    /// The budget.
    pub identify: watch::Receiver<Arc<IdentifyStatus>>,
    /// What is being done, and to whom.
    pub operations: watch::Receiver<Arc<Operations>>,
    /// What the spec says.
    pub desired: watch::Receiver<Arc<Desired>>,
    /// The store, to see whether it answers.
    pub store: Arc<dyn Store>,
    /// Where events go.
    pub history: History,
    /// Where records go.
    pub audit: AuditSink,
}

/// A bot whose brake is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storm {
    /// The bot.
    pub bot: String,
    /// Its shards in trouble.
    pub troubled: u32,
    /// Its shards.
    pub total: u32,
}

/// What is thought of everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    /// Shards by process and number.
    pub shards: BTreeMap<ProcessName, BTreeMap<u32, Verdict>>,
    /// Bots whose brake is on.
    pub storms: Vec<Storm>,
    /// What was done since the agent started, by step.
    pub actions: BTreeMap<&'static str, u64>,
    /// Whether the store answers; `None` = not asked yet.
    pub store_answers: Option<bool>,
}

impl View {
    /// What is thought of a shard.
    pub fn of(&self, process: &ProcessName, shard: u32) -> Option<&Verdict> {
        self.shards.get(process)?.get(&shard)
    }
}

/// A handle on the judge; clones are cheap.
#[derive(Debug, Clone)]
pub struct Health {
    view: watch::Receiver<Arc<View>>,
}

impl Health {
    /// Starts the task.
    pub fn start(parts: Parts, cancel: CancellationToken, tracker: &TaskTracker) -> Self {
        let view = View {
            actions: [Step::Resume, Step::Identify, Step::Respawn]
                .map(|step| (step.as_str(), 0))
                .into(),
            ..View::default()
        };
        let (publish, view) = watch::channel(Arc::new(view));
        tracker.spawn(task::Task::new(parts, publish, tracker.clone()).run(cancel));
        Self { view }
    }

    /// What is thought of everything, as a value that changes once a second.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }
}
