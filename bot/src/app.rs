//! The life of the process. All tasks and their channels:
//!
//! | task | gets | gives |
//! |---|---|---|
//! | shard (one each) | gate events, finished handlers, orders | `status` (watch), `nudge` |
//! | handlers and look-ups (many) | an interaction | what became of it, to their shard |
//! | link (with an agent) | shard statuses, limits, `nudge`, `farewell`, `answers` | orders, `superseded` |
//! | answers that come later (few) | shard statuses | `answers` |
//! | limits | - | `limits` (watch) |
//! | database (one a node) | jobs | replies |
//! | activity, guild rows, registrar | `stop` | - |
//!
//! A start resumes first: the way to the gateway needs the agent's Welcome and nothing else. A stop takes no
//! more events, then lets handlers finish, deposits, closes resumably and flushes side by side.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tanako_proto::worker::v1::Welcome;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::agent::link::{self, LinkSetup, Order, ProcessView};
use crate::agent::report::{self, Binding};
use crate::agent::{Permits, channel};
use crate::backoff::Backoff;
use crate::commands::registrar;
use crate::config::Config;
use crate::database::Database;
use crate::identify::{Alone, Gate};
use crate::process::{Process, ProcessSetup};
use crate::questions::Fleet;
use crate::rest::{Limits, Rest};
use crate::services::Services;
use crate::shard::duty::{Duty, Terms};
use crate::shard::set::{SetSetup, ShardSet, until_all};
use crate::shard::task::{GatewayUrl, StoredSession};
use crate::shard::{ShardStatus, Stage};

/// Discord refuses this configuration; restarting does not help (sysexits' EX_CONFIG).
pub const EXIT_CONFIG: u8 = 78;
/// The last flush.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);
/// `/gateway/bot` is asked again this often, so that the agent knows what is left.
const LIMITS_EVERY: Duration = Duration::from_secs(600);
/// The same on standby: it keeps a connection to REST open for the moment of a takeover.
const LIMITS_EVERY_WARM: Duration = Duration::from_secs(45);

const TOKEN_REFUSED: &str = "Discord refuses the token (HTTP 401 from /gateway/bot): check that the token file holds the bot's current token";

type Statuses = Vec<watch::Receiver<ShardStatus>>;

/// Why the process ends.
enum Leave {
    /// Asked to: deadline for handlers.
    Drain(Duration),
    /// A newer attempt has taken over.
    Superseded,
    /// Its host does not own it any more.
    Overdue,
    /// Every shard is fatal.
    Fatal,
}

/// What to begin with.
struct Assignment {
    ids: Vec<u32>,
    count: u32,
    sessions: BTreeMap<u32, StoredSession>,
    terms: Terms,
}

