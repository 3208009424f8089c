//! `tanakoctl audit`.

use tanako_proto::fleet::v1::AuditRequest;

use crate::{exit::Exit, failure::Outcome, session::Session, view::stream::AuditView};

/// Show who changed what in the fleet
#[derive(Debug, clap::Args)]
pub struct Args {
    /// So many of the newest
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let list = session
            .fleet()
            .await?
            .audit(AuditRequest { limit: self.limit })
            .await?;
        session.ui.report(&AuditView::from(list.records))?;
        Ok(Exit::Ok)
    }
}
