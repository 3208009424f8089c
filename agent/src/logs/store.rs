//! All logs of this host, and the thread that tends them.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tanako_fleet::{ProcessName, process::LogPolicy};
use tokio::sync::watch;

use super::file::{self, LogFile, Resume};
use crate::clock;

/// Every log is looked at this often …
const ROUND: Duration = Duration::from_secs(1);
/// … and one that grows fast this often.
const HOT_ROUND: Duration = Duration::from_millis(50);
/// What is read at once.
const BUFFER_BYTES: usize = 256 << 10;
/// How long a leaving agent waits for the thread: it may be compressing, onto a slow disk. Within one stage of the
/// stop, after which nobody would write down who runs.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// Troubles kept until the supervisor asks for them.
const TROUBLES_MAX: usize = 256;

/// A handle on all logs; clones are cheap.
#[derive(Debug, Clone)]
pub struct Logs {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    files: Mutex<BTreeMap<ProcessName, Arc<LogFile>>>,
    troubles: Mutex<Vec<(ProcessName, String)>>,
    closed: AtomicBool,
    /// Wakes the thread when the logs are closed.
    wake: Arc<(Mutex<bool>, Condvar)>,
    /// Its sender is dropped when the thread has ended.
    tending: watch::Receiver<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        wake(&self.wake);
    }
}

fn wake(pair: &(Mutex<bool>, Condvar)) {
    *pair.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
    pair.1.notify_all();
}

impl Logs {
    /// Opens the directory, makes it when it is missing, and starts to tend what is in use.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        file::clean(dir)?;
        let wake = Arc::new((Mutex::new(false), Condvar::new()));
        let (ends, tending) = watch::channel(());
        let inner = Arc::new(Inner {
            dir: dir.to_owned(),
            files: Mutex::default(),
            troubles: Mutex::default(),
            closed: AtomicBool::new(false),
            wake: Arc::clone(&wake),
            tending,
        });
        let weak = Arc::downgrade(&inner);
        thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || {
                tend(&weak, &wake);
                drop(ends);
            })?;
        Ok(Self { inner })
    }

    /// The log of a process; opened when it is not yet in use. `resume`: where an earlier agent
    /// was with counting.
    pub(crate) fn file(
        &self,
        name: &ProcessName,
        policy: &LogPolicy,
        resume: Option<&Resume>,
    ) -> io::Result<Arc<LogFile>> {
        let mut files = self.files();
        if let Some(file) = files.get(name) {
            file.set_policy(policy.clone());
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(LogFile::open(
            &self.inner.dir,
            name,
            policy.clone(),
            resume,
        )?);
        files.insert(name.clone(), Arc::clone(&file));
        Ok(file)
    }

    /// The log of a process, when it is in use.
    pub fn get(&self, name: &ProcessName) -> Option<Arc<LogFile>> {
        self.files().get(name).cloned()
    }

    /// The process is no more; its files stay.
    pub(crate) fn forget(&self, name: &ProcessName) {
        self.files().remove(name);
    }

    /// What the operator should know, since the last call.
    pub(crate) fn take_troubles(&self) -> Vec<(ProcessName, String)> {
        std::mem::take(
            &mut *self
                .inner
                .troubles
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// The agent is leaving: ends all readers and the thread. Afterwards nothing is counted or rotated any
    /// more, so that what is written down of it for the next agent holds. A thread that is too slow begins no
    /// rotation either, and one that it has begun is found, or refused, by the next agent's own start.
    pub(crate) async fn close(&self) {
        self.inner.closed.store(true, Ordering::Relaxed);
        wake(&self.inner.wake);
        let mut tending = self.inner.tending.clone();
        let ended = async { while tending.changed().await.is_ok() {} };
        if tokio::time::timeout(CLOSE_MAX, ended).await.is_err() {
            tracing::warn!("a log was still being rotated when the agent left");
        }
    }

    /// Whether the agent is leaving.
    pub(super) fn is_closed(&self) -> bool {
        self.inner.closed.load(Ordering::Relaxed)
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<ProcessName, Arc<LogFile>>> {
        self.inner
            .files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn tend(inner: &Weak<Inner>, wake: &(Mutex<bool>, Condvar)) {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut hot: Vec<Arc<LogFile>> = Vec::new();
    let mut next_round = Instant::now() + ROUND;
    loop {
        let sleep = next_round.saturating_duration_since(Instant::now());
        let sleep = if hot.is_empty() {
            sleep
        } else {
            sleep.min(HOT_ROUND)
        };
        let stopped = wake.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (stopped, _) = wake
            .1
            .wait_timeout_while(stopped, sleep, |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        if *stopped {
            return;
        }
        drop(stopped);
        let Some(inner) = inner.upgrade() else { return };
        let logs = Logs { inner };
        let turn: Vec<Arc<LogFile>> = if Instant::now() >= next_round {
            next_round = Instant::now() + ROUND;
            logs.files().values().cloned().collect()
        } else {
            std::mem::take(&mut hot)
        };
        hot.clear();
        let now_ms = clock::now_ms();
        for file in turn {
            if logs.is_closed() {
                return;
            }
            let tended = file.tend(now_ms, &mut buffer, &logs.inner.closed);
            if let Some(trouble) = tended.trouble {
                let mut troubles = logs
                    .inner
                    .troubles
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if troubles.len() < TROUBLES_MAX {
                    troubles.push((file.name().clone(), trouble));
                }
            }
            if tended.hot {
                hot.push(file);
            }
        }
    }
}
