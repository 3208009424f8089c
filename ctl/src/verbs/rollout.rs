//! `tanakoctl rollout`.

use std::{path::PathBuf, time::Duration};

use clap::{Subcommand, ValueEnum};
use tanako_proto::fleet::v1::{ListOperationsRequest, Operation, OperationRequest, RolloutRequest};

use super::{
    operation::{self, Control},
    plan,
};
use crate::{
    confirm::{Consent, Severity},
    exit::Exit,
    failure::{Failure, Outcome},
    operate::{self, Running, Wish, conclude, follow},
    session::Session,
    ui::Report as _,
    units::parse_duration,
    view::{OperationView, status::goes_on},
};

/// How long a rollout is followed unless `--timeout` says else.
const PATIENCE: Duration = Duration::from_hours(2);
/// Among so many operations the latest rollout is looked for.
const LOOKED_AT: u32 = 200;

/// Bring a new spec or a new program to running processes, and go back when it does not do well
///
/// Rollouts live in the fleet: they go on when tanakoctl ends, and survive restarts of agents and bots. ID is
/// that of a rollout or reshard; without it, the one under way, or the latest.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start one, and follow it to its end
    ///
    /// Without --file the processes run the same spec again, with the program now on disk. Rolling stops at the
    /// first process that does not become ready; the others keep running as they were.
    Start(Start),
    /// Show one with its steps and receipt
    Status {
        /// Its id
        id: Option<String>,
        /// Follow it to its end; the exit code says how it ended
        #[arg(long, short = 'w')]
        watch: bool,
    },
    /// Let it wait after the step it is at
    Pause(Chosen),
    /// Let it go on
    Resume(Chosen),
    /// End it and go back: what has been changed is changed back
    Abort(Chosen),
    /// Roll back to the spec that a rollout which has ended had replaced
    Undo(Undo),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Strategy {
    /// One after the other, in place
    Rolling,
    /// One first, watched for a time; then the others, or back by itself
    Canary,
    /// A second set beside the first takes over its sessions, pair by pair
    BlueGreen,
}

impl Strategy {
    fn word(self) -> String {
        match self {
            Self::Rolling => "rolling",
            Self::Canary => "canary",
            Self::BlueGreen => "blue-green",
        }
        .to_owned()
    }
}

#[derive(Debug, clap::Args)]
struct Start {
    /// What to change: a bot, a process, db, … [default: everything]
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// How
    #[arg(long, value_enum, default_value = "rolling")]
    strategy: Strategy,
    /// A new fleet.toml
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The process that goes first [default: the one with the fewest guilds]
    #[arg(long, value_name = "PROCESS")]
    canary: Option<String>,
    #[command(flatten)]
    pace: Pace,
    #[command(flatten)]
    running: Running,
}

#[derive(Debug, clap::Args)]
struct Pace {
    /// How many processes, or pairs of them, may be down at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    max_unavailable: u32,
    /// Canary and blue-green: how long those that have changed are watched [default: 1m]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    observe: Option<Duration>,
    /// How long each process may take to become ready [default: as fleet.toml says]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    ready_timeout: Option<Duration>,
}

#[derive(Debug, clap::Args)]
struct Undo {
    /// Its id
    id: Option<String>,
    /// How [default: as it was rolled out]
    #[arg(long, value_enum)]
    strategy: Option<Strategy>,
    #[command(flatten)]
    pace: Pace,
    #[command(flatten)]
    running: Running,
}

#[derive(Debug, clap::Args)]
struct Chosen {
    /// Its id
    id: Option<String>,
    /// Show it, change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    consent: Consent,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        match self.verb {
            Verb::Start(start) => start.run(session).await,
            Verb::Undo(undo) => undo.run(session).await,
            Verb::Status { id, watch } => {
                let operation = choose(session, id, false).await?;
                if watch {
                    let fleet = session.fleet().await?;
                    let operation = follow(session, &fleet, operation, PATIENCE).await?;
                    return conclude(session, &operation);
                }
                let view = OperationView::from(&operation);
                if session.ui.is_machine() {
                    session.ui.report(&view)?;
                } else {
                    session.ui.print(&view.table(session.ui.out, true))?;
                }
                Ok(Exit::Ok)
            }
            Verb::Pause(chosen) => chosen.run(session, "pause", Severity::Harmless).await,
            Verb::Resume(chosen) => chosen.run(session, "resume", Severity::Harmless).await,
            Verb::Abort(chosen) => chosen.run(session, "abort", Severity::Disruptive).await,
        }
    }
}

