//! The identify broker: as `agent/src/identify/{mod,task,outbox,journal}.rs`, around the real ledger. A
//! permit is given out only after its record is in the store.

use std::{cell::Cell, collections::BTreeMap};

use tanako_fleet::identify::{
    Effect, Input, Ledger, Record, Refusal, ReportedLimits, Request, RequestId, VALID_MS, Via,
};
use tokio::sync::{mpsc, oneshot};

use super::super::{executor::Group, trace::trace, world::Sim};

/// The timer sleeps no longer than this, in milliseconds.
const SLEEP_MAX: u64 = 30_000;
/// Records from which on the whole is written anew.
const GROWN: usize = 256;
/// Notes wait so long for company, in milliseconds.
const NOTES_WITHIN: u64 = 1_000;

/// Leave to send one IDENTIFY.
#[derive(Debug, Clone, Copy)]
pub struct Permit {
    /// Its number.
    pub number: u64,
    /// It must go out within so many milliseconds.
    pub valid_ms: u64,
    /// When it was given out, on the clock that all processes of the machine share.
    pub granted_at: u64,
}

/// The answer to a request.
pub type Answer = Result<Permit, Refusal>;

enum Message {
    Input(Input),
    Request(Request, oneshot::Sender<Answer>),
    Gone(RequestId),
    Read(u64, Option<Vec<Option<Record>>>),
    Written(Vec<u64>, bool),
}

/// A handle.
pub struct Broker {
    inbox: mpsc::UnboundedSender<Message>,
    next_id: Cell<u64>,
}

/// The task's state.
pub struct Task {
    ledger: Ledger,
    inbox: mpsc::UnboundedReceiver<Message>,
    to_self: mpsc::UnboundedSender<Message>,
    waiting: BTreeMap<RequestId, oneshot::Sender<Answer>>,
    outbox: Outbox,
    group: Group,
}

/// What of the records waits for the store.
#[derive(Default)]
struct Outbox {
    /// In order. Without a number: a note.
    waiting: Vec<(Option<u64>, Vec<Record>)>,
    oldest_note: Option<u64>,
    read: Option<u64>,
    under_way: bool,
    /// Whether what the store holds is known, so that more may be written.
    known: bool,
}

impl Outbox {
    fn fail(&mut self) -> Vec<u64> {
        let permits = self.waiting.extract_if(.., |(seq, _)| seq.is_some());
        permits.filter_map(|(seq, _)| seq).collect()
    }
}

/// The bot whose ledger it is.
pub const BOT: &str = "b";

impl Broker {
    /// A handle and its task.
    pub fn new(_: &Sim, group: Group) -> (Self, Task) {
        let (inbox, receiver) = mpsc::unbounded_channel();
        let task = Task {
            ledger: Ledger::new(),
            inbox: receiver,
            to_self: inbox.clone(),
            waiting: BTreeMap::new(),
            outbox: Outbox::default(),
            group,
        };
        let broker = Self {
            inbox,
            next_id: Cell::new(1),
        };
        (broker, task)
    }

    /// What the spec says.
    pub fn configure(&self, max_concurrency: Option<u32>, reserve: Option<u32>) {
        self.send(Input::Configure {
            bot: BOT.to_owned(),
            max_concurrency,
            reserve,
        });
    }

    /// What Discord says.
    pub fn limits(&self, limits: ReportedLimits) {
        self.send(Input::Limits {
            bot: BOT.to_owned(),
            limits,
        });
    }

    /// A shard's latest IDENTIFY went out at this time, on the machine's boot clock.
    pub fn sent(&self, shard: u32, count: u32, at: i64) {
        self.send(Input::Sent {
            bot: BOT.to_owned(),
            shard,
            count,
            at,
        });
    }

    /// A shard became ready.
    pub fn ready(&self, shard: u32, count: u32) {
        self.send(Input::Ready {
            bot: BOT.to_owned(),
            shard,
            count,
        });
    }

