//! `tanakoctl operation`.

use std::time::Duration;

use clap::Subcommand;
use tanako_proto::fleet::v1::{ControlRequest, ListOperationsRequest, Operation, OperationId};

use crate::{
    confirm::{Change, Consent, Severity, confirm},
    exit::Exit,
    failure::{Failure, Outcome},
    operate::{PATIENCE, conclude, follow, production},
    session::{Session, status},
    target::nearest,
    ui::Report as _,
    units::parse_duration,
    view::{OperationView, operation::OperationListView},
};

/// List, follow, pause, resume and abort operations
///
/// Operations live in the fleet: they go on when tanakoctl ends.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List running and recent operations
    List {
        /// So many of the newest
        #[arg(long, short = 'n', value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// Show one operation; -o wide shows its steps and receipt
    Show {
        /// Its id
        id: String,
    },
    /// Follow one operation to its end; the exit code says how it ended
    Watch {
        /// Its id
        id: String,
        /// How long to wait; afterwards the operation still goes on (exit 12)
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        timeout: Option<Duration>,
    },
    /// Let an operation wait after the step it is at
    Pause(Control),
    /// Let a paused operation go on
    Resume(Control),
    /// End an operation after the step it is at; rollouts of a new spec, blue-green and reshards go back
    Abort(Control),
}

#[derive(Debug, clap::Args)]
pub(super) struct Control {
    /// Its id
    pub(super) id: String,
    /// Show the operation, change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) consent: Consent,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        match self.verb {
            Verb::List { limit } => {
                let list = session
                    .fleet()
                    .await?
                    .list_operations(ListOperationsRequest { limit })
                    .await?;
                session
                    .ui
                    .report(&OperationListView::from(&*list.operations))?;
                Ok(Exit::Ok)
            }
            Verb::Show { id } => {
                let operation = get(session, id).await?;
                session.ui.report(&OperationView::from(&operation))?;
                Ok(Exit::Ok)
            }
            Verb::Watch { id, timeout } => {
                let operation = get(session, id).await?;
                let fleet = session.fleet().await?;
                let operation =
                    follow(session, &fleet, operation, timeout.unwrap_or(PATIENCE)).await?;
                conclude(session, &operation)
            }
            Verb::Pause(args) => control(session, args, "pause", Severity::Harmless).await,
            Verb::Resume(args) => control(session, args, "resume", Severity::Harmless).await,
            Verb::Abort(args) => control(session, args, "abort", Severity::Disruptive).await,
        }
    }
}

pub(super) async fn get(session: &Session, id: String) -> Result<Operation, Failure> {
    let mut fleet = session.fleet().await?;
    match fleet.get_operation(OperationId { id: id.clone() }).await {
        Ok(operation) => Ok(operation),
        Err(problem) => {
            let mut failure = Failure::from(problem);
            let hinted = failure
                .problem
                .as_ref()
                .is_some_and(|problem| !problem.hint.is_empty());
            if !hinted
                && let Ok(list) = fleet
                    .list_operations(ListOperationsRequest { limit: 100 })
                    .await
            {
                failure = failure.hint(
                    match nearest(&id, list.operations.iter().map(|one| one.id.as_str())) {
                        Some(near) => format!("did you mean {near}?"),
                        None => "`tanakoctl operation list` shows what there is".into(),
                    },
                );
            }
            Err(failure)
        }
    }
}

pub(super) async fn control(
    session: &Session,
    args: Control,
    action: &str,
    severity: Severity,
) -> Outcome {
    if !args.dry_run {
        session.may_write()?;
    }
    let operation = get(session, args.id).await?;
    let view = OperationView::from(&operation);
    if args.dry_run {
        session.ui.report(&view)?;
        session.ui.note(&format!("would {action} it"));
        return Ok(Exit::Changes);
    }
    let mut fleet = session.fleet().await?;
    let now = status(&mut fleet).await?;
    let blast = format!(
        "{action}s {}",
        view.table(session.ui.err, false)
            .lines()
            .next()
            .unwrap_or_default()
    );
    confirm(
        &session.ui,
        &args.consent,
        &Change {
            severity,
            blast: &blast,
            name: &operation.id,
            production: production(session, &now)?.then_some(&now.fleet),
        },
    )
    .await?;
    let request = ControlRequest {
        id: operation.id,
        action: action.into(),
    };
    let operation = fleet.writer()?.control(request).await?;
    session.ui.report(&OperationView::from(&operation))?;
    Ok(Exit::Ok)
}
