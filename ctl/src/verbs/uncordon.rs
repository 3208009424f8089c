//! `tanakoctl uncordon`.

use tanako_proto::fleet::v1::OperationRequest;

use crate::{
    confirm::Severity,
    failure::Outcome,
    operate::{self, Running, Wish},
    session::Session,
    target,
};

/// Let hosts take processes again, after `cordon` or `drain`
///
/// Nothing moves to them by itself: `tanakoctl rebalance` levels the load. HOST is a or host:a. Exit 3 when it is
/// so already.
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
        let request = OperationRequest {
            kind: "uncordon".into(),
            targets: target::hosts(&self.hosts),
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
