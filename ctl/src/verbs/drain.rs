//! `tanakoctl drain`.

use std::time::Duration;

use tanako_proto::fleet::v1::OperationRequest;

use crate::{
    confirm::Severity,
    failure::Outcome,
    operate::{self, Running, Wish},
    session::Session,
    target,
    units::parse_duration,
};

/// Move everything off hosts, a few processes at a time, without an IDENTIFY
///
/// Cordons the hosts, then hands each process over to another host: it stops, its sessions travel, it resumes
/// there. The receipt at the end says what that cost each shard. What cannot move, or has not begun to when the
/// deadline comes, stays and is named with the reason; the hosts stay cordoned in any case, and `uncordon` gives
/// them back. Database nodes of the embedded engine stay: their data lies on their host. Asks first: give --yes
/// where there is no terminal. HOST is a or host:a. Exit 1 when something stays, 3 when nothing was there.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The hosts
    #[arg(required = true, value_name = "HOST")]
    hosts: Vec<String>,
    /// Begin no move after this time [default: no limit]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    deadline: Option<Duration>,
    /// How many may be on their way at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    max_unavailable: u32,
    #[command(flatten)]
    running: Running,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let request = OperationRequest {
            kind: "drain".into(),
            targets: target::hosts(&self.hosts),
            max_unavailable: self.max_unavailable,
            deadline_s: self.deadline.map_or(0, operate::seconds),
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
