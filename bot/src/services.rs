//! What handlers work with. One for the process, shared by its shards.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::activity::Activity;
use crate::agent::validity::Validity;
use crate::database::Database;
use crate::metrics::rss_bytes;
use crate::questions::Fleet;
use crate::rest::{Rest, RestError};
use crate::settings::store::SettingsStore;
use crate::shard::ShardStatus;

/// Guilds waiting for their row. One that finds no room gets its row when a setting is first written.
const ENSURE_MAX: usize = 16_384;
/// Pause between two rows: a start with 2,500 guilds is 25 s of a light load instead of one burst.
const ENSURE_EVERY: std::time::Duration = std::time::Duration::from_millis(10);

/// Replayed interactions that Discord is asked about at once.
const LOOK_UPS_AT_ONCE: usize = 32;

/// Shared by all handlers.
pub struct Services {
    /// REST.
    pub rest: Rest,
    /// The guild database.
    pub database: Arc<Database>,
    /// Guild settings.
    pub settings: SettingsStore,
    /// Messages per guild.
    pub activity: Activity,
    /// Running handlers.
    pub handlers: TaskTracker,
    /// The shards of this process.
    pub shards: watch::Receiver<Vec<watch::Receiver<ShardStatus>>>,
    /// Turns for looking replayed interactions up.
    pub look_ups: Semaphore,
    /// Until when the process may act.
    pub validity: Validity,
    /// When the process started.
    pub started: Instant,
    /// REST calls are refused with 401.
    pub token_refused: AtomicBool,
    /// Why `/gateway/bot` has not answered yet.
    pub limits_missing: Mutex<Option<RestError>>,
    /// How long the parts of starting and of standing down took, milliseconds.
    pub phases: Mutex<BTreeMap<&'static str, f64>>,
    /// All shards of the bot, through the agent; unset without one.
    pub fleet: OnceLock<Fleet>,
    ensure: mpsc::Sender<u64>,
}

impl Services {
    /// The second value goes to [`Services::ensure_rows`].
    pub fn new(
        rest: Rest,
        database: Arc<Database>,
        shards: watch::Receiver<Vec<watch::Receiver<ShardStatus>>>,
    ) -> (Self, mpsc::Receiver<u64>) {
        let (ensure, queue) = mpsc::channel(ENSURE_MAX);
        let services = Self {
            rest,
            settings: SettingsStore::new(Arc::clone(&database)),
            activity: Activity::new(Arc::clone(&database)),
            database,
            handlers: TaskTracker::new(),
            shards,
            look_ups: Semaphore::new(LOOK_UPS_AT_ONCE),
            validity: Validity::default(),
            started: Instant::now(),
            token_refused: AtomicBool::new(false),
            limits_missing: Mutex::default(),
            phases: Mutex::default(),
            fleet: OnceLock::new(),
            ensure,
        };
        (services, queue)
    }

    /// A guild arrived: its row will be made, at a bounded rate.
    pub fn guild_seen(&self, guild: u64) {
        if self.database.is_configured() {
            // No room: see ENSURE_MAX.
            let _ = self.ensure.try_send(guild);
        }
    }

    /// Snapshots of all shards.
    pub fn shard_statuses(&self) -> Vec<ShardStatus> {
        self.shards
            .borrow()
            .iter()
            .map(|shard| shard.borrow().clone())
            .collect()
    }

    /// Additional gauges for the agent, and for `/metrics`.
    pub fn figures(&self) -> BTreeMap<String, f64> {
        let (rest, db) = (self.rest.latency(), self.database.latency());
        let (hit_ratio, cached) = self.settings.cache_figures();
        let nodes_up = self.database.nodes().filter(|(_, up)| *up).count();
        let shards = self.shard_statuses();
        let sum = |of: fn(&ShardStatus) -> u64| shards.iter().map(of).sum::<u64>() as f64;
        let figures = [
            ("handlers_in_flight", self.handlers.len() as f64),
            ("interactions_repeated_total", sum(|shard| shard.repeated)),
            ("held_dropped_total", sum(|shard| shard.held_dropped)),
            ("undecodable_total", sum(|shard| shard.undecodable)),
            ("rest_p50_ms", rest.p50_ms),
            ("rest_p99_ms", rest.p99_ms),
            ("rest_calls_total", rest.calls as f64),
            ("rest_errors_total", rest.errors as f64),
            ("db_p50_ms", db.p50_ms),
            ("db_p99_ms", db.p99_ms),
            ("db_calls_total", db.calls as f64),
            ("db_errors_total", db.errors as f64),
            ("db_nodes_up", nodes_up as f64),
            ("settings_cache_hit_ratio", hit_ratio),
            ("settings_cached_guilds", cached as f64),
            ("rss_bytes", rss_bytes() as f64),
        ];
        let phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        figures
            .into_iter()
            .chain(phases.iter().map(|(name, value)| (*name, *value)))
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    /// Notes how long a part of starting or standing down took.
    pub fn phase(&self, name: &'static str, since: Instant) {
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        phases.insert(name, since.elapsed().as_secs_f64() * 1000.0);
    }

    /// A phase noted before; 0 when it was not.
    pub fn phase_ms(&self, name: &str) -> f64 {
        let phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        phases.get(name).copied().unwrap_or(0.0)
    }

    /// What is wrong with the process as a whole, for people; empty when nothing is.
    pub fn trouble(&self) -> String {
        if self.token_refused.load(Ordering::Relaxed) {
            return "Discord refuses the token (HTTP 401)".to_owned();
        }
        let limits = self
            .limits_missing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let limits = limits
            .as_ref()
            .map(|error| format!("cannot ask /gateway/bot, trying on: {error}"));
        let down: Vec<&str> = self
            .database
            .nodes()
            .filter(|(_, up)| !up)
            .map(|(name, _)| name)
            .collect();
        let down = (!down.is_empty()).then(|| format!("no connection to {}", down.join(", ")));
        limits
            .into_iter()
            .chain(down)
            .collect::<Vec<_>>()
            .join("; ")
    }

    /// A database node answers, or none is needed.
    pub fn database_is_there(&self) -> bool {
        !self.database.is_configured() || self.database.nodes().any(|(_, up)| up)
    }

    /// Makes the rows that [`Self::guild_seen`] asked for.
    pub async fn ensure_rows(&self, mut queue: mpsc::Receiver<u64>, stop: CancellationToken) {
        let mut failing = false;
        let mut created = 0u64;
        loop {
            let guild = tokio::select! {
                () = stop.cancelled() => return,
                Some(guild) = queue.recv() => guild,
            };
            match self.settings.ensure(guild).await {
                Ok(new) => {
                    failing = false;
                    created += u64::from(new);
                    if queue.is_empty() && created > 0 {
                        debug!(created, "guild rows created");
                        created = 0;
                    }
                }
                Err(error) => {
                    if !failing {
                        warn!(%error, "cannot create the row of a guild, it follows with its first setting");
                    }
                    failing = true;
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(ENSURE_EVERY) => {}
            }
        }
    }
}