impl Start {
    async fn run(self, session: &Session) -> Outcome {
        let spec = match &self.file {
            None => None,
            Some(file) => Some((plan::read(file)?, file.display().to_string())),
        };
        let (spec_toml, file_name) = spec.unwrap_or_default();
        let targets = if self.targets.is_empty() {
            vec!["all".to_owned()]
        } else {
            self.targets
        };
        let rollout = RolloutRequest {
            strategy: self.strategy.word(),
            spec_toml,
            file_name,
            observe_s: self.pace.observe.map_or(0, operate::seconds),
            canary: self.canary.unwrap_or_default(),
            ..RolloutRequest::default()
        };
        let wish = wish(targets, &self.pace, rollout, None);
        operate::run(session, &self.running, wish).await
    }
}

impl Undo {
    async fn run(self, session: &Session) -> Outcome {
        let id = match self.id {
            Some(id) => id,
            None => latest(session, |operation| {
                operation.kind == "rollout" && !goes_on(operation)
            })
            .await?
            .map(|operation| operation.id)
            .ok_or_else(none)?,
        };
        let rollout = RolloutRequest {
            strategy: self.strategy.map_or_else(String::new, Strategy::word),
            observe_s: self.pace.observe.map_or(0, operate::seconds),
            undo: id.clone(),
            ..RolloutRequest::default()
        };
        let loses = format!("undoes {id}");
        let wish = wish(Vec::new(), &self.pace, rollout, Some(loses));
        operate::run(session, &self.running, wish).await
    }
}

impl Chosen {
    async fn run(self, session: &Session, action: &str, severity: Severity) -> Outcome {
        let id = choose(session, self.id, true).await?.id;
        let args = Control {
            id,
            dry_run: self.dry_run,
            consent: self.consent,
        };
        operation::control(session, args, action, severity).await
    }
}

fn wish(targets: Vec<String>, pace: &Pace, rollout: RolloutRequest, loses: Option<String>) -> Wish {
    Wish {
        request: OperationRequest {
            kind: "rollout".into(),
            targets,
            max_unavailable: pace.max_unavailable,
            timeout_s: pace.ready_timeout.map_or(0, operate::seconds),
            rollout: Some(rollout),
            ..OperationRequest::default()
        },
        severity: Severity::Disruptive,
        loses,
        patience: PATIENCE,
    }
}

/// The operation of that id; without one, the rollout or reshard under way, or, unless it must be under
/// way, the latest.
async fn choose(
    session: &Session,
    id: Option<String>,
    under_way: bool,
) -> Result<Operation, Failure> {
    if let Some(id) = id {
        return operation::get(session, id).await;
    }
    let is_one = |operation: &Operation| matches!(operation.kind.as_str(), "rollout" | "reshard");
    let running = latest(session, |operation| is_one(operation) && goes_on(operation)).await?;
    match running {
        Some(operation) => Ok(operation),
        None if under_way => Err(Failure::new(
            "nothing-under-way",
            "rollout",
            "no rollout or reshard is under way",
        )
        .hint("`tanakoctl rollout status` shows the latest; `tanakoctl operation list` shows all")),
        None => latest(session, is_one).await?.ok_or_else(none),
    }
}

fn none() -> Failure {
    Failure::new("unknown-operation", "rollout", "there was no rollout yet")
        .hint("`tanakoctl rollout start` begins one")
}

async fn latest(
    session: &Session,
    is_it: impl Fn(&Operation) -> bool,
) -> Result<Option<Operation>, Failure> {
    let mut fleet = session.fleet().await?;
    let list = fleet
        .list_operations(ListOperationsRequest { limit: LOOKED_AT })
        .await?;
    // Newest first.
    Ok(list.operations.into_iter().find(is_it))
}
