//! What is written down of calls and connections that were refused.
//!
//! An attacker must leave a trace and must not be able to fill anything with it, nor to hide another. So
//! what is the same (who, from where, why: whatever the call) is counted, not repeated; new kinds are written at once as long as there is room, at most so many in a
//! row and then one a second; what had no room is counted, too. Each agent keeps its latest refusals in a
//! ring of its own in the store, where `tanakoctl audit` finds them beside the changes.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tanako_store::{Store, StoreError, Txn};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    audit::Record,
    clock::now_ms,
    history::{History, Severity},
    operations::ledger::{decode, encode},
};

/// Where they are in the store: `refused/HOST/NUMBER`.
pub const PREFIX: &str = "refused/";
/// Kept of each host.
const RING: u64 = 64;
/// Different ones that are counted apart at a time.
const KINDS_MAX: usize = 128;
/// Written in a row.
const BURST: u32 = 16;
/// After that, one each.
const REFILL: Duration = Duration::from_secs(1);
/// For so long the same is only counted.
const SAME_FOR: Duration = Duration::from_secs(60);
/// On their way to the task; more are counted.
const QUEUE_MAX: usize = 64;
/// Written ones that wait for a store that does not answer; the oldest go.
const WAITING_MAX: usize = 64;
/// Between tries of a store that does not answer.
const RETRY: Duration = Duration::from_secs(2);

/// A call or connection that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Refusal {
    /// `anna (viewer)`, `nobody`.
    pub who: String,
    /// Where from, without the port: those of one attacker differ.
    pub from: String,
    /// The call, or `connect`.
    pub call: String,
    /// Why: `the certificate is revoked`.
    pub cause: String,
}

impl Refusal {
    /// `from`: as a caller has it. A pid or port in it would make each try of one attacker look new.
    pub fn new(who: &str, from: &str, call: &str, cause: String) -> Self {
        let from = from.split(", pid").next().unwrap_or_default();
        let from = from
            .parse::<SocketAddr>()
            .map_or_else(|_| from.to_owned(), |address| address.ip().to_string());
        Self {
            who: who.to_owned(),
            from,
            call: call.to_owned(),
            cause,
        }
    }

    fn record(&self, at: i64, again: u64) -> Record {
        let outcome = match again {
            0 => format!("refused: {}", self.cause),
            again => format!("refused: {} ({again} more like it)", self.cause),
        };
        Record {
            at,
            who: self.who.clone(),
            from: self.from.clone(),
            action: "refused".to_owned(),
            object: self.call.clone(),
            outcome,
            ..Record::default()
        }
    }
}

/// What to write, and when; pure.
#[derive(Debug)]
struct Limiter {
    room: u32,
    refilled: Instant,
    kinds: HashMap<Same, Kind>,
    /// Had no room.
    left_out: u64,
}

/// What is counted together.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Same {
    who: String,
    from: String,
    cause: String,
}

#[derive(Debug)]
struct Kind {
    /// The first one.
    refusal: Refusal,
    until: Instant,
    again: u64,
}

impl Limiter {
    fn new(now: Instant) -> Self {
        Self {
            room: BURST,
            refilled: now,
            kinds: HashMap::new(),
            left_out: 0,
        }
    }

    /// Takes one in; a record, if it is to be written at once.
    fn step(&mut self, now: Instant, at: i64, refusal: Refusal) -> Option<Record> {
        self.refill(now);
        let same = Same {
            who: refusal.who.clone(),
            from: refusal.from.clone(),
            cause: refusal.cause.clone(),
        };
        if let Some(kind) = self.kinds.get_mut(&same) {
            kind.again += 1;
            return None;
        }
        if self.room == 0 || self.kinds.len() >= KINDS_MAX {
            self.left_out += 1;
            return None;
        }
        self.room -= 1;
        let record = refusal.record(at, 0);
        let kind = Kind {
            refusal,
            until: now + SAME_FOR,
            again: 0,
        };
        self.kinds.insert(same, kind);
        Some(record)
    }

