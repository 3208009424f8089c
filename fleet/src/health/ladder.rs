//! What is done about a shard that is not well, and the brake when many are not.

use super::{
    Effect, Grade, Reading, Stage, format_span,
    silence::{History, Scale, Silent},
};
use crate::process::ProcessName;

/// The brake: so many shards of a bot, and at least one in [`STORM_SHARE`].
const STORM_SHARDS: u32 = 2;
const STORM_SHARE: u32 = 4;
/// It is let go when fewer than one in this many are in trouble, for [`CALM_MS`].
const CALM_SHARE: u32 = 10;
const CALM_MS: i64 = 30_000;
/// Between two actions for one bot, so that each can be seen to help or not.
const SPACING_MS: i64 = 10_000;
/// After this time a shard that was well is treated like any other.
const FORGET_MS: i64 = 24 * 60 * 60 * 1000;
/// Waits double up to this many times.
const DOUBLINGS_MAX: u32 = 6;

/// What was done about a shard so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Step {
    /// Nothing.
    #[default]
    None,
    /// The connection was replaced by a RESUME.
    Resume,
    /// The session was given up for a new one.
    Identify,
    /// The process was restarted.
    Respawn,
}

impl Step {
    /// As shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Resume => "resume",
            Self::Identify => "identify",
            Self::Respawn => "respawn",
        }
    }

    fn next(self) -> Option<Self> {
        match self {
            Self::None => Some(Self::Resume),
            Self::Resume => Some(Self::Identify),
            Self::Identify => Some(Self::Respawn),
            Self::Respawn => None,
        }
    }
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// RESUME and IDENTIFY are the process's to do, a respawn is the supervisor's.
    pub step: Step,
    /// The process.
    pub process: ProcessName,
    /// The attempt that it is meant for; another one needs no help.
    pub attempt: u64,
    /// The shard.
    pub shard: u32,
    /// Of so many.
    pub count: u32,
    /// For people.
    pub why: String,
}

/// What is wrong with a shard, where something can be done.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Trouble {
    /// These types no longer come.
    Silent(Vec<String>),
    /// It does not get its connection back, while others have theirs.
    Stuck,
}

/// A bot's shards together.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// When the last bucket ended.
    pub(super) bucket_at: Option<i64>,
    pub(super) storm: bool,
    pub(super) troubled: u32,
    pub(super) total: u32,
    calm_since: Option<i64>,
    /// No action before this time.
    next_action_at: i64,
}

impl Group {
    /// Looks whether many shards are in trouble at once.
    pub(super) fn brake(&mut self, now: i64, bot: &str) -> Option<Effect> {
        let (troubled, total) = (self.troubled, self.total);
        let many = troubled >= STORM_SHARDS && troubled * STORM_SHARE >= total;
        if many {
            self.calm_since = None;
            if self.storm {
                return None;
            }
            self.storm = true;
            return Some(Effect::Event {
                grade: Grade::Warning,
                kind: "storm-brake-on",
                object: bot.to_owned(),
                message: format!(
                    "{troubled} of {total} shards are in trouble at once: that is Discord or the \
                     network, so nothing is restarted and no session is given up; the shards come \
                     back by themselves"
                ),
            });
        }
        if !self.storm {
            return None;
        }
        if troubled * CALM_SHARE > total && troubled > 1 {
            self.calm_since = None;
            return None;
        }
        let since = *self.calm_since.get_or_insert(now);
        if now - since < CALM_MS {
            return None;
        }
        self.storm = false;
        self.calm_since = None;
        self.next_action_at = self.next_action_at.max(now + SPACING_MS);
        Some(Effect::Event {
            grade: Grade::Info,
            kind: "storm-brake-off",
            object: bot.to_owned(),
            message: format!("{} of {total} shards are well again", total - troubled),
        })
    }

    pub(super) fn may_act(&self, now: i64) -> bool {
        // While it is calm again, but not for long enough, nothing is done either.
        !self.storm && now >= self.next_action_at
    }
}

/// What was done about a shard, and when the next may be done.
#[derive(Debug, Default)]
pub(super) struct Ladder {
    step: Step,
    acted_at: i64,
    /// The next step is not before this time.
    wait_until: i64,
    types: Vec<String>,
    /// Times the shard went through this, for the waits to grow.
    rounds: u32,
    /// When it was last well again.
    healed_at: i64,
    /// That nothing is done for want of budget was said.
    held: bool,
    given_up: bool,
}

impl Ladder {
    /// Whether the process was restarted for it.
    pub(super) fn is_respawned(&self) -> bool {
        self.step == Step::Respawn
    }

    /// The types that are missing: those that are silent, or that something was done about and that
    /// have not come since.
    pub(super) fn types(&self, silent: &[Silent]) -> Vec<String> {
        let mut types = self.types.clone();
        for one in silent {
            if !types.contains(&one.kind) {
                types.push(one.kind.clone());
            }
        }
        types
    }

    /// What was done, for people.
    pub(super) fn done(&self, now: i64) -> Option<String> {
        let what = match self.step {
            Step::None => return None,
            Step::Resume => "resumed",
            Step::Identify => "identified anew",
            Step::Respawn => "process restarted",
        };
        Some(format!("{what} {} ago", format_span(now - self.acted_at)))
    }

