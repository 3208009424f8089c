//! `tanakoctl restart`.

use std::time::Duration;

use tanako_proto::fleet::v1::OperationRequest;

use crate::{
    confirm::Severity,
    failure::Outcome,
    operate::{self, Running, Wish},
    session::Session,
    units::parse_duration,
};

/// Restart processes, a few at a time, each ready before the next
///
/// Stops at the first process that does not become ready. Shards resume their sessions, so that a restart
/// normally costs no IDENTIFY; the receipt at the end says what it did cost. Asks first: give --yes where
/// there is no terminal. TARGET is all, a bot (tanako), a process (tanako/3), db, db/node1, host:a,
/// shard:17 or guild:ID.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to restart
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// How many may be down at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    max_unavailable: u32,
    /// How long each process may take to become ready [default: as fleet.toml says]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    ready_timeout: Option<Duration>,
    #[command(flatten)]
    running: Running,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let request = OperationRequest {
            kind: "restart".into(),
            targets: self.targets,
            max_unavailable: self.max_unavailable,
            timeout_s: self.ready_timeout.map_or(0, operate::seconds),
            ..OperationRequest::default()
        };
        let wish = Wish {
            request,
            severity: Severity::Disruptive,
            loses: None,
            patience: operate::PATIENCE,
        };
        operate::run(session, &self.running, wish).await
    }
}
