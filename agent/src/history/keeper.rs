//! The thread that owns the database. sled blocks, and on a damaged file it may even panic; both
//! stay in here. Whatever goes wrong, the worst is that there is no history.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    time::{Duration, Instant},
};

use tanako_proto::fleet::v1::Event;
use tokio::sync::oneshot;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    History, Severity,
    database::Database,
    rings::{Grid, Row},
};

/// Messages that wait for the thread; more are dropped.
const INBOX_MAX: usize = 1024;
/// An event is on its way to the disk after this.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
const PRUNE_EVERY: Duration = Duration::from_secs(300);
/// After trouble the database is left alone for this long.
const PAUSE: Duration = Duration::from_secs(60);
/// Less free space than this is left to those who need it more.
const FREE_BYTES_MIN: u64 = 64 << 20;
/// Longest that anyone waits for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

enum Message {
    Row(Row),
    Event(Event),
    Fill {
        target: String,
        grids: Vec<Grid>,
        answer: oneshot::Sender<Vec<Grid>>,
    },
    Events {
        before: u64,
        tail: usize,
        since: i64,
        targets: Vec<String>,
        answer: oneshot::Sender<Vec<Event>>,
    },
    Stop,
}

/// Handle to the thread.
#[derive(Clone)]
pub(super) struct Keeper {
    inbox: SyncSender<Message>,
}

/// The thread, not started yet.
pub(super) struct Thread {
    inbox: Receiver<Message>,
    sender: SyncSender<Message>,
    directory: PathBuf,
}

impl Keeper {
    pub(super) fn new(directory: PathBuf) -> (Self, Thread) {
        let (sender, inbox) = sync_channel(INBOX_MAX);
        let keeper = Self {
            inbox: sender.clone(),
        };
        let thread = Thread {
            inbox,
            sender,
            directory,
        };
        (keeper, thread)
    }

    pub(super) fn row(&self, row: Row) {
        // Full: the disk is slower than history is worth.
        let _ = self.inbox.try_send(Message::Row(row));
    }

    pub(super) fn event(&self, event: Event) {
        let _ = self.inbox.try_send(Message::Event(event));
    }

    /// Fills the cells that the database knows about.
    pub(super) async fn fill(&self, target: String, grids: Vec<Grid>) -> Option<Vec<Grid>> {
        let (answer, answered) = oneshot::channel();
        let message = Message::Fill {
            target,
            grids,
            answer,
        };
        self.ask(message, answered).await
    }

    pub(super) async fn events_before(
        &self,
        before: u64,
        tail: usize,
        since: i64,
        targets: Vec<String>,
    ) -> Vec<Event> {
        let (answer, answered) = oneshot::channel();
        let message = Message::Events {
            before,
            tail,
            since,
            targets,
            answer,
        };
        self.ask(message, answered).await.unwrap_or_default()
    }

    async fn ask<T>(&self, message: Message, answered: oneshot::Receiver<T>) -> Option<T> {
        self.inbox.try_send(message).ok()?;
        tokio::time::timeout(ANSWER_TIMEOUT, answered)
            .await
            .ok()?
            .ok()
    }
}

impl Thread {
    /// Runs until cancelled; what is in the inbox by then is still written.
    pub(super) fn start(self, history: History, cancel: CancellationToken, tracker: &TaskTracker) {
        let Self {
            inbox,
            sender,
            directory,
        } = self;
        // A thread of its own rather than one of the runtime's: a runtime that is dropped would
        // wait for it.
        let (ended, end) = oneshot::channel::<()>();
        let keeper = Loop {
            shelf: Shelf::new(directory),
            history,
            dirty_since: None,
            pruned: Instant::now(),
        };
        let spawned = std::thread::Builder::new()
            .name("history".to_owned())
            .spawn(move || {
                keeper.run(&inbox);
                drop(ended);
            });
        if let Err(error) = spawned {
            tracing::warn!(error = %error, "no thread for the history: it is kept in memory only");
            return;
        }
        tracker.spawn(async move {
            cancel.cancelled().await;
            let mut stop = Message::Stop;
            while let Err(TrySendError::Full(back)) = sender.try_send(stop) {
                stop = back;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // Resolves when the thread drops its end.
            let _ = end.await;
        });
    }
}

struct Loop {
    shelf: Shelf,
    history: History,
    dirty_since: Option<Instant>,
    pruned: Instant,
}

impl Loop {
    fn run(mut self, inbox: &Receiver<Message>) {
        loop {
            let wait = self
                .dirty_since
                .map_or(PAUSE, |since| FLUSH_AFTER.saturating_sub(since.elapsed()));
            match inbox.recv_timeout(wait) {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.upkeep();
        }
        self.with("flush", |db| db.flush());
        self.shelf.close();
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Row(row) => {
                if self.with("write a row", |db| db.put_row(&row)).is_some() {
                    self.dirty_since.get_or_insert_with(Instant::now);
                }
            }
            Message::Event(event) => {
                if self
                    .with("write an event", |db| db.put_event(&event))
                    .is_some()
                {
                    self.dirty_since.get_or_insert_with(Instant::now);
                }
            }
            Message::Fill {
                target,
                mut grids,
                answer,
            } => {
                self.with("read rows", |db| db.fill(&target, &mut grids));
                // Whoever asked may have stopped waiting.
                let _ = answer.send(grids);
            }
            Message::Events {
                before,
                tail,
                since,
                targets,
                answer,
            } => {
                let found = self.with("read events", |db| {
                    db.events_before(before, tail, since, &targets)
                });
                let _ = answer.send(found.unwrap_or_default());
            }
            Message::Stop => {}
        }
    }