/// Runs the bot until it is told to stop.
pub async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let mut signals = Signals::new()?;
    let tasks = TaskTracker::new();
    let stop = CancellationToken::new();
    let superseded = CancellationToken::new();
    let nudge = Arc::new(Notify::new());
    let (shards_tx, shards_rx) = watch::channel(Statuses::new());
    let (limits_tx, limits_rx) = watch::channel(None);
    let draining = Arc::new(AtomicBool::new(false));

    let rest = Rest::new(&config.token, config.api_url.as_deref())?;
    let database = Arc::new(Database::start(
        &config.db_nodes,
        config.db_token.as_ref(),
        &tasks,
        &stop,
    ));
    let (services, ensure) = Services::new(rest, database, shards_rx.clone());
    let services = Arc::new(services);
    let binding = Binding {
        token_sha256: config.token.sha256(),
        intents: config.intents.bits(),
    };

    let (orders_tx, mut orders) = mpsc::channel(16);
    let (answers, answers_rx) = mpsc::channel(64);
    let (farewell_tx, farewell) = mpsc::channel(1);
    let attached = config.agent.is_some();
    let gate = match &config.agent {
        None => Gate::Alone(Arc::new(Alone::new(limits_rx.clone()))),
        Some((socket, identity)) => {
            let channel = channel(socket.clone());
            let _ = services
                .fleet
                .set(Fleet::new(channel.clone(), identity.clone()));
            tasks.spawn(link::run(LinkSetup {
                channel: channel.clone(),
                identity: identity.clone(),
                binding: binding.clone(),
                shards: shards_rx,
                process: process_view(
                    Arc::clone(&services),
                    limits_rx.clone(),
                    Arc::clone(&draining),
                ),
                limits: limits_rx.clone(),
                nudge: Arc::clone(&nudge),
                orders: orders_tx,
                farewell,
                answers: answers_rx,
                superseded: superseded.clone(),
                validity: services.validity.clone(),
            }));
            Gate::Agent(Permits::new(channel, identity.clone(), superseded.clone()))
        }
    };
    let begin = if attached {
        tokio::select! {
            Some(Order::Welcome(welcome)) = orders.recv() => assignment(&config, *welcome, &binding),
            () = superseded.cancelled() => return Ok(ExitCode::SUCCESS),
            () = signals.recv() => return Ok(ExitCode::SUCCESS),
        }
    } else {
        Assignment {
            ids: config.shard_ids.clone(),
            count: config.shard_count,
            sessions: BTreeMap::new(),
            terms: Terms::default(),
        }
    };
    services.phase("start_welcome_ms", started);
    if begin.ids.is_empty() {
        error!("neither SHARD_IDS nor the agent names a shard for this process");
        return Ok(ExitCode::from(EXIT_CONFIG));
    }

    let works = begin.terms.duty != Duty::Warm;
    let stage = if works {
        Stage::Connecting
    } else {
        Stage::Standby
    };
    let set = SetSetup {
        ids: &begin.ids,
        count: begin.count,
        token: &config.token,
        intents: config.intents,
        url: GatewayUrl {
            fixed: fixed_url(&config),
            limits: limits_rx,
        },
        gate,
        services: &services,
        nudge: &nudge,
        tasks: &tasks,
    };
    let set = ShardSet::start(&set, stage);
    let statuses = set.statuses();
    shards_tx.send_replace(statuses.clone());
    let mut process = Process::new(ProcessSetup {
        set,
        ids: begin.ids,
        count: begin.count,
        binding,
        services: Arc::clone(&services),
        farewell: attached.then_some(farewell_tx),
        answers,
        tasks: tasks.clone(),
    });
    if works {
        process.work(begin.sessions, begin.terms).await;
    }
    nudge.notify_one();

    let refused = CancellationToken::new();
    tasks.spawn(keep_limits(
        Arc::clone(&services),
        limits_tx,
        Arc::clone(&nudge),
        process.terms(),
        refused.clone(),
        stop.clone(),
    ));
    tasks.spawn(note_start(
        Arc::clone(&services),
        statuses.clone(),
        started,
        stop.clone(),
    ));
    if let Some(first) = statuses
        .iter()
        .find(|status| status.borrow().id == 0)
        .cloned()
    {
        let (services, stop, terms) = (Arc::clone(&services), stop.clone(), process.terms());
        tasks.spawn(async move { registrar::run(&services, first, terms, stop).await });
    }
    if services.database.is_configured() {
        let (activity, rows, stop_activity, stop_rows) = (
            Arc::clone(&services),
            Arc::clone(&services),
            stop.clone(),
            stop.clone(),
        );
        tasks.spawn(async move { activity.activity.run(stop_activity).await });
        tasks.spawn(async move { rows.ensure_rows(ensure, stop_rows).await });
    }

    let leave = loop {
        let order = tokio::select! {
            () = signals.recv() => break Leave::Drain(config.drain_within),
            () = superseded.cancelled() => break Leave::Superseded,
            () = services.validity.over() => break Leave::Overdue,
            () = process.set().all_fatal() => break Leave::Fatal,
            () = refused.cancelled() => break Leave::Fatal,
            Some(order) = orders.recv() => order,
        };
        let Order::Command(id, command) = order else {
            continue;
        };
        tokio::select! {
            within = process.command(id, *command) => if let Some(within) = within {
                break Leave::Drain(within);
            },
            () = signals.recv() => break Leave::Drain(config.drain_within),
            () = superseded.cancelled() => break Leave::Superseded,
            () = services.validity.over() => break Leave::Overdue,
        }
    };
    let (within, code) = match leave {
        // Without a word to the gateway: the session belongs to the successor now.
        Leave::Superseded => return Ok(ExitCode::SUCCESS),
        Leave::Overdue => {
            warn!("the lease of this host has ended, leaving at once");
            return Ok(ExitCode::SUCCESS);
        }
        Leave::Drain(within) => (within, ExitCode::SUCCESS),
        Leave::Fatal => {
            error!(
                "Discord refuses every shard of this process; restarting does not help until the configuration is changed"
            );
            (Duration::ZERO, ExitCode::from(EXIT_CONFIG))
        }
    };
    info!(within_ms = within.as_millis() as u64, "stopping");
    draining.store(true, Ordering::Relaxed);
    nudge.notify_one();
    let orderly = async {
        let handed = process.hand_over(within, true);
        let flush = tokio::time::timeout(FLUSH_WITHIN, services.activity.flush());
        let (_, flushed) = tokio::join!(handed, flush);
        if !matches!(flushed, Ok(Ok(()) | Err(crate::database::DbError::Absent))) {
            warn!("the latest message counts could not be stored");
        }
    };
    tokio::select! {
        () = orderly => {}
        () = signals.recv() => warn!("told to stop again, leaving at once"),
        () = superseded.cancelled() => return Ok(ExitCode::SUCCESS),
        () = services.validity.over() => return Ok(ExitCode::SUCCESS),
    }
    stop.cancel();
    info!("stopped");
    Ok(code)
}

