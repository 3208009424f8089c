//! IDENTIFY is scarce: no shard sends one without a permit.
//!
//! With an agent the permit comes from the agent, and while the agent is gone the shard waits.
//! Without one a queue of this process keeps Discord's rule: one IDENTIFY per bucket
//! (`shard_id % max_concurrency`) per five seconds. RESUME never comes here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tonic::Code;
use tracing::warn;
use twilight_gateway_queue::Queue;

use crate::agent::Permits;
use crate::backoff::Backoff;
use crate::rest::Limits;

/// Between two IDENTIFYs of one bucket; Discord's 5 s and a margin for the way there.
const BUCKET_INTERVAL: Duration = Duration::from_millis(5_250);
/// How long after its turn an IDENTIFY may go out where no agent gives permits: less than that margin.
const ALONE_VALID_MS: i64 = 150;

/// What the gate tells the shard that waits at it.
#[derive(Debug)]
pub enum GateEvent {
    /// Still waiting, for this reason.
    Waiting(String),
    /// IDENTIFY may go out now.
    Granted(Ticket),
}

/// The permission to send one IDENTIFY. Dropped unused, it makes twilight ask again.
#[derive(Debug)]
pub struct Ticket {
    permit: oneshot::Sender<()>,
    number: u64,
    held: Held,
    until_boot_ms: i64,
}

/// The number of the shard's permit that has neither been used nor given back; 0 = there is none. Whoever takes
/// it out decides which of the two it is, so that none is both.
#[derive(Debug, Clone, Default)]
pub struct Held(Arc<AtomicU64>);

impl Held {
    fn keep(&self, number: u64) {
        self.0.store(number, Ordering::Release);
    }

    /// True when it was still there.
    fn spend(&self, number: u64) -> bool {
        let spent = self
            .0
            .compare_exchange(number, 0, Ordering::AcqRel, Ordering::Acquire);
        spent.is_ok()
    }

    /// It was not used after all. Where the next one has come meanwhile, this one is lost.
    fn put_back(&self, number: u64) {
        let _ = self
            .0
            .compare_exchange(0, number, Ordering::AcqRel, Ordering::Acquire);
    }

    fn give_back(&self) -> u64 {
        self.0.swap(0, Ordering::AcqRel)
    }
}

impl Ticket {
    /// Lets the connection's next poll send IDENTIFY, unless it is too late for that or nobody waits
    /// any more. For the task that polls the connection, just before it does: every moment in between
    /// makes the IDENTIFY later than the permit says.
    pub fn redeem(self) -> bool {
        if boot_ms() >= self.until_boot_ms || !self.held.spend(self.number) {
            return false;
        }
        let taken = self.permit.send(()).is_ok();
        if !taken {
            self.held.put_back(self.number);
        }
        taken
    }
}

/// Where permits come from.
#[derive(Clone)]
pub enum Gate {
    /// From the agent.
    Agent(Permits),
    /// From this process alone.
    Alone(Arc<Alone>),
}

/// The queue of a process without an agent.
pub struct Alone {
    limits: watch::Receiver<Option<Limits>>,
    next: Mutex<HashMap<u32, Instant>>,
}

impl Alone {
    /// Waits for the limits of `/gateway/bot` before the first permit.
    pub fn new(limits: watch::Receiver<Option<Limits>>) -> Self {
        Self {
            limits,
            next: Mutex::default(),
        }
    }

    async fn acquire(&self, shard: u32) {
        let mut limits = self.limits.clone();
        let Ok(max_concurrency) = limits.wait_for(Option::is_some).await.map(|limits| {
            limits
                .as_ref()
                .map_or(1, |limits| limits.max_concurrency.max(1))
        }) else {
            // The process ends.
            return std::future::pending().await;
        };
        let at = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            reserve(&mut next, shard % max_concurrency, Instant::now())
        };
        tokio::time::sleep_until(at).await;
    }
}

/// Takes the bucket's next free moment.
fn reserve(next: &mut HashMap<u32, Instant>, bucket: u32, now: Instant) -> Instant {
    let at = next.get(&bucket).copied().unwrap_or(now).max(now);
    next.insert(bucket, at + BUCKET_INTERVAL);
    at
}

/// The gate of one shard, in the form twilight asks for.
#[derive(Clone)]
pub struct ShardQueue {
    /// Where permits come from.
    pub gate: Gate,
    /// The shard's number of shards.
    pub shard_count: u32,
    /// Tells the shard task.
    pub events: mpsc::Sender<GateEvent>,
    /// Set by the shard task while an IDENTIFY may follow a Hello. While a connection ends, twilight may open
    /// the next one by itself and ask again: that must not cost a permit.
    pub armed: Arc<AtomicBool>,
    /// A permit that is not used is given back with the next question.
    pub held: Held,
    /// Owns the tasks that wait.
    pub tasks: TaskTracker,
}

impl Queue for ShardQueue {
    fn enqueue(&self, shard: u32) -> oneshot::Receiver<()> {
        let (permit, receiver) = oneshot::channel();
        let this = self.clone();
        self.tasks
            .spawn(async move { this.wait(shard, permit).await });
        receiver
    }
}

impl ShardQueue {
    /// Keeps `permit` alive until it is granted or nobody waits for it any more: dropping it would make
    /// twilight ask again at once.
    async fn wait(self, shard: u32, mut permit: oneshot::Sender<()>) {
        let (number, until_boot_ms) = tokio::select! {
            granted = self.acquire(shard), if self.armed.load(Ordering::Acquire) => granted,
            () = permit.closed() => return,
        };
        self.held.keep(number);
        if !permit.is_closed() {
            let ticket = Ticket {
                permit,
                number,
                held: self.held.clone(),
                until_boot_ms,
            };
            // Fails when the shard's task has ended.
            let _ = self.events.send(GateEvent::Granted(ticket)).await;
        }
    }

