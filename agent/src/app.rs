//! Every task of the agent and the channels between them.
//!
//! ```text
//!                        tanakoctl                                 Prometheus
//!                            │ unix socket                             │
//!                       ┌────▼─────┐   watch: operations, desired  ┌───▼──┐
//!                       │ service  │◄──────────────────┐           │ http │
//!                       └────┬─────┘                   │           └───▲──┘
//!                  mpsc 64   │                   ┌─────┴───────┐       │ watch
//!                            └──────────────────►│ coordinator │◄── office: begins and ends its terms
//!   store: writer (thread) ◄── mpsc 1024 ────────┤  + jobs     │       │
//!          or etcd         ◄── gRPC              └──┬───────▲──┘       │
//!                                     mpsc 1024     │       │ watch: table
//!                                                ┌──▼───────┴──┐       │
//!   children ◄── spawn, signals, pidfds ─────────┤ supervisor  ├───────┤
//!                                                └──▲───────┬──┘       │
//!                                 worker input      │       │ broadcast: events
//!   workers ── unix socket ──► worker socket ───────┘       ▼          │
//!                                │      │              event pump ──► history (sled thread)
//!                                ▼      ▼                              ▲
//!            store ◄── copies ── vault  broker ──────────────────────────┤
//!                  workers, supervisor ◄── commands ── health, 1 Hz ─────┤
//!                              metrics sampler, 1 Hz ──────────────────┘
//! ```
//!
//! Stop order: the service accepts nothing more; the coordinator stops reconciling; the supervisor
//! lets go of the children; workers' last deposits are taken in and written down; the store closes.

mod first;
mod joints;
mod settings;
mod store;

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use serde::Serialize;
use tanako_fleet::spec;
use tanako_proto::{
    fleet::v1::fleet_server::FleetServer, host::v1::host_server::HostServer,
    identity::v1::identity_server::IdentityServer,
};
use tanako_store::Store;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use crate::{
    broadcast::Broadcast,
    clock::now_ms,
    config::{Config, StoreConfig},
    coordinator::Parts,
    health::{self, Health},
    history::{self, History, Severity},
    hosts::{self, Dial, Gate, Local, feed::Feed, service::HostService},
    http,
    hub::{
        self, Hub,
        board::{self, Board},
        shards::Others,
    },
    identify::{self, Broker, Counter, Through},
    identity::{
        self, Guards,
        network::{Bound, Trust},
    },
    metrics::Metrics,
    migrate::valve::Valve,
    office::{self, Seat, Wanted},
    peers::Peers,
    registry::Registry,
    service::{
        self, Service, Upgrades,
        admission::{Admission, Owners},
        listen, socket,
    },
    supervisor::Supervisor,
    tenure::{self, Answering},
    upgrade::Origin,
    vault::{self, Vault},
    worker::{self, Workers},
};

use first::first_decision;
use joints::{audit_sink, duties, living, operation_counts, pump, release_strangers, vault_status};
pub use settings::private_dir;
use settings::{office_settings, registry, supervisor_config, tenure};
use store::{Opened, store_name};

/// How often workers report.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How long each stage of the stop may take before the next begins.
const STOP_STAGE: Duration = Duration::from_secs(5);

/// A group of tasks that stop together.
struct Stage {
    name: &'static str,
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl Stage {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            cancel: CancellationToken::new(),
            tracker: TaskTracker::new(),
        }
    }

    async fn stop(&self) {
        self.cancel.cancel();
        self.tracker.close();
        if tokio::time::timeout(STOP_STAGE, self.tracker.wait())
            .await
            .is_err()
        {
            tracing::warn!(stage = self.name, "tasks did not stop in time");
        }
    }
}

/// The running agent.
pub struct App {
    accepting: Stage,
    coordinating: Stage,
    supervising: Stage,
    keeping: Stage,
    supervisor: Supervisor,
    store: Opened,
    history: History,
    registry: Registry,
    peers: Peers,
    config: Arc<Config>,
    http: SocketAddr,
    listen: Option<SocketAddr>,
}

/// What the info file says.
#[derive(Debug, Serialize)]
struct Info<'a> {
    pid: u32,
    socket: &'a Path,
    worker_socket: &'a Path,
    http: String,
    /// Where others reach this agent over TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<SocketAddr>,
    version: &'a str,
    data_dir: &'a Path,
    host: &'a str,
}

