//! The way to the agent: one task keeps the watch alive and reconnects for ever; requests use the
//! connection it found.
//!
//! ```text
//!  connect ──► snapshot, deltas … ──► lost ──► wait (growing, jittered) ──► connect …
//!                   │ silent for 3 s: ask for the status; no answer = lost
//! ```

use std::{future::Future, time::Duration};

use tanako_proto::fleet::v1::{
    EventsRequest, FleetStatus, FleetUpdate, LogLine, LogsRequest, Problem, StatusRequest,
    WatchRequest, fleet_update::Update,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::app::Input;
use crate::client::{Endpoint, Fleet};

/// How often the fleet reports; half of the second within which a change must show.
const INTERVAL_MS: u32 = 500;
/// A watch that says nothing for so long is asked whether it is still there.
const SILENCE: Duration = Duration::from_secs(3);
/// How long any one answer may take.
pub const ANSWER: Duration = Duration::from_secs(10);
/// The first and the longest wait before another attempt.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Events asked for at each connection, so that the events view is not empty at first.
const EVENTS_TAIL: u32 = 200;
/// Log lines asked for when a log is opened.
const LOG_TAIL: u32 = 500;
/// Log lines handed over at once at most.
const LOG_BATCH: usize = 500;

/// How to get a connection. [`Endpoint`] is the real one; tests have their own.
pub trait Link: Clone + Send + Sync + 'static {
    /// Connects.
    fn open(&self) -> impl Future<Output = Result<Fleet, Problem>> + Send;
}

impl Link for Endpoint {
    async fn open(&self) -> Result<Fleet, Problem> {
        Endpoint::open(self).await
    }
}

/// The connection as the requests see it; `None` while there is none.
pub type Connection = watch::Receiver<Option<Fleet>>;

/// The wait before attempt `n`: doubling, at most five seconds, half of it random, so that many
/// monitors do not come back to an agent at the same moment.
pub fn backoff(n: u32, random: f64) -> Duration {
    let whole = BACKOFF.0.saturating_mul(1 << n.min(16)).min(BACKOFF.1);
    whole.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

/// Keeps the watch alive until cancelled or nobody listens.
pub async fn keep<L: Link>(
    link: L,
    inputs: mpsc::Sender<Input>,
    connection: watch::Sender<Option<Fleet>>,
    stop: CancellationToken,
) {
    let mut failures = 0;
    loop {
        let attempt = attend(&link, &inputs, &connection, &mut failures);
        let why = tokio::select! {
            () = stop.cancelled() => return,
            why = attempt => why,
        };
        connection.send_replace(None);
        let Some(why) = why else { return };
        let retry_in = backoff(failures, fastrand::f64());
        failures += 1;
        tracing::warn!(
            code = why.code,
            message = why.message,
            retry_ms = retry_in.as_millis() as u64,
            "link lost"
        );
        if inputs
            .send(Input::Lost {
                why: Box::new(why),
                retry_in,
            })
            .await
            .is_err()
        {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(retry_in) => {}
        }
    }
}

/// One connection from its beginning to its end; why it ended, or `None` when nobody listens.
async fn attend<L: Link>(
    link: &L,
    inputs: &mpsc::Sender<Input>,
    connection: &watch::Sender<Option<Fleet>>,
    failures: &mut u32,
) -> Option<Problem> {
    let mut fleet = match within(link.open()).await {
        Ok(fleet) => fleet,
        Err(why) => return Some(why),
    };
    let mut updates = match within(fleet.watch(WatchRequest {
        interval_ms: INTERVAL_MS,
    }))
    .await
    {
        Ok(updates) => updates,
        Err(why) => return Some(why),
    };
    connection.send_replace(Some(fleet.clone()));
    let mut told = false;
    loop {
        let update = match tokio::time::timeout(SILENCE, updates.next()).await {
            Ok(Some(Ok(update))) => update,
            Ok(Some(Err(status))) => return Some(fleet.endpoint().problem(&status)),
            Ok(None) => {
                return Some(
                    Problem::new("unreachable", "", "the agent ended the connection").retryable(),
                );
            }
            Err(_) => match still_there(&mut fleet).await {
                Ok(status) => FleetUpdate {
                    update: Some(Update::Snapshot(status)),
                },
                Err(why) => return Some(why),
            },
        };
        *failures = 0;
        if inputs.send(Input::Update(Box::new(update))).await.is_err() {
            return None;
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!("connected");
            if let Some(events) = past_events(&mut fleet).await
                && inputs.send(Input::Events(events)).await.is_err()
            {
                return None;
            }
        }
    }
}

async fn still_there(fleet: &mut Fleet) -> Result<FleetStatus, Problem> {
    match tokio::time::timeout(SILENCE, fleet.get_status(StatusRequest {})).await {
        Ok(answer) => answer,
        Err(_) => Err(Problem::new("timeout", "", "the agent is silent").retryable()),
    }
}

/// Events before now. That there are none is no reason to give the connection up.
async fn past_events(fleet: &mut Fleet) -> Option<Vec<tanako_proto::fleet::v1::Event>> {
    let request = EventsRequest {
        tail: EVENTS_TAIL,
        ..EventsRequest::default()
    };
    let collect = async {
        let mut stream = fleet.events(request).await.ok()?;
        let mut events = Vec::new();
        while let Some(Ok(event)) = stream.next().await {
            events.push(event);
            if events.len() >= EVENTS_TAIL as usize {
                break;
            }
        }
        Some(events)
    };
    tokio::time::timeout(SILENCE, collect).await.ok().flatten()
}

async fn within<T>(answer: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(Problem::new("timeout", "", "the agent does not answer").retryable()),
    }
}

