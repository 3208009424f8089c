//! `tanakoctl plan`.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
};

use miette::{GraphicalReportHandler, GraphicalTheme};
use tanako_proto::fleet::v1::{PlanReply, PlanRequest, plan_request};

use crate::{
    client::Fleet,
    exit::Exit,
    failure::{Failure, Outcome},
    session::Session,
    units::count,
    view::PlanView,
};

/// The largest fleet.toml that is read: far above any real one, far below what hurts.
const SPEC_BYTES_MAX: u64 = 4 << 20;

/// Show what a fleet.toml would change and what that costs, and change nothing
///
/// Exit 4 when there are changes, 0 when there are none. A file with a mistake is refused before the
/// agent is asked, with line, reason and hint.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file
    #[arg(default_value = "fleet.toml", value_name = "FILE")]
    file: PathBuf,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let spec = read(&self.file)?;
        let plan = ask(&mut session.fleet().await?, &self.file, &spec).await?;
        let view = PlanView::from(&plan);
        session.ui.report(&view)?;
        Ok(if view.changed() {
            Exit::Changes
        } else {
            Exit::Ok
        })
    }
}

/// Asks the agent what the spec would change.
pub(super) async fn ask(fleet: &mut Fleet, file: &Path, spec: &str) -> Result<PlanReply, Failure> {
    Ok(fleet
        .plan(PlanRequest {
            file_name: file.display().to_string(),
            of: Some(plan_request::Of::SpecToml(spec.to_owned())),
        })
        .await?)
}

/// Reads and checks a fleet.toml, without any agent.
pub(super) fn read(file: &Path) -> Result<String, Failure> {
    let failed = |error: &std::io::Error| {
        let failure = Failure::io(file, "read the file", error);
        match error.kind() {
            std::io::ErrorKind::NotFound => {
                failure.hint("`tanakoctl init` writes one to start from; or name the file")
            }
            _ => failure,
        }
    };
    let size = std::fs::metadata(file)
        .map_err(|error| failed(&error))?
        .len();
    if size > SPEC_BYTES_MAX {
        return Err(Failure::new(
            "invalid-spec",
            file.display().to_string(),
            "the file is larger than 4 MiB",
        )
        .hint("this is hardly a fleet.toml: check the path"));
    }
    let text = std::fs::read_to_string(file).map_err(|error| failed(&error))?;
    check(&text, file)?;
    Ok(text)
}

/// Says everything that is wrong with a spec: with the lines themselves for people, with line and reason
/// for scripts.
fn check(text: &str, file: &Path) -> Result<Vec<String>, Failure> {
    let name = file.display().to_string();
    let error = match tanako_fleet::spec::parse(text, &name) {
        Ok(spec) => return Ok(spec.warnings),
        Err(error) => error,
    };
    let (first, rest) = match error.problems() {
        [] => return Err(Failure::new("invalid-spec", name, error.to_string())),
        [first, rest @ ..] => (first, rest),
    };
    let (line, _) = error.place(first);
    let message = match rest.len() {
        0 => first.message.clone(),
        more => format!(
            "{} (and {})",
            first.message,
            count(more as u64, "more mistake", "more mistakes")
        ),
    };
    let mut picture = String::new();
    let theme = if std::io::stderr().is_terminal() {
        GraphicalTheme::unicode_nocolor()
    } else {
        GraphicalTheme::none()
    };
    let drawn = GraphicalReportHandler::new_themed(theme)
        .with_links(false)
        .render_report(&mut picture, &error);
    let failure = Failure::new("invalid-spec", format!("{name}:{line}"), message)
        .cause(error.to_string())
        .hint(error.hint());
    Err(if drawn.is_ok() {
        failure.picture(picture)
    } else {
        failure
    })
}
