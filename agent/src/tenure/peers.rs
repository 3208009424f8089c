//! What this host asks of others: how they stand, and to prolong its lease.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tanako_fleet::tenure::Way;
use tanako_proto::host::v1::{self as wire, host_client::HostClient};
use tokio::time::timeout;

use super::{core::Input, now};
use crate::hosts::Dial;

/// Peers asked to relay at once.
const RELAYS: usize = 3;

/// Asks one host how it stands; `None` = no answer in time.
pub(super) async fn standing(
    dial: &dyn Dial,
    own: &str,
    host: &str,
    within: Duration,
) -> Option<wire::Standing> {
    let ask = async {
        let channel = dial.channel(host).await.ok()?;
        let request = wire::StandingRequest {
            host: own.to_owned(),
        };
        let answer = HostClient::new(channel).get_standing(request).await;
        answer.ok().map(tonic::Response::into_inner)
    };
    timeout(within, ask).await.ok().flatten()
}

/// Asks some peers to prolong the lease; what came of it.
pub(super) async fn relay(
    dial: Arc<dyn Dial>,
    own: &str,
    mut peers: Vec<String>,
    lease: u64,
    within: Duration,
) -> Input {
    let way = Way::Relayed;
    fastrand::shuffle(&mut peers);
    let sent_at = now();
    let calls: FuturesUnordered<_> = peers
        .into_iter()
        .take(RELAYS)
        .map(|peer| {
            let dial = dial.clone();
            async move {
                let channel = dial.channel(&peer).await.ok()?;
                let request = wire::RelayRequest {
                    host: own.to_owned(),
                    lease: i64::try_from(lease).unwrap_or(0),
                };
                let answer = HostClient::new(channel).relay_keep_alive(request).await;
                answer.ok().map(tonic::Response::into_inner)
            }
        })
        .collect();
    let first = async {
        let mut calls = calls;
        while let Some(answer) = calls.next().await {
            match answer {
                Some(reply) if reply.kept => {
                    return Some(Input::Renewed {
                        lease,
                        way,
                        sent_at,
                    });
                }
                Some(reply) if reply.ended => return Some(Input::Ended { lease }),
                _ => {}
            }
        }
        None
    };
    let answer = timeout(within, first).await.ok().flatten();
    answer.unwrap_or(Input::NotRenewed { lease, way })
}

/// Whom to ask when so many have to say that they are cut off: some more than that.
pub(super) fn sample(mut peers: Vec<String>, stay: u32, busy: &BTreeSet<String>) -> Vec<String> {
    fastrand::shuffle(&mut peers);
    peers.retain(|peer| !busy.contains(peer));
    peers.truncate(2 * stay as usize + 4);
    peers
}
