//! The status as a stream: a snapshot, then what changed. One task a watcher; it holds the latest
//! view that it has sent and nothing else, so a slow watcher misses steps, never the outcome.

use std::time::Duration;

use tanako_proto::fleet::v1::{self as wire, fleet_update::Update};
use tokio::{
    sync::{broadcast, mpsc},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{rpc::Sources, view};

const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Changes of state go out at once, but not more often than this.
const SPACING: Duration = Duration::from_millis(50);
/// Events in one update; in a flood, older ones are left to `Events`.
const EVENTS_MAX: usize = 256;

/// How often the numbers go out.
pub fn interval_of(asked_ms: u32) -> Duration {
    match asked_ms {
        0 => INTERVAL_DEFAULT,
        ms => Duration::from_millis(u64::from(ms)).clamp(INTERVAL_MIN, INTERVAL_MAX),
    }
}

/// Feeds one watcher until it or the agent leaves.
pub async fn feed(
    sources: Sources,
    every: Duration,
    updates: mpsc::Sender<Result<wire::FleetUpdate, Status>>,
    cancel: CancellationToken,
) {
    let mut table = sources.supervisor.status();
    let mut operations = sources.coordinator.watch_operations();
    let mut desired = sources.coordinator.watch_desired();
    let mut events = sources.history.subscribe();
    let mut pending: Vec<wire::Event> = Vec::new();
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shown: Option<wire::FleetStatus> = None;
    let mut not_before = Instant::now();
    loop {
        // Room first, then the view: what waits is never old.
        let permit = tokio::select! {
            () = cancel.cancelled() => return,
            permit = updates.reserve() => match permit {
                Ok(permit) => permit,
                Err(_) => return,
            },
        };
        drain(&mut events, &mut pending);
        let view = sources.status();
        let update = match &shown {
            None => Some(Update::Snapshot(view.clone())),
            Some(old) => {
                let delta = view::delta(old, &view);
                if delta.is_none() && pending.is_empty() {
                    None
                } else {
                    let mut delta = delta.unwrap_or_else(|| wire::FleetDelta {
                        revision: view.revision,
                        at: view.at,
                        healthy: view.healthy,
                        reasons: view.reasons.clone(),
                        version: view.version,
                        ..wire::FleetDelta::default()
                    });
                    delta.events = std::mem::take(&mut pending);
                    Some(Update::Delta(delta))
                }
            }
        };
        if let Some(update) = update {
            permit.send(Ok(wire::FleetUpdate {
                update: Some(update),
            }));
            shown = Some(view);
            not_before = Instant::now() + SPACING;
        } else {
            drop(permit);
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = updates.closed() => return,
            changed = table.changed() => if changed.is_err() { return },
            changed = operations.changed() => if changed.is_err() { return },
            changed = desired.changed() => if changed.is_err() { return },
            event = events.recv() => match event {
                Ok(event) => pending.push(event),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            },
            _ = tick.tick() => {}
        }
        sleep_until(not_before).await;
        table.mark_unchanged();
        operations.mark_unchanged();
        desired.mark_unchanged();
    }
}

fn drain(events: &mut broadcast::Receiver<wire::Event>, pending: &mut Vec<wire::Event>) {
    loop {
        match events.try_recv() {
            Ok(event) => {
                pending.push(event);
                if pending.len() > EVENTS_MAX {
                    pending.remove(0);
                }
            }
            Err(broadcast::error::TryRecvError::Lagged(_)) => {}
            Err(_) => return,
        }
    }
}
