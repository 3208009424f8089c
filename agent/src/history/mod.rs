//! Samples and events of the recent past, behind sparklines and `tanakoctl events`.
//!
//! Nothing here was ever promised to anyone: history may be lost, and is rebuilt from nothing when
//! it fails to open. Supervision never waits for it.

use std::path::PathBuf;

use tanako_proto::fleet::v1 as wire;
use tokio::sync::broadcast;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

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

/// Handle to the history; cheap to clone.
#[derive(Debug, Clone)]
pub struct History;

impl History {
    /// Opens the database and starts the thread that owns it. Never fails: without a usable
    /// database the history lives in memory only, and an event says so.
    pub fn start(config: Config, cancel: CancellationToken, tracker: &TaskTracker) -> Self {
        todo!()
    }

    /// Records that something happened: `kind` is stable and kebab-case, `object` what it is about.
    pub fn event(&self, severity: Severity, kind: &str, object: &str, message: impl Into<String>) {
        todo!()
    }

    /// Records an event made elsewhere; its id is set here, and time and host when unset.
    pub fn append_event(&self, event: wire::Event) {
        todo!()
    }

    /// The latest `tail` events at or after `since` (ms since 1970) about any of `targets`
    /// (none = about anything), oldest first.
    pub async fn events(&self, tail: usize, since: i64, targets: &[String]) -> Vec<wire::Event> {
        todo!()
    }

    /// Events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<wire::Event> {
        todo!()
    }

    /// Series of `metrics` of a process, or of a host by `host:NAME`, over the last `seconds`, in
    /// at most `points` points each.
    pub async fn series(
        &self,
        target: &str,
        metrics: &[String],
        seconds: u32,
        points: u32,
    ) -> Vec<wire::Series> {
        todo!()
    }
}
