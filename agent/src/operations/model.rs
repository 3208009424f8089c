//! The operation as it is stored and shown.

use serde::{Deserialize, Serialize};
use tanako_fleet::plan::Cost;
use tanako_proto::fleet::v1 as wire;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Makes the fleet what a new spec says.
    Apply,
    /// Starts processes.
    Start,
    /// Stops processes; they stay stopped.
    Stop,
    /// Restarts processes, a few at a time.
    Restart,
    /// Makes a backup set.
    Backup,
    /// Reads a backup set back.
    BackupVerify,
    /// Deletes old backup sets.
    BackupPrune,
    /// Replaces the database's data by a backup set.
    Restore,
}

impl Kind {
    /// The word users see and the wire carries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Backup => "backup",
            Self::BackupVerify => "backup-verify",
            Self::BackupPrune => "backup-prune",
            Self::Restore => "restore",
        }
    }

    /// The kinds that a request may name.
    pub const REQUESTABLE: [Self; 7] = [
        Self::Start,
        Self::Stop,
        Self::Restart,
        Self::Backup,
        Self::BackupVerify,
        Self::BackupPrune,
        Self::Restore,
    ];

    /// Whether it works on archives and not on processes.
    pub fn is_backup(self) -> bool {
        matches!(
            self,
            Self::Backup | Self::BackupVerify | Self::BackupPrune | Self::Restore
        )
    }
}

/// Where an operation is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OpState {
    /// Accepted.
    Pending,
    /// At work.
    Running,
    /// Begins no new step.
    Paused,
    /// All steps are done.
    Succeeded,
    /// A step failed.
    Failed,
    /// Someone ended it.
    Aborted,
}

impl OpState {
    /// The word users see and the wire carries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }

    /// Whether nothing more happens.
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Aborted)
    }
}

/// What a step does to its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepAction {
    /// Start, until ready.
    Start,
    /// Stop, until gone.
    Stop,
    /// Stop and start, until the new attempt is ready.
    Restart,
    /// Stop for good and forget.
    Remove,
    /// A database node or an archive works on a backup.
    Archive,
}

impl StepAction {
    /// The word users see and the wire carries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Remove => "remove",
            Self::Archive => "archive",
        }
    }
}

/// Where a step is in its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    /// Not begun.
    #[default]
    Pending,
    /// At work.
    Running,
    /// Done.
    Succeeded,
    /// Did not come to its end.
    Failed,
    /// Not needed, or not begun because something before it failed.
    Skipped,
}

impl StepState {
    /// The word users see and the wire carries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }

    /// Whether nothing more happens.
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Skipped)
    }
}

/// One step of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// A process, a database node, or a backup set.
    pub object: String,
    /// What happens to it.
    pub action: StepAction,
    /// Steps of a phase begin when all of the phases before it have ended.
    #[serde(default)]
    pub phase: u16,
    /// Where it is.
    pub state: StepState,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Milliseconds since 1970; 0 = not begun.
    #[serde(default)]
    pub started_at: i64,
    /// Milliseconds since 1970; 0 = not ended.
    #[serde(default)]
    pub ended_at: i64,
    /// How long it may take, in milliseconds.
    #[serde(default)]
    pub timeout_ms: i64,
    /// The process's attempt when the step began: tells what happened because of it.
    #[serde(default)]
    pub attempt_before: u64,
    /// Latest sign of life of that attempt, in milliseconds since 1970.
    #[serde(default)]
    pub last_seen_before: i64,
    /// Whether the process was wanted stopped before, to go back to when the step is never begun.
    #[serde(default)]
    pub was_stopped: bool,
    /// Progress within the step.
    #[serde(default)]
    pub done: u64,
    /// Its end.
    #[serde(default)]
    pub total: u64,
    /// Whether this life of the agent has asked the supervisor for it.
    #[serde(skip)]
    pub issued: bool,
}

impl Step {
    /// A step that has not begun.
    pub fn new(object: impl Into<String>, action: StepAction, phase: u16, timeout_ms: i64) -> Self {
        Self {
            object: object.into(),
            action,
            phase,
            state: StepState::Pending,
            message: String::new(),
            started_at: 0,
            ended_at: 0,
            timeout_ms,
            attempt_before: 0,
            last_seen_before: 0,
            was_stopped: false,
            done: 0,
            total: 0,
            issued: false,
        }
    }

    /// A step that is not needed.
    pub fn skipped(object: impl Into<String>, action: StepAction, why: &str) -> Self {
        let mut step = Self::new(object, action, 0, 0);
        step.state = StepState::Skipped;
        why.clone_into(&mut step.message);
        step
    }
}

/// A failure, as it is stored; the same fields as on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// Stable code.
    pub code: String,
    /// What it is about.
    pub object: String,
    /// What happened.
    pub message: String,
    /// Why.
    pub cause: String,
    /// What to do.
    pub hint: String,
    /// Whether the same again may succeed.
    pub retryable: bool,
}

impl From<wire::Problem> for Failure {
    fn from(problem: wire::Problem) -> Self {
        let wire::Problem {
            code,
            object,
            message,
            cause,
            hint,
            retryable,
        } = problem;
        Self {
            code,
            object,
            message,
            cause,
            hint,
            retryable,
        }
    }
}

