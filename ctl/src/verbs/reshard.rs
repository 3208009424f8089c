//! `tanakoctl reshard`.

use std::time::Duration;

use tanako_proto::fleet::v1::{OperationRequest, ReshardRequest};

use crate::{
    confirm::Severity,
    failure::Outcome,
    operate::{self, Running, Wish},
    session::Session,
    units::parse_duration,
};

/// How long a reshard is followed: a large bot identifies for hours.
const PATIENCE: Duration = Duration::from_hours(6);

/// Change a bot's number of shards while it runs, without missing an event or handling one twice
///
/// Brings a second set of processes up beside the first within the day's IDENTIFYs, moves the events to it at
/// one moment, watches it, and removes the first set. Room, budget, count and time are checked and shown before
/// anything moves; what does not fit is refused. Until the old set is removed, `tanakoctl operation abort` goes
/// back to it. Set the new number in your fleet.toml afterwards: the stored one is changed, and another number is
/// refused by `apply`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The bot
    bot: String,
    /// Shards in all [default: what Discord recommends]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    shards: Option<u32>,
    /// Shards of each process [default: as now]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    shards_per_process: Option<u32>,
    /// How long the new set is watched before the old one is removed [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    observe: Option<Duration>,
    #[command(flatten)]
    running: Running,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let request = OperationRequest {
            kind: "reshard".into(),
            targets: vec![self.bot.clone()],
            reshard: Some(ReshardRequest {
                bot: self.bot,
                shards: self.shards.unwrap_or(0),
                shards_per_process: self.shards_per_process.unwrap_or(0),
                observe_s: self.observe.map_or(0, operate::seconds),
            }),
            ..OperationRequest::default()
        };
        let wish = Wish {
            request,
            severity: Severity::Disruptive,
            loses: None,
            patience: PATIENCE,
        };
        operate::run(session, &self.running, wish).await
    }
}
