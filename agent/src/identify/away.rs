//! Permits where another agent holds the office: they are asked of it, by polls that keep one place in
//! its queue. See [`tanako_fleet::identify::Desk`], which is the other end.
//!
//! Whoever waits here goes on with the next office when it changes hands, and gives up its place by
//! asking no longer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use tanako_fleet::identify::{self, Via, WAIT_MAX_MS};
use tanako_proto::{
    fleet::v1::Problem,
    host::v1::{GatewayReport, PermitReply, PermitRequest, SentIdentify},
    worker::v1::GatewayLimits,
};
use tanako_store::Backoff;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{AcquireError, Ask, Broker, Permit};
use crate::clock;

/// A poll without an answer is given up after the time that it may wait, and so much.
const SLACK: Duration = Duration::from_secs(2);
/// Pauses after a failure.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Pauses after a permit that came too late: whatever delays the answers may last. It is given back with the
/// next question, which costs the office two writes.
const LATE: Duration = Duration::from_secs(1);
const LATE_MAX: Duration = Duration::from_secs(15);
/// Between two polls that were answered at once.
const APART: Duration = Duration::from_millis(50);
/// A report without an answer is sent again.
const REPORT_WITHIN: Duration = Duration::from_secs(3);
/// Reports within this time go together.
const GATHER: Duration = Duration::from_millis(100);
/// Shards whose news waits for the office; what finds no room is told by a later READY, or not at all,
/// which costs them patience with the crash guard and nothing else.
const NEWS_MAX: usize = 16_384;

/// Who gives permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Office {
    /// This agent.
    Here,
    /// The agent of this host.
    At(String),
    /// Nobody is known to. Whoever asks waits.
    Unknown,
}

/// The way to the agent that gives permits.
pub trait Upstream: Send + Sync + 'static {
    /// Who that is.
    fn office(&self) -> watch::Receiver<Office>;
    /// Asks it for a permit.
    fn acquire(
        &self,
        host: String,
        request: PermitRequest,
    ) -> BoxFuture<'_, Result<PermitReply, Status>>;
    /// Tells it what is known of Discord's limits and of sessions that hold.
    fn report(&self, host: String, report: GatewayReport) -> BoxFuture<'_, Result<(), Status>>;
    /// Name of this host.
    fn own(&self) -> &str;
}

/// The word for the way that a permit takes.
pub(super) fn via_word(via: Via) -> &'static str {
    match via {
        Via::Worker => "worker",
        Via::Start => "start",
        Via::Queue => "queue",
    }
}

/// Waits for a permit of whoever gives them, as long as it takes.
pub(super) async fn acquire(
    broker: &Broker,
    upstream: &dyn Upstream,
    ask: &Ask,
    via: Via,
) -> Result<Permit, AcquireError> {
    let mut office = upstream.office();
    // Names the place, wherever it is.
    let place = format!("{:016x}", fastrand::u64(..));
    let mut late = 0_u32;
    let mut ask = ask.clone();
    loop {
        let at = office.borrow_and_update().clone();
        let permit = async {
            match at {
                // Where nobody is known to, it may be this one next; until then its store refuses.
                Office::Here | Office::Unknown => broker.acquire_here(ask.clone(), via).await,
                Office::At(host) => ask_at(upstream, &host, &mut ask, via, &place, &mut late).await,
            }
        };
        tokio::select! {
            permit = permit => return permit,
            changed = office.changed() => if changed.is_err() {
                return Err(AcquireError::Unavailable("the agent is stopping"));
            },
        }
    }
}

