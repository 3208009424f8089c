//! The life of the process. All tasks and their channels:
//!
//! | task | gets | gives |
//! |---|---|---|
//! | shard (one each) | gate events, finished handlers, `drain`, `close` | `status` (watch), `nudge` |
//! | handlers (many) | an interaction | an outcome to their shard |
//! | link (with an agent) | shard statuses, limits, `nudge`, `farewell` | orders, `superseded` |
//! | limits | - | `limits` (watch) |
//! | database (one a node) | jobs | replies |
//! | activity, guild rows, registrar | `stop` | - |
//!
//! Stop order: shards take no more events, handlers finish, final deposit, gateway closed resumably,
//! background tasks, flush.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tanako_proto::worker::v1::Welcome;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};
use twilight_gateway::ConfigBuilder;

use crate::agent::link::{self, Farewell, LinkSetup, Order, ProcessView};
use crate::agent::report::{self, Binding};
use crate::agent::{Permits, channel};
use crate::backoff::Backoff;
use crate::commands::registrar;
use crate::config::Config;
use crate::database::Database;
use crate::identify::{Alone, Gate, ShardQueue};
use crate::rest::{Limits, Rest};
use crate::services::Services;
use crate::shard::task::{self, ShardSetup, StoredSession};
use crate::shard::{ShardStatus, Stage};

/// Discord refuses this configuration; restarting does not help (sysexits' EX_CONFIG).
pub const EXIT_CONFIG: u8 = 78;
/// The agent's acknowledgement of the final deposits.
const FAREWELL_WITHIN: Duration = Duration::from_secs(3);
/// The gateway's close handshake, all shards at once.
const CLOSE_WITHIN: Duration = Duration::from_secs(3);
/// The last flush.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);
/// `/gateway/bot` is asked again this often, so that the agent knows what is left.
const LIMITS_EVERY: Duration = Duration::from_secs(600);

const TOKEN_REFUSED: &str = "Discord refuses the token (HTTP 401 from /gateway/bot): check that the token file holds the bot's current token";

type Statuses = Vec<watch::Receiver<ShardStatus>>;

/// Why the process ends.
enum Leave {
    /// Asked to: deadline for handlers.
    Drain(Duration),
    /// A newer attempt has taken over.
    Superseded,
    /// Every shard is fatal.
    Fatal,
}