    /// Waits for a permit, and says which one of the shard came too late. Dropping the future gives up the place in
    /// the queue.
    pub async fn acquire(
        &self,
        process: &str,
        attempt: u64,
        shard: u32,
        count: u32,
        unused: Option<u64>,
    ) -> Option<Answer> {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        if let Some(permit) = unused {
            self.send(Input::Unused {
                bot: BOT.to_owned(),
                shard,
                count,
                permit,
            });
        }
        let (answer, answered) = oneshot::channel();
        let request = Request {
            id,
            bot: BOT.to_owned(),
            process: process.to_owned(),
            attempt,
            shard,
            count,
            via: Via::Worker,
        };
        let _ = self.inbox.send(Message::Request(request, answer));
        let mut place = Place {
            inbox: &self.inbox,
            id,
            waiting: true,
        };
        let outcome = answered.await.ok();
        place.waiting = false;
        outcome
    }

    fn send(&self, input: Input) {
        let _ = self.inbox.send(Message::Input(input));
    }
}

struct Place<'a> {
    inbox: &'a mpsc::UnboundedSender<Message>,
    id: RequestId,
    waiting: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.waiting {
            let _ = self.inbox.send(Message::Gone(self.id));
        }
    }
}

impl Task {
    /// There is a ledger: it asks for its records first.
    pub fn load(mut self, sim: &Sim) -> Self {
        self.step(
            sim,
            Input::Open {
                bot: BOT.to_owned(),
            },
        );
        self
    }

    /// Runs until killed.
    pub async fn run(mut self, sim: Sim) {
        loop {
            self.send_due(&sim);
            let wake = self.wake_at(&sim);
            tokio::select! {
                biased;
                message = self.inbox.recv() => match message {
                    Some(Message::Input(input)) => self.step(&sim, input),
                    Some(Message::Request(request, answer)) => {
                        self.waiting.insert(request.id, answer);
                        self.step(&sim, Input::Request(request));
                    }
                    Some(Message::Gone(id)) => {
                        self.waiting.remove(&id);
                        self.step(&sim, Input::Cancel { id });
                    }
                    Some(Message::Read(seq, records)) => self.read(&sim, seq, records),
                    Some(Message::Written(seqs, good)) => self.written(&sim, seqs, good),
                    None => return,
                },
                () = sim.sleep_until(wake) => self.step(&sim, Input::Tick),
            }
        }
    }

    fn wake_at(&self, sim: &Sim) -> u64 {
        let now = sim.now();
        let boot_ms = sim.host.borrow().stamp(now).boot_ms;
        let left = self.ledger.deadline().map_or(SLEEP_MAX, |at| {
            // One more, as the clock is cut to milliseconds.
            (at - boot_ms).max(0) as u64 + 1
        });
        let notes = self
            .outbox
            .oldest_note
            .filter(|_| self.outbox.known && !self.outbox.under_way);
        let notes = notes.map_or(SLEEP_MAX, |at| (at + NOTES_WITHIN).saturating_sub(now));
        now + left.min(notes).min(SLEEP_MAX)
    }

    fn step(&mut self, sim: &Sim, input: Input) {
        let stamp = sim.host.borrow().stamp(sim.now());
        for effect in self.ledger.step(stamp, input) {
            match effect {
                Effect::Load { seq, .. } => self.outbox.read = Some(seq),
                Effect::Persist { seq, records, .. } => {
                    self.outbox.waiting.push((Some(seq), records));
                }
                Effect::Note { record, .. } => {
                    self.outbox.oldest_note.get_or_insert(sim.now());
                    self.outbox.waiting.push((None, vec![record]));
                }
                Effect::Grant { id, permit, .. } => {
                    if let Some(answer) = self.waiting.remove(&id) {
                        trace!(sim, [permit], "broker: permit {permit}");
                        let _ = answer.send(Ok(Permit {
                            number: permit,
                            valid_ms: VALID_MS as u64,
                            granted_at: sim.now(),
                        }));
                    }
                }
                Effect::Refuse { id, why } => {
                    if let Some(answer) = self.waiting.remove(&id) {
                        trace!(sim, [id], "broker: refused: {why:?}");
                        let _ = answer.send(Err(why));
                    }
                }
                Effect::Notice(notice) => {
                    trace!(sim, [0], "broker: {notice:?}");
                }
            }
        }
    }

