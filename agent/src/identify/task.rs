//! The task that owns the ledger: takes inputs, keeps one timer, carries out what the ledger asks
//! for, publishes the state.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tanako_fleet::identify::{
    BotStatus, Effect, Input, Ledger, Notice, RECORD_BYTES, Record, Refusal, Request, RequestId,
    VALID_MS,
};
use tanako_proto::fleet::v1 as fleet;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    AcquireError, Permit,
    clock::Clock,
    file::{Files, Job},
};
use crate::{
    history::{History, Severity},
    metrics::Latency,
};

/// Writes that wait for the disk; the ledger has at most one a bot under way, and notes.
const WRITES_MAX: usize = 1024;
/// A file is rewritten when it is larger than this and holds four times what it has to.
const REWRITE_BYTES_MIN: u64 = 64 << 10;
/// The timer sleeps no longer than this, since it stops during suspend and the ledger's clock does not.
const SLEEP_MAX: Duration = Duration::from_secs(30);
/// The published state changes no more often than this.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);

/// The answer to a request.
pub(super) type Answer = Result<Permit, AcquireError>;

/// What the handle sends.
#[derive(Debug)]
pub(super) enum Message {
    Input(Input),
    Request(Request, oneshot::Sender<Answer>),
}

/// A write for the disk.
struct Write {
    bot: String,
    /// Set when the ledger waits for it.
    seq: Option<u64>,
    job: Job,
}

/// What became of a write.
struct Written {
    bot: String,
    seq: Option<u64>,
    result: std::io::Result<u64>,
}

/// The task's state.
pub(super) struct Task {
    pub(super) ledger: Ledger,
    pub(super) clock: Clock,
    pub(super) history: History,
    pub(super) latency: Arc<Latency>,
    pub(super) status: watch::Sender<Arc<fleet::IdentifyStatus>>,
    /// Bots whose file must be replaced before anything is appended.
    pub(super) rewrite: HashSet<String>,
    pub(super) waiting: HashMap<RequestId, (oneshot::Sender<Answer>, String, Instant)>,
}