/// The first of SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Shards and sessions as the agent says; the environment where it says nothing.
fn assignment(config: &Config, welcome: Welcome, binding: &Binding) -> Assignment {
    let terms = report::terms(welcome.duty(), welcome.cut);
    let (ids, count) = if welcome.shard_ids.is_empty() {
        (config.shard_ids.clone(), config.shard_count)
    } else {
        (welcome.shard_ids, welcome.shard_count.max(1))
    };
    let sessions = report::usable_sessions(welcome.sessions, &ids, count, binding);
    Assignment {
        ids,
        count,
        sessions,
        terms,
    }
}

/// The configured gateway, or Discord's own. None: what a REST base of another kind says.
fn fixed_url(config: &Config) -> Option<String> {
    config.gateway_url.clone().or_else(|| {
        config
            .api_url
            .is_none()
            .then(|| "wss://gateway.discord.gg".to_owned())
    })
}

/// Notes when every shard was established for the first time.
async fn note_start(
    services: Arc<Services>,
    statuses: Statuses,
    started: Instant,
    stop: CancellationToken,
) {
    tokio::select! {
        () = stop.cancelled() => return,
        () = until_all(statuses, |status| status.established_at != 0) => {}
    }
    services.phase("start_established_ms", started);
    info!(
        welcome_ms = services.phase_ms("start_welcome_ms"),
        established_ms = services.phase_ms("start_established_ms"),
        "all shards are established"
    );
}

/// Asks `/gateway/bot` at the start and now and then, until told to stop.
async fn keep_limits(
    services: Arc<Services>,
    limits: watch::Sender<Option<Limits>>,
    nudge: Arc<Notify>,
    terms: watch::Receiver<Terms>,
    refused: CancellationToken,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    let missing = || {
        let missing = &services.limits_missing;
        missing.lock().unwrap_or_else(PoisonError::into_inner)
    };
    loop {
        let asked = tokio::select! {
            () = stop.cancelled() => return,
            asked = services.rest.limits() => asked,
        };
        let pause = match asked {
            Ok(now) => {
                backoff.reset();
                *missing() = None;
                limits.send_replace(Some(now));
                nudge.notify_one();
                if terms.borrow().duty == Duty::Warm {
                    LIMITS_EVERY_WARM
                } else {
                    LIMITS_EVERY
                }
            }
            Err(error) => {
                if error.is_unauthorized() {
                    error!("{TOKEN_REFUSED}");
                    services.token_refused.store(true, Ordering::Relaxed);
                    // Without a session nothing can go on, and an IDENTIFY would be wasted. With one, the
                    // gateway says itself when it is over (close code 4004).
                    if services
                        .shard_statuses()
                        .iter()
                        .all(|shard| shard.deposit.is_none())
                    {
                        refused.cancel();
                        return;
                    }
                } else if backoff.failures() == 0 {
                    warn!(%error, "cannot ask /gateway/bot, trying on");
                }
                if limits.borrow().is_none() {
                    *missing() = Some(error);
                }
                backoff.delay()
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn process_view(
    services: Arc<Services>,
    limits: watch::Receiver<Option<Limits>>,
    draining: Arc<AtomicBool>,
) -> Box<dyn Fn() -> ProcessView + Send + Sync> {
    Box::new(move || ProcessView {
        draining: draining.load(Ordering::Relaxed),
        metrics: services.figures(),
        detail: services.trouble(),
        prepared: limits.borrow().is_some() && services.database_is_there(),
    })
}