impl App {
    /// Starts everything, in the order in which one needs the other. The caller holds the lock.
    pub async fn start(
        config: Config,
        origin: &Origin,
        upgrades: Upgrades,
    ) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        let started_at = now_ms();
        let (accepting, coordinating, supervising, keeping) = (
            Stage::new("service"),
            Stage::new("coordinator"),
            Stage::new("supervisor"),
            Stage::new("keepers"),
        );
        private_dir(&config.run_dir, config.group_access)?;
        let network = Bound::open(&config).await?;

        let store = Opened::open(&config).await?;
        let valve = match &store {
            Opened::Embedded(_) => Some(Valve::new(store.store())),
            Opened::Etcd(_) => None,
        };
        let shared = valve
            .clone()
            .map_or_else(|| store.store(), |valve| Arc::new(valve) as Arc<dyn Store>);
        let seat = Seat::new();
        let history = History::start(
            history::Config {
                directory: config.data_dir.join("history"),
                host: config.host.clone(),
            },
            keeping.cancel.clone(),
            &keeping.tracker,
        );
        let vault = Vault::start(
            config.data_dir.join("vault"),
            history.clone(),
            keeping.cancel.clone(),
            &keeping.tracker,
        )
        .await?;
        let tenure = tenure(&config);
        vault.copy_to(
            tenure.fence(shared.clone()),
            match &config.store {
                StoreConfig::Embedded => vault::Pace::lone(),
                StoreConfig::Etcd { .. } => vault::Pace::fleet(),
            },
            keeping.cancel.clone(),
            &keeping.tracker,
        );
        let broker = Broker::start(
            identify::Config {
                store: seat.authorize(shared.clone()),
                identity: format!("{} {}", config.host, config.data_dir.display()),
            },
            history.clone(),
            keeping.cancel.clone(),
            &keeping.tracker,
        )
        .await;
        let bound = http::bind(config.http).await?;
        let registry = registry(
            &config,
            bound.address,
            network.as_ref(),
            shared.clone(),
            &keeping,
        );
        let credentials = network.as_ref().map(|network| network.credentials.clone());
        let guards = Guards::start(
            credentials.as_ref(),
            shared.clone(),
            &config.host,
            &history,
            &keeping.cancel,
            &keeping.tracker,
        );
        let peers = Peers::new(credentials, registry.watch());
        let queue_key = config.data_dir.join("identify-queue.key");
        let queue_addresses = http::Addresses::open(bound.address, &queue_key)
            .with_context(|| format!("the key {} cannot be used", queue_key.display()))?;
        broker.set_queue(queue_addresses.clone());
        let places = spec::Places {
            data_dir: config.data_dir.to_string_lossy().into_owned(),
        };
        let supervisor = Supervisor::start(
            supervisor_config(&config),
            Arc::new(tenure::Gate::new(Arc::new(broker.clone()), tenure.clone())),
            supervising.cancel.clone(),
            &supervising.tracker,
        )?;
        if config.store != StoreConfig::Embedded {
            release_strangers(&config.host, &*shared, &supervisor).await;
        }
        supervising.tracker.spawn(pump(
            supervisor.events(),
            history.clone(),
            supervising.cancel.clone(),
        ));
        let metrics = Metrics::start(
            config.data_dir.clone(),
            supervisor.status(),
            supervising.cancel.clone(),
            &supervising.tracker,
        );
        let workers = Workers::start(
            worker::Config {
                socket: config.worker_socket(),
                group: config.group_access,
                report_interval: REPORT_INTERVAL,
                duties: duties(&config, &*shared).await?,
                tenure: tenure.clone(),
            },
            Arc::new(supervisor.clone()),
            broker.clone(),
            vault.clone(),
            supervising.cancel.clone(),
            &supervising.tracker,
        )
        .await?;

        let dial: Arc<dyn Dial> = match config.network {
            Some(_) => Arc::new(peers.clone()),
            None => Arc::new(hosts::Nobody),
        };
        tenure.start(
            tenure::Parts {
                store: shared.clone(),
                registry: registry.clone(),
                dial: dial.clone(),
                supervisor: supervisor.clone(),
                vault: vault.clone(),
                history: history.clone(),
            },
            keeping.cancel.clone(),
            &keeping.tracker,
        );
        history.follow(
            history::Feeds {
                sample: metrics.latest(),
                workers: workers.states(),
                table: supervisor.status(),
            },
            supervising.cancel.clone(),
            &supervising.tracker,
        );

