//! Events of many hosts as one stream: what each remembers, by time, then what happens from now on.

use std::{collections::HashSet, time::Duration};

use futures_util::{StreamExt, stream};
use tanako_proto::fleet::v1 as wire;
use tokio::{sync::mpsc, time::timeout};
use tonic::Status;

use super::everywhere;
use crate::{
    clock::now_ms,
    history::History,
    hub::{Hub, peer},
};

/// The view is looked at at least this often: while it is, it takes in what happens.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A host's answer may take so long.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The latest `tail` events of all hosts, oldest first. A host that cannot be asked is an event, too.
pub async fn past(
    hub: &Hub,
    history: &History,
    request: &wire::EventsRequest,
    tail: usize,
) -> Vec<wire::Event> {
    let mut found = vec![history.events(tail, request.since, &request.targets).await];
    let others = everywhere::others(hub).await;
    let asked = wire::EventsRequest {
        tail: tail as u32,
        follow: false,
        ..request.clone()
    };
    let answers = others.into_iter().map(|(host, askable)| {
        let asked = asked.clone();
        async move {
            let events = async {
                match askable {
                    Ok(()) => of_host(hub, &host, asked).await,
                    Err(why) => Err(why),
                }
            };
            let events = timeout(ANSWER_WITHIN, events).await;
            events
                .unwrap_or_else(|_| Err("no answer".to_owned()))
                .unwrap_or_else(|why| vec![missing(&host, &why)])
        }
    });
    let mut answers = stream::iter(answers).buffer_unordered(peer::AT_ONCE);
    while let Some(events) = answers.next().await {
        found.push(events);
    }
    let mut found = merged(found);
    let spare = found.len().saturating_sub(tail);
    found.drain(..spare);
    found
}

/// The events of all hosts by time. Those of one host keep their order, which is that of their ids and by which
/// readers know what they have, also where its clock was set back between two of them.
fn merged(hosts: Vec<Vec<wire::Event>>) -> Vec<wire::Event> {
    let mut all: Vec<(i64, wire::Event)> = Vec::new();
    for events in hosts {
        let mut latest = i64::MIN;
        all.extend(events.into_iter().map(|event| {
            latest = latest.max(event.at);
            (latest, event)
        }));
    }
    // Stable.
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, event)| event).collect()
}

async fn of_host(
    hub: &Hub,
    host: &str,
    asked: wire::EventsRequest,
) -> Result<Vec<wire::Event>, String> {
    let asked = peer::ask(hub, host, |mut client| async move {
        client.events(peer::hop(asked)).await
    });
    let mut stream = asked.await.map_err(|problem| problem.cause)?;
    let mut events = Vec::new();
    while let Some(event) = stream.next().await {
        let mut event = event.map_err(|status| peer::problem_of(host, &status).cause)?;
        host.clone_into(&mut event.host);
        events.push(event);
    }
    Ok(events)
}

/// Says of a host that its events are not there.
fn missing(host: &str, why: &str) -> wire::Event {
    wire::Event {
        at: now_ms(),
        severity: "warning".to_owned(),
        kind: "events-missing".to_owned(),
        object: format!("host:{host}"),
        message: format!("what happened there is not shown: {why}"),
        host: host.to_owned(),
        id: 0,
    }
}

/// Number of the view's latest change: what happens after it is live.
pub async fn from_now(hub: &Hub) -> u64 {
    hub.look(|core, _| core.change()).await.unwrap_or_default()
}

/// Sends what happens after `change`, but not what is in `past`, until the reader leaves.
pub async fn live(
    hub: &Hub,
    mut change: u64,
    past: &[wire::Event],
    targets: &[String],
    sender: &mpsc::Sender<Result<wire::Event, Status>>,
) {
    let mut seen: HashSet<(String, u64)> = past
        .iter()
        .map(|event| (event.host.clone(), event.id))
        .collect();
    let mut pulse = hub.pulse();
    loop {
        let since = change;
        let news = hub.look(move |core, _| (core.events_since(since), core.change()));
        let Ok(((events, gone), now)) = news.await else {
            return;
        };
        if gone {
            let event = wire::Event {
                at: now_ms(),
                severity: "warning".to_owned(),
                kind: "events-missed".to_owned(),
                object: "events".to_owned(),
                message: "events came faster than they were read".to_owned(),
                ..wire::Event::default()
            };
            if sender.send(Ok(event)).await.is_err() {
                return;
            }
        }
        for event in events {
            let known = !seen.is_empty() && seen.remove(&(event.host.clone(), event.id));
            if !known && History::is_about(&event, targets) && sender.send(Ok(event)).await.is_err()
            {
                return;
            }
        }
        change = now;
        if let Ok(Err(_)) = timeout(LOOK_EVERY, pulse.changed()).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_a_host_keep_their_order_whatever_its_clock_does() {
        let events = |host: &str, all: &[(u64, i64)]| -> Vec<wire::Event> {
            let event = |&(id, at): &(u64, i64)| wire::Event {
                id,
                at,
                host: host.to_owned(),
                ..wire::Event::default()
            };
            all.iter().map(event).collect()
        };
        let a = events("a", &[(1, 10), (2, 30), (3, 20), (4, 50)]);
        let b = events("b", &[(1, 5), (2, 25), (3, 40)]);
        let found: Vec<(String, u64)> = merged(vec![a, b])
            .into_iter()
            .map(|event| (event.host, event.id))
            .collect();
        let found: Vec<(&str, u64)> = found.iter().map(|(host, id)| (&**host, *id)).collect();
        let wanted = [
            ("b", 1),
            ("a", 1),
            ("b", 2),
            ("a", 2),
            ("a", 3),
            ("b", 3),
            ("a", 4),
        ];
        assert_eq!(found, wanted);
    }
}
