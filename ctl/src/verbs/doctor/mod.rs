//! `tanakoctl doctor`.

mod machine;
mod spec;

use std::path::PathBuf;

use tanako_proto::fleet::v1::{DoctorRequest, Finding};

use crate::{exit::Exit, failure::Outcome, session::Session, view::doctor::DoctorView};

/// Check this machine and the fleet, and say what to do about each finding
///
/// Exit 10 when something is an error. Nothing is changed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Check this machine alone, not the agent and its fleet
    #[arg(long)]
    machine: bool,
    /// Check what this fleet.toml needs: programs, token files, ports [default: what the agent has]
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let choice = session.choice();
        let mut machine =
            machine::findings(choice.as_ref().ok().and_then(|choice| choice.way.socket()));
        let mut fleet = Vec::new();
        let mut known = None;
        if !self.machine {
            match ask(session).await {
                Ok((findings, spec)) => {
                    fleet = findings;
                    known = spec;
                }
                Err(failure) => {
                    let problem = failure.problem.unwrap_or_default();
                    fleet.push(finding(
                        "error",
                        "agent",
                        &format!("{}: {}", problem.object, problem.message),
                        &problem.hint,
                    ));
                }
            }
        }
        match &self.spec {
            // The processes of a running fleet hold its ports themselves.
            Some(file) => machine.extend(spec::of_file(file, known.is_none())),
            None => machine.extend(
                known
                    .iter()
                    .flat_map(|text| spec::of_text(text, "the agent's spec", false)),
            ),
        }
        let view = DoctorView::new(machine, fleet);
        session.ui.report(&view)?;
        Ok(if view.healthy() {
            Exit::Ok
        } else {
            Exit::Unhealthy
        })
    }
}

/// What the agent finds, and its spec if there is one.
async fn ask(session: &Session) -> Result<(Vec<Finding>, Option<String>), crate::failure::Failure> {
    let mut fleet = session.fleet().await?;
    let mut findings = vec![finding(
        "ok",
        "agent",
        &format!("answers on {}", fleet.endpoint().way()),
        "",
    )];
    findings.extend(fleet.doctor(DoctorRequest {}).await?.findings);
    let spec = fleet
        .get_spec(tanako_proto::fleet::v1::SpecRequest {})
        .await;
    Ok((
        findings,
        spec.ok()
            .map(|spec| spec.toml)
            .filter(|toml| !toml.is_empty()),
    ))
}

fn finding(severity: &str, check: &str, message: &str, hint: &str) -> Finding {
    Finding {
        severity: severity.into(),
        check: check.into(),
        message: message.into(),
        hint: hint.into(),
        host: String::new(),
    }
}
