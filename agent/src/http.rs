//! `/metrics` for Prometheus, `/health` and `/ready` for load balancers and people.

use std::{net::SocketAddr, sync::Arc};

use tanako_fleet::ProcessName;
use tanako_proto::fleet::v1::IdentifyStatus;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{metrics::Sample, worker::States};

/// A process, as far as `/metrics` and `/ready` show it.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessView {
    /// Its name.
    pub name: ProcessName,
    /// `shard` or `db`.
    pub kind: &'static str,
    /// stopped, starting, running, ready, draining, stopping, backoff, failed.
    pub state: &'static str,
    /// Whether it is asked to run.
    pub wanted: bool,
    /// Whether it is ready.
    pub ready: bool,
    /// Why it is in this state, for people.
    pub detail: String,
    /// Restarts that nobody asked for.
    pub restarts: u64,
    /// Its starts.
    pub attempt: u64,
    /// Bytes of output written in all.
    pub log_bytes: u64,
    /// Lines of output in all.
    pub log_lines: u64,
}

/// Where the pages take their figures from. Nothing here may block.
#[derive(Clone)]
pub struct Sources {
    /// Usage.
    pub sample: watch::Receiver<Arc<Sample>>,
    /// Worker reports.
    pub workers: watch::Receiver<Arc<States>>,
    /// Budget.
    pub identify: watch::Receiver<Arc<IdentifyStatus>>,
    /// The supervised processes.
    pub processes: Arc<dyn Fn() -> Vec<ProcessView> + Send + Sync>,
    /// Operations by state.
    pub operations: Option<Arc<dyn Fn() -> Vec<(String, u64)> + Send + Sync>>,
    /// Why the agent is not healthy, if it is not.
    pub health: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// The pages cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Binding failed.
    #[error("HTTP address {address} cannot be bound")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// Binds `address` (port 0 = any) and serves; returns where.
pub async fn start(
    address: SocketAddr,
    sources: Sources,
    cancel: CancellationToken,
    tracker: &TaskTracker,
) -> Result<SocketAddr, StartError> {
    todo!()
}
