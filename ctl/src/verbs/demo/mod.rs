//! `tanakoctl demo`.
use crate::{exit::Exit, failure::Outcome, session::Session};
/// A whole fleet on this machine, to look at and play with
#[derive(Debug, clap::Args)]
pub struct Args {}
impl Args {
    pub(super) async fn run(self, _s: &Session) -> Outcome {
        Ok(Exit::Ok)
    }
}