    fn fail(&mut self, sim: &Sim, seqs: Vec<u64>) {
        for seq in seqs {
            let bot = BOT.to_owned();
            self.step(sim, Input::PersistFailed { bot, seq });
        }
    }

    /// Hands the store all that may go out now: one transaction after the other.
    fn send_due(&mut self, sim: &Sim) {
        if self.outbox.under_way {
            return;
        }
        let (later, to_self) = (sim.clone(), self.to_self.clone());
        if let Some(seq) = self.outbox.read.take() {
            self.outbox.under_way = true;
            sim.spawn(self.group, async move {
                let sim = later;
                sim.sleep(sim.draw(0..=6)).await;
                let down = sim.weather.borrow().store_down > sim.now();
                let records = (!down).then(|| sim.host.borrow().disk.ledger.clone());
                let _ = to_self.send(Message::Read(seq, records));
            });
            return;
        }
        let permits = self.outbox.waiting.iter().any(|(seq, _)| seq.is_some());
        if !self.outbox.known {
            if permits {
                let failed = self.outbox.fail();
                self.fail(sim, failed);
            }
            return;
        }
        let due = self
            .outbox
            .oldest_note
            .is_some_and(|at| sim.now() >= at + NOTES_WITHIN);
        if !permits && !due {
            return;
        }
        self.outbox.under_way = true;
        self.outbox.oldest_note = None;
        let (seqs, records): (Vec<_>, Vec<_>) = self.outbox.waiting.drain(..).unzip();
        let seqs: Vec<u64> = seqs.into_iter().flatten().collect();
        let stamp = sim.host.borrow().stamp(sim.now());
        let whole = Some(sim.host.borrow().disk.ledger.len())
            .filter(|len| *len > GROWN)
            // Holds the new records too: the ledger has counted them already.
            .and_then(|_| self.ledger.records(BOT, stamp));
        let (records, replace) = match whole {
            Some(all) => (all, true),
            None => (records.into_iter().flatten().collect(), false),
        };
        let life = sim.agent.borrow().as_ref().map_or(0, |agent| agent.life);
        sim.spawn(self.group, async move {
            let sim = later;
            let slow = sim.is_busy() && sim.chance(sim.config.disk_faults / 10);
            sim.sleep(if slow {
                sim.draw(100..=14_000)
            } else {
                sim.draw(0..=6)
            })
            .await;
            let down = sim.weather.borrow().store_down > sim.now();
            let lost = sim.is_busy() && sim.chance(sim.config.disk_faults);
            // A write of which nobody knows may have got through all the same.
            if !down && (!lost || sim.chance(500)) {
                let mut host = sim.host.borrow_mut();
                let records = records.into_iter().map(Some);
                if replace {
                    host.disk.ledger = records.collect();
                } else {
                    host.disk.ledger.extend(records);
                }
                host.disk.ledger_synced = host.disk.ledger.len();
            }
            super::Agent::may_die(&sim, life, "broker: record written, permit not given").await;
            sim.sleep(sim.draw(0..=3)).await;
            let good = !down && !lost;
            if !good {
                trace!(sim, [1], "broker: its records could not be written");
            }
            let _ = to_self.send(Message::Written(seqs, good));
        });
    }

    fn read(&mut self, sim: &Sim, seq: u64, records: Option<Vec<Option<Record>>>) {
        self.outbox.under_way = false;
        self.outbox.known = records.is_some();
        let bot = BOT.to_owned();
        trace!(
            sim,
            [seq],
            "broker: {:?} records read",
            records.as_ref().map(Vec::len)
        );
        self.step(
            sim,
            match records {
                Some(records) => Input::Load { bot, seq, records },
                None => Input::LoadFailed { bot, seq },
            },
        );
    }

    fn written(&mut self, sim: &Sim, mut seqs: Vec<u64>, good: bool) {
        self.outbox.under_way = false;
        if good {
            for seq in seqs {
                let bot = BOT.to_owned();
                self.step(sim, Input::Persisted { bot, seq });
            }
        } else {
            self.outbox.known = false;
            seqs.extend(self.outbox.fail());
            self.fail(sim, seqs);
        }
    }
}
