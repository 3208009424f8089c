//! The one writer. It takes every write that waits, carries them out one after the other, puts
//! them on disk as one batch with one sync, and only then answers any of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::engine::{Engine, EngineError, Space, View};
use crate::failure::{Code, Failure};
use crate::metrics::Metrics;
use crate::overlay::Overlay;
use crate::read::{counter_key, rows_of};
use crate::schema::TABLES;
use crate::store::Store;
use crate::write::{Op, Outcome, apply};

/// Writes that may wait; further ones are answered with `overloaded`.
const QUEUE: usize = 8192;
/// Writes in one group at most.
const GROUP: usize = 1024;
/// Bytes in one group at most, about.
const GROUP_BYTES: usize = 8 << 20;

/// What a write is answered with.
pub type Answer = Result<Outcome, Failure>;

/// A short read in its place among the writes.
type Look = Box<dyn FnOnce(&dyn View) -> Result<Vec<u8>, Failure> + Send>;

enum Job {
    Write(Op, oneshot::Sender<Answer>),
    /// Sees every earlier write and no later one; answered once what it saw is on disk.
    Look(Look, oneshot::Sender<Result<Vec<u8>, Failure>>),
    /// Runs alone between two groups: no write happens meanwhile.
    Alone(Box<dyn FnOnce() + Send>),
}

/// Hands writes to the writer. Cheap to clone; the writer ends when the last one is dropped.
#[derive(Clone)]
pub struct Writer {
    jobs: mpsc::Sender<Job>,
}

impl Writer {
    /// Starts the writer on a thread of its own, since it blocks on the disk.
    pub fn start(
        store: Arc<Store>,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("writer".into())
            .spawn(move || run(queue, &store, &metrics))?;
        Ok((Self { jobs }, thread))
    }

    /// Queues a write now, in the order of the calls. The receiver gets the answer.
    pub fn submit(&self, op: Op) -> Result<oneshot::Receiver<Answer>, Failure> {
        let (sender, receiver) = oneshot::channel();
        self.queue(Job::Write(op, sender))?;
        Ok(receiver)
    }

    /// Queues a short read among the writes.
    pub fn look(
        &self,
        read: impl FnOnce(&dyn View) -> Result<Vec<u8>, Failure> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<Vec<u8>, Failure>>, Failure> {
        let (sender, receiver) = oneshot::channel();
        self.queue(Job::Look(Box::new(read), sender))?;
        Ok(receiver)
    }

    fn queue(&self, job: Job) -> Result<(), Failure> {
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Failure::new(
                Code::Overloaded,
                format!("Too many writes wait on this node ({QUEUE}): retry after a pause"),
            ),
            mpsc::error::TrySendError::Closed(_) => stopping(),
        })
    }

    /// Runs a piece of work between two groups and waits for it.
    pub async fn alone<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (sender, receiver) = oneshot::channel();
        let job = Job::Alone(Box::new(move || {
            // The caller may have gone; the work is done all the same.
            let _ = sender.send(work());
        }));
        self.jobs.send(job).await.map_err(|_| stopping())?;
        receiver.await.map_err(|_| stopping())
    }
}

/// The node takes no more writes.
pub fn stopping() -> Failure {
    Failure::new(
        Code::ShuttingDown,
        "The node is stopping: retry, another connection will be answered",
    )
}

fn run(mut queue: mpsc::Receiver<Job>, store: &Store, metrics: &Metrics) {
    let mut left_over = None;
    loop {
        let Some(job) = left_over.take().or_else(|| queue.blocking_recv()) else {
            return;
        };
        match job {
            Job::Alone(work) => work(),
            job => left_over = group(&mut queue, store, metrics, job),
        }
    }
}

/// An answer that is held back until its group is on disk.
enum Held {
    Write(oneshot::Sender<Answer>, Answer),
    Look(
        oneshot::Sender<Result<Vec<u8>, Failure>>,
        Result<Vec<u8>, Failure>,
    ),
}

/// One group commit. Returns the job that ended the gathering, if it must run alone.
fn group(
    queue: &mut mpsc::Receiver<Job>,
    store: &Store,
    metrics: &Metrics,
    first: Job,
) -> Option<Job> {
    let engine = match store.engine_for_writing() {
        Ok(engine) => engine,
        Err(failure) => {
            // A client that has gone no longer waits for its answer.
            match first {
                Job::Write(_, answer) => drop(answer.send(Err(failure))),
                Job::Look(_, answer) => drop(answer.send(Err(failure))),
                Job::Alone(work) => work(),
            }
            return None;
        }
    };
    let mut overlay = Overlay::new(&*engine);
    let mut held = Vec::new();
    let mut left_over = None;
    let mut next = Some(first);
    while let Some(job) = next.take() {
        match job {
            Job::Write(op, answer) => {
                let result = apply(&mut overlay, &op);
                match &result {
                    Ok(_) => overlay.keep(),
                    Err(_) => overlay.rollback(),
                }
                held.push(Held::Write(answer, result));
            }
            Job::Look(read, answer) => {
                let result = read(&overlay);
                held.push(Held::Look(answer, result));
            }
            alone @ Job::Alone(_) => {
                left_over = Some(alone);
                break;
            }
        }
        if held.len() < GROUP && overlay.bytes() < GROUP_BYTES {
            next = queue.try_recv().ok();
        }
    }
    metrics.group(held.len());
    let committed = commit(&*engine, overlay, metrics);
    drop(engine);
    let failure = committed.err().map(|error| {
        let failure = store.failed(error);
        tracing::error!(error = %failure, writes = held.len(), "write refused, nothing of the group was acknowledged");
        failure
    });
    for held in held {
        match held {
            Held::Write(answer, result) => drop(answer.send(match &failure {
                Some(failure) => result.and(Err(failure.clone())),
                None => result,
            })),
            Held::Look(answer, result) => drop(answer.send(match &failure {
                Some(failure) => result.and(Err(failure.clone())),
                None => result,
            })),
        }
    }
    left_over
}

fn commit(
    engine: &dyn Engine,
    mut overlay: Overlay<'_>,
    metrics: &Metrics,
) -> Result<(), EngineError> {
    if overlay.is_empty() {
        return Ok(());
    }
    let changes = overlay.row_changes();
    for (table, change) in TABLES
        .iter()
        .zip(changes)
        .filter(|(_, change)| *change != 0)
    {
        let before = rows_of(engine, table)
            .map_err(|failure| EngineError::Failed(failure.text.into_owned()))?;
        let after = before.cast_signed() + change;
        overlay.put(
            Space::Meta,
            counter_key(table),
            after.to_le_bytes().to_vec(),
        );
    }
    let bytes = overlay.bytes();
    let started = Instant::now();
    engine.commit(overlay.into_batch())?;
    metrics.committed(bytes, started.elapsed());
    for (at, change) in changes.into_iter().enumerate().take(TABLES.len()) {
        metrics.rows_changed(at, change);
    }
    Ok(())
}

/// How long a stopping node waits for the writer to finish what it has.
pub const STOP_WITHIN: Duration = Duration::from_secs(10);
