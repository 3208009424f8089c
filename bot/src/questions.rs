//! Questions that the fleet may put to every shard: known by name, answered at once from what each shard
//! publishes. Nothing is evaluated.
//!
//! `stats` and `version` need nothing; what comes with them is left alone.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tanako_proto::worker::v1::worker_client::WorkerClient;
use tanako_proto::worker::v1::{BroadcastRequest, ShardAnswer};
use tonic::transport::Channel;

use crate::agent::Identity;
use crate::metrics::rss_bytes;
use crate::services::Services;
use crate::shard::ShardStatus;

/// What this program knows.
pub const KNOWN: [&str; 2] = ["stats", "version"];

/// Answers for each shard of this process; None where the question is not known.
pub fn answer(question: &str, services: &Services) -> Option<Value> {
    let process = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": services.started.elapsed().as_secs(),
        "rss_bytes": rss_bytes(),
    });
    answer_of(question, &services.shard_statuses(), &process)
}

fn answer_of(question: &str, shards: &[ShardStatus], process: &Value) -> Option<Value> {
    let one: fn(&ShardStatus, &Value) -> Value = match question {
        "stats" => stats,
        "version" => {
            |_, process| json!({ "version": process["version"], "uptime_s": process["uptime_s"] })
        }
        _ => return None,
    };
    let all: Vec<Value> = shards
        .iter()
        .map(|shard| json!({ "shard_id": shard.id, "json": one(shard, process) }))
        .collect();
    Some(Value::Array(all))
}

fn stats(shard: &ShardStatus, process: &Value) -> Value {
    json!({
        "stage": shard.stage.name(),
        "guilds": shard.guilds,
        "members": shard.members,
        "latency_ms": shard.latency_ms,
        "events": shard.events,
        "interactions": shard.interactions,
        "interactions_failed": shard.interactions_failed,
        // The same for all shards of one process.
        "process_uptime_s": process["uptime_s"],
        "process_rss_bytes": process["rss_bytes"],
    })
}

/// Puts questions to all shards of this bot, through the agent.
#[derive(Clone)]
pub struct Fleet {
    client: WorkerClient<Channel>,
    identity: Arc<Identity>,
}

impl Fleet {
    /// By the channel to the worker socket.
    pub fn new(channel: Channel, identity: Identity) -> Self {
        Self {
            client: WorkerClient::new(channel).max_decoding_message_size(16 << 20),
            identity: Arc::new(identity),
        }
    }

    /// Every shard's answer, or why it has none.
    pub async fn ask(
        &self,
        question: &str,
        within: Duration,
    ) -> Result<Vec<ShardAnswer>, tonic::Status> {
        let request = BroadcastRequest {
            process: self.identity.process.clone(),
            attempt: self.identity.attempt,
            question: question.to_owned(),
            json: String::new(),
            timeout_ms: u32::try_from(within.as_millis()).unwrap_or(u32::MAX),
        };
        let reply = self.client.clone().broadcast(request).await?;
        Ok(reply.into_inner().answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shard_answers_what_is_known_and_nothing_else() {
        let shard = |id| ShardStatus {
            id,
            guilds: 10 + id,
            ..ShardStatus::default()
        };
        let process = json!({ "version": "1", "uptime_s": 5, "rss_bytes": 7 });
        let shards = [shard(0), shard(1)];
        let answer = answer_of("stats", &shards, &process).expect("it is known");
        assert_eq!(answer[1]["shard_id"], 1);
        assert_eq!(answer[1]["json"]["guilds"], 11);
        assert_eq!(answer[0]["json"]["process_rss_bytes"], 7);
        for question in KNOWN {
            let answer = answer_of(question, &shards, &process).expect("it is known");
            assert_eq!(answer.as_array().map(Vec::len), Some(2));
        }
        assert!(answer_of("eval", &shards, &process).is_none());
    }
}
