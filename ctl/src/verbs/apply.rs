//! `tanakoctl apply`.

use std::path::PathBuf;

use tanako_proto::fleet::v1::ApplyRequest;

use super::plan;
use crate::{
    confirm::{Change, Consent, Severity, confirm},
    exit::Exit,
    failure::Outcome,
    operate::{self, Waiting, production},
    session::{Session, status},
    ui::Report as _,
    units::count,
    view::PlanView,
};

/// Make a fleet.toml the desired state and wait until the fleet has reached it
///
/// Shows the plan first and asks when it stops or restarts something: give --yes where there is no
/// terminal. Exit 3 when there was nothing to change. Refused when somebody else has changed the fleet
/// since the plan was made.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file
    #[arg(default_value = "fleet.toml", value_name = "FILE")]
    file: PathBuf,
    /// Leave new processes stopped
    #[arg(long)]
    no_start: bool,
    /// Print the plan and its cost, change nothing (exit 4 when there are changes)
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    consent: Consent,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let ui = &session.ui;
        if !self.dry_run {
            session.may_write()?;
        }
        let spec = plan::read(&self.file)?;
        let mut fleet = session.fleet().await?;
        let reply = plan::ask(&mut fleet, &self.file, &spec).await?;
        let view = PlanView::from(&reply);
        if self.dry_run {
            ui.report(&view)?;
            return Ok(if view.changed() {
                Exit::Changes
            } else {
                Exit::Ok
            });
        }
        if !ui.is_machine() {
            ui.note(view.table(ui.err, false).trim_end());
        }
        let now = status(&mut fleet).await?;
        let disrupted = view.disrupted();
        let severity = if disrupted.is_empty() {
            Severity::Harmless
        } else {
            Severity::Disruptive
        };
        let blast = format!(
            "stops, restarts or removes {} of fleet {}: {}",
            count(disrupted.len() as u64, "process", "processes"),
            now.fleet,
            list(&disrupted)
        );
        let file = self.file.display().to_string();
        let change = Change {
            severity,
            blast: &blast,
            name: &file,
            production: production(session, &now)?.then_some(&now.fleet),
        };
        confirm(ui, &self.consent, &change).await?;
        let request = ApplyRequest {
            spec_toml: spec,
            base_version: reply.version,
            request_id: operate::request_id(),
            file_name: file,
            no_start: self.no_start,
        };
        let mut writer = fleet.writer()?;
        let operation = operate::patiently(async || writer.apply(request.clone()).await).await?;
        operate::finish(session, fleet, &self.waiting, operate::PATIENCE, operation).await
    }
}

/// The first few, and how many more.
fn list(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    let mut text = names
        .iter()
        .take(SHOWN)
        .copied()
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > SHOWN {
        text = format!("{text} and {} more", names.len() - SHOWN);
    }
    text
}
