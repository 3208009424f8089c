//! `/ping`: is everything there, and how fast?

use std::time::Instant;

use serde_json::json;

use super::{Command, CommandError, Context, Reply};
use crate::database::Repeat;
use crate::interactions::panel::{BLUE, Panel};

/// The command.
pub const COMMAND: Command = Command {
    name: "ping",
    summary: "Check that the bot is alive and how fast it answers",
    details: "Shows the round trip to Discord's gateway and REST API, and to the bot's database.",
    private: false,
    guild_only: false,
    permission: None,
    options: Vec::new,
    run: |context| Box::pin(run(context)),
};

async fn run(context: &Context<'_>) -> Result<Reply, CommandError> {
    let statuses = context.services.shard_statuses();
    let gateway = statuses.iter().find(|status| status.id == context.shard).map_or(0.0, |status| status.latency_ms);
    let database = if context.services.database.is_configured() {
        let started = Instant::now();
        match context.services.database.call("ping", json!({}), Repeat::Harmless).await {
            Ok(_) => milliseconds(started.elapsed().as_secs_f64() * 1000.0),
            Err(_) => "not reachable".to_owned(),
        }
    } else {
        "none".to_owned()
    };
    Ok(reply(gateway, context.services.rest.latency().p50_ms, &database, context.shard))
}

fn reply(gateway_ms: f64, rest_ms: f64, database: &str, shard: u32) -> Reply {
    let panel = Panel::new("Pong!", BLUE)
        .field("Gateway", milliseconds(gateway_ms))
        .field("REST (median)", milliseconds(rest_ms))
        .field("Database", database)
        .footer(format!("Shard {shard}"));
    Reply::public_panel(panel)
}

/// `12 ms`, with a decimal below ten; nothing was measured yet at zero.
fn milliseconds(ms: f64) -> String {
    if ms <= 0.0 {
        "not measured yet".to_owned()
    } else if ms < 10.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_all_three_ways() {
        insta::assert_snapshot!("ping", reply(41.6, 9.44, "1.2 ms", 3).pretty());
        insta::assert_snapshot!("ping_at_start", reply(0.0, 0.0, "none", 0).pretty());
    }
}
