//! Questions to other agents, each about that agent's own host.

use std::{future::Future, time::Duration};

use tanako_proto::fleet::v1::{Problem, fleet_client::FleetClient};
use tokio::time::timeout;
use tonic::{Request, Response, Status, metadata::MetadataMap, transport::Channel};

use super::Hub;
use crate::problem::said;

/// Marks a call that one agent makes for another: the agent that gets it answers for itself alone, or
/// carries it out itself, and passes nothing on.
pub const HOP: &str = "tanako-hop";
/// Largest answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long an answer may take.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How many are asked at a time.
pub const AT_ONCE: usize = 64;

/// Whether another agent has passed this call on.
pub fn is_hop(metadata: &MetadataMap) -> bool {
    metadata.contains_key(HOP)
}

/// A request that is not passed on.
pub fn hop<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert(HOP, tonic::metadata::MetadataValue::from_static("1"));
    request
}

/// The fleet service of the agent of `host`.
pub async fn client(hub: &Hub, host: &str) -> Result<FleetClient<Channel>, Problem> {
    let Some(dial) = hub.dial() else {
        return Err(unreachable(host, "this fleet has one host"));
    };
    match timeout(ANSWER_WITHIN, dial.channel(host)).await {
        Ok(Ok(channel)) => {
            Ok(FleetClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX))
        }
        Ok(Err(why)) => Err(unreachable(host, why)),
        Err(_) => Err(unreachable(host, "no answer")),
    }
}

/// Asks the agent of `host`.
pub async fn ask<T, F>(
    hub: &Hub,
    host: &str,
    call: impl FnOnce(FleetClient<Channel>) -> F,
) -> Result<T, Problem>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let client = client(hub, host).await?;
    match timeout(ANSWER_WITHIN, call(client)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(problem_of(host, &status)),
        Err(_) => Err(unreachable(host, "no answer")),
    }
}

/// What the agent of `host` said, or that it could not be asked.
pub fn problem_of(host: &str, status: &Status) -> Problem {
    if status.details().is_empty() {
        unreachable(host, said(status))
    } else {
        Problem::from_status(status)
    }
}

/// The agent of `host` cannot be asked.
pub fn unreachable(host: &str, why: impl Into<String>) -> Problem {
    Problem::new(
        "host-unreachable",
        format!("host:{host}"),
        format!("the agent of host {host} does not answer"),
    )
    .cause(why)
    .hint("`tanakoctl status` shows which hosts are heard of; what the others know is shown all the same")
    .retryable()
}
