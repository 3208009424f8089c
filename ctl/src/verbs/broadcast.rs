//! `tanakoctl broadcast`.

use std::time::Duration;

use tanako_proto::fleet::v1::BroadcastRequest;

use crate::{
    exit::Exit,
    failure::{Failure, Outcome},
    session::Session,
    units::parse_duration,
    view::broadcast::BroadcastView,
};

/// Longest wait for all answers; agents take no longer.
const TIMEOUT_MAX: Duration = Duration::from_mins(1);

/// Ask every shard of a bot the same question, on all hosts
///
/// A question is one that the bot's program knows by name; nothing is evaluated. tanako-bot knows "stats" (guilds,
/// members, latency, events, commands, memory) and "version". Programs in other languages can answer too: see
/// "Broadcast" in the README. Exit code 3 when some shard gave no answer; the table says which and why.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The question
    #[arg(value_name = "QUESTION")]
    question: String,
    /// What the question needs, as JSON
    #[arg(value_name = "JSON", default_value = "")]
    json: String,
    /// The bot [default: the fleet's only one]
    #[arg(
        long,
        value_name = "BOT",
        default_value = "",
        hide_default_value = true
    )]
    bot: String,
    /// How long to wait for all answers together, at most 1m
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    timeout: Duration,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        if self.timeout.is_zero() || self.timeout > TIMEOUT_MAX {
            return Err(Failure::usage(
                "--timeout",
                "the timeout is at least 1s and at most 1m",
            ));
        }
        let request = BroadcastRequest {
            bot: self.bot,
            question: self.question.clone(),
            json: self.json,
            timeout_ms: u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX),
        };
        let reply = session.fleet().await?.broadcast(request).await?;
        let view = BroadcastView::new(self.question, reply);
        let exit = if view.is_complete() {
            Exit::Ok
        } else {
            Exit::Nothing
        };
        session.ui.report(&view)?;
        Ok(exit)
    }
}