        let local = Local {
            host: config.host.as_str().into(),
            supervisor: supervisor.clone(),
            workers: workers.clone(),
            vault: vault.clone(),
            sample: metrics.latest(),
            gate: Gate::open(&config.data_dir, &store_name(&config.store), tenure.clone()),
        };
        let through = matches!(store, Opened::Etcd(_)).then(|| {
            let dial = dial.clone();
            let through = Through::new(
                config.host.clone(),
                Arc::new(move |host: String| {
                    let dial = dial.clone();
                    Box::pin(async move { dial.channel(&host).await })
                }),
            );
            broker.set_upstream(
                through.clone(),
                supervising.cancel.clone(),
                &supervising.tracker,
            );
            through
        });
        let coordinator = seat.start(
            office_settings(&config),
            Parts {
                store: shared.clone(),
                local: local.clone(),
                registry: registry.clone(),
                dial: dial.clone(),
                tenure: tenure.clone(),
                broker: broker.clone(),
                history: history.clone(),
            },
            places,
            coordinating.cancel.clone(),
            &coordinating.tracker,
        );
        if let Some(through) = &through {
            through.follow(
                coordinator.standing(),
                supervising.cancel.clone(),
                &supervising.tracker,
            );
        }
        if let (Opened::Etcd(etcd), StoreConfig::Etcd(settings)) = (&store, &config.store)
            && let Some(keep) = settings.history
        {
            office::keep_history(
                etcd.clone(),
                &coordinator,
                keep,
                coordinating.cancel.clone(),
                &coordinating.tracker,
            );
        }
        first_decision(&config, &coordinator, &coordinating).await?;

        let broadcast = Broadcast::new(
            config.host.clone(),
            workers.clone(),
            supervisor.status(),
            coordinator.watch_desired(),
        );
        workers.set_broadcast(broadcast.clone());
        let health = Health::start(
            health::Parts {
                supervisor: supervisor.clone(),
                workers: workers.clone(),
                identify: broker.status(),
                operations: coordinator.watch_operations(),
                desired: coordinator.watch_desired(),
                store: shared.clone(),
                history: history.clone(),
                audit: audit_sink(coordinator.clone()),
            },
            coordinating.cancel.clone(),
            &coordinating.tracker,
        );

