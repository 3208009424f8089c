//! The task that owns the ledger: takes inputs, keeps one timer, carries out what the ledger asks
//! for, publishes the state.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tanako_fleet::identify::{Effect, Input, Ledger, Record, Request, RequestId};
use tanako_proto::fleet::v1 as fleet;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    AcquireError, Permit,
    clock::Clock,
    journal::{Journal, JournalError},
    outbox::{Outbox, Send},
    report,
};
use crate::{
    history::{History, Severity},
    metrics::Latency,
};

/// Transactions that wait for the store: one a bot, so that it needs no bound of its own.
const JOBS_MAX: usize = 4096;
/// The timer sleeps no longer than this, since it stops during suspend and the ledger's clock does not.
const SLEEP_MAX: Duration = Duration::from_secs(30);
/// The published state changes no more often than this.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);
/// At the end, what is under way gets this long.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// The answer to a request, and how long a permit may be used.
pub(super) type Answer = Result<Permit, AcquireError>;

/// What the handle sends.
#[derive(Debug)]
pub(super) enum Message {
    Input(Input),
    Request(Request, oneshot::Sender<Answer>),
}

/// What the store is asked for.
struct Job {
    bot: String,
    what: What,
}

enum What {
    Read {
        seq: u64,
    },
    Write {
        seqs: Vec<u64>,
        records: Vec<Record>,
        whole: bool,
    },
}

/// What it answered.
struct Done {
    bot: String,
    result: Answered,
}

enum Answered {
    Read(u64, Result<Vec<Option<Record>>, JournalError>),
    Written(Vec<u64>, Result<usize, JournalError>),
}

/// Who waits for a permit.
struct Waiter {
    answer: oneshot::Sender<Answer>,
    bot: String,
    since: Instant,
    valid: Duration,
}

/// The task's state.
pub(super) struct Task {
    ledger: Ledger,
    clock: Clock,
    history: History,
    latency: Arc<Latency>,
    status: watch::Sender<Arc<fleet::IdentifyStatus>>,
    outboxes: HashMap<String, Outbox>,
    /// Bots whose trouble with the store has been told.
    troubled: HashSet<String>,
    waiting: HashMap<RequestId, Waiter>,
}

impl Task {
    pub(super) fn new(
        clock: Clock,
        history: History,
        latency: Arc<Latency>,
        status: watch::Sender<Arc<fleet::IdentifyStatus>>,
    ) -> Self {
        Self {
            ledger: Ledger::new(),
            clock,
            history,
            latency,
            status,
            outboxes: HashMap::new(),
            troubled: HashSet::new(),
            waiting: HashMap::new(),
        }
    }

