//! `tanakoctl rebalance`.

use tanako_proto::fleet::v1::OperationRequest;

use crate::{
    confirm::Severity,
    failure::Outcome,
    operate::{self, Running, Wish},
    session::Session,
};

/// Level the load of the hosts with as few moves as possible, without an IDENTIFY
///
/// Looks at weights and capacities, labels, anti-affinity and what each bot prefers, and moves only what makes it
/// better; where nothing does, nothing moves (exit 3). Each process is handed over: it stops, its sessions travel,
/// it resumes on the other host. Asks first: give --yes where there is no terminal.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many may be on their way at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    max_unavailable: u32,
    /// Move what this host had elsewhere, although it cannot be asked: your word that it is off
    ///
    /// The fleet does that by itself as soon as it is certain that nothing runs there any more. It asks when it
    /// cannot be, or when so many hosts are lost at once that the network may be at fault. Switch the host off
    /// first: if it runs on unseen, its shards run twice.
    #[arg(long, value_name = "HOST", conflicts_with = "max_unavailable")]
    lost: Option<String>,
    #[command(flatten)]
    running: Running,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let request = match &self.lost {
            Some(host) => OperationRequest {
                kind: "failover".into(),
                targets: vec![format!("host:{}", host.trim_start_matches("host:"))],
                ..OperationRequest::default()
            },
            None => OperationRequest {
                kind: "rebalance".into(),
                max_unavailable: self.max_unavailable,
                ..OperationRequest::default()
            },
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
