//! The verbs, one file each. The doc comment of each `Args` is the verb's help.

mod access;
mod advise;
mod agent;
mod apply;
mod audit;
mod backup;
mod broadcast;
mod completions;
mod context;
mod cordon;
mod demo;
mod detach;
mod doctor;
mod drain;
mod events;
mod guild;
mod identify;
mod init;
mod join_token;
mod logs;
mod man;
mod monitor;
mod operation;
mod plan;
mod rebalance;
mod reshard;
mod restart;
mod restore;
mod rollout;
mod sizing;
mod start;
mod status;
mod stop;
mod store;
mod uncordon;

use clap::Subcommand;

use crate::{failure::Outcome, session::Session};

/// What can be done.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "each verb's help is in its own file")]
pub enum Command {
    Init(init::Args),
    Plan(plan::Args),
    Apply(apply::Args),
    Start(start::Args),
    Stop(stop::Args),
    Restart(restart::Args),
    Rollout(rollout::Args),
    Reshard(reshard::Args),
    Rebalance(rebalance::Args),
    Drain(drain::Args),
    Cordon(cordon::Args),
    Uncordon(uncordon::Args),
    Advise(advise::Args),
    Status(status::Args),
    Monitor(monitor::Args),
    Logs(logs::Args),
    Events(events::Args),
    Operation(operation::Args),
    Backup(backup::Args),
    Restore(restore::Args),
    Guild(guild::Args),
    Identify(identify::Args),
    Broadcast(broadcast::Args),
    Sizing(sizing::Args),
    Audit(audit::Args),
    Store(store::Args),
    Access(access::Args),
    JoinToken(join_token::Args),
    Agent(agent::Args),
    Doctor(doctor::Args),
    Demo(demo::Args),
    Context(context::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    Man(man::Args),
    #[command(name = "__detach", hide = true)]
    Detach(detach::Args),
}

impl Command {
    /// Does it.
    pub async fn run(self, session: &Session) -> Outcome {
        match self {
            Self::Init(args) => args.run(session),
            Self::Plan(args) => args.run(session).await,
            Self::Apply(args) => args.run(session).await,
            Self::Start(args) => args.run(session).await,
            Self::Stop(args) => args.run(session).await,
            Self::Restart(args) => args.run(session).await,
            Self::Rollout(args) => args.run(session).await,
            Self::Reshard(args) => args.run(session).await,
            Self::Rebalance(args) => args.run(session).await,
            Self::Drain(args) => args.run(session).await,
            Self::Cordon(args) => args.run(session).await,
            Self::Uncordon(args) => args.run(session).await,
            Self::Advise(args) => args.run(session).await,
            Self::Status(args) => args.run(session).await,
            Self::Monitor(args) => args.run(session).await,
            Self::Logs(args) => args.run(session).await,
            Self::Events(args) => args.run(session).await,
            Self::Operation(args) => args.run(session).await,
            Self::Backup(args) => args.run(session).await,
            Self::Restore(args) => args.run(session).await,
            Self::Guild(args) => args.run(session).await,
            Self::Identify(args) => args.run(session).await,
            Self::Broadcast(args) => args.run(session).await,
            Self::Sizing(args) => args.run(session).await,
            Self::Audit(args) => args.run(session).await,
            Self::Store(args) => args.run(session).await,
            Self::Access(args) => args.run(session).await,
            Self::JoinToken(args) => args.run(session).await,
            Self::Agent(args) => args.run(session).await,
            Self::Doctor(args) => args.run(session).await,
            Self::Demo(args) => args.run(session).await,
            Self::Context(args) => args.run(session).await,
            Self::Completions(args) => args.run(session),
            Self::Man(args) => args.run(session),
            Self::Detach(args) => args.run(),
        }
    }
}
