//! Who may speak for a process: a peer whose process id is the supervised one, or in its process
//! group, and whose attempt is the current one.

use std::{sync::Arc, time::Duration};

use tanako_fleet::{ProcessName, ProcessSpec};
use tanako_proto::fleet::v1::Problem;
use tonic::{Code, Status};

use super::{Processes, listen::Peer};
use crate::supervisor::{ProcessStatus, State, Table};

/// A child may connect before the supervisor has published it: so long it is waited for.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(2);

/// The outcome of an admission.
#[derive(Debug)]
pub(super) enum Admission {
    /// It may speak.
    Current(Current),
    /// A newer attempt has taken its place.
    Superseded,
}

/// The process that a peer speaks for.
#[derive(Debug, Clone)]
pub(super) struct Current {
    pub(super) name: ProcessName,
    pub(super) attempt: u64,
    pub(super) spec: Arc<ProcessSpec>,
}

/// Checks a claim.
pub(super) async fn admit(
    processes: &dyn Processes,
    peer: &Peer,
    process: &str,
    attempt: u64,
) -> Result<Admission, Status> {
    let name: ProcessName = process.parse().map_err(|error| {
        Problem::new("invalid-argument", process, format!("{error}"))
            .hint("send TANAKO_PROCESS as it was given")
            .into_status(Code::InvalidArgument)
    })?;
    let mut table = processes.table();
    let settled = tokio::time::timeout(
        PUBLISHED_WITHIN,
        table.wait_for(|table| is_settled(table, &name, attempt)),
    )
    .await
    .map(|table| table.map(|table| table.get(&name).cloned()));
    let status = match settled {
        Ok(Ok(status)) => status,
        Ok(Err(_)) => return Err(Status::unavailable("the agent is stopping")),
        Err(_) => table.borrow().get(&name).cloned(),
    };
    let Some(status) = status else {
        return Err(Problem::new(
            "unknown-target",
            name.as_str(),
            format!("this agent has no process {name}"),
        )
        .into_status(Code::NotFound));
    };
    let belongs = match (peer.pid, status.pid) {
        (Some(peer), Some(pid)) => peer == pid || process_group(peer).await == Some(pid),
        _ => false,
    };
    if status.attempt > attempt {
        return Ok(Admission::Superseded);
    }
    if status.attempt < attempt || !lives(&status) {
        return Err(Problem::new(
            "not-current",
            name.as_str(),
            format!("attempt {attempt} of {name} is not running here"),
        )
        .hint("try again; after an agent's restart it may take a moment")
        .retryable()
        .into_status(Code::Unavailable));
    }
    if !belongs {
        tracing::warn!(process = %name, attempt, peer_pid = peer.pid, "a foreign process claimed to be a worker");
        return Err(Problem::new(
            "denied",
            name.as_str(),
            format!(
                "process id {} is not {name} nor in its process group",
                peer.pid
                    .map_or_else(|| "unknown".to_owned(), |p| p.to_string()),
            ),
        )
        .into_status(Code::PermissionDenied));
    }
    peer.introduce();
    Ok(Admission::Current(Current {
        name,
        attempt,
        spec: Arc::clone(&status.spec),
    }))
}

/// Whether waiting longer cannot change the answer.
fn is_settled(table: &Table, name: &ProcessName, attempt: u64) -> bool {
    table.get(name).is_some_and(|status| {
        status.attempt > attempt || status.attempt == attempt && lives(status)
    })
}

fn lives(status: &ProcessStatus) -> bool {
    status.pid.is_some()
        && !matches!(
            status.state,
            State::Stopped | State::Failed | State::Backoff
        )
}

async fn process_group(pid: u32) -> Option<u32> {
    let stat = tokio::fs::read(format!("/proc/{pid}/stat")).await.ok()?;
    crate::metrics::process_group_of(&stat)
}
