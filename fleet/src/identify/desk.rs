//! Permits for other hosts: the desk at which their agents ask the one that leads.
//!
//! Only the leader's ledger gives permits. An agent of another host asks by *polls*: each waits a
//! moment and says `pending` where there is no permit yet. All polls about one permit carry one id, so
//! that the place in the queue is kept between them, and an answer that was lost is given again.
//!
//! ```text
//! poll ──► waiting ──► granted ── kept until nobody can use it ──► gone
//!             │  └──► refused ── told once ──► gone
//!             └── no poll for IDLE_MS: the place is given up
//! ```
//!
//! The clocks of two hosts have nothing in common but their pace. So a permit's validity is told as a
//! span that counts from the moment at which the poll was *received* here, and whoever asked counts it
//! from the moment at which it *sent* the poll, by its own clock ([`until`]). That is never later than
//! what the ledger allows, however long question and answer were on their way.

use std::collections::{BTreeMap, BTreeSet};

use super::messages::Refusal;

/// Names a permit that is asked for: who asks, and a name of its choice.
pub type AskId = (String, String);
/// Names one poll.
pub type PollId = u64;

/// A poll waits no longer than this.
pub const WAIT_MAX_MS: i64 = 1_000;
/// A place that nobody has asked about for so long is given up.
pub const IDLE_MS: i64 = 3_000;
/// Places that may be taken at once; as many as a ledger lets wait.
pub const PLACES_MAX: usize = 16_384;

/// What happens to the desk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeskInput {
    /// Somebody asks. At most one poll a permit waits: an older one is told `pending`.
    Poll {
        /// For what.
        id: AskId,
        /// To be answered once, with [`DeskEffect::Reply`].
        poll: PollId,
        /// How long it may wait.
        wait_ms: i64,
    },
    /// Whoever polled is gone.
    Hangup {
        /// The poll.
        poll: PollId,
    },
    /// The ledger gave the permit.
    Granted {
        /// Asked for so.
        id: AskId,
        /// It.
        permit: Granted,
    },
    /// The ledger refused.
    Refused {
        /// Asked for so.
        id: AskId,
        /// Why.
        why: Refusal,
    },
    /// This agent leads no more: what it was asked for is asked of another now.
    Deposed,
    /// The deadline has come.
    Tick,
}

/// A permit as the ledger's own agent has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Its number.
    pub number: u64,
    /// Not to be used from then on, on this host's boot clock, in milliseconds.
    pub until_boot_ms: i64,
    /// IDENTIFYs left today.
    pub remaining: u32,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeskEffect {
    /// Ask the ledger; say [`DeskInput::Granted`] or [`DeskInput::Refused`].
    Acquire(AskId),
    /// Ask it no longer.
    GiveUp(AskId),
    /// Answer the poll.
    Reply(PollId, DeskReply),
}

/// The answer to a poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeskReply {
    /// Ask again with the same id.
    Pending,
    /// There it is.
    Granted {
        /// Its number.
        number: u64,
        /// How long it may be used, from the moment at which the poll was sent; 0 = no longer: ask for
        /// another one.
        valid_ms: u64,
        /// IDENTIFYs left today.
        remaining: u32,
    },
    /// There is none.
    Refused(Refusal),
    /// This agent leads no more.
    Deposed,
}

/// Until when a permit may be used, on the asker's boot clock: it sent the poll at `sent_ms`, and it is
/// `now_ms`. `None` = it has come too late.
pub fn until(sent_ms: i64, valid_ms: u64, now_ms: i64) -> Option<i64> {
    let until = sent_ms.saturating_add(i64::try_from(valid_ms).unwrap_or(0));
    (until > now_ms).then_some(until)
}

/// A poll that waits.
#[derive(Debug, Clone, Copy)]
struct Poll {
    id: PollId,
    received_at: i64,
    until: i64,
}

#[derive(Debug)]
struct Place {
    poll: Option<Poll>,
    asked_at: i64,
    answer: Option<Result<Granted, Refusal>>,
    /// As it stands in [`Desk::due`].
    due: i64,
}

/// The desk. Times are milliseconds on this host's boot clock.
#[derive(Debug, Default)]
pub struct Desk {
    places: BTreeMap<AskId, Place>,
    /// Whose poll this is.
    polls: BTreeMap<PollId, AskId>,
    /// When something is to be done about each place.
    due: BTreeSet<(i64, AskId)>,
}