    fn upkeep(&mut self) {
        if self
            .dirty_since
            .is_some_and(|since| since.elapsed() >= FLUSH_AFTER)
        {
            self.dirty_since = None;
            self.with("flush", |db| db.flush());
        }
        if self.pruned.elapsed() >= PRUNE_EVERY {
            self.pruned = Instant::now();
            let now_s = jiff::Timestamp::now().as_second();
            self.with("prune", |db| db.prune(now_s));
        }
    }

    fn with<T>(
        &mut self,
        what: &'static str,
        act: impl FnOnce(&mut Database) -> sled::Result<T>,
    ) -> Option<T> {
        let (outcome, notices) = self.shelf.with(what, act);
        for (severity, kind, message) in notices {
            self.history.event(severity, kind, "history", message);
        }
        outcome
    }
}

type Notice = (Severity, &'static str, String);

/// The database when it can be used, and when to try again when not.
struct Shelf {
    directory: PathBuf,
    open: Option<Database>,
    retry_at: Option<Instant>,
    /// Whether the operator has been told that history is paused.
    told: bool,
    /// A damaged database is put aside once in a life of the agent, no more.
    put_aside: bool,
    free_bytes: fn(&Path) -> Option<u64>,
    checked_space: Option<Instant>,
}

impl Shelf {
    fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            open: None,
            retry_at: None,
            told: false,
            put_aside: false,
            free_bytes,
            checked_space: None,
        }
    }

    /// Runs `act` on the database, opening it if need be. `None` when that is not possible.
    fn with<T>(
        &mut self,
        what: &'static str,
        act: impl FnOnce(&mut Database) -> sled::Result<T>,
    ) -> (Option<T>, Vec<Notice>) {
        let mut notices = Vec::new();
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return (None, notices);
        }
        self.retry_at = None;
        if let Some(trouble) = self.lacks_space() {
            self.pause(trouble, &mut notices);
            return (None, notices);
        }
        if self.open.is_none() {
            self.try_open(&mut notices);
        }
        let Some(db) = &mut self.open else {
            return (None, notices);
        };
        match guarded(|| act(db)) {
            Ok(done) => (Some(done), notices),
            Err(error) => {
                self.pause(format!("cannot {what}: {error}"), &mut notices);
                (None, notices)
            }
        }
    }

    fn try_open(&mut self, notices: &mut Vec<Notice>) {
        let mut opened = guarded(|| Database::open(&self.directory));
        if let Err(error) = &opened
            && !self.put_aside
            && self.directory.exists()
        {
            self.put_aside = true;
            let aside = self.directory.with_extension("broken");
            // Only the latest broken one is kept, for those who want to know.
            let _ = std::fs::remove_dir_all(&aside);
            if std::fs::rename(&self.directory, &aside).is_ok() {
                notices.push((
                    Severity::Warning,
                    "history-reset",
                    format!(
                        "the history could not be opened ({error}) and starts anew; the old one \
                         is in {}",
                        aside.display()
                    ),
                ));
                opened = guarded(|| Database::open(&self.directory));
            }
        }
        match opened {
            Ok(db) => {
                self.open = Some(db);
                if std::mem::take(&mut self.told) {
                    notices.push((
                        Severity::Info,
                        "history-resumed",
                        "history is being recorded again".to_owned(),
                    ));
                }
            }
            Err(error) => self.pause(format!("cannot open it: {error}"), notices),
        }
    }

    fn pause(&mut self, trouble: String, notices: &mut Vec<Notice>) {
        self.close();
        self.retry_at = Some(Instant::now() + PAUSE);
        self.checked_space = None;
        if !std::mem::replace(&mut self.told, true) {
            notices.push((
                Severity::Warning,
                "history-paused",
                format!(
                    "history is not recorded for now ({trouble}); supervision is not affected, \
                     the agent tries again each minute"
                ),
            ));
        }
    }

    fn lacks_space(&mut self) -> Option<String> {
        if self
            .checked_space
            .is_some_and(|at| at.elapsed() < FLUSH_AFTER * 5)
        {
            return None;
        }
        let parent = self.directory.parent().unwrap_or(&self.directory);
        let free = (self.free_bytes)(parent)?;
        if free < FREE_BYTES_MIN {
            return Some(format!(
                "only {} MiB are free on its disk; free some space",
                free >> 20
            ));
        }
        self.checked_space = Some(Instant::now());
        None
    }

    fn close(&mut self) {
        if let Some(db) = self.open.take() {
            // sled flushes when it is dropped, which fails for the same reason as all before.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(db)));
        }
    }
}

fn guarded<T>(act: impl FnOnce() -> sled::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the database panicked".to_owned()),
    }
}

fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}
