//! `tanakoctl advise`.

use tanako_proto::fleet::v1::AdviseRequest;

use crate::{exit::Exit, failure::Outcome, session::Session, view::AdviceView};

/// Propose shards, hosts and database nodes, with the reasons and what is not known
///
/// Looks at growth, latency, memory, CPU, events, restarts, the day's IDENTIFYs and Discord's recommendation. A
/// proposal appears once it has held for ten minutes, and goes half an hour after its reason has. Changes nothing;
/// `[advise]` in fleet.toml lets the fleet rebalance and reshard by itself. Exit 4 when something is proposed.
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let mut fleet = session.fleet().await?;
        let view = AdviceView::from(fleet.advise(AdviseRequest {}).await?);
        session.ui.report(&view)?;
        Ok(if view.is_empty() {
            Exit::Ok
        } else {
            Exit::Changes
        })
    }
}
