//! One question to all other hosts at a time, and their answers beside this host's.

use std::{collections::BTreeMap, future::Future};

use futures_util::{StreamExt, stream};
use tanako_proto::fleet::v1::{self as wire, Problem, fleet_client::FleetClient};
use tonic::{Response, Status, transport::Channel};

use super::rpc::{SETTLE_MAX, Service, refused};
use crate::hub::{Hub, peer};

/// What each other host said. One that is silent is not asked.
pub type Answers<T> = BTreeMap<String, Result<T, Problem>>;

/// The other hosts, and why one of them need not be asked.
pub async fn others(hub: &Hub) -> BTreeMap<String, Result<(), String>> {
    // Those that nobody has asked before are connected first.
    let _ = hub.settled(SETTLE_MAX).await;
    let others = hub.look(|core, _| core.askable()).await;
    others.unwrap_or_default()
}

/// Asks all other hosts.
pub async fn ask<T, F>(hub: &Hub, call: impl Fn(FleetClient<Channel>) -> F + Copy) -> Answers<T>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let others = others(hub).await;
    let asked = others.into_iter().map(|(host, askable)| async move {
        let answer = match askable {
            Ok(()) => peer::ask(hub, &host, call).await,
            Err(why) => Err(peer::unreachable(&host, why)),
        };
        (host, answer)
    });
    stream::iter(asked)
        .buffer_unordered(peer::AT_ONCE)
        .collect()
        .await
}

impl Service {
    /// What was read here; else what the agent that decides says: it may have the store where this one
    /// has not.
    pub(super) async fn or_there<T, F>(
        &self,
        here: Result<T, Problem>,
        passed_on: bool,
        again: impl FnOnce(FleetClient<Channel>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let hub = &self.sources.hub;
        let problem = match here {
            Ok(here) => return Ok(here),
            Err(problem) => problem,
        };
        if problem.code == "store-unavailable"
            && !passed_on
            && let Ok(Some(leader)) = hub.look(|core, _| core.leader()).await
        {
            return peer::ask(hub, &leader, again).await.map_err(refused);
        }
        Err(refused(problem))
    }
}

/// Adds the backups that lie on other hosts. A set in a directory that hosts share is one.
pub fn add_backups(backups: &mut Vec<wire::Backup>, own: &str, answers: Answers<wire::BackupList>) {
    if answers.is_empty() {
        return;
    }
    for backup in &mut *backups {
        own.clone_into(&mut backup.host);
    }
    for (host, answer) in answers {
        let found = match answer {
            Ok(list) => list.backups,
            Err(problem) => {
                tracing::warn!(
                    host,
                    cause = problem.cause,
                    "a host's backups are not listed"
                );
                continue;
            }
        };
        for mut backup in found {
            let same = |known: &wire::Backup| {
                known.date == backup.date
                    && known.created_at == backup.created_at
                    && known.bytes == backup.bytes
            };
            if !backups.iter().any(same) {
                host.clone_into(&mut backup.host);
                backups.push(backup);
            }
        }
    }
    backups.sort_by(|a, b| (b.created_at, &b.date).cmp(&(a.created_at, &a.date)));
}

/// Adds what other hosts found. Each finding says whose it is.
pub fn add_findings(
    report: &mut wire::DoctorReport,
    own: &str,
    answers: Answers<wire::DoctorReport>,
) {
    if answers.is_empty() {
        return;
    }
    for finding in &mut report.findings {
        own.clone_into(&mut finding.host);
    }
    for (host, answer) in answers {
        match answer {
            Ok(theirs) => report.findings.extend(theirs.findings.into_iter().map(|finding| {
                wire::Finding {
                    host: host.clone(),
                    ..finding
                }
            })),
            Err(problem) => report.findings.push(wire::Finding {
                severity: "error".to_owned(),
                check: "host".to_owned(),
                message: format!("{}: {}", problem.message, problem.cause),
                hint: "see whether the host and its agent run; its processes are started elsewhere when its lease has ended".to_owned(),
                host,
            }),
        }
    }
}
