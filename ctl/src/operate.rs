//! Running an operation of the fleet: check the targets, show the plan and its cost, confirm, submit,
//! and follow it to its end. The operation lives in the fleet; whoever follows may go and come back.

use std::time::{Duration, Instant};

use clap::Args;
use tanako_proto::fleet::v1::{
    FleetStatus, Operation, OperationId, OperationRequest, PlanRequest, Problem, plan_request,
};

use crate::{
    client::Fleet,
    confirm::{Change, Consent, Severity, confirm},
    exit::Exit,
    failure::{Failure, Outcome},
    progress::Progress,
    session::{Session, status},
    target,
    ui::Report as _,
    units::{age, count, parse_duration},
    view::{OperationView, PlanView, status::goes_on},
};

/// How long starting, stopping and restarting is followed unless `--timeout` says else.
pub const PATIENCE: Duration = Duration::from_mins(30);

/// How often a request that may or may not have arrived is sent again.
const TRIES_MAX: u32 = 4;

/// Whether and how long to wait.
#[derive(Debug, Clone, Args)]
pub struct Waiting {
    /// Wait until it has ended (the default)
    #[arg(long, conflicts_with = "detach")]
    pub wait: bool,
    /// Return at once; the operation goes on in the fleet
    #[arg(long)]
    pub detach: bool,
    /// How long to wait; afterwards the operation still goes on (exit 12)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

/// Options of every verb that runs an operation.
#[derive(Debug, Clone, Args)]
pub struct Running {
    /// Print the plan and its cost, change nothing (exit 4 when there are changes)
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    #[allow(
        missing_docs,
        reason = "a doc comment here would become the verb's help"
    )]
    pub waiting: Waiting,
    #[command(flatten)]
    #[allow(
        missing_docs,
        reason = "a doc comment here would become the verb's help"
    )]
    pub consent: Consent,
}

/// What is asked, and how it is asked for.
#[derive(Debug)]
pub struct Wish {
    /// The operation; request id and base version are filled in here.
    pub request: OperationRequest,
    /// How much it hurts when it stops or restarts something.
    pub severity: Severity,
    /// Follows the verb and its targets in the confirmation: what is lost.
    pub loses: Option<String>,
    /// How long to wait unless `--timeout` says else.
    pub patience: Duration,
}

/// Runs an operation from its plan to its result.
pub async fn run(session: &Session, running: &Running, wish: Wish) -> Outcome {
    let ui = &session.ui;
    if !running.dry_run {
        session.may_write()?;
    }
    let mut fleet = session.fleet().await?;
    let now = status(&mut fleet).await?;
    if matches!(&*wish.request.kind, "cordon" | "uncordon" | "drain") {
        target::check_hosts(&wish.request.targets, &now)?;
    } else {
        target::check(&wish.request.targets, &now)?;
    }
    let plan = fleet
        .plan(PlanRequest {
            of: Some(plan_request::Of::Operation(wish.request.clone())),
            file_name: String::new(),
        })
        .await?;
    let view = PlanView::from(&plan);
    if running.dry_run {
        ui.report(&view)?;
        return Ok(if view.changed() {
            Exit::Changes
        } else {
            Exit::Ok
        });
    }
    if !ui.is_machine() && view.changed() && wish.severity != Severity::Harmless {
        ui.note(view.table(ui.err, false).trim_end());
    }
    let blast = blast(&wish, &view, &now);
    // What is destroyed belongs to the whole fleet, and its name guards against the wrong context.
    let name = match wish.severity {
        Severity::Destructive => now.fleet.clone(),
        _ => wish.request.targets.join(" "),
    };
    confirm(
        ui,
        &running.consent,
        &Change {
            severity: severity(&wish, &view),
            blast: &blast,
            name: &name,
            production: production(session, &now)?.then_some(&now.fleet),
        },
    )
    .await?;
    let mut writer = fleet.writer()?;
    let request = OperationRequest {
        request_id: request_id(),
        base_version: plan.version,
        ..wish.request
    };
    let operation = patiently(async || writer.submit(request.clone()).await).await?;
    finish(session, fleet, &running.waiting, wish.patience, operation).await
}

