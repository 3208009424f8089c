//! The status of the fleet as a stream: a snapshot, then what changed. One task a watcher; it holds a
//! place in the changes and nothing else, so a slow watcher misses steps, never the outcome.

use std::time::Duration;

use tanako_proto::fleet::v1 as wire;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::hub::{Hub, show::Cursor};

const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Changes of state go out at once, but not more often than this; in large fleets, where there is
/// always one, less often.
const SPACING: Duration = Duration::from_millis(50);
const SPACING_LARGE: Duration = Duration::from_millis(250);
/// Processes that make a fleet large.
const LARGE: usize = 2_000;
/// The first paint waits so long for hosts that have not been asked before.
const SETTLE_MAX: Duration = Duration::from_millis(500);

/// How often the numbers go out.
pub fn interval_of(asked_ms: u32) -> Duration {
    match asked_ms {
        0 => INTERVAL_DEFAULT,
        ms => Duration::from_millis(u64::from(ms)).clamp(INTERVAL_MIN, INTERVAL_MAX),
    }
}

/// Feeds one watcher until it or the agent leaves.
pub async fn feed(
    hub: Hub,
    every: Duration,
    updates: mpsc::Sender<Result<wire::FleetUpdate, Status>>,
    cancel: CancellationToken,
) {
    tokio::select! {
        () = cancel.cancelled() => {}
        () = updates.closed() => {}
        // The hub ends with the agent.
        _ = run(&hub, every, &updates) => {}
    }
}

async fn run(
    hub: &Hub,
    every: Duration,
    updates: &mpsc::Sender<Result<wire::FleetUpdate, Status>>,
) -> Option<()> {
    let mut pulse = hub.pulse();
    let mut cursor = Cursor::default();
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    hub.settled(SETTLE_MAX).await.ok()?;
    loop {
        // Room first, then the changes: what waits is never old.
        let permit = updates.reserve().await.ok()?;
        let (next, update, large) = {
            let mut cursor = std::mem::take(&mut cursor);
            hub.look(move |core, now| {
                let update = core.next(&mut cursor, now);
                (cursor, update, core.len() > LARGE)
            })
            .await
            .ok()?
        };
        cursor = next;
        match update {
            Some(update) => permit.send(Ok(update)),
            None => drop(permit),
        }
        if cursor.is_under_way() {
            continue;
        }
        let urgent = pulse.borrow_and_update().urgent;
        let spacing = if large { SPACING_LARGE } else { SPACING };
        let not_before = Instant::now() + spacing;
        loop {
            tokio::select! {
                _ = tick.tick() => break,
                changed = pulse.changed() => {
                    changed.ok()?;
                    if pulse.borrow_and_update().urgent > urgent {
                        break;
                    }
                }
            }
        }
        sleep_until(not_before).await;
    }
}