async fn ask_at(
    upstream: &dyn Upstream,
    host: &str,
    ask: &mut Ask,
    via: Via,
    place: &str,
    late: &mut u32,
) -> Result<Permit, AcquireError> {
    let mut pauses = Backoff::new(PAUSE, PAUSE_MAX);
    let mut lateness = Backoff::new(LATE, LATE_MAX);
    loop {
        let sent = clock::boot_ms();
        let request = PermitRequest {
            id: format!("{place}-{late}"),
            host: upstream.own().to_owned(),
            process: ask.process.to_string(),
            bot: ask.process.group().to_owned(),
            attempt: ask.attempt,
            shard_id: ask.shard_id,
            shard_count: ask.shard_count,
            wait_ms: u32::try_from(WAIT_MAX_MS).unwrap_or(u32::MAX),
            via: via_word(via).to_owned(),
            unused: ask.unused.unwrap_or(0),
        };
        let within = Duration::from_millis(WAIT_MAX_MS.unsigned_abs()) + SLACK;
        let answer = tokio::time::timeout(within, upstream.acquire(host.to_owned(), request)).await;
        let now = clock::boot_ms();
        match answer {
            Ok(Ok(reply)) if reply.pending => {
                pauses.reset();
                let took = Duration::from_millis((now - sent).unsigned_abs());
                tokio::time::sleep(APART.saturating_sub(took)).await;
            }
            Ok(Ok(reply)) if !reply.refused.is_empty() => match reply.refused.as_str() {
                "exhausted" => {
                    return Err(AcquireError::Exhausted {
                        bot: ask.process.group().to_owned(),
                        free_at: (reply.free_at != 0).then_some(reply.free_at),
                    });
                }
                "superseded" => return Err(AcquireError::Superseded),
                _ => return Err(AcquireError::Unavailable("too many shards wait")),
            },
            Ok(Ok(reply)) => {
                if let Some(until_boot_ms) = identify::until(sent, reply.valid_ms, now) {
                    return Ok(Permit {
                        number: reply.permit,
                        until_boot_ms,
                        remaining: reply.remaining,
                    });
                }
                *late += 1;
                ask.unused = Some(reply.permit);
                tracing::warn!(
                    host, process = %ask.process, shard = ask.shard_id, took_ms = now - sent,
                    "a permit came too late to be used"
                );
                tokio::time::sleep(lateness.pause()).await;
            }
            Ok(Err(status)) => {
                tracing::debug!(host, error = %status.message(), "no permit could be asked for");
                tokio::time::sleep(pauses.pause()).await;
            }
            Err(_) => {
                tracing::debug!(host, "a question for a permit was not answered");
                tokio::time::sleep(pauses.pause()).await;
            }
        }
    }
}

/// What the office is to know.
#[derive(Debug)]
pub(super) enum News {
    Limits(String, GatewayLimits),
    /// An IDENTIFY went out at this moment of this host's boot clock.
    Sent {
        bot: String,
        shard: u32,
        count: u32,
        at: i64,
    },
    Ready {
        bot: String,
        shard: u32,
        count: u32,
    },
}

/// News that wait for the office, and the limits that each new one has to hear.
#[derive(Debug, Default)]
struct Told {
    limits: BTreeMap<String, GatewayLimits>,
    unsent: BTreeSet<String>,
    ready: BTreeSet<(String, u32, u32)>,
    identified: BTreeMap<(String, u32, u32), i64>,
}

impl Told {
    fn take(&mut self, news: News) {
        match news {
            News::Limits(bot, limits) => {
                self.unsent.insert(bot.clone());
                self.limits.insert(bot, limits);
            }
            News::Ready { bot, shard, count } if self.ready.len() < NEWS_MAX => {
                self.ready.insert((bot, count, shard));
            }
            News::Sent {
                bot,
                shard,
                count,
                at,
            } if self.identified.len() < NEWS_MAX => {
                self.identified.insert((bot, count, shard), at);
            }
            News::Ready { .. } | News::Sent { .. } => {}
        }
    }

    /// One bot's next report, as of `now` on this host's boot clock.
    fn next(&self, now: i64) -> Option<GatewayReport> {
        let identified = self.identified.keys().next();
        let first = identified.or(self.ready.first()).map(|(bot, _, _)| bot);
        let bot = first.or(self.unsent.first())?;
        let of_bot = || self.ready.iter().filter(|(of, _, _)| of == bot);
        let sent = || self.identified.iter().filter(|((of, _, _), _)| of == bot);
        let counts = sent().map(|((_, count, _), _)| *count);
        let shard_count = counts.chain(of_bot().map(|(_, count, _)| *count)).next();
        let shard_count = shard_count.unwrap_or(0);
        Some(GatewayReport {
            sent: sent()
                .filter(|((_, count, _), _)| *count == shard_count)
                .map(|((_, _, shard), at)| SentIdentify {
                    shard_id: *shard,
                    ago_ms: u64::try_from(now - at).unwrap_or(0),
                })
                .collect(),
            bot: bot.clone(),
            limits: self
                .unsent
                .contains(bot)
                .then(|| self.limits.get(bot).copied())
                .flatten(),
            established: of_bot()
                .filter(|(_, count, _)| *count == shard_count)
                .map(|(_, _, shard)| *shard)
                .collect(),
            shard_count,
        })
    }

