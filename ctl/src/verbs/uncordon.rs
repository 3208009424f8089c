//! `tanakoctl uncordon`.

use super::cordon;
use crate::{failure::Outcome, operate::Running, session::Session};

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
        cordon::mark("uncordon", &self.hosts, &self.running, session).await
    }
}
