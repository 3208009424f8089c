//! The server's side of `Follow`: this host for one follower, a snapshot first, then what changed.

use std::{sync::Arc, time::Duration};

use tanako_proto::host::v1::{FollowRequest, HostUpdate};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    board::Board,
    report::{self, Report},
};

/// How often the numbers go out, when the follower does not say; also the sign of life.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Changes of state go out at once, but not more often than this.
const SPACING: Duration = Duration::from_millis(50);
/// Updates under way to one follower: with one, what waits is never old.
pub const UPDATES_MAX: usize = 1;

/// Feeds one follower until it or the agent leaves. It holds the latest moment that it has told and
/// nothing else, so a slow follower misses steps, never the outcome.
pub async fn feed(
    board: Arc<Board>,
    request: FollowRequest,
    updates: mpsc::Sender<Result<HostUpdate, Status>>,
    cancel: CancellationToken,
) {
    let every = match request.interval_ms {
        0 => INTERVAL_DEFAULT,
        ms => Duration::from_millis(ms.into()).clamp(INTERVAL_MIN, INTERVAL_DEFAULT),
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = updates.closed() => {}
        () = run(&board, every, &updates) => {}
    }
}

async fn run(board: &Board, every: Duration, updates: &mpsc::Sender<Result<HostUpdate, Status>>) {
    let mut signals = board.signals();
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: Option<Arc<Report>> = None;
    loop {
        // Room first, then the moment: what waits is never old.
        let Ok(permit) = updates.reserve().await else {
            return;
        };
        let events = signals.events();
        let report = board.report(SPACING);
        permit.send(Ok(report::update(told.as_deref(), &report, events)));
        told = Some(report);
        let not_before = Instant::now() + SPACING;
        loop {
            tokio::select! {
                _ = tick.tick() => break,
                news = signals.wait() => match news {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(_) => return,
                },
            }
        }
        sleep_until(not_before).await;
    }
}
