//! `tanakoctl stop`.

use tanako_proto::fleet::v1::OperationRequest;

use crate::{
    confirm::Severity,
    failure::Outcome,
    operate::{self, Running, Wish},
    session::Session,
};

/// Stop processes; they stay stopped until they are started again
///
/// Each gets its stop signal, and SIGKILL after its grace time. Exit 3 when everything asked for was
/// already stopped. Asks first: give --yes where there is no terminal. TARGET is all, a bot (tanako), a
/// process (tanako/3), db, db/node1, host:a, shard:17 or guild:ID.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to stop
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    #[command(flatten)]
    running: Running,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let request = OperationRequest {
            kind: "stop".into(),
            targets: self.targets,
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
