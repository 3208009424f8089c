//! `tanakoctl cordon`.

use tanako_proto::fleet::v1::OperationRequest;

use crate::{
    confirm::Severity,
    failure::Outcome,
    operate::{self, Running, Wish},
    session::Session,
    target,
};

/// Place nothing new on hosts; what runs there goes on
///
/// The processes stay, and are restarted there if they fail. New ones, and those that leave other hosts, go
/// elsewhere, and `rebalance` leaves the host alone. Undo it with `uncordon`. HOST is a or host:a. Exit 3 when
/// it is so already.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The hosts
    #[arg(required = true, value_name = "HOST")]
    hosts: Vec<String>,
    #[command(flatten)]
    running: Running,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        mark("cordon", &self.hosts, &self.running, session).await
    }
}

/// Changes what is decided about hosts, and nothing on them: `cordon`, `uncordon`.
pub(super) async fn mark(
    kind: &str,
    hosts: &[String],
    running: &Running,
    session: &Session,
) -> Outcome {
    let request = OperationRequest {
        kind: kind.into(),
        targets: target::hosts(hosts),
        ..OperationRequest::default()
    };
    let wish = Wish {
        request,
        severity: Severity::Harmless,
        loses: None,
        patience: operate::PATIENCE,
    };
    operate::run(session, running, wish).await
}