        let board = Arc::new(Board::new(board::Parts {
            host: config.host.clone(),
            shared: config.network.is_some(),
            started_at,
            front: coordinator.clone(),
            table: supervisor.status(),
            workers: workers.states(),
            sample: metrics.latest(),
            identify: broker.status(),
            health: health.view(),
            history: history.clone(),
        }));
        let hub = Hub::start(
            board.clone(),
            config.network.as_ref().map(|_| dial),
            hub::known::of_registry(&registry, &accepting.cancel, &accepting.tracker),
            accepting.cancel.clone(),
            &accepting.tracker,
        );
        let wanted = Wanted::new(coordinator.clone(), shared.clone(), &config.data_dir);
        broadcast.set_elsewhere(Arc::new(Others::new(hub.clone(), wanted.clone())));
        let queue = http::Queue::new(queue_addresses, broker.clone(), supervisor.status());
        let http = http::serve(
            bound,
            http::Sources {
                sample: metrics.latest(),
                workers: workers.states(),
                table: supervisor.status(),
                identify: broker.status(),
                identify_wait: broker.latency(),
                worker_message: workers.latency(),
                operations: Some(operation_counts(coordinator.clone())),
                health: living(coordinator.clone()),
                shards: health.view(),
                vault: vault_status(vault.clone()),
                registry: registry.clone(),
                tenure: tenure.clone(),
                hub: hub.figures(),
                version: env!("CARGO_PKG_VERSION"),
            },
            Some(queue),
            accepting.cancel.clone(),
            &accepting.tracker,
        );
        let places = joints::places(coordinator.clone());
        let sources = crate::service::Sources {
            config: config.clone(),
            http,
            started_at,
            store: shared,
            coordinator,
            supervisor: supervisor.clone(),
            workers,
            vault,
            broker: broker.clone(),
            metrics,
            health,
            history: history.clone(),
            broadcast: broadcast.clone(),
            valve,
            hub,
            wanted,
        };
        let socket = socket::bind(&config.agent_socket(), config.group_access)?;
        let service = Service::new(
            sources,
            upgrades,
            accepting.cancel.clone(),
            accepting.tracker.clone(),
        );
        let fleet = FleetServer::new(service).max_decoding_message_size(service::REQUEST_BYTES_MAX);
        let mut routes = Routes::new(fleet);
        if config.network.is_some() {
            let (cancel, tracker) = (&accepting.cancel, &accepting.tracker);
            let feed = Feed::start(local.clone(), cancel.clone(), tracker);
            let tenures = Answering {
                tenure: tenure.clone(),
                registry: registry.clone(),
                store: store.store(),
            };
            let refusals = guards.refusals.clone();
            let mut host = HostService::new(
                local,
                feed,
                tenures,
                refusals,
                cancel.clone(),
                tracker.clone(),
            );
            if let Some(through) = &through {
                let way = through.clone();
                let counter = Counter::open(broker.clone(), way, places, cancel.clone(), tracker);
                host = host.answering(counter, broadcast.clone());
            }
            let host = host.showing(board);
            routes = routes.add_service(
                HostServer::new(host)
                    .max_decoding_message_size(hosts::MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(hosts::MESSAGE_BYTES_MAX),
            );
        }
        if let Some(network) = &network {
            let identities = network.identities(
                Trust {
                    guards: guards.clone(),
                    peers: peers.clone(),
                    registry: registry.clone(),
                    store: store.store(),
                    history: history.clone(),
                },
                &keeping.cancel,
                &keeping.tracker,
            );
            routes = routes.add_service(
                IdentityServer::new(identities)
                    .max_decoding_message_size(identity::service::REQUEST_BYTES_MAX),
            );
        }
        let admission = Admission::new(guards.clone(), Owners::new(config.group_access));
        socket::serve(
            socket,
            routes.clone(),
            admission.clone(),
            accepting.cancel.clone(),
            &accepting.tracker,
        );
        let listen = network.as_ref().map(|network| network.address);
        if let Some(network) = network {
            listen::serve(
                listen::Parts {
                    listener: network.listener,
                    routes,
                    admission,
                    credentials: network.credentials,
                    guards,
                    limits: listen::Limits::default(),
                },
                accepting.cancel.clone(),
                &accepting.tracker,
            );
        }
        let app = Self {
            accepting,
            coordinating,
            supervising,
            keeping,
            supervisor,
            store,
            history,
            registry,
            peers,
            config,
            http,
            listen,
        };
        app.tell_origin(origin);
        app.write_info()?;
        Ok(app)
    }

    /// Where HTTP is served.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// What happens.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The hosts of the fleet.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The ways to other agents.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Stops the agent; the children go on.
    pub async fn stop(self) {
        self.history.event(
            Severity::Info,
            "agent-stopping",
            "agent",
            "the processes go on",
        );
        self.accepting.stop().await;
        self.coordinating.stop().await;
        if let Err(error) = self.supervisor.detach().await {
            tracing::warn!(%error, "the supervisor had stopped already");
        }
        self.supervising.stop().await;
        self.keeping.stop().await;
        self.store.close().await;
        for path in [self.config.agent_socket(), self.config.worker_socket()] {
            let _ = std::fs::remove_file(path);
        }
    }

    fn tell_origin(&self, origin: &Origin) {
        let version = env!("CARGO_PKG_VERSION");
        let (severity, kind, message) = match origin {
            Origin::Fresh => (
                Severity::Info,
                "agent-started",
                format!("version {version}"),
            ),
            Origin::Upgraded { from } => (
                Severity::Info,
                "agent-upgraded",
                format!("from {from} to {version}, in place"),
            ),
            Origin::Failed { reason } => (
                Severity::Error,
                "upgrade-failed",
                format!("goes on in version {version}: {reason}"),
            ),
        };
        self.history.event(severity, kind, "agent", message);
    }

    fn write_info(&self) -> anyhow::Result<()> {
        let Some(path) = &self.config.info_file else {
            return Ok(());
        };
        let info = Info {
            pid: std::process::id(),
            socket: &self.config.agent_socket(),
            worker_socket: &self.config.worker_socket(),
            http: format!("http://{}", self.http),
            listen: self.listen,
            version: env!("CARGO_PKG_VERSION"),
            data_dir: &self.config.data_dir,
            host: &self.config.host,
        };
        let text = serde_json::to_string_pretty(&info).context("the info file")?;
        let new = path.with_extension("new");
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, path))
            .with_context(|| format!("the info file {} cannot be written", path.display()))
    }
}