/// A restart of nothing hurts nobody; what is destructive stays so.
fn severity(wish: &Wish, plan: &PlanView) -> Severity {
    if wish.severity == Severity::Disruptive && plan.disrupted().is_empty() {
        Severity::Harmless
    } else {
        wish.severity
    }
}

fn blast(wish: &Wish, plan: &PlanView, now: &FleetStatus) -> String {
    let disrupted = plan.disrupted();
    let shards: usize = now
        .processes
        .iter()
        .filter(|process| disrupted.contains(&process.name.as_str()))
        .map(|process| process.shards.len())
        .sum();
    let guilds: u64 = now
        .processes
        .iter()
        .filter(|process| disrupted.contains(&process.name.as_str()))
        .flat_map(|process| &process.shards)
        .map(|shard| u64::from(shard.guilds))
        .sum();
    let mut text = format!("{}s {}", wish.request.kind, wish.request.targets.join(" "));
    if wish.request.rollout.is_some() {
        text = format!("rolls out {}", wish.request.targets.join(" "));
    }
    if let Some(loses) = &wish.loses {
        text.clone_from(loses);
    }
    text.truncate(text.trim_end().len());
    if !disrupted.is_empty() {
        text = format!(
            "{text}: {} ({} with {}) of fleet {}",
            count(disrupted.len() as u64, "process", "processes"),
            count(shards as u64, "shard", "shards"),
            count(guilds, "guild", "guilds"),
            now.fleet
        );
    }
    text
}

/// Whether mistakes hurt users: by the fleet's own word or by the context's.
pub fn production(session: &Session, now: &FleetStatus) -> Result<bool, Failure> {
    let context = session.choice()?.context;
    Ok(now.production || context.is_some_and(|context| context.production))
}

/// Whole seconds on the wire, at least one: 0 there means "as the spec says".
pub fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis().div_ceil(1000))
        .unwrap_or(u32::MAX)
        .max(1)
}

/// A name for one request, so that sending it twice does it once.
pub fn request_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}

/// Sends a request again while nobody can say whether it has arrived: the agent knows it by its id.
pub async fn patiently<T>(mut call: impl AsyncFnMut() -> Result<T, Problem>) -> Result<T, Failure> {
    let mut tries = 1;
    loop {
        match call().await {
            Err(problem) if tries < TRIES_MAX && is_passing(&problem) => {
                tokio::time::sleep(backoff(tries)).await;
                tries += 1;
            }
            other => return Ok(other?),
        }
    }
}

/// Whether the agent may be back soon.
pub fn is_passing(problem: &Problem) -> bool {
    problem.retryable
        && matches!(
            problem.code.as_str(),
            "unreachable" | "timeout" | "starting"
        )
}

/// Doubles from 0.2 s to 5 s, give or take a quarter.
pub fn backoff(tries: u32) -> Duration {
    let base = 200_u64.saturating_mul(1 << tries.min(5)).min(5_000);
    Duration::from_millis(base * 3 / 4 + fastrand::u64(..=base / 2))
}

/// Shows the operation at once when detached, else follows it to its end.
pub async fn finish(
    session: &Session,
    fleet: Fleet,
    waiting: &Waiting,
    patience: Duration,
    operation: Operation,
) -> Outcome {
    let ui = &session.ui;
    if waiting.detach && goes_on(&operation) {
        ui.report(&OperationView::from(&operation))?;
        ui.note(&format!(
            "it goes on in the fleet; follow it: tanakoctl operation watch {}",
            operation.id
        ));
        return Ok(Exit::Ok);
    }
    let patience = waiting.timeout.unwrap_or(patience);
    let operation = follow(session, &fleet, operation, patience).await?;
    conclude(session, &operation)
}