    /// What has been counted for long enough.
    fn due(&mut self, now: Instant, at: i64) -> Vec<Record> {
        self.refill(now);
        let mut records = Vec::new();
        self.kinds.retain(|_, kind| {
            if kind.until > now {
                return true;
            }
            if kind.again > 0 {
                records.push(kind.refusal.record(at, kind.again));
            }
            false
        });
        if self.left_out > 0 && self.room > 0 {
            self.room -= 1;
            let left_out = std::mem::take(&mut self.left_out);
            records.push(Record {
                at,
                who: "several".to_owned(),
                action: "refused".to_owned(),
                object: "several".to_owned(),
                outcome: format!("refused: {left_out} more that are not listed"),
                ..Record::default()
            });
        }
        records
    }

    /// When to ask again for what is due.
    fn deadline(&self) -> Option<Instant> {
        let kinds = self.kinds.values().map(|kind| kind.until).min();
        let left_out = (self.left_out > 0).then_some(self.refilled + REFILL);
        kinds.into_iter().chain(left_out).min()
    }

    fn refill(&mut self, now: Instant) {
        let steps = now.saturating_duration_since(self.refilled).as_secs() / REFILL.as_secs();
        if steps > 0 {
            self.room = self
                .room
                .saturating_add(steps.min(BURST.into()) as u32)
                .min(BURST);
            self.refilled += REFILL * steps.min(u32::MAX.into()) as u32;
        }
    }
}

/// Where refusals are reported; clones are cheap.
#[derive(Debug, Clone)]
pub struct Refusals {
    queue: mpsc::Sender<Refusal>,
    lost: Arc<std::sync::atomic::AtomicU64>,
}

impl Refusals {
    /// Begins to write down what is reported.
    pub fn start(
        store: Arc<dyn Store>,
        host: String,
        history: History,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) -> Self {
        let (queue, incoming) = mpsc::channel(QUEUE_MAX);
        let lost = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let task = Task {
            store,
            host,
            history,
            waiting: VecDeque::new(),
            next: None,
            lost: lost.clone(),
        };
        tracker.spawn(task.run(incoming, cancel));
        Self { queue, lost }
    }