    fn sent(&mut self, report: &GatewayReport) {
        if report.limits.is_some() {
            self.unsent.remove(&report.bot);
        }
        for sent in &report.sent {
            let key = (report.bot.clone(), report.shard_count, sent.shard_id);
            self.identified.remove(&key);
        }
        for shard in &report.established {
            self.ready
                .remove(&(report.bot.clone(), report.shard_count, *shard));
        }
    }
}

/// Passes news on to whoever holds the office, until cancelled.
pub(super) async fn tell(
    broker: Broker,
    upstream: Arc<dyn Upstream>,
    mut news: mpsc::Receiver<News>,
    cancel: CancellationToken,
) {
    let mut office = upstream.office();
    let mut told = Told::default();
    let mut pauses = Backoff::new(PAUSE, PAUSE_MAX);
    let mut wait = None;
    loop {
        let due = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = office.changed() => {
                if changed.is_err() {
                    return;
                }
                told.unsent = told.limits.keys().cloned().collect();
            }
            Some(one) = news.recv() => {
                told.take(one);
                // More may follow at once: a process's shards report together.
                wait.get_or_insert(GATHER);
                continue;
            }
            () = due => {}
        }
        wait = None;
        let at = office.borrow_and_update().clone();
        while let Some(report) = told.next(clock::boot_ms()) {
            let done = match &at {
                Office::Unknown => break,
                Office::Here => {
                    take_in(&broker, &report).await;
                    true
                }
                Office::At(host) => {
                    let answer = upstream.report(host.clone(), report.clone());
                    matches!(
                        tokio::time::timeout(REPORT_WITHIN, answer).await,
                        Ok(Ok(()))
                    )
                }
            };
            if done {
                pauses.reset();
                told.sent(&report);
            } else {
                wait = Some(pauses.pause());
                break;
            }
        }
    }
}

/// What another agent's workers, or this one's, have learnt.
pub(super) async fn take_in(broker: &Broker, report: &GatewayReport) {
    if let Some(limits) = report.limits {
        broker.limits_here(&report.bot, limits).await;
    }
    let now = clock::boot_ms();
    for sent in &report.sent {
        // What the report took on its way makes it later than it was, never earlier.
        let ago = i64::try_from(sent.ago_ms).unwrap_or(i64::MAX);
        broker
            .sent_here(
                &report.bot,
                sent.shard_id,
                report.shard_count,
                now.saturating_sub(ago),
            )
            .await;
    }
    for shard in &report.established {
        broker
            .ready_here(&report.bot, *shard, report.shard_count)
            .await;
    }
}

/// What is said to whoever asks an agent that does not hold the office.
pub(super) fn not_here(host: &str) -> Status {
    Problem::new(
        "not-coordinator",
        host,
        "this agent gives no permits: another one holds the office",
    )
    .hint("ask the coordinator's agent")
    .retryable()
    .into_status(tonic::Code::FailedPrecondition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_goes_bot_by_bot_and_limits_are_told_again() {
        let mut told = Told::default();
        let limits = GatewayLimits {
            total: 1_000,
            ..GatewayLimits::default()
        };
        told.take(News::Limits("b".to_owned(), limits));
        for (bot, shard) in [("a", 1), ("b", 3), ("b", 2), ("b", 2)] {
            told.take(News::Ready {
                bot: bot.to_owned(),
                shard,
                count: 8,
            });
        }
        told.take(News::Sent {
            bot: "b".to_owned(),
            shard: 5,
            count: 8,
            at: 900,
        });
        let first = told.next(1_000).expect("a report");
        assert_eq!((first.bot.as_str(), first.limits), ("b", Some(limits)));
        assert_eq!(first.established, [2, 3]);
        assert_eq!((first.sent[0].shard_id, first.sent[0].ago_ms), (5, 100));
        told.sent(&first);
        let second = told.next(1_000).expect("a report");
        assert_eq!((second.bot.as_str(), second.limits), ("a", None));
        told.sent(&second);
        assert!(told.next(1_000).is_none());
        told.unsent = told.limits.keys().cloned().collect();
        assert_eq!(told.next(1_000).expect("a report").limits, Some(limits));
    }
}