    /// Runs until cancelled; a permit whose record is being written by then is not given out.
    pub(super) async fn run(
        mut self,
        known: BTreeSet<String>,
        journal: Journal,
        mut inbox: mpsc::Receiver<Message>,
        mut gone: mpsc::UnboundedReceiver<RequestId>,
        cancel: CancellationToken,
    ) {
        let (jobs, jobs_rx) = mpsc::channel(JOBS_MAX);
        let (done_tx, mut done) = mpsc::channel(JOBS_MAX);
        let keeper = keep(journal, jobs_rx, done_tx);
        tokio::pin!(keeper);
        for bot in known {
            self.step(Input::Open { bot });
        }
        let mut published: Option<Instant> = None;
        let mut dirty = true;
        loop {
            self.send_due(&jobs);
            let until_publish = published
                .filter(|_| dirty)
                .map(|at| PUBLISH_EVERY.saturating_sub(at.elapsed()));
            if dirty && until_publish.is_none_or(|left| left.is_zero()) {
                self.publish();
                published = Some(Instant::now());
                dirty = false;
                continue;
            }
            let sleep = [self.until_deadline(), self.until_notes(), until_publish]
                .into_iter()
                .flatten()
                .fold(SLEEP_MAX, Duration::min);
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                () = &mut keeper => break,
                Some(done) = done.recv() => self.answered(done),
                Some(id) = gone.recv() => {
                    self.waiting.remove(&id);
                    self.step(Input::Cancel { id });
                }
                message = inbox.recv() => match message {
                    Some(Message::Input(input)) => self.step(input),
                    Some(Message::Request(request, answer)) => self.request(request, answer),
                    None => break,
                },
                () = tokio::time::sleep(sleep) => self.step(Input::Tick),
            }
            dirty = true;
        }
        // Notes still get there; requests are answered by being dropped.
        self.waiting.clear();
        for (bot, outbox) in &mut self.outboxes {
            if let Some(records) = outbox.last() {
                let what = What::Write {
                    seqs: Vec::new(),
                    records,
                    whole: false,
                };
                let bot = bot.clone();
                // Losing a note does no harm, a full queue therefore neither.
                let _ = jobs.try_send(Job { bot, what });
            }
        }
        drop(jobs);
        let drain = async {
            tokio::join!(&mut keeper, async { while done.recv().await.is_some() {} });
        };
        let _ = tokio::time::timeout(STOP_WITHIN, drain).await;
    }

    fn until_deadline(&self) -> Option<Duration> {
        let left = self.ledger.deadline()? - self.clock.now().boot_ms;
        // The clock is cut to milliseconds: one more, so that the deadline is not a moment away still.
        Some(Duration::from_millis(left.max(0) as u64 + 1))
    }

    fn until_notes(&self) -> Option<Duration> {
        let due = self.outboxes.values().filter_map(Outbox::deadline).min()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    fn request(&mut self, request: Request, answer: oneshot::Sender<Answer>) {
        let waiter = Waiter {
            answer,
            bot: request.bot.clone(),
            since: Instant::now(),
            valid: Duration::from_millis(request.via.valid_ms() as u64),
        };
        self.waiting.insert(request.id, waiter);
        self.step(Input::Request(request));
    }

    fn outbox(&mut self, bot: &str) -> &mut Outbox {
        self.outboxes.entry(bot.to_owned()).or_default()
    }

    /// Steps the ledger and carries out what it asks for.
    fn step(&mut self, input: Input) {
        for effect in self.ledger.step(self.clock.now(), input) {
            match effect {
                Effect::Load { bot, seq } => self.outbox(&bot).read(seq),
                Effect::Persist { bot, seq, records } => self.outbox(&bot).persist(seq, records),
                Effect::Note { bot, record } => self.outbox(&bot).note(record, Instant::now()),
                Effect::Grant {
                    id,
                    permit,
                    remaining,
                } => {
                    if let Some(waiter) = self.waiting.remove(&id) {
                        self.latency.record(waiter.since.elapsed());
                        let _ = waiter.answer.send(Ok(Permit {
                            number: permit,
                            until_boot_ms: self.clock.now().boot_ms
                                + i64::try_from(waiter.valid.as_millis()).unwrap_or(0),
                            remaining,
                        }));
                    }
                }
                Effect::Refuse { id, why } => {
                    if let Some(waiter) = self.waiting.remove(&id) {
                        let _ = waiter.answer.send(Err(report::refusal(waiter.bot, why)));
                    }
                }
                Effect::Notice(notice) => {
                    let (severity, kind, object, message) = report::news(notice);
                    self.history.event(severity, kind, &object, message);
                }
            }
        }
    }

    /// Hands the store all that may go out now.
    fn send_due(&mut self, jobs: &mpsc::Sender<Job>) {
        let now = Instant::now();
        loop {
            let mut failed: Vec<(String, Vec<u64>)> = Vec::new();
            for (bot, outbox) in &mut self.outboxes {
                let what = match outbox.next(now) {
                    None => continue,
                    Some(Send::Read { seq }) => What::Read { seq },
                    Some(Send::Fail { seqs }) => {
                        failed.push((bot.clone(), seqs));
                        continue;
                    }
                    Some(Send::Write { seqs, records }) => {
                        let all = Some(outbox.keys)
                            .filter(|keys| Journal::is_grown(*keys))
                            // Holds the new records too: the ledger has counted them already.
                            .and_then(|_| self.ledger.records(bot, self.clock.now()));
                        let whole = all.is_some();
                        let records = all.unwrap_or(records);
                        What::Write {
                            seqs,
                            records,
                            whole,
                        }
                    }
                };
                let job = Job {
                    bot: bot.clone(),
                    what,
                };
                if let Err(refused) = jobs.try_send(job) {
                    // More bots than a fleet has, or the end: the ledger asks again later.
                    let mut seqs = outbox.was_not_written();
                    let Job { bot, what } = refused.into_inner();
                    if let What::Write { seqs: given, .. } = what {
                        seqs.extend(given);
                    }
                    failed.push((bot, seqs));
                }
            }
            if failed.is_empty() {
                return;
            }
            for (bot, seqs) in failed {
                self.fail(&bot, seqs);
            }
        }
    }

    fn fail(&mut self, bot: &str, seqs: Vec<u64>) {
        for seq in seqs {
            let bot = bot.to_owned();
            self.step(Input::PersistFailed { bot, seq });
        }
    }

    fn answered(&mut self, done: Done) {
        let Done { bot, result } = done;
        match result {
            Answered::Read(seq, Ok(records)) => {
                self.outbox(&bot).was_read(true);
                self.step(Input::Load { bot, seq, records });
            }
            Answered::Read(seq, Err(error)) => {
                self.outbox(&bot).was_read(false);
                self.tell_trouble(&bot, &error);
                self.step(Input::LoadFailed { bot, seq });
            }
            Answered::Written(seqs, Ok(keys)) => {
                self.outbox(&bot).was_written(keys);
                self.troubled.remove(&bot);
                for seq in seqs {
                    let bot = bot.clone();
                    self.step(Input::Persisted { bot, seq });
                }
            }
            Answered::Written(mut seqs, Err(error)) => {
                self.tell_trouble(&bot, &error);
                seqs.extend(self.outbox(&bot).was_not_written());
                self.fail(&bot, seqs);
            }
        }
    }

    fn tell_trouble(&mut self, bot: &str, error: &JournalError) {
        if error.is_a_matter_of_office() {
            // Whoever leads gives permits; who that is, is told elsewhere.
            tracing::debug!(bot, error = %error, "identify ledger: not ours to write");
            return;
        }
        tracing::warn!(bot, error = %error, "identify ledger: the store failed");
        if self.troubled.insert(bot.to_owned()) {
            self.history.event(
                Severity::Error,
                "identify-ledger-unwritable",
                bot,
                format!(
                    "no IDENTIFY is permitted until its ledger can be read and written: {error}; {}",
                    error.hint()
                ),
            );
        }
    }

    fn publish(&self) {
        let status = self.ledger.status(self.clock.now());
        self.status.send_replace(Arc::new(report::to_wire(&status)));
    }
}

/// Does the jobs one by one.
async fn keep(mut journal: Journal, mut jobs: mpsc::Receiver<Job>, done: mpsc::Sender<Done>) {
    while let Some(Job { bot, what }) = jobs.recv().await {
        let result = match what {
            What::Read { seq } => Answered::Read(seq, journal.read(&bot).await),
            What::Write {
                seqs,
                records,
                whole,
            } => {
                let written = journal.write(&bot, &records, whole).await;
                Answered::Written(seqs, written)
            }
        };
        if done.send(Done { bot, result }).await.is_err() {
            return;
        }
    }
}
