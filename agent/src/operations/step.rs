//! One step of an operation, as it is stored.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

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
    /// Start beside the old set, prepared and not connected, until it stands by.
    Warm,
    /// Start beside the old set, connected and handling nothing, until ready.
    Shadow,
    /// Hand the sessions of one process to another, until that one is connected.
    Switch,
    /// Watch those that have changed.
    Observe,
    /// Share the events of two sets by a moment in time.
    Cut,
    /// The new generation becomes the one.
    Adopt,
    /// Go from one host to another with the sessions, until ready there.
    Move,
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
            Self::Warm => "warm",
            Self::Shadow => "shadow",
            Self::Switch => "switch",
            Self::Observe => "observe",
            Self::Cut => "cut",
            Self::Adopt => "adopt",
            Self::Move => "move",
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

/// Something that a worker was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Which attempt of it.
    pub attempt: u64,
    /// Not asked again before this time, in milliseconds since 1970.
    pub again_at: i64,
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
    /// Switch: the process that takes the sessions.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub other: String,
    /// Move: the host that it leaves.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// Move: the host that it goes to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub to: String,
    /// Move: the host that it leaves is lost. Nothing is asked of it, nothing runs there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
    /// Move: the host that it goes to is lost, and there is no other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub to_lost: bool,
    /// It undoes an earlier step.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub back: bool,
    /// How far a switch or a cut is within itself.
    #[serde(default)]
    pub stage: u8,
    /// Since when, in milliseconds since 1970.
    #[serde(default)]
    pub stage_at: i64,
    /// Cut: the moment, on Discord's clock, in milliseconds since 1970.
    #[serde(default)]
    pub cut_at: i64,
    /// Cut: how many moments have been tried.
    #[serde(default)]
    pub rounds: u32,
    /// Cut: who has confirmed this stage.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub acks: BTreeSet<String>,
    /// A last means has been used: a process that did not answer was stopped or restarted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
    /// What this life of the agent has asked workers for and has no answer to.
    #[serde(skip)]
    pub asked: BTreeMap<String, Asked>,
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
            other: String::new(),
            from: String::new(),
            to: String::new(),
            lost: false,
            to_lost: false,
            back: false,
            stage: 0,
            stage_at: 0,
            cut_at: 0,
            rounds: 0,
            acks: BTreeSet::new(),
            forced: false,
            asked: BTreeMap::new(),
            issued: false,
        }
    }

    /// A switch of the sessions of `from` to `to`.
    pub fn switch(
        from: impl Into<String>,
        to: impl Into<String>,
        phase: u16,
        timeout_ms: i64,
    ) -> Self {
        Self {
            other: to.into(),
            ..Self::new(from, StepAction::Switch, phase, timeout_ms)
        }
    }

    /// A move from one host to another.
    pub fn moving(
        object: impl Into<String>,
        from: impl Into<String>,
        to: impl Into<String>,
        timeout_ms: i64,
    ) -> Self {
        Self {
            from: from.into(),
            to: to.into(),
            ..Self::new(object, StepAction::Move, 0, timeout_ms)
        }
    }

    /// Whether it ends with a process that has its shards anew.
    pub fn has_receipt(&self) -> bool {
        matches!(
            self.action,
            StepAction::Start | StepAction::Restart | StepAction::Switch | StepAction::Move
        )
    }

    /// The process that has the shards once it is done.
    pub fn taker(&self) -> &str {
        if self.action == StepAction::Switch {
            &self.other
        } else {
            &self.object
        }
    }

    /// Whether it moves a process from or to this host.
    pub fn is_between(&self, host: &str) -> bool {
        self.action == StepAction::Move && (self.from == host || self.to == host)
    }

    /// Whether it has begun, whatever became of it.
    pub fn is_begun(&self) -> bool {
        self.started_at > 0
    }

    /// Brings it to its end.
    pub fn finish(&mut self, now: i64, state: StepState, message: impl Into<String>) {
        self.state = state;
        self.message = message.into();
        self.ended_at = now;
        self.asked.clear();
    }

    /// Goes on to another stage.
    pub fn enter(&mut self, now: i64, stage: u8) {
        self.stage = stage;
        self.stage_at = now;
        self.acks.clear();
        self.asked.clear();
    }

    /// Whether the process may be asked now, and remembers that it was.
    pub fn ask(&mut self, now: i64, process: &str, attempt: u64, again_ms: i64) -> bool {
        let due = self
            .asked
            .get(process)
            .is_none_or(|asked| asked.attempt != attempt || now >= asked.again_at);
        if due {
            let again_at = now + again_ms;
            self.asked
                .insert(process.to_owned(), Asked { attempt, again_at });
        }
        due
    }

    /// A step that is not needed.
    pub fn skipped(object: impl Into<String>, action: StepAction, why: &str) -> Self {
        let mut step = Self::new(object, action, 0, 0);
        step.state = StepState::Skipped;
        why.clone_into(&mut step.message);
        step
    }
}