impl Desk {
    /// A desk at which nobody waits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an input; says what to do.
    pub fn step(&mut self, now: i64, input: DeskInput) -> Vec<DeskEffect> {
        let mut out = Vec::new();
        match input {
            DeskInput::Poll { id, poll, wait_ms } => self.poll(now, id, poll, wait_ms, &mut out),
            DeskInput::Hangup { poll } => {
                if let Some(id) = self.polls.remove(&poll)
                    && let Some(place) = self.places.get_mut(&id)
                {
                    place.poll = None;
                    place.asked_at = now;
                    self.schedule(&id);
                }
            }
            DeskInput::Granted { id, permit } => self.answered(now, &id, Ok(permit), &mut out),
            DeskInput::Refused { id, why } => self.answered(now, &id, Err(why), &mut out),
            DeskInput::Deposed => {
                for (id, place) in std::mem::take(&mut self.places) {
                    if let Some(poll) = place.poll {
                        out.push(DeskEffect::Reply(poll.id, DeskReply::Deposed));
                    }
                    if place.answer.is_none() {
                        out.push(DeskEffect::GiveUp(id));
                    }
                }
                self.polls.clear();
                self.due.clear();
            }
            DeskInput::Tick => {}
        }
        self.expire(now, &mut out);
        out
    }

    /// When to come back with [`DeskInput::Tick`].
    pub fn deadline(&self) -> Option<i64> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Places taken.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn poll(&mut self, now: i64, id: AskId, poll: PollId, wait_ms: i64, out: &mut Vec<DeskEffect>) {
        let waits = Poll {
            id: poll,
            received_at: now,
            until: now + wait_ms.clamp(0, WAIT_MAX_MS),
        };
        if let Some(place) = self.places.get_mut(&id) {
            if let Some(older) = place.poll.take() {
                self.polls.remove(&older.id);
                out.push(DeskEffect::Reply(older.id, DeskReply::Pending));
            }
            place.asked_at = now;
            place.poll = Some(waits);
        } else if self.places.len() >= PLACES_MAX {
            out.push(DeskEffect::Reply(poll, DeskReply::Refused(Refusal::Full)));
            return;
        } else {
            let place = Place {
                poll: Some(waits),
                asked_at: now,
                answer: None,
                due: waits.until,
            };
            self.due.insert((place.due, id.clone()));
            self.places.insert(id.clone(), place);
            out.push(DeskEffect::Acquire(id.clone()));
        }
        self.polls.insert(poll, id.clone());
        self.reply(&id, out);
        self.schedule(&id);
    }

    fn answered(
        &mut self,
        now: i64,
        id: &AskId,
        answer: Result<Granted, Refusal>,
        out: &mut Vec<DeskEffect>,
    ) {
        // Given up meanwhile, or answered already.
        let Some(place) = self
            .places
            .get_mut(id)
            .filter(|place| place.answer.is_none())
        else {
            return;
        };
        place.answer = Some(answer);
        if place.poll.is_none() {
            place.asked_at = now;
        }
        self.reply(id, out);
        self.schedule(id);
    }

    /// Answers the poll that waits at a place, if there is something to say.
    fn reply(&mut self, id: &AskId, out: &mut Vec<DeskEffect>) {
        let Some(place) = self.places.get_mut(id) else {
            return;
        };
        let (Some(poll), Some(answer)) = (place.poll, place.answer) else {
            return;
        };
        place.poll = None;
        self.polls.remove(&poll.id);
        let reply = match answer {
            Ok(permit) => DeskReply::Granted {
                number: permit.number,
                valid_ms: u64::try_from(permit.until_boot_ms - poll.received_at).unwrap_or(0),
                remaining: permit.remaining,
            },
            Err(why) => {
                self.remove(id);
                DeskReply::Refused(why)
            }
        };
        out.push(DeskEffect::Reply(poll.id, reply));
    }

    fn expire(&mut self, now: i64, out: &mut Vec<DeskEffect>) {
        while let Some((_, id)) = self.due.first().filter(|(at, _)| *at <= now).cloned() {
            if let Some(place) = self.places.get_mut(&id)
                && let Some(poll) = place.poll.take()
            {
                place.asked_at = now;
                self.polls.remove(&poll.id);
                out.push(DeskEffect::Reply(poll.id, DeskReply::Pending));
                self.schedule(&id);
                continue;
            }
            let place = self.remove(&id);
            if place.is_some_and(|place| place.answer.is_none()) {
                out.push(DeskEffect::GiveUp(id));
            }
        }
    }

    /// Brings the deadline of a place up to what has become of it.
    fn schedule(&mut self, id: &AskId) {
        if let Some(place) = self.places.get_mut(id) {
            let due = place.deadline();
            let old = std::mem::replace(&mut place.due, due);
            self.due.remove(&(old, id.clone()));
            self.due.insert((due, id.clone()));
        }
    }

    fn remove(&mut self, id: &AskId) -> Option<Place> {
        let place = self.places.remove(id)?;
        self.due.remove(&(place.due, id.clone()));
        Some(place)
    }
}

impl Place {
    fn deadline(&self) -> i64 {
        match (self.poll, self.answer) {
            (Some(poll), _) => poll.until,
            // Whoever asks again after that gets nothing that could be used.
            (None, Some(Ok(permit))) => permit.until_boot_ms.max(self.asked_at),
            (None, _) => self.asked_at + IDLE_MS,
        }
    }
}