/// Follows the log lines of `targets` until cancelled, over however many connections that takes.
pub async fn follow(
    mut connection: Connection,
    inputs: mpsc::Sender<Input>,
    ticket: u64,
    targets: Vec<String>,
    stop: CancellationToken,
) {
    let work = async {
        let mut failures = 0;
        let mut seen = Seen::default();
        loop {
            let Ok(fleet) = connection
                .wait_for(Option::is_some)
                .await
                .map(|fleet| fleet.clone())
            else {
                return;
            };
            let Some(fleet) = fleet else { return };
            let why = lines(fleet, &inputs, ticket, &targets, &mut seen, &mut failures).await;
            let Some(why) = why else { return };
            if inputs.send(Input::LogEnded { ticket, why }).await.is_err() {
                return;
            }
            tokio::time::sleep(backoff(failures, fastrand::f64())).await;
            failures += 1;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// The newest lines handed over, so that a new connection does not repeat them.
#[derive(Debug, Default)]
struct Seen {
    at: i64,
    lines: Vec<(String, String)>,
    again: Vec<(String, String)>,
}

impl Seen {
    /// A new stream begins: it will repeat the lines of the newest millisecond.
    fn restart(&mut self) {
        self.again = self.lines.clone();
    }

    /// Whether `line` was not handed over before.
    fn is_new(&mut self, line: &LogLine) -> bool {
        let key = || (line.process.clone(), line.line.clone());
        if line.at < self.at && !self.again.is_empty() {
            return false;
        }
        if line.at == self.at
            && let Some(at) = self
                .again
                .iter()
                .position(|(process, text)| *process == line.process && *text == line.line)
        {
            self.again.swap_remove(at);
            return false;
        }
        if line.at > self.at {
            self.at = line.at;
            self.lines.clear();
            self.again.clear();
        }
        // A flood within one millisecond is not remembered whole; a repeated line is no loss.
        if line.at == self.at && self.lines.len() < LOG_BATCH {
            self.lines.push(key());
        }
        true
    }
}

/// One stream of log lines; why it ended, or `None` when nobody listens.
async fn lines(
    mut fleet: Fleet,
    inputs: &mpsc::Sender<Input>,
    ticket: u64,
    targets: &[String],
    seen: &mut Seen,
    failures: &mut u32,
) -> Option<String> {
    let request = LogsRequest {
        targets: targets.to_vec(),
        tail: LOG_TAIL,
        follow: true,
        since: seen.at,
        grep: String::new(),
    };
    seen.restart();
    let stream = match within(fleet.logs(request)).await {
        Ok(stream) => stream,
        Err(why) => return Some(super::app::problem_line(&why)),
    };
    // Lines that come together are handed over together: one redraw, not five hundred.
    let chunks = stream.chunks_timeout(LOG_BATCH, Duration::from_millis(50));
    tokio::pin!(chunks);
    while let Some(chunk) = chunks.next().await {
        let mut batch = Vec::with_capacity(chunk.len());
        let mut failed = None;
        for line in chunk {
            match line {
                Ok(line) if seen.is_new(&line) => batch.push(line),
                Ok(_) => {}
                Err(status) => {
                    failed = Some(super::app::problem_line(&fleet.endpoint().problem(&status)));
                }
            }
        }
        *failures = 0;
        if !batch.is_empty()
            && inputs
                .send(Input::Log {
                    ticket,
                    lines: batch,
                })
                .await
                .is_err()
        {
            return None;
        }
        if failed.is_some() {
            return failed;
        }
    }
    Some("the stream of lines ended; trying again".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_differ() {
        assert_eq!(backoff(0, 1.0), BACKOFF.0);
        assert_eq!(backoff(0, 0.0), BACKOFF.0 / 2);
        for n in 0..100 {
            assert!(backoff(n, 1.0) <= BACKOFF.1 && backoff(n, 0.0) >= BACKOFF.0 / 2);
        }
        assert_eq!(backoff(99, 1.0), BACKOFF.1);
    }

    #[test]
    fn a_new_stream_repeats_no_line_and_loses_none() {
        let line = |at, text: &str| LogLine {
            at,
            line: text.into(),
            process: "a".into(),
            ..LogLine::default()
        };
        let mut seen = Seen::default();
        for l in [line(1, "x"), line(2, "y"), line(2, "y")] {
            assert!(seen.is_new(&l));
        }
        seen.restart();
        let again = [line(2, "y"), line(2, "y"), line(2, "z"), line(3, "y")];
        assert_eq!(
            again.iter().map(|l| seen.is_new(l)).collect::<Vec<_>>(),
            [false, false, true, true]
        );
    }
}