/// Runs the bot until it is told to stop.
pub async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let tasks = TaskTracker::new();
    let stop = CancellationToken::new();
    let superseded = CancellationToken::new();
    let nudge = Arc::new(Notify::new());
    let (shards_tx, shards_rx) = watch::channel(Statuses::new());
    let (limits_tx, limits_rx) = watch::channel(None);
    let draining = Arc::new(AtomicBool::new(false));

    let database = Arc::new(Database::start(
        &config.db_nodes,
        config.db_token.as_ref(),
        &tasks,
        &stop,
    ));
    let rest = Rest::new(&config.token, config.api_url.as_deref())?;
    let (services, ensure) = Services::new(rest, database, shards_rx.clone());
    let services = Arc::new(services);
    let binding = Binding {
        token_sha256: config.token.sha256(),
        intents: config.intents.bits(),
    };

    let (orders_tx, mut orders) = mpsc::channel(16);
    let (farewell_tx, farewell) = mpsc::channel(1);
    let (gate, attached) = match &config.agent {
        None => (Gate::Alone(Arc::new(Alone::new(limits_rx.clone()))), false),
        Some((socket, identity)) => {
            let channel = channel(socket.clone());
            tasks.spawn(link::run(LinkSetup {
                channel: channel.clone(),
                identity: identity.clone(),
                binding: binding.clone(),
                shards: shards_rx.clone(),
                process: process_view(Arc::clone(&services), Arc::clone(&draining)),
                limits: limits_rx.clone(),
                nudge: Arc::clone(&nudge),
                orders: orders_tx,
                farewell,
                superseded: superseded.clone(),
            }));
            (
                Gate::Agent(Permits::new(channel, identity.clone(), superseded.clone())),
                true,
            )
        }
    };

    let refused = CancellationToken::new();
    tasks.spawn(keep_limits(
        Arc::clone(&services),
        limits_tx,
        Arc::clone(&nudge),
        refused.clone(),
        stop.clone(),
    ));
    let (shard_ids, shard_count, mut sessions) = if attached {
        tokio::select! {
            Some(Order::Welcome(welcome)) = orders.recv() => assignment(&config, *welcome, &binding),
            () = superseded.cancelled() => return Ok(ExitCode::SUCCESS),
            () = signals.recv() => return Ok(ExitCode::SUCCESS),
        }
    } else {
        (
            config.shard_ids.clone(),
            config.shard_count,
            BTreeMap::new(),
        )
    };
    if shard_ids.is_empty() {
        error!("neither SHARD_IDS nor the agent names a shard for this process");
        return Ok(ExitCode::from(EXIT_CONFIG));
    }
    let gateway_url = tokio::select! {
        url = gateway_url(&config, limits_rx) => url,
        () = refused.cancelled() => return Ok(ExitCode::from(EXIT_CONFIG)),
        () = superseded.cancelled() => return Ok(ExitCode::SUCCESS),
        () = signals.recv() => return Ok(ExitCode::SUCCESS),
    };

    let drain = CancellationToken::new();
    let close = CancellationToken::new();
    let (drain_within_tx, drain_within) = watch::channel(config.drain_within);
    let shard_tasks = TaskTracker::new();
    // One TLS configuration for all shards and all their connections.
    let base = ConfigBuilder::new(config.token.expose().to_owned(), config.intents)
        .proxy_url(gateway_url)
        .queue(())
        .build();
    let mut statuses = Statuses::new();
    for id in &shard_ids {
        let (events, gate_events) = mpsc::channel(16);
        let queue = ShardQueue {
            gate: gate.clone(),
            shard_count,
            events,
            armed: Arc::default(),
            tasks: tasks.clone(),
        };
        let (status, status_rx) = watch::channel(ShardStatus {
            id: *id,
            count: shard_count,
            ..ShardStatus::default()
        });
        statuses.push(status_rx);
        shard_tasks.spawn(task::run(ShardSetup {
            id: *id,
            count: shard_count,
            gateway: ConfigBuilder::from(base.clone()).queue(queue).build(),
            gate: gate_events,
            stored: sessions.remove(id),
            services: Arc::clone(&services),
            status,
            nudge: Arc::clone(&nudge),
            drain: drain.clone(),
            drain_within: drain_within.clone(),
            close: close.clone(),
        }));
    }
    shard_tasks.close();
    shards_tx.send_replace(statuses.clone());
    nudge.notify_one();

    if let Some(first) = statuses.first().filter(|_| shard_ids.contains(&0)) {
        let (services, stop, first) = (Arc::clone(&services), stop.clone(), first.clone());
        tasks.spawn(async move { registrar::run(&services, first, stop).await });
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

    let leave = tokio::select! {
        () = signals.recv() => Leave::Drain(config.drain_within),
        within = drain_order(&mut orders) => Leave::Drain(within.min(config.drain_within.max(within))),
        () = superseded.cancelled() => Leave::Superseded,
        () = all_fatal(statuses.clone()) => Leave::Fatal,
        () = refused.cancelled() => Leave::Fatal,
    };
    let (within, code) = match leave {
        // Without a word to the gateway: the session belongs to the successor now.
        Leave::Superseded => return Ok(ExitCode::SUCCESS),
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
    drain_within_tx.send_replace(within);
    drain.cancel();
    let orderly = async {
        quiesced(statuses).await;
        let flush = tokio::time::timeout(FLUSH_WITHIN, services.activity.flush());
        let ((), flushed) = tokio::join!(say_farewell(attached, &farewell_tx), flush);
        if !matches!(flushed, Ok(Ok(()) | Err(crate::database::DbError::Absent))) {
            warn!("the latest message counts could not be stored");
        }
        close.cancel();
        if tokio::time::timeout(CLOSE_WITHIN, shard_tasks.wait())
            .await
            .is_err()
        {
            warn!("a shard did not close in time");
        }
    };
    tokio::select! {
        () = orderly => {}
        () = signals.recv() => warn!("told to stop again, leaving at once"),
        () = superseded.cancelled() => return Ok(ExitCode::SUCCESS),
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
fn assignment(
    config: &Config,
    welcome: Welcome,
    binding: &Binding,
) -> (Vec<u32>, u32, BTreeMap<u32, StoredSession>) {
    let (ids, count) = if welcome.shard_ids.is_empty() {
        (config.shard_ids.clone(), config.shard_count)
    } else {
        (welcome.shard_ids, welcome.shard_count.max(1))
    };
    let mut sessions = BTreeMap::new();
    for stored in welcome.sessions {
        let id = stored.shard_id;
        if !ids.contains(&id) {
            continue;
        }
        match report::usable(stored, id, count, binding) {
            Ok(session) => {
                sessions.insert(id, session);
            }
            Err(reason) => info!(shard = id, reason, "not resuming the stored session"),
        }
    }
    (ids, count, sessions)
}

/// The configured gateway; Discord's own; or what a REST base of another kind says.
async fn gateway_url(config: &Config, mut limits: watch::Receiver<Option<Limits>>) -> String {
    if let Some(url) = &config.gateway_url {
        return url.clone();
    }
    if config.api_url.is_some()
        && let Ok(limits) = limits.wait_for(Option::is_some).await
        && let Some(limits) = limits.as_ref()
    {
        return limits.url.trim_end_matches('/').to_owned();
    }
    "wss://gateway.discord.gg".to_owned()
}

/// Asks `/gateway/bot` at the start and now and then, until told to stop.
async fn keep_limits(
    services: Arc<Services>,
    limits: watch::Sender<Option<Limits>>,
    nudge: Arc<Notify>,
    refused: CancellationToken,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    loop {
        let asked = tokio::select! {
            () = stop.cancelled() => return,
            asked = services.rest.limits() => asked,
        };
        let pause = match asked {
            Ok(now) => {
                backoff.reset();
                limits.send_replace(Some(now));
                nudge.notify_one();
                LIMITS_EVERY
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
                backoff.delay()
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn drain_order(orders: &mut mpsc::Receiver<Order>) -> Duration {
    loop {
        match orders.recv().await {
            Some(Order::Drain(within)) => return within,
            Some(Order::Welcome(_)) => {}
            None => std::future::pending().await,
        }
    }
}

/// Returns once every shard is fatal.
async fn all_fatal(statuses: Statuses) {
    for mut status in statuses {
        if status
            .wait_for(|status| status.stage == Stage::Fatal)
            .await
            .is_err()
        {
            std::future::pending::<()>().await;
        }
    }
}

/// Returns once every shard has published its final deposit.
async fn quiesced(statuses: Statuses) {
    for mut status in statuses {
        // A task that is gone has nothing more to say.
        let _ = status.wait_for(|status| status.quiesced).await;
    }
}

async fn say_farewell(attached: bool, farewell: &mpsc::Sender<Farewell>) {
    if !attached {
        return;
    }
    let (done, answer) = oneshot::channel();
    let said = async {
        farewell.send(Farewell { done }).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(FAREWELL_WITHIN, said).await {
        Ok(Some((acknowledged, _))) => info!(acknowledged, "the agent has the final deposits"),
        _ => {
            warn!("the agent did not acknowledge the final deposits; it has those of a moment ago");
        }
    }
}

fn process_view(
    services: Arc<Services>,
    draining: Arc<AtomicBool>,
) -> Box<dyn Fn() -> ProcessView + Send + Sync> {
    Box::new(move || ProcessView {
        draining: draining.load(Ordering::Relaxed),
        metrics: services.figures(),
        detail: services.trouble(),
    })
}
