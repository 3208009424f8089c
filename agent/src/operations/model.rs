//! The operation as it is stored and shown.

use serde::{Deserialize, Serialize};
use tanako_fleet::{plan::Cost, rollout::Strategy};
use tanako_proto::fleet::v1 as wire;

use super::{
    receipt::{self, Receipt},
    step::{Step, StepAction, StepState},
    watching::Watch,
};

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
    /// Brings a change to processes by one of the strategies.
    Rollout,
    /// Changes a bot's number of shards.
    Reshard,
    /// Moves processes to another host.
    Move,
    /// Starts what a lost host had on others.
    Failover,
    /// Places nothing new on hosts.
    Cordon,
    /// Lets hosts take processes again.
    Uncordon,
    /// Moves everything off hosts.
    Drain,
    /// Levels the load of the hosts.
    Rebalance,
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
            Self::Rollout => "rollout",
            Self::Reshard => "reshard",
            Self::Move => "move",
            Self::Failover => "failover",
            Self::Cordon => "cordon",
            Self::Uncordon => "uncordon",
            Self::Drain => "drain",
            Self::Rebalance => "rebalance",
            Self::Backup => "backup",
            Self::BackupVerify => "backup-verify",
            Self::BackupPrune => "backup-prune",
            Self::Restore => "restore",
        }
    }

    /// The kinds that a request may name.
    pub const REQUESTABLE: [Self; 15] = [
        Self::Start,
        Self::Stop,
        Self::Restart,
        Self::Rollout,
        Self::Reshard,
        Self::Move,
        Self::Failover,
        Self::Cordon,
        Self::Uncordon,
        Self::Drain,
        Self::Rebalance,
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

/// Which way an operation goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Course {
    /// To what was asked for.
    #[default]
    Forward,
    /// To what was before.
    Back,
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
    /// Rollout: how the change is brought.
    #[serde(default)]
    pub strategy: Option<Strategy>,
    /// Blue-green, reshard: the bots that get a new generation.
    #[serde(default)]
    pub bots: Vec<String>,
    /// Reshard: the number of shards before.
    #[serde(default)]
    pub old_shards: u32,
    /// A rollout that brings another spec; the one that it replaces is kept beside it.
    #[serde(default)]
    pub replaces: bool,
    /// A mark of the spec that it brings.
    #[serde(default)]
    pub brings: u64,
    /// Which way it goes.
    #[serde(default)]
    pub course: Course,
    /// Those that have changed, while they are watched.
    #[serde(default)]
    pub watch: Option<Watch>,
    /// How many processes may be starting at once; 0 = all. Those that identify would otherwise
    /// wait for permits beyond the time in which they must become ready.
    #[serde(default)]
    pub starting_max: u32,
    /// Drain: when it gives up what has not begun to move, in milliseconds since 1970; 0 = never.
    #[serde(default)]
    pub deadline_at: i64,
}

impl Operation {
    /// One that has just been accepted.
    pub fn new(number: u64, kind: Kind, now: i64) -> Self {
        Self {
            id: format!("{}-{number}", kind.as_str()),
            number,
            kind,
            targets: Vec::new(),
            state: OpState::Pending,
            steps: Vec::new(),
            aborting: false,
            max_unavailable: 1,
            blocked_since: 0,
            done: 0,
            total: 0,
            unit: "processes".to_owned(),
            message: "accepted".to_owned(),
            failure: None,
            requested_by: String::new(),
            request_id: String::new(),
            created_at: now,
            updated_at: now,
            ended_at: 0,
            receipt: Vec::new(),
            cost: Cost::default(),
            identifies_left: 0,
            unchanged: false,
            date: String::new(),
            keep: 0,
            strategy: None,
            bots: Vec::new(),
            old_shards: 0,
            replaces: false,
            brings: 0,
            course: Course::Forward,
            watch: None,
            starting_max: 0,
            deadline_at: 0,
        }
    }

    /// Whether it builds a new generation of processes.
    pub fn builds_generation(&self) -> bool {
        self.kind == Kind::Reshard || self.strategy == Some(Strategy::BlueGreen)
    }

    /// Whether it goes back to what was before when it is aborted.
    pub fn can_go_back(&self) -> bool {
        self.builds_generation() || self.replaces
    }

    /// Whether the new generation has become the one: there is no way back within the operation.
    pub fn is_past_return(&self) -> bool {
        self.steps
            .iter()
            .any(|step| step.action == StepAction::Adopt && step.state == StepState::Succeeded)
    }

    /// Whether a step is at work.
    pub fn is_working(&self) -> bool {
        self.steps
            .iter()
            .any(|step| step.state == StepState::Running)
    }

    /// Whether it will work on `object`, or is at work on it. Two sets that overlap are its own until it
    /// has ended: on the way back it needs those again that it had done with.
    pub fn holds(&self, object: &str) -> bool {
        let whole = self.builds_generation();
        let own = |step: &Step| step.object == object || whole && step.other == object;
        !self.state.is_ended()
            && self
                .steps
                .iter()
                .any(|step| own(step) && (whole || !step.state.is_ended()))
    }

    /// Whether it builds a second set of this bot, or is taking one away again. There is room for one.
    pub fn builds(&self, bot: &str) -> bool {
        !self.state.is_ended() && self.builds_generation() && self.bots.iter().any(|own| own == bot)
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
            receipt: self.receipt.iter().map(Receipt::to_wire).collect(),
            receipt_totals: receipt::totals(&self.receipt),
            strategy: self
                .strategy
                .map_or_else(String::new, |strategy| strategy.as_str().to_owned()),
            cost: Some(cost_to_wire(&self.cost, self.identifies_left)),
            unchanged: self.unchanged,
            date: self.date.clone(),
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
        processes_moved: cost.moved,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bot_has_room_for_one_second_set_until_the_way_back_has_ended() {
        let mut op = Operation {
            bots: vec!["b".to_owned()],
            steps: vec![Step::new("b", StepAction::Cut, 1, 1)],
            ..Operation::new(1, Kind::Reshard, 0)
        };
        assert!(op.builds("b") && !op.builds("c"));
        // It goes back: none of its steps names the bot any more, and its set is still there.
        op.steps[0].state = super::super::step::StepState::Skipped;
        op.course = Course::Back;
        op.state = OpState::Running;
        assert!(op.builds("b") && op.holds("b"));
        op.state = OpState::Aborted;
        assert!(!op.builds("b") && !op.holds("b"));
        let restart = Operation {
            bots: op.bots.clone(),
            ..Operation::new(2, Kind::Restart, 0)
        };
        assert!(!restart.builds("b"));
    }
}
