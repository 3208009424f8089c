//! What the supervisor tells the rest of the agent about its processes.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use tanako_fleet::{ProcessKind, ProcessName, ProcessSpec};

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not running: nobody asked for it, the operator stopped it, or it finished its work.
    Stopped,
    /// Being started, waiting for its turn to start, or alive and not ready for the first time yet.
    Starting,
    /// Alive, was ready and is not at the moment.
    Running,
    /// Alive and ready.
    Ready,
    /// Alive and says that it is finishing its work, asked to or not.
    Draining,
    /// Told to stop; killed when its grace is over.
    Stopping,
    /// Waiting for its next automatic start.
    Backoff,
    /// Given up until someone starts it by hand or changes its spec; the detail says why.
    Failed,
}

impl State {
    /// Whether it will soon be another one without anything from outside.
    pub fn is_moving(self) -> bool {
        matches!(self, Self::Starting | Self::Draining | Self::Stopping)
    }

    /// The lower-case word of the CLI and the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::Failed => "failed",
        }
    }

    /// Whether a process of the operating system may exist in this state.
    pub fn is_live(self) -> bool {
        matches!(
            self,
            Self::Starting | Self::Running | Self::Ready | Self::Draining | Self::Stopping
        )
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the operator (or the plan) wants of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Desired {
    /// It shall run; it comes back after failures as its restart policy says.
    Running,
    /// It shall not run; nothing but an explicit start brings it back.
    Stopped,
}

/// One process as the supervisor sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessStatus {
    /// Its name.
    pub name: ProcessName,
    /// What it is.
    pub kind: ProcessKind,
    /// Where it is in its life.
    pub state: State,
    /// Whether it is ready now.
    pub ready: bool,
    /// What was asked for.
    pub desired: Desired,
    /// Its process id while it lives.
    pub pid: Option<u32>,
    /// Number of its latest start; 0 = never started. Never goes back, not even across agents.
    pub attempt: u64,
    /// Starts that nobody asked for: after a crash, a hang or a failed start.
    pub restarts: u64,
    /// When the latest attempt was started, in milliseconds since 1970; `None` = it was not started here.
    pub started_at_ms: Option<i64>,
    /// When the latest attempt became ready for the first time, in milliseconds since 1970.
    pub ready_at_ms: Option<i64>,
    /// When it is started next by itself (in [`State::Backoff`]), in milliseconds since 1970.
    pub next_start_at_ms: Option<i64>,
    /// Why it is in this state, in words for the operator. Empty when there is nothing to say.
    pub detail: String,
    /// How the latest run ended (`exit code 1`, `signal KILL`, `status unknown`); empty before the
    /// first end.
    pub last_exit: String,
    /// Shards it holds by its spec.
    pub shard_ids: Vec<u32>,
    /// Shards of the bot in all.
    pub shard_count: u32,
    /// Whether this attempt was started by an earlier life of the agent.
    pub adopted: bool,
    /// Whether the running attempt was started from an older spec than `spec`: a restart is needed
    /// for the new one to take effect.
    pub needs_restart: bool,
    /// Lines written to its log so far (counted once a second).
    pub log_lines: u64,
    /// Bytes written to its log so far (counted once a second).
    pub log_bytes: u64,
    /// How the limits of the running attempt are enforced, in words (`cgroup …`, `memory watched`);
    /// empty when it has none.
    pub limits: String,
    /// What it is started from.
    pub spec: Arc<ProcessSpec>,
}

/// All processes of this host by name.
pub type Table = BTreeMap<ProcessName, Arc<ProcessStatus>>;

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A change that the operator may want to see.
    Info,
    /// Something went wrong and is being put right.
    Warning,
    /// Someone must act.
    Error,
}

/// Something that happened to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SupervisorEvent {
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// How much it matters.
    pub severity: Severity,
    /// What, as one stable word; see [`kind`].
    pub kind: &'static str,
    /// To which process.
    pub process: ProcessName,
    /// In which attempt.
    pub attempt: u64,
    /// In words.
    pub message: String,
}

/// The words of [`SupervisorEvent::kind`].
pub mod kind {
    /// A process was started.
    pub const STARTED: &str = "process-started";
    /// A process became ready (again).
    pub const READY: &str = "process-ready";
    /// A process is alive and no longer ready.
    pub const NOT_READY: &str = "process-not-ready";
    /// A process ended without having been asked to.
    pub const EXITED: &str = "process-exited";
    /// A process ended as it was asked to.
    pub const STOPPED: &str = "process-stopped";
    /// A process did not stop within its grace and was killed.
    pub const KILLED: &str = "process-killed";
    /// The next start waits.
    pub const BACKOFF: &str = "backoff";
    /// Too many failed runs in a short time: given up.
    pub const CRASH_LOOP: &str = "crash-loop";
    /// A process failed and its policy does not start it again.
    pub const GAVE_UP: &str = "gave-up";
    /// A process was not ready in time.
    pub const READY_TIMEOUT: &str = "ready-timeout";
    /// A process gave no sign of life for too long.
    pub const WATCHDOG: &str = "watchdog";
    /// A process used more memory than it may.
    pub const MEMORY: &str = "memory-limit";
    /// A process of an earlier life of the agent was taken over.
    pub const ADOPTED: &str = "adopted";
    /// A process could not be started.
    pub const START_FAILED: &str = "start-failed";
    /// Descendants that outlived their process were found and killed.
    pub const LEFTOVERS: &str = "leftovers-killed";
    /// A part of the records of running processes was unreadable.
    pub const RECORD_DAMAGED: &str = "record-damaged";
    /// A log could not be rotated, or grew faster than it could be.
    pub const LOG: &str = "log-trouble";
    /// A limit of the spec cannot be enforced on this host.
    pub const LIMITS: &str = "limits-not-enforced";
}
