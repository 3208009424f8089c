//! `tanakoctl start`.

use std::time::Duration;

use tanako_proto::fleet::v1::OperationRequest;

use crate::{
    confirm::Severity,
    failure::Outcome,
    operate::{self, Running, Wish},
    session::Session,
    units::parse_duration,
};

/// Start processes and wait until they are ready
///
/// Exit 3 when everything asked for was already running. A process that was given up after a crash loop
/// starts again. TARGET is all, a bot (tanako), a process (tanako/3), db, db/node1, host:a, shard:17 or
/// guild:ID.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to start
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// How long each process may take to become ready [default: as fleet.toml says]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    ready_timeout: Option<Duration>,
    #[command(flatten)]
    running: Running,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let request = OperationRequest {
            kind: "start".into(),
            targets: self.targets,
            timeout_s: self.ready_timeout.map_or(0, operate::seconds),
            ..OperationRequest::default()
        };
        let wish = Wish {
            request,
            severity: Severity::Harmless,
            loses: None,
            patience: operate::PATIENCE,
        };
        operate::run(session, &self.running, wish).await
    }
}