impl Task {
    /// Runs until cancelled; a permit whose record is being written by then is not given out.
    pub(super) async fn run(
        mut self,
        files: Files,
        mut inbox: mpsc::Receiver<Message>,
        mut gone: mpsc::UnboundedReceiver<RequestId>,
        cancel: CancellationToken,
    ) {
        let (writes, writes_rx) = mpsc::channel(WRITES_MAX);
        let (written_tx, mut written) = mpsc::channel(WRITES_MAX);
        let writer = write_all(files, writes_rx, written_tx);
        tokio::pin!(writer);
        let mut published: Option<Instant> = None;
        let mut dirty = true;
        loop {
            let until_tick = self.until_deadline();
            let until_publish = published
                .filter(|_| dirty)
                .map(|at| PUBLISH_EVERY.saturating_sub(at.elapsed()));
            if dirty && until_publish.is_none_or(|left| left.is_zero()) {
                self.publish();
                published = Some(Instant::now());
                dirty = false;
                continue;
            }
            let sleep = until_tick
                .unwrap_or(SLEEP_MAX)
                .min(until_publish.unwrap_or(SLEEP_MAX));
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                () = &mut writer => break,
                Some(done) = written.recv() => self.written(done, &writes),
                Some(id) = gone.recv() => {
                    self.waiting.remove(&id);
                    self.step(Input::Cancel { id }, &writes);
                }
                message = inbox.recv() => match message {
                    Some(Message::Input(input)) => self.step(input, &writes),
                    Some(Message::Request(request, answer)) => {
                        let id = request.id;
                        self.waiting.insert(id, (answer, request.bot.clone(), Instant::now()));
                        self.step(Input::Request(request), &writes);
                    }
                    None => break,
                },
                () = tokio::time::sleep(sleep) => self.step(Input::Tick, &writes),
            }
            dirty = true;
        }
        // Notes that wait for the disk still get there; requests are answered by being dropped.
        drop(writes);
        self.waiting.clear();
        let drain = async {
            tokio::join!(&mut writer, async {
                while written.recv().await.is_some() {}
            });
        };
        let _ = tokio::time::timeout(Duration::from_secs(5), drain).await;
    }

    /// Loads a bot's records, before the task runs.
    pub(super) fn load(&mut self, bot: String, records: Vec<Option<Record>>) {
        for effect in self
            .ledger
            .step(self.clock.now(), Input::Load { bot, records })
        {
            if let Effect::Notice(notice) = effect {
                self.tell(notice);
            }
        }
    }

    fn until_deadline(&self) -> Option<Duration> {
        let left = self.ledger.deadline()? - self.clock.now().boot_ms;
        // The clock is cut to milliseconds: one more, so that the deadline is not a moment away still.
        Some(Duration::from_millis(left.max(0) as u64 + 1))
    }

    /// Steps the ledger and carries out what it asks for.
    fn step(&mut self, input: Input, writes: &mpsc::Sender<Write>) {
        let effects = self.ledger.step(self.clock.now(), input);
        let mut failed = Vec::new();
        for effect in effects {
            match effect {
                Effect::Persist { bot, seq, records } => {
                    let job = if self.rewrite.contains(&bot) {
                        // Holds the new records too: the ledger has counted them already.
                        let records = self.ledger.records(&bot, self.clock.now());
                        Job::Rewrite { records }
                    } else {
                        Job::Append {
                            records,
                            sync: true,
                        }
                    };
                    let write = Write {
                        bot: bot.clone(),
                        seq: Some(seq),
                        job,
                    };
                    if writes.try_send(write).is_err() {
                        failed.push((bot, seq));
                    }
                }
                Effect::Note { bot, record } => {
                    if self.rewrite.contains(&bot) {
                        continue; // The next rewrite holds it.
                    }
                    let job = Job::Append {
                        records: vec![record],
                        sync: false,
                    };
                    // Losing a note does no harm, a full queue therefore neither.
                    let _ = writes.try_send(Write {
                        bot,
                        seq: None,
                        job,
                    });
                }
                Effect::Grant {
                    id,
                    permit,
                    remaining,
                } => {
                    if let Some((answer, _, since)) = self.waiting.remove(&id) {
                        self.latency.record(since.elapsed());
                        let _ = answer.send(Ok(Permit {
                            number: permit,
                            valid: Duration::from_millis(VALID_MS as u64),
                            remaining,
                        }));
                    }
                }
                Effect::Refuse { id, why } => {
                    if let Some((answer, bot, _)) = self.waiting.remove(&id) {
                        let _ = answer.send(Err(refusal(bot, why)));
                    }
                }
                Effect::Notice(notice) => self.tell(notice),
            }
        }
        for (bot, seq) in failed {
            self.step(Input::PersistFailed { bot, seq }, writes);
        }
    }

    fn written(&mut self, done: Written, writes: &mpsc::Sender<Write>) {
        let Written { bot, seq, result } = done;
        let failed = match result {
            Ok(bytes) => {
                let needed = self.ledger.records(&bot, self.clock.now()).len() * RECORD_BYTES;
                let grown = bytes > REWRITE_BYTES_MIN && bytes > 4 * needed as u64;
                if grown || seq.is_none() && self.rewrite.contains(&bot) {
                    self.rewrite.insert(bot.clone());
                } else {
                    self.rewrite.remove(&bot);
                }
                false
            }
            Err(error) => {
                tracing::warn!(bot, error = %error, "identify ledger cannot be written");
                if self.rewrite.insert(bot.clone()) {
                    self.history.event(
                        Severity::Error,
                        "identify-ledger-unwritable",
                        &bot,
                        format!(
                            "no IDENTIFY is permitted until its ledger can be written: {error}; \
                             free some space or mend the data directory, the agent tries again"
                        ),
                    );
                }
                true
            }
        };
        if let Some(seq) = seq {
            let input = if failed {
                Input::PersistFailed { bot, seq }
            } else {
                Input::Persisted { bot, seq }
            };
            self.step(input, writes);
        }
    }

    fn tell(&self, notice: Notice) {
        let (severity, kind, object, message) = match notice {
            Notice::Exhausted { bot, free_at } => (
                Severity::Error,
                "identify-refused",
                bot,
                format!(
                    "the day's IDENTIFY budget is spent down to the reserve; {}. Find out what \
                     identifies so often: tanakoctl identify",
                    free_text(free_at)
                ),
            ),
            Notice::Delayed {
                bot: _,
                process,
                shard,
                wasted,
                wait_ms,
            } => (
                Severity::Warning,
                "identify-delayed",
                process,
                format!(
                    "shard {shard} identified {wasted} times without staying up; its next \
                     IDENTIFY waits {} s to spare the day's budget",
                    wait_ms.div_euclid(1000) + 1
                ),
            ),
            Notice::Slowed { bot } => (
                Severity::Error,
                "identify-slow-start",
                bot,
                "a quarter of the day's IDENTIFY budget came to nothing; shards in trouble get one \
                 try every few minutes until some stay up"
                    .to_owned(),
            ),
            Notice::BadLimits { bot } => (
                Severity::Warning,
                "identify-bad-limits",
                bot,
                "a report of Discord's limits made no sense and was ignored".to_owned(),
            ),
            Notice::Damaged { bot, records } => (
                Severity::Warning,
                "identify-ledger-damaged",
                bot,
                format!(
                    "{records} records of the identify ledger were damaged; each counts as an \
                     IDENTIFY sent just now"
                ),
            ),
        };
        self.history.event(severity, kind, &object, message);
    }

    fn publish(&self) {
        let status = self.ledger.status(self.clock.now());
        self.status.send_replace(Arc::new(to_wire(&status)));
    }
}