    /// Reports one. Never waits: what the queue does not hold is counted.
    pub fn report(&self, refusal: Refusal) {
        if self.queue.try_send(refusal).is_err() {
            self.lost.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

struct Task {
    store: Arc<dyn Store>,
    host: String,
    history: History,
    waiting: VecDeque<Record>,
    /// The next number of the ring, once known.
    next: Option<u64>,
    lost: Arc<std::sync::atomic::AtomicU64>,
}

impl Task {
    async fn run(mut self, mut incoming: mpsc::Receiver<Refusal>, cancel: CancellationToken) {
        let mut limiter = Limiter::new(Instant::now());
        let mut retry_at = None;
        loop {
            limiter.left_out += self.lost.swap(0, std::sync::atomic::Ordering::Relaxed);
            let deadline = limiter.deadline().into_iter().chain(retry_at).min();
            let due = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let now_records = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                refusal = incoming.recv() => match refusal {
                    Some(refusal) => limiter.step(Instant::now(), now_ms(), refusal).into_iter().collect(),
                    None => return,
                },
                () = due => limiter.due(Instant::now(), now_ms()),
            };
            for record in now_records {
                self.tell(&record);
                if self.waiting.len() == WAITING_MAX {
                    self.waiting.pop_front();
                    limiter.left_out += 1;
                }
                self.waiting.push_back(record);
            }
            let try_now = retry_at.is_none_or(|at| at <= Instant::now());
            if !self.waiting.is_empty() && try_now {
                let written = cancel.run_until_cancelled(self.write()).await;
                retry_at = match written {
                    None => return,
                    Some(Ok(())) => None,
                    Some(Err(error)) => {
                        tracing::debug!(%error, "refusals are not in the store yet");
                        // The number may have been used: look again.
                        self.next = None;
                        Some(Instant::now() + RETRY)
                    }
                };
            }
        }
    }

    fn tell(&self, record: &Record) {
        tracing::warn!(
            who = record.who,
            from = record.from,
            call = record.object,
            outcome = record.outcome,
            "a call was refused"
        );
        let from = if record.from.is_empty() {
            String::new()
        } else {
            format!(" from {}", record.from)
        };
        let message = format!("{}{from}: {}", record.who, record.outcome);
        self.history
            .event(Severity::Warning, "call-refused", &record.object, message);
    }

    async fn write(&mut self) -> Result<(), StoreError> {
        while let Some(record) = self.waiting.front() {
            let next = match self.next {
                Some(next) => next,
                None => next_number(&*self.store, &self.host).await?,
            };
            let txn = Txn::new()
                .put(key(&self.host, next), encode(record))
                .delete(key(&self.host, next.wrapping_sub(RING)));
            self.store.commit(txn).await?;
            self.next = Some(next + 1);
            self.waiting.pop_front();
        }
        Ok(())
    }
}

fn key(host: &str, number: u64) -> String {
    format!("{PREFIX}{host}/{number:020}")
}

async fn next_number(store: &dyn Store, host: &str) -> Result<u64, StoreError> {
    let prefix = format!("{PREFIX}{host}/");
    let items = store.list(&prefix).await?.items;
    let last = items
        .last()
        .and_then(|item| item.key.strip_prefix(&prefix)?.parse::<u64>().ok());
    // Room below, so that the first ones have something to subtract from.
    Ok(last.map_or(RING, |last| last + 1))
}

/// The refusals that all agents keep.
pub async fn list(store: &dyn Store) -> Result<Vec<Record>, StoreError> {
    let items = store.list(PREFIX).await?.items;
    Ok(items
        .iter()
        .filter_map(|item| decode(&item.key, &item.value))
        .collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refusal(from: u32, call: &str) -> Refusal {
        Refusal {
            who: "nobody".into(),
            from: format!("10.0.0.{from}"),
            call: call.into(),
            cause: "there is no certificate".into(),
        }
    }

    #[test]
    fn the_same_is_counted_and_told_once_more_at_the_end() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        assert!(limiter.step(start, 1, refusal(1, "a")).is_some());
        for _ in 0..10_000 {
            assert_eq!(limiter.step(start, 1, refusal(1, "another call")), None);
        }
        assert!(limiter.step(start, 1, refusal(2, "a")).is_some());
        assert_eq!(limiter.deadline(), Some(start + SAME_FOR));
        let records = limiter.due(start + SAME_FOR, 2);
        assert_eq!(records.len(), 1);
        assert!(records[0].outcome.contains("10000 more"), "{records:?}");
        assert_eq!(limiter.deadline(), None);
    }

    proptest! {
        /// Whatever comes, little is written and nothing goes uncounted.
        #[test]
        fn nothing_floods_and_nothing_is_lost(
            input in prop::collection::vec((0u32..200, 0u64..3_000, 1u64..50), 1..400)
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut limiter = Limiter::new(start);
            let (mut sent, mut told, mut written) = (0, 0, 0u64);
            let count = |record: &Record| -> u64 {
                let more = record.outcome.split('(').nth(1).or_else(|| record.outcome.strip_prefix("refused: "));
                let number = more.and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
                number.unwrap_or(1)
            };
            for (from, pause, times) in input {
                now += Duration::from_millis(pause);
                for record in limiter.due(now, 0) {
                    told += count(&record);
                    written += 1;
                }
                for _ in 0..times {
                    sent += 1;
                    if let Some(record) = limiter.step(now, 0, refusal(from, "x")) {
                        told += count(&record);
                        written += 1;
                    }
                }
                let kinds = limiter.kinds.len();
                prop_assert!(kinds <= KINDS_MAX);
            }
            while let Some(deadline) = limiter.deadline() {
                now = now.max(deadline);
                for record in limiter.due(now, 0) {
                    told += count(&record);
                    written += 1;
                }
            }
            prop_assert_eq!(sent, told);
            // Each kind is told at most twice, and a new kind needs room.
            let seconds = now.duration_since(start).as_secs();
            prop_assert!(written <= 2 * (u64::from(BURST) + seconds + 1));
        }
    }
}
