//! This host as its parts publish it: composed when somebody looks, once for all who look at a time.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tanako_fleet::ProcessName;
use tanako_proto::fleet::v1 as wire;
use tokio::sync::{broadcast, watch};

use super::report::{self, Office, Report};
use crate::{
    clock::now_ms,
    coordinator::Operations,
    desired::Desired,
    health,
    history::History,
    metrics::Sample,
    office::{Front, Standing},
    service::view::Inputs,
    supervisor::Table,
    worker::States,
};

/// Events that wait to be told; in a flood the oldest are left to `Events`.
const EVENTS_MAX: usize = 256;

/// Where it is read.
#[derive(Clone)]
pub struct Parts {
    /// Name of this host.
    pub host: String,
    /// Whether the fleet has more hosts: then it is well that another agent decides.
    pub shared: bool,
    /// When the agent started, in milliseconds since 1970.
    pub started_at: i64,
    /// Who decides, and what.
    pub front: Front,
    /// The processes.
    pub table: watch::Receiver<Arc<Table>>,
    /// Their reports.
    pub workers: watch::Receiver<Arc<States>>,
    /// What they use.
    pub sample: watch::Receiver<Arc<Sample>>,
    /// Their budget.
    pub identify: watch::Receiver<Arc<wire::IdentifyStatus>>,
    /// What is thought of their shards.
    pub health: watch::Receiver<Arc<health::View>>,
    /// What happens.
    pub history: History,
}

/// How a host is composed, after its moment before.
type Compose = Box<dyn Fn(Option<&Report>) -> Report + Send + Sync>;

/// The latest report.
pub struct Board {
    host: String,
    compose: Compose,
    signals: Box<dyn Fn() -> Signals + Send + Sync>,
    latest: Mutex<Option<(Instant, Arc<Report>)>>,
}

impl Board {
    /// Of the agent with these parts.
    pub fn new(parts: Parts) -> Self {
        let (host, signals) = (parts.host.clone(), parts.clone());
        Self {
            host,
            compose: Box::new(move |before| parts.compose(before)),
            signals: Box::new(move || signals.signals()),
            latest: Mutex::new(None),
        }
    }

    /// Of a host that is composed by something else, and never tells that there is something new:
    /// whoever looks finds it.
    pub fn of(
        host: &str,
        compose: impl Fn(Option<&Report>) -> Report + Send + Sync + 'static,
    ) -> Self {
        Self {
            host: host.to_owned(),
            compose: Box::new(compose),
            signals: Box::new(|| Signals {
                sources: None,
                pending: Vec::new(),
            }),
            latest: Mutex::new(None),
        }
    }

    /// Name of this host.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// A report that is no older than `age_max`.
    pub fn report(&self, age_max: Duration) -> Arc<Report> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, report)) = &*latest
            && !age_max.is_zero()
            && at.elapsed() < age_max
        {
            return report.clone();
        }
        let before = latest.as_ref().map(|(_, report)| &**report);
        let report = Arc::new((self.compose)(before));
        *latest = Some((Instant::now(), report.clone()));
        report
    }

    /// What tells that there is something new.
    pub fn signals(&self) -> Signals {
        (self.signals)()
    }
}

impl Parts {
    fn compose(&self, before: Option<&Report>) -> Report {
        let parts = self;
        let desired = parts.front.watch_desired().borrow().clone();
        let operations = parts.front.watch_operations().borrow().clone();
        let standing = parts.front.standing().borrow().clone();
        let table = parts.table.borrow().clone();
        let workers = parts.workers.borrow().clone();
        let sample = parts.sample.borrow().clone();
        let identify = parts.identify.borrow().clone();
        let health = parts.health.borrow().clone();
        let losses = parts.front.watch_losses().borrow().clone();
        let holds = matches!(standing, Standing::Holding { .. });
        let well = parts.shared && matches!(standing, Standing::Waiting { .. });
        let inputs = Inputs {
            host: &parts.host,
            now: now_ms(),
            started_at: parts.started_at,
            desired: &desired,
            table: &table,
            workers: &workers,
            sample: &sample,
            identify: &identify,
            operations: &operations,
            health: &health,
            asks: &losses.asks,
            standing: standing.reason().filter(|_| !well),
        };
        // What other hosts have is theirs to tell.
        let exists = |name: &ProcessName| parts.shared || table.contains_key(name);
        // One machine shows what it knows of the fleet whether it decides or not: nobody else can.
        let office = (holds || !parts.shared).then(|| Office {
            epoch: parts.front.epoch(),
            exists: &exists,
        });
        report::compose(before, &inputs, office.as_ref())
    }

    fn signals(&self) -> Signals {
        Signals {
            sources: Some(Sources {
                table: self.table.clone(),
                operations: self.front.watch_operations(),
                desired: self.front.watch_desired(),
                standing: self.front.standing(),
                sample: self.sample.clone(),
                events: self.history.subscribe(),
            }),
            pending: Vec::new(),
        }
    }
}

/// What tells that there is something new.
pub struct Signals {
    sources: Option<Sources>,
    pending: Vec<wire::Event>,
}

struct Sources {
    table: watch::Receiver<Arc<Table>>,
    operations: watch::Receiver<Arc<Operations>>,
    desired: watch::Receiver<Arc<Desired>>,
    standing: watch::Receiver<Standing>,
    sample: watch::Receiver<Arc<Sample>>,
    events: broadcast::Receiver<wire::Event>,
}

/// The agent is on its way out.
#[derive(Debug)]
pub struct Ended;

impl Signals {
    /// Waits for something new; whether a reader wants it at once. Safe to drop half-way.
    pub async fn wait(&mut self) -> Result<bool, Ended> {
        let Some(sources) = &mut self.sources else {
            return std::future::pending().await;
        };
        let at_once = tokio::select! {
            changed = sources.table.changed() => changed.map(|()| true),
            changed = sources.operations.changed() => changed.map(|()| true),
            changed = sources.desired.changed() => changed.map(|()| true),
            changed = sources.standing.changed() => changed.map(|()| true),
            changed = sources.sample.changed() => changed.map(|()| false),
            event = sources.events.recv() => match event {
                Ok(event) => {
                    self.pending.push(event);
                    Ok(true)
                }
                Err(broadcast::error::RecvError::Lagged(_)) => Ok(true),
                Err(broadcast::error::RecvError::Closed) => return Err(Ended),
            },
        };
        at_once.map_err(|_| Ended)
    }

    /// The events since the last call.
    pub fn events(&mut self) -> Vec<wire::Event> {
        while let Some(sources) = &mut self.sources {
            match sources.events.try_recv() {
                Ok(event) => self.pending.push(event),
                Err(broadcast::error::TryRecvError::Lagged(_)) => {}
                Err(_) => break,
            }
        }
        let mut events = std::mem::take(&mut self.pending);
        let spare = events.len().saturating_sub(EVENTS_MAX);
        events.drain(..spare);
        events
    }
}