impl From<Failure> for wire::Problem {
    fn from(failure: Failure) -> Self {
        let Failure {
            code,
            object,
            message,
            cause,
            hint,
            retryable,
        } = failure;
        Self {
            code,
            object,
            message,
            cause,
            hint,
            retryable,
        }
    }
}

/// What a restart cost one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Its process.
    pub process: String,
    /// The shard.
    pub shard_id: u32,
    /// resumed, identified, unknown.
    pub how: String,
    /// From the last sign of the old process to readiness of the new one.
    pub gap_ms: u64,
    /// Events replayed by the resume.
    pub replayed: u64,
}

/// A durable operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// `restart-17`.
    pub id: String,
    /// 17: rises with each operation of the fleet.
    pub number: u64,
    /// What it does.
    pub kind: Kind,
    /// As asked for.
    pub targets: Vec<String>,
    /// Where it is.
    pub state: OpState,
    /// Its steps.
    pub steps: Vec<Step>,
    /// Set when it was asked to end early.
    #[serde(default)]
    pub aborting: bool,
    /// How many restarted processes may be down at once.
    pub max_unavailable: u32,
    /// Since when it waits for a process that is down without its doing; 0 = it does not.
    #[serde(default)]
    pub blocked_since: i64,
    /// Progress.
    pub done: u64,
    /// Its end.
    pub total: u64,
    /// Of what.
    pub unit: String,
    /// What happened or happens, for people.
    pub message: String,
    /// Why it failed.
    #[serde(default)]
    pub failure: Option<Failure>,
    /// `uid 0 (root)`.
    pub requested_by: String,
    /// Given by whoever asked, so that asking twice does it once.
    pub request_id: String,
    /// Milliseconds since 1970.
    pub created_at: i64,
    /// Milliseconds since 1970.
    pub updated_at: i64,
    /// Milliseconds since 1970; 0 = not ended.
    #[serde(default)]
    pub ended_at: i64,
    /// What it cost the shards.
    #[serde(default)]
    pub receipt: Vec<Receipt>,
    /// What it was expected to cost.
    pub cost: Cost,
    /// IDENTIFYs left when it was accepted.
    #[serde(default)]
    pub identifies_left: u32,
    /// Everything was already as asked.
    #[serde(default)]
    pub unchanged: bool,
    /// Label of the backup set.
    #[serde(default)]
    pub date: String,
    /// `backup-prune`: how many to keep.
    #[serde(default)]
    pub keep: u32,
}

impl Operation {
    /// Whether it will work on `object`, or is at work on it.
    pub fn holds(&self, object: &str) -> bool {
        !self.state.is_ended()
            && self
                .steps
                .iter()
                .any(|step| step.object == object && !step.state.is_ended())
    }

    /// Counts the ended steps.
    pub fn count_steps(&mut self) {
        self.total = self.steps.len() as u64;
        self.done = self
            .steps
            .iter()
            .filter(|step| step.state.is_ended())
            .count() as u64;
    }

    /// As `tanakoctl` gets it.
    pub fn to_wire(&self) -> wire::Operation {
        wire::Operation {
            id: self.id.clone(),
            kind: self.kind.as_str().to_owned(),
            targets: self.targets.clone(),
            state: self.state.as_str().to_owned(),
            steps: self
                .steps
                .iter()
                .map(|step| wire::OperationStep {
                    object: step.object.clone(),
                    action: step.action.as_str().to_owned(),
                    state: step.state.as_str().to_owned(),
                    message: step.message.clone(),
                    started_at: step.started_at,
                    ended_at: step.ended_at,
                    done: step.done,
                    total: step.total,
                })
                .collect(),
            done: self.done,
            total: self.total,
            unit: self.unit.clone(),
            message: self.message.clone(),
            problem: self.failure.clone().map(Into::into),
            requested_by: self.requested_by.clone(),
            request_id: self.request_id.clone(),
            created_at: self.created_at,
            updated_at: self.updated_at,
            ended_at: self.ended_at,
            receipt: self
                .receipt
                .iter()
                .map(|receipt| wire::ShardReceipt {
                    process: receipt.process.clone(),
                    shard_id: receipt.shard_id,
                    how: receipt.how.clone(),
                    gap_ms: receipt.gap_ms,
                    replayed: receipt.replayed,
                    lost: 0,
                    duplicated: 0,
                    ..wire::ShardReceipt::default()
                })
                .collect(),
            cost: Some(cost_to_wire(&self.cost, self.identifies_left)),
            unchanged: self.unchanged,
            date: self.date.clone(),
            ..wire::Operation::default()
        }
    }
}

/// A cost as `tanakoctl` gets it.
pub fn cost_to_wire(cost: &Cost, identifies_left: u32) -> wire::Cost {
    wire::Cost {
        processes_restarted: cost.restarted,
        processes_started: cost.started,
        processes_stopped: cost.stopped,
        identifies: cost.identifies,
        identifies_left,
        seconds: cost.seconds,
        guilds_moved: 0,
    }
}
