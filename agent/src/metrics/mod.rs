//! What this host and its processes use, once a second.
//!
//! - `proc`: one process, from `/proc`.
//! - `sampler`: all of them, and the host.
//! - `latency`: distributions of latencies.

mod latency;
mod proc;
mod sampler;

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use tanako_fleet::ProcessName;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::latency::{Latency, LatencySummary};
pub(crate) use self::proc::process_group_of;
use self::sampler::Sampler;
use crate::supervisor::Table;

/// What the host uses.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostSample {
    /// CPU of all cores together, 0 to 100.
    pub cpu_percent: f64,
    /// Cores.
    pub cpus: u32,
    /// Load average over a minute.
    pub load1: f64,
    /// Memory in use.
    pub memory_used_bytes: u64,
    /// Memory in all.
    pub memory_total_bytes: u64,
    /// Used on the file system of the data directory.
    pub disk_used_bytes: u64,
    /// Size of the file system of the data directory.
    pub disk_total_bytes: u64,
    /// Received by all interfaces but loopback.
    pub net_rx_bytes_per_s: u64,
    /// Sent by all interfaces but loopback.
    pub net_tx_bytes_per_s: u64,
    /// Since the host booted.
    pub uptime_s: u64,
    /// Name and version of the operating system.
    pub os: Arc<str>,
}

/// What a process uses.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ProcessSample {
    /// Which process id was measured.
    pub pid: u32,
    /// Of one core: 150 is one and a half cores.
    pub cpu_percent: f32,
    /// CPU time since the process started, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// Threads.
    pub threads: u32,
    /// Open file descriptors; read every few seconds.
    pub fds: u32,
}

/// One second's measurements.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Milliseconds since 1970.
    pub at: i64,
    /// The host.
    pub host: HostSample,
    /// Its supervised processes.
    pub processes: HashMap<ProcessName, ProcessSample>,
    /// The agent itself.
    pub agent: ProcessSample,
}

/// Time between two samples.
const EVERY: Duration = Duration::from_secs(1);

/// Handle to the sampler; cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    latest: watch::Receiver<Arc<Sample>>,
    table: watch::Receiver<Arc<Table>>,
}

/// Why the proportional set size of a process cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum PssError {
    /// There is no such process, or it does not run.
    #[error("{0} does not run")]
    NotRunning(ProcessName),
    /// The kernel did not tell.
    #[error("smaps_rollup of {name} cannot be read")]
    Unreadable {
        /// The process.
        name: ProcessName,
        /// Why.
        source: std::io::Error,
    },
}

impl Metrics {
    /// Starts sampling at 1 Hz. `data_dir` says which file system counts as the disk.
    pub fn start(
        data_dir: PathBuf,
        table: watch::Receiver<Arc<Table>>,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) -> Self {
        let (publish, latest) = watch::channel(Arc::default());
        tracker.spawn(sample_loop(data_dir, table.clone(), publish, cancel));
        Self { latest, table }
    }

    /// The latest sample; an empty one (`at` is 0) before the first.
    pub fn latest(&self) -> watch::Receiver<Arc<Sample>> {
        self.latest.clone()
    }

    /// Proportional set size of a process, in bytes: dear, so only on demand.
    pub async fn pss(&self, name: &ProcessName) -> Result<u64, PssError> {
        let pid = self
            .table
            .borrow()
            .get(name)
            .and_then(|status| status.pid)
            .ok_or_else(|| PssError::NotRunning(name.clone()))?;
        tokio::task::spawn_blocking(move || proc::pss_bytes(pid))
            .await
            .unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
            .map_err(|source| PssError::Unreadable {
                name: name.clone(),
                source,
            })
    }
}

async fn sample_loop(
    data_dir: PathBuf,
    table: watch::Receiver<Arc<Table>>,
    publish: watch::Sender<Arc<Sample>>,
    cancel: CancellationToken,
) {
    let mut interval = tokio::time::interval(EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut sampler = None;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = interval.tick() => {}
        }
        let processes = table.borrow().clone();
        let data_dir = data_dir.clone();
        let taken = tokio::task::spawn_blocking(move || {
            let mut sampler = sampler.unwrap_or_else(|| Sampler::new(data_dir));
            let sample = sampler.sample(&processes);
            (sampler, sample)
        })
        .await;
        let Ok((back, sample)) = taken else {
            return; // The runtime is shutting down.
        };
        sampler = Some(back);
        publish.send_replace(Arc::new(sample));
    }
}
