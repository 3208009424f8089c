//! `/shard`: which shard serves this server, and how it is.

use super::{Command, CommandError, Context, Reply};
use crate::interactions::panel::{AMBER, GREEN, Panel};
use crate::shard::{ShardStatus, Stage};

/// The command.
pub const COMMAND: Command = Command {
    name: "shard",
    summary: "Show which shard serves this server and how it is",
    details: "A bot in many servers is split into shards. This shows yours: its state, servers, latency, and how often \
              it had to reconnect. Useful when the bot seems slow in one server only.",
    private: true,
    guild_only: false,
    permission: None,
    options: Vec::new,
    run: |context| Box::pin(run(context)),
};

async fn run(context: &Context<'_>) -> Result<Reply, CommandError> {
    let statuses = context.services.shard_statuses();
    let status = statuses
        .iter()
        .find(|status| status.id == context.shard)
        .ok_or_else(|| CommandError::refused("I do not know my own shard yet. Please try again in a moment."))?;
    let others: Vec<u32> = statuses.iter().map(|status| status.id).filter(|id| *id != context.shard).collect();
    Ok(reply(status, &others, context.interaction.guild_id.map(serenity::all::GuildId::get)))
}

fn reply(status: &ShardStatus, others: &[u32], guild: Option<u64>) -> Reply {
    let colour = if status.stage == Stage::Ready { GREEN } else { AMBER };
    let latency = if status.latency_ms > 0.0 { format!("{:.0} ms", status.latency_ms) } else { "not measured yet".to_owned() };
    let mut panel = Panel::new(format!("Shard {} of {}", status.id, status.count), colour)
        .field("State", status.stage.name())
        .field("Servers", format!("{} of {}", status.guilds, status.guilds_expected))
        .field("Members", status.members)
        .field("Heartbeat", latency)
        .field("Events", status.events)
        .field("Commands", format!("{} ({} failed)", status.interactions, status.interactions_failed))
        .field("Connections lost", status.reconnects)
        .field("Sessions", format!("{} resumed, {} new", status.resumes, status.identifies));
    if !others.is_empty() {
        let others: Vec<String> = others.iter().map(u32::to_string).collect();
        panel = panel.field("Same process", format!("shards {}", others.join(", ")));
    }
    if let Some(guild) = guild {
        // The rule by which Discord routes a server's events.
        panel = panel.footer(format!("({guild} >> 22) % {} = {}", status.count, (guild >> 22) % u64::from(status.count.max(1))));
    }
    Reply::private_panel(panel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_shard() {
        let status = ShardStatus {
            id: 2,
            count: 4,
            stage: Stage::Ready,
            guilds: 1250,
            guilds_expected: 1250,
            members: 81_000,
            latency_ms: 38.4,
            events: 9000,
            interactions: 12,
            interactions_failed: 1,
            resumes: 3,
            identifies: 1,
            reconnects: 3,
            ..ShardStatus::default()
        };
        insta::assert_snapshot!("shard", reply(&status, &[3], Some(81_384_788_765_712_384)).pretty());
        insta::assert_snapshot!("shard_at_start", reply(&ShardStatus { count: 1, ..ShardStatus::default() }, &[], None).pretty());
    }
}
