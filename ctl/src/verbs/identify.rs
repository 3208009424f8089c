//! `tanakoctl identify`.

use tanako_proto::fleet::v1::IdentifyStatusRequest;

use crate::{exit::Exit, failure::Outcome, session::Session, view::identify::IdentifyView};

/// Show the IDENTIFY budget: spent, left, reserve, buckets, and how long waiting shards will wait
///
/// Discord allows one IDENTIFY per bucket (shard_id % max_concurrency) per 5 s, and a number a day. The
/// reserve is never spent automatically. While IDENTIFYs come to nothing, the mode is "probing": one at
/// a time until one holds.
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let status = session
            .fleet()
            .await?
            .get_identify(IdentifyStatusRequest {})
            .await?;
        session.ui.report(&IdentifyView::from(status))?;
        Ok(Exit::Ok)
    }
}