    /// Waits for a permit; returns its number, 0 without an agent, and until when it may be used, on
    /// CLOCK_BOOTTIME.
    async fn acquire(&self, shard: u32) -> (u64, i64) {
        let permits = match &self.gate {
            Gate::Alone(alone) => {
                alone.acquire(shard).await;
                return (0, boot_ms() + ALONE_VALID_MS);
            }
            Gate::Agent(permits) => permits,
        };
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        let mut unused = self.held.give_back();
        loop {
            let status = match permits.acquire(shard, self.shard_count, unused).await {
                Ok(permit) if boot_ms() < permit.until_boot_ms => {
                    return (permit.permit, permit.until_boot_ms);
                }
                // This process, or the agent, was stopped between the grant and here.
                Ok(permit) => {
                    unused = permit.permit;
                    warn!(shard, "an IDENTIFY permit came too late to be used");
                    tokio::time::sleep(backoff.delay()).await;
                    continue;
                }
                Err(status) => status,
            };
            let reason = match status.code() {
                Code::FailedPrecondition => format!("no IDENTIFY permit: {}", status.message()),
                Code::Aborted => {
                    permits.superseded();
                    return std::future::pending().await;
                }
                _ => "waiting for the agent to grant an IDENTIFY".to_owned(),
            };
            if backoff.failures() == 0 {
                warn!(shard, code = ?status.code(), "{reason}");
            }
            let _ = self.events.try_send(GateEvent::Waiting(reason));
            tokio::time::sleep(backoff.delay()).await;
        }
    }
}

/// CLOCK_BOOTTIME in milliseconds: the clock in which the agent dates its permits.
pub fn boot_ms() -> i64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn one_identify_per_bucket_per_interval(requests in prop::collection::vec((0..64u32, 0..3000u64), 1..100), max_concurrency in 1..20u32) {
            let start = Instant::now();
            let mut now = start;
            let mut next = HashMap::new();
            let mut granted: HashMap<u32, Vec<Instant>> = HashMap::new();
            for (shard, later) in requests {
                now += Duration::from_millis(later);
                let bucket = shard % max_concurrency;
                let at = reserve(&mut next, bucket, now);
                prop_assert!(at >= now);
                granted.entry(bucket).or_default().push(at);
            }
            for times in granted.values() {
                for pair in times.windows(2) {
                    prop_assert!(pair[1] - pair[0] >= Duration::from_secs(5));
                }
            }
        }
    }

    fn queue(limits: Option<Limits>, armed: bool) -> (ShardQueue, watch::Sender<Option<Limits>>) {
        let (limits_tx, limits) = watch::channel(limits);
        let (events, _) = mpsc::channel(4);
        let queue = ShardQueue {
            gate: Gate::Alone(Arc::new(Alone::new(limits))),
            shard_count: 1,
            events,
            armed: Arc::new(AtomicBool::new(armed)),
            held: Held::default(),
            tasks: TaskTracker::new(),
        };
        (queue, limits_tx)
    }

    async fn ends_when_given_up(queue: &ShardQueue, receiver: oneshot::Receiver<()>) {
        assert_eq!(queue.tasks.len(), 1);
        drop(receiver);
        queue.tasks.close();
        let ended = tokio::time::timeout(Duration::from_secs(20), queue.tasks.wait()).await;
        ended.expect("the waiting task ends");
    }

    #[test]
    fn a_permit_is_used_or_given_back_and_never_both() {
        let held = Held::default();
        let ticket = |number, until_boot_ms| {
            let (permit, receiver) = oneshot::channel();
            held.keep(number);
            let held = held.clone();
            let ticket = Ticket {
                permit,
                number,
                held,
                until_boot_ms,
            };
            (ticket, receiver)
        };
        let (used, _waits) = ticket(1, i64::MAX);
        assert!(used.redeem());
        assert_eq!(held.give_back(), 0);
        let (late, _waits) = ticket(2, 0);
        assert!(!late.redeem());
        assert_eq!(held.give_back(), 2);
        let (nobody, _) = ticket(3, i64::MAX);
        assert!(!nobody.redeem());
        assert_eq!(held.give_back(), 3);
        // Asked for the next one while the ticket was on its way.
        let (given_back, _waits) = ticket(4, i64::MAX);
        assert_eq!(held.give_back(), 4);
        assert!(!given_back.redeem());
        assert_eq!(held.give_back(), 0);
    }

    #[tokio::test]
    async fn a_permit_nobody_waits_for_is_given_up() {
        let (queue, _limits) = queue(None, true);
        let receiver = queue.enqueue(0);
        ends_when_given_up(&queue, receiver).await;
    }

    #[tokio::test]
    async fn a_connection_that_ends_takes_no_permit() {
        let limits = Limits {
            url: String::new(),
            recommended_shards: 1,
            total: 1000,
            remaining: 1000,
            reset_after_ms: 0,
            max_concurrency: 1,
        };
        let (queue, _limits) = queue(Some(limits), false);
        let receiver = queue.enqueue(0);
        // The gate is open, so that an armed queue would have granted at once.
        tokio::task::yield_now().await;
        ends_when_given_up(&queue, receiver).await;
        let Gate::Alone(alone) = &queue.gate else {
            unreachable!()
        };
        assert!(alone.next.lock().unwrap().is_empty());
    }
}