/// Does the writes one by one, off the async threads.
async fn write_all(
    mut files: Files,
    mut writes: mpsc::Receiver<Write>,
    written: mpsc::Sender<Written>,
) {
    while let Some(write) = writes.recv().await {
        let job = tokio::task::spawn_blocking(move || {
            let result = files.run(&write.bot, &write.job);
            (files, write, result)
        });
        let Ok((back, write, result)) = job.await else {
            return; // The runtime is shutting down.
        };
        files = back;
        let done = Written {
            bot: write.bot,
            seq: write.seq,
            result,
        };
        if written.send(done).await.is_err() {
            return;
        }
    }
}

fn refusal(bot: String, why: Refusal) -> AcquireError {
    match why {
        Refusal::Exhausted { free_at } => AcquireError::Exhausted { bot, free_at },
        Refusal::Superseded => AcquireError::Superseded,
        Refusal::Full => AcquireError::Unavailable("too many shards wait"),
    }
}

/// Says in words when the next IDENTIFY is free.
pub(super) fn free_text(free_at: Option<i64>) -> String {
    free_at
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(
            || "the reserve is the whole budget, so none is ever free".to_owned(),
            |at| {
                format!(
                    "the next is free at {}",
                    at.strftime("%Y-%m-%d %H:%M:%S UTC")
                )
            },
        )
}

/// The state as `tanakoctl` gets it: sums first, then by bot and bucket.
fn to_wire(bots: &[BotStatus]) -> fleet::IdentifyStatus {
    let mut status = fleet::IdentifyStatus::default();
    let mut forecast_ms = 0;
    for bot in bots {
        let remaining = bot.total.saturating_sub(bot.used);
        status.total = status.total.saturating_add(bot.total);
        status.used = status.used.saturating_add(bot.used);
        status.remaining = status.remaining.saturating_add(remaining);
        status.reserve = status.reserve.saturating_add(bot.reserve);
        status.max_concurrency = status.max_concurrency.max(bot.max_concurrency);
        status.resets_at = status.resets_at.max(bot.resets_at);
        forecast_ms = forecast_ms.max(bot.forecast_ms);
        let waiting = bot
            .buckets
            .iter()
            .map(|bucket| bucket.waiting.len())
            .sum::<usize>();
        status.bots.push(fleet::IdentifyBot {
            bot: bot.bot.clone(),
            total: bot.total,
            used: bot.used,
            remaining,
            reserve: bot.reserve,
            max_concurrency: bot.max_concurrency,
            resets_at: bot.resets_at,
            waiting: u32::try_from(waiting).unwrap_or(u32::MAX),
            recommended_shards: bot.recommended,
            ..fleet::IdentifyBot::default()
        });
        status
            .buckets
            .extend(bot.buckets.iter().map(|bucket| fleet::IdentifyBucket {
                bot: bot.bot.clone(),
                bucket: bucket.bucket,
                next_at: bucket.next_at,
                waiting: bucket.waiting.clone(),
                granted: bucket.granted,
            }));
    }
    status.forecast_s = u32::try_from(forecast_ms.div_ceil(1000)).unwrap_or(u32::MAX);
    status
}