/// Shows an operation that has ended, and picks the exit code.
pub fn conclude(session: &Session, operation: &Operation) -> Outcome {
    session.ui.report(&OperationView::from(operation))?;
    match operation.state.as_str() {
        "succeeded" if operation.unchanged => Ok(Exit::Nothing),
        "succeeded" => Ok(Exit::Ok),
        state => {
            let object = format!("operation {}", operation.id);
            let problem = operation
                .problem
                .clone()
                .filter(|problem| !problem.code.is_empty());
            Err(match problem {
                Some(mut problem) => {
                    if problem.object.is_empty() {
                        problem.object = object;
                    }
                    problem.into()
                }
                None if state == "aborted" => Failure::new("aborted", object, "it was aborted")
                    .cause(operation.message.clone()),
                None => {
                    Failure::new("failed", object, "it failed").cause(operation.message.clone())
                }
            })
        }
    }
}

/// Follows an operation to its end, across restarts of the agent.
pub async fn follow(
    session: &Session,
    fleet: &Fleet,
    operation: Operation,
    patience: Duration,
) -> Result<Operation, Failure> {
    let id = operation.id.clone();
    if !goes_on(&operation) {
        return Ok(operation);
    }
    // Who set words already knows better what goes on.
    let before = session.farewell();
    session.if_cancelled(Some(before.clone().unwrap_or_else(|| {
        format!("operation {id} goes on in the fleet; follow it: tanakoctl operation watch {id}; stop it: tanakoctl operation abort {id}")
    })));
    let mut follower = Follower {
        fleet: fleet.clone(),
        progress: Progress::new(&session.ui),
        latest: operation,
    };
    follower.progress.update(&follower.latest);
    let ended = tokio::time::timeout(patience, follower.run()).await;
    let latest = follower.latest.clone();
    drop(follower);
    session.if_cancelled(before);
    match ended {
        Ok(Ok(())) => Ok(latest),
        Ok(Err(problem)) => Err(problem.into()),
        Err(_) => Err(Failure::from(
            Problem::new("timeout", format!("operation {id}"), format!("it has not ended within {}", age(patience.as_secs())))
                .cause(match latest.total {
                    0 => latest.message.clone(),
                    total => format!("{} of {total} {} done; {}", latest.done, latest.unit, latest.message),
                })
                .hint(format!(
                    "it goes on in the fleet: `tanakoctl operation watch {id}` follows it, `tanakoctl operation abort {id}` stops it"
                ))
                .retryable(),
        )),
    }
}

struct Follower<'u> {
    fleet: Fleet,
    progress: Progress<'u>,
    latest: Operation,
}

impl Follower<'_> {
    async fn run(&mut self) -> Result<(), Problem> {
        let mut tries = 0;
        loop {
            let before = Instant::now();
            match self.stream().await {
                Ok(()) => return Ok(()),
                Err(problem) if is_passing(&problem) => {
                    // A stream that lasted shows that the agent was well again.
                    tries = if before.elapsed() > Duration::from_secs(10) {
                        1
                    } else {
                        tries + 1
                    };
                    self.progress.say(
                        self.latest.done,
                        self.latest.total,
                        &self.latest.kind,
                        &format!("lost the agent ({}), trying again", problem.message),
                    );
                    tokio::time::sleep(backoff(tries)).await;
                }
                Err(problem) => return Err(problem),
            }
        }
    }

    async fn stream(&mut self) -> Result<(), Problem> {
        let id = self.latest.id.clone();
        let mut fleet = self.fleet.endpoint().open().await?;
        let mut updates = fleet.watch_operation(OperationId { id }).await?;
        while let Some(operation) = updates
            .message()
            .await
            .map_err(|status| self.fleet.endpoint().problem(&status))?
        {
            self.latest = operation;
            self.progress.update(&self.latest);
            if !goes_on(&self.latest) {
                return Ok(());
            }
        }
        Err(Problem::new("unreachable", "", "the agent ended the stream").retryable())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_between_tries_are_bounded(tries in any::<u32>()) {
            let wait = backoff(tries);
            prop_assert!(wait >= Duration::from_millis(150) && wait <= Duration::from_millis(6_250));
        }
    }
}
