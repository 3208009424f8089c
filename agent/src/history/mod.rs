//! Samples and events of the recent past, behind sparklines and `tanakoctl events`.
//!
//! Nothing here was ever promised to anyone: history may be lost, and is rebuilt from nothing when
//! it fails to open. Supervision never waits for it.
//!
//! - `rings`: the last minutes, second by second, in memory.
//! - `recent`: the latest events, in memory.
//! - `database`: what is older, in sled: a row of all series each ten seconds, and the events.
//! - `keeper`: the thread that owns the database, and all that can go wrong with it.

mod database;
mod keeper;
mod recent;
mod rings;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tanako_proto::fleet::v1 as wire;
use tokio::sync::{broadcast, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::rings::Metric;
use self::{
    keeper::Keeper,
    recent::{Recent, matches},
    rings::{Grid, Rings},
};
use crate::{metrics::Sample, supervisor::Table, worker::States};

/// Events a slow reader may be behind before it misses some.
const EVENTS_BEHIND_MAX: usize = 1024;
/// Points of a series when the caller does not say.
const POINTS_DEFAULT: u32 = 120;
/// Points of a series at most.
const POINTS_MAX: u32 = 4096;
/// Longest time that a series covers: a week.
const SECONDS_MAX: u32 = 7 * 24 * 60 * 60;
/// Longest text of an event; more is cut.
const MESSAGE_MAX: usize = 2048;

/// Where history is kept and for whom.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of the database; made when missing.
    pub directory: PathBuf,
    /// Name of this host, put into each event.
    pub host: String,
}

/// How grave an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// A change the operator would want to see.
    Info,
    /// Something was wrong and was dealt with.
    Warning,
    /// A human must act.
    Error,
}

impl Severity {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What series are made of.
#[derive(Clone)]
pub struct Feeds {
    /// Usage; each sample makes a point of every series.
    pub sample: watch::Receiver<Arc<Sample>>,
    /// Worker reports.
    pub workers: watch::Receiver<Arc<States>>,
    /// Supervised processes.
    pub table: watch::Receiver<Arc<Table>>,
}

/// Handle to the history; cheap to clone.
#[derive(Clone)]
pub struct History {
    host: Arc<str>,
    next_id: Arc<AtomicU64>,
    recent: Arc<Mutex<Recent>>,
    rings: Arc<Mutex<Rings>>,
    events: broadcast::Sender<wire::Event>,
    keeper: Keeper,
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("History")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl History {
    /// Opens the database and starts the thread that owns it. Never fails: without a usable
    /// database the history lives in memory only, and an event says so.
    pub fn start(config: Config, cancel: CancellationToken, tracker: &TaskTracker) -> Self {
        let (events, _) = broadcast::channel(EVENTS_BEHIND_MAX);
        let (keeper, thread) = Keeper::new(config.directory);
        let history = Self {
            host: config.host.into(),
            // Rises from one life of the agent to the next: microseconds since 1970 do so unless
            // the clock goes back, and then only the order of events suffers.
            next_id: Arc::new(AtomicU64::new(
                jiff::Timestamp::now().as_microsecond().max(1) as u64,
            )),
            recent: Arc::default(),
            rings: Arc::default(),
            events,
            keeper,
        };
        thread.start(history.clone(), cancel, tracker);
        history
    }

    /// Records a point of every series with each sample.
    pub fn follow(&self, mut feeds: Feeds, cancel: CancellationToken, tracker: &TaskTracker) {
        let history = self.clone();
        tracker.spawn(async move {
            loop {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    changed = feeds.sample.changed() => if changed.is_err() { return },
                }
                let sample = feeds.sample.borrow_and_update().clone();
                let workers = feeds.workers.borrow().clone();
                let table = feeds.table.borrow().clone();
                let row = {
                    let mut rings = history.rings.lock().unwrap_or_else(PoisonError::into_inner);
                    rings.push(&history.host, &sample, &workers, &table)
                };
                if let Some(row) = row {
                    history.keeper.row(row);
                }
            }
        });
    }

    /// Records that something happened: `kind` is stable and kebab-case, `object` what it is about.
    pub fn event(&self, severity: Severity, kind: &str, object: &str, message: impl Into<String>) {
        self.append_event(wire::Event {
            severity: severity.as_str().to_owned(),
            kind: kind.to_owned(),
            object: object.to_owned(),
            message: message.into(),
            ..wire::Event::default()
        });
    }

    /// Records an event made elsewhere; its id is set here, and time and host when unset.
    pub fn append_event(&self, mut event: wire::Event) {
        if event.host.is_empty() {
            event.host = self.host.to_string();
        }
        cut(&mut event.message, MESSAGE_MAX);
        {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            // Numbered, dated and told under the lock, so that ids and times rise in the order in which events are
            // kept and heard.
            if event.at == 0 {
                event.at = jiff::Timestamp::now().as_millisecond();
            }
            event.id = self.next_id.fetch_add(1, Ordering::Relaxed);
            recent.push(event.clone());
            self.keeper.event(event.clone());
            // Nobody may be listening.
            let _ = self.events.send(event);
        }
    }

    /// The latest `tail` events at or after `since` (ms since 1970) about any of `targets` (none =
    /// about anything; a bot's name stands for its processes), oldest first.
    pub async fn events(&self, tail: usize, since: i64, targets: &[String]) -> Vec<wire::Event> {
        let (mut found, oldest) = {
            let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            (recent.tail(tail, since, targets), recent.oldest_id())
        };
        if found.len() < tail {
            let missing = tail - found.len();
            let mut older = self
                .keeper
                .events_before(oldest, missing, since, targets.to_vec())
                .await;
            older.append(&mut found);
            found = older;
        }
        found
    }

    /// Events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<wire::Event> {
        self.events.subscribe()
    }

    /// Whether an event is about one of `targets` (none = about anything).
    pub fn is_about(event: &wire::Event, targets: &[String]) -> bool {
        matches(event, targets)
    }

    /// Series of `metrics` of a process, or of a host by `host:NAME`, over the last `seconds`, in
    /// at most `points` points each (0 = 120). Metrics that are not known are left out.
    pub async fn series(
        &self,
        target: &str,
        metrics: &[String],
        seconds: u32,
        points: u32,
    ) -> Vec<wire::Series> {
        let points = match points {
            0 => POINTS_DEFAULT,
            some => some.min(POINTS_MAX),
        };
        let now = jiff::Timestamp::now().as_millisecond();
        let mut grids: Vec<Grid> = metrics
            .iter()
            .filter_map(|name| Metric::parse(name))
            .map(|metric| Grid::new(metric, now, seconds.min(SECONDS_MAX), points))
            .collect();
        let blank = grids.clone();
        let complete = {
            let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
            rings.fill(target, &mut grids)
        };
        if !complete && let Some(older) = self.keeper.fill(target.to_owned(), blank).await {
            for (grid, older) in grids.iter_mut().zip(&older) {
                grid.fill_from(older);
            }
        }
        grids.into_iter().map(Grid::into_series).collect()
    }
}

/// Cuts a text to at most `max` bytes, at a character.
fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
        text.push('…');
    }
}
