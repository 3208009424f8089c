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

use super::file::{self, LogFile, Resume};
use crate::clock;

/// Every log is looked at this often …
const ROUND: Duration = Duration::from_secs(1);
/// … and one that grows fast this often.
const HOT_ROUND: Duration = Duration::from_millis(50);
/// What is read at once.
const BUFFER_BYTES: usize = 256 << 10;
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
        let inner = Arc::new(Inner {
            dir: dir.to_owned(),
            files: Mutex::default(),
            troubles: Mutex::default(),
            closed: AtomicBool::new(false),
            wake: Arc::clone(&wake),
        });
        let weak = Arc::downgrade(&inner);
        thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || tend(&weak, &wake))?;
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

    /// The agent is leaving: ends the thread and all readers.
    pub(crate) fn close(&self) {
        self.inner.closed.store(true, Ordering::Relaxed);
        wake(&self.inner.wake);
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
            let tended = file.tend(now_ms, &mut buffer);
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
