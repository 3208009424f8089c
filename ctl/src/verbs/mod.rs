//! The verbs, one file each. The doc comment of each `Args` is the verb's help.

mod apply;
mod demo;
mod detach;
mod monitor;
mod plan;
mod restart;
mod start;
mod status;
mod stop;

use clap::Subcommand;

use crate::{failure::Outcome, session::Session};

/// What can be done.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "each verb's help is in its own file")]
pub enum Command {
    Status(status::Args),
    Monitor(monitor::Args),
    Start(start::Args),
    Stop(stop::Args),
    Restart(restart::Args),
    Plan(plan::Args),
    Apply(apply::Args),
    Demo(demo::Args),
    #[command(name = "__detach", hide = true)]
    Detach(detach::Args),
}

impl Command {
    /// Does it.
    pub async fn run(self, session: &Session) -> Outcome {
        match self {
            Self::Status(args) => args.run(session).await,
            Self::Monitor(args) => args.run(session).await,
            Self::Start(args) => args.run(session).await,
            Self::Stop(args) => args.run(session).await,
            Self::Restart(args) => args.run(session).await,
            Self::Plan(args) => args.run(session).await,
            Self::Apply(args) => args.run(session).await,
            Self::Demo(args) => args.run(session).await,
            Self::Detach(args) => args.run(),
        }
    }
}
