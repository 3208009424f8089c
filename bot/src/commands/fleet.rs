//! `/fleet`: the whole bot at a glance, asked of every shard on every host. For the bot's owners.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serenity::all::{LightMethod, Request, Route};
use tanako_proto::worker::v1::ShardAnswer;

use super::{Command, CommandError, Context, Reply};
use crate::interactions::panel::{AMBER, GREEN, Panel};

/// An interaction must be answered within 3 s, or was deferred: then the answer may take longer.
const WITHIN: Duration = Duration::from_secs(2);
/// Shards without an answer that are named.
const NAMED_MAX: usize = 10;

/// The command.
pub const COMMAND: Command = Command {
    name: "fleet",
    summary: "Show all shards of the bot on all its hosts (owners only)",
    details: "Asks every shard, wherever it runs, and sums up what they say. Shards that do not answer are named with \
              the reason. Only the owner of the application, or the members of its team, may use it.",
    private: true,
    guild_only: false,
    permission: None,
    options: Vec::new,
    run: |context| Box::pin(run(context)),
};

/// Who owns the application.
#[derive(Debug, Deserialize)]
struct Application {
    owner: Option<Who>,
    team: Option<Team>,
}

#[derive(Debug, Deserialize)]
struct Team {
    members: Vec<Member>,
}

#[derive(Debug, Deserialize)]
struct Member {
    user: Who,
}

#[derive(Debug, Deserialize)]
struct Who {
    id: String,
}

impl Application {
    /// The owner of a team's application is the team's own user: its members count instead.
    fn is_owner(&self, user: &str) -> bool {
        match &self.team {
            Some(team) => team.members.iter().any(|member| member.user.id == user),
            None => self.owner.as_ref().is_some_and(|owner| owner.id == user),
        }
    }
}

async fn run(context: &Context<'_>) -> Result<Reply, CommandError> {
    let services = context.services;
    let request = Request::new(Route::Oauth2ApplicationCurrent, LightMethod::Get);
    let application: Application = services.rest.fetch(request).await?;
    if !application.is_owner(&context.user().to_string()) {
        return Err(CommandError::refused("Only the owners of this bot may use this command."));
    }
    let Some(fleet) = services.fleet.get() else {
        return Err(CommandError::refused(
            "This bot runs without an agent, so there is no fleet to ask. `/metrics` shows this process.",
        ));
    };
    let answers = fleet.ask("stats", WITHIN).await.map_err(|status| CommandError::Failed {
        words: "I cannot reach the rest of the bot right now. Please try again in a moment.",
        source: Box::new(status),
    })?;
    Ok(reply(&answers))
}

fn reply(answers: &[ShardAnswer]) -> Reply {
    let said: Vec<Value> = answers
        .iter()
        .filter(|answer| answer.code.is_empty())
        .filter_map(|answer| serde_json::from_str(&answer.json).ok())
        .collect();
    let sum = |field: &str| said.iter().filter_map(|one| one[field].as_u64()).sum::<u64>();
    let ready = said.iter().filter(|one| one["stage"] == "ready").count();
    let latencies: Vec<f64> = said
        .iter()
        .filter_map(|one| one["latency_ms"].as_f64())
        .filter(|ms| *ms > 0.0)
        .collect();
    let slowest = latencies.iter().copied().fold(0.0, f64::max);
    let mean = latencies.iter().sum::<f64>() / latencies.len().max(1) as f64;
    let mut hosts: Vec<&str> = answers.iter().map(|answer| answer.host.as_str()).filter(|host| !host.is_empty()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    let silent: Vec<&ShardAnswer> = answers.iter().filter(|answer| !answer.code.is_empty()).collect();
    let colour = if silent.is_empty() && ready == answers.len() { GREEN } else { AMBER };
    let mut panel = Panel::new("Fleet", colour)
        .field("Shards", format!("{ready} of {} ready", answers.len()))
        .field("Hosts", hosts.len())
        .field("Servers", sum("guilds"))
        .field("Members", sum("members"))
        .field("Events", sum("events"))
        .field("Commands", format!("{} ({} failed)", sum("interactions"), sum("interactions_failed")))
        .field("Heartbeat", if latencies.is_empty() { "not measured yet".to_owned() } else { format!("{mean:.0} ms, slowest {slowest:.0} ms") });
    if !silent.is_empty() {
        let mut lines: Vec<String> = silent
            .iter()
            .take(NAMED_MAX)
            .map(|answer| format!("shard {} ({}): {}", answer.shard_id, answer.process, answer.code))
            .collect();
        if silent.len() > NAMED_MAX {
            lines.push(format!("and {} more", silent.len() - NAMED_MAX));
        }
        panel = panel.row("No answer", lines.join("\n"));
    }
    Reply::private_panel(panel)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(shard_id: u32, host: &str, json: &str, code: &str) -> ShardAnswer {
        ShardAnswer {
            process: format!("tanako/{shard_id}"),
            host: host.to_owned(),
            shard_id,
            shard_count: 3,
            code: code.to_owned(),
            json: json.to_owned(),
            ..ShardAnswer::default()
        }
    }

    #[test]
    fn sums_up_and_names_who_is_silent() {
        let stats = r#"{"stage":"ready","guilds":10,"members":100,"latency_ms":40.0,"events":7,"interactions":2,"interactions_failed":1}"#;
        let answers = [said(0, "a", stats, ""), said(1, "b", stats, ""), said(2, "c", "", "timeout")];
        insta::assert_snapshot!("fleet", reply(&answers).pretty());
    }

    #[test]
    fn owners_are_the_owner_or_the_team() {
        let alone: Application = serde_json::from_str(r#"{"owner":{"id":"1"},"team":null}"#).expect("decodes");
        assert!(alone.is_owner("1") && !alone.is_owner("2"));
        let team: Application =
            serde_json::from_str(r#"{"owner":{"id":"1"},"team":{"members":[{"user":{"id":"2"}}]}}"#).expect("decodes");
        assert!(team.is_owner("2") && !team.is_owner("1"));
    }
}