    /// Whether what was wrong is no longer so. Types that were missing must have come again.
    pub(super) fn healed(
        &mut self,
        now: i64,
        scale: Scale,
        stage: Stage,
        history: &History,
    ) -> bool {
        if self.step == Step::None && now - self.healed_at > FORGET_MS {
            self.rounds = 0;
        }
        let since = self.acted_at;
        self.types.retain(|kind| !history.came_since(kind, since));
        self.step != Step::None
            && stage == Stage::Ready
            && self.types.is_empty()
            && now - self.acted_at >= scale.bucket_ms
    }

    /// Starts from the bottom again, after a longer wait.
    pub(super) fn recovered(&mut self, now: i64, reading: &Reading<'_>) -> Option<Effect> {
        let step = self.step;
        self.step = Step::None;
        self.healed_at = now;
        self.held = false;
        self.rounds = (self.rounds + 1).min(DOUBLINGS_MAX);
        if std::mem::take(&mut self.given_up) {
            return None; // That was told already.
        }
        Some(Effect::Event {
            grade: Grade::Info,
            kind: "shard-recovered",
            object: reading.process.to_string(),
            message: format!(
                "shard {} is well again {} after {}",
                reading.shard,
                format_span(now - self.acted_at),
                match step {
                    Step::None | Step::Resume => "a RESUME",
                    Step::Identify => "an IDENTIFY",
                    Step::Respawn => "a restart of its process",
                }
            ),
        })
    }

    /// An action came to nothing; the next step comes in its time.
    pub(super) fn failed(&mut self, process: &ProcessName, shard: u32, why: &str) -> Vec<Effect> {
        vec![Effect::Event {
            grade: Grade::Warning,
            kind: "shard-not-helped",
            object: process.to_string(),
            message: format!("shard {shard}: {} failed: {why}", self.step.as_str()),
        }]
    }

    /// The next step, if its time has come.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is another part of the state"
    )]
    pub(super) fn climb(
        &mut self,
        now: i64,
        scale: Scale,
        reading: &Reading<'_>,
        trouble: Trouble,
        may: bool,
        affordable: bool,
        history: &mut History,
        group: &mut Group,
    ) -> Vec<Effect> {
        let (what, types) = match trouble {
            Trouble::Silent(types) => (format!("no {} comes any more", types.join(", ")), types),
            Trouble::Stuck => ("its connection does not come back".to_owned(), Vec::new()),
        };
        if now < self.wait_until {
            return Vec::new();
        }
        let object = reading.process.to_string();
        let Some(step) = self.step.next() else {
            // A new connection, a new session and a new process: it is not the shard.
            history.accept(&types);
            self.types.clear();
            self.given_up = true;
            let wait = scale
                .silent_ms
                .saturating_mul(12 << self.rounds.min(DOUBLINGS_MAX));
            self.wait_until = now + wait;
            self.step = Step::None;
            self.rounds = (self.rounds + 1).min(DOUBLINGS_MAX);
            let rest = if types.is_empty() {
                "nothing more is tried for now".to_owned()
            } else {
                "taken for normal from now on".to_owned()
            };
            return vec![Effect::Event {
                grade: Grade::Error,
                kind: "shard-given-up",
                object,
                message: format!(
                    "shard {}: {what}, after a RESUME, an IDENTIFY and a new process; {rest}. Has \
                     the bot lost an intent, or a large guild?",
                    reading.shard
                ),
            }];
        };
        if !may {
            if !affordable && !std::mem::replace(&mut self.held, true) {
                return vec![Effect::Event {
                    grade: Grade::Warning,
                    kind: "shard-held",
                    object,
                    message: format!(
                        "shard {}: {what}; nothing is done, since the IDENTIFY budget is at its \
                         reserve, unknown, or guarded: see tanakoctl identify",
                        reading.shard
                    ),
                }];
            }
            return Vec::new();
        }
        self.step = step;
        self.acted_at = now;
        self.held = false;
        self.types = types;
        // Twice as long after each step, and after each time that it came back.
        let wait = scale
            .silent_ms
            .saturating_mul(1 << (step as u32 - 1 + self.rounds).min(10));
        self.wait_until = now + wait;
        history.reconnected(now);
        group.next_action_at = now + SPACING_MS;
        let (verb, grade) = match step {
            Step::None | Step::Resume => ("its connection is replaced by a RESUME", Grade::Warning),
            Step::Identify => (
                "the RESUME did not help, it identifies anew",
                Grade::Warning,
            ),
            Step::Respawn => (
                "the IDENTIFY did not help, its process is restarted",
                Grade::Error,
            ),
        };
        vec![
            Effect::Event {
                grade,
                kind: "shard-unwell",
                object,
                message: format!("shard {}: {what}; {verb}", reading.shard),
            },
            Effect::Act(Action {
                step,
                process: reading.process.clone(),
                attempt: reading.attempt,
                shard: reading.shard,
                count: reading.count,
                why: what,
            }),
        ]
    }
}
