//! One session: its sequence numbers, the events it keeps for a RESUME, and what the client has proven to have
//! received. No IO and no clock: every decision is a function of what is passed in.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::{Event, Intents, Shard};
use crate::world::GuildIndex;

/// What a session keeps at least, however long ago it was acknowledged: clients may resume from a sequence
/// number somewhat before the one of their last heartbeat, as one that held an event back for half a minute.
const KEPT_AFTER_PROOF: Duration = Duration::from_secs(45);
/// Bytes that an entry costs besides its body.
const ENTRY_OVERHEAD: usize = 64;

/// One numbered dispatch.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    Event(Event),
    /// The guild object is made when it is sent: thousands of them would be dear to keep.
    GuildCreate(GuildIndex),
}

impl Item {
    fn cost(&self) -> usize {
        ENTRY_OVERHEAD
            + match self {
                // Shared by all sessions that it goes to; counted in each, to be on the safe side.
                Self::Event(event) => event.size(),
                Self::GuildCreate(_) => 0,
            }
    }
}

/// Bounds of the buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub events: usize,
    pub bytes: usize,
}

/// Why a RESUME is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResumeRefusal {
    /// The client claims more than was ever sent: close 4007.
    InvalidSeq,
    /// Events after the client's were pushed out of the buffer: opcode 9, the session is void.
    Evicted,
}

/// Events that no longer can reach the client of a session that was voided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Lost {
    /// Never written to a connection.
    pub undelivered: u64,
    /// Written, but the client never proved to have received them.
    pub unproven: u64,
}

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    pub id: String,
    pub shard: Shard,
    pub intents: Intents,
    /// The highest number given out.
    seq: u64,
    /// Numbers `seq - buffer.len() + 1 ..= seq`.
    buffer: VecDeque<(Instant, Item)>,
    bytes: usize,
    /// The highest number handed to the connection.
    delivered: u64,
    /// The highest number ever handed to any connection.
    delivered_max: u64,
    /// The highest number that the client has proven, by heartbeat or RESUME.
    proven: u64,
    /// When the session ends unless resumed. None while a connection is attached.
    resumable_until: Option<Instant>,
    /// Event types that this session does not get any more, without being told.
    pub muted: HashSet<String>,
    pub resumes: u64,
    pub replayed: u64,
    /// Replayed though proven before: duplicates from the client's point of view.
    pub replayed_again: u64,
    pub evicted: u64,
}

impl Session {
    pub(crate) fn new(id: String, shard: Shard, intents: Intents) -> Self {
        Self {
            id,
            shard,
            intents,
            seq: 0,
            buffer: VecDeque::new(),
            bytes: 0,
            delivered: 0,
            delivered_max: 0,
            proven: 0,
            resumable_until: None,
            muted: HashSet::new(),
            resumes: 0,
            replayed: 0,
            replayed_again: 0,
            evicted: 0,
        }
    }

    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// The highest number ever handed to a connection.
    pub(crate) fn highest_sent(&self) -> u64 {
        self.delivered_max
    }

    pub(crate) fn proven(&self) -> u64 {
        self.proven
    }

    pub(crate) fn buffered(&self) -> (usize, usize) {
        (self.buffer.len(), self.bytes)
    }

    /// Until when a detached session can be resumed.
    pub(crate) fn resumable_until(&self) -> Option<Instant> {
        self.resumable_until
    }

    /// The number before the oldest that is kept.
    fn base(&self) -> u64 {
        self.seq - self.buffer.len() as u64
    }

    /// Gives an event its number and keeps it.
    pub(crate) fn push(&mut self, now: Instant, item: Item, bounds: Bounds) {
        self.seq += 1;
        self.bytes += item.cost();
        self.buffer.push_back((now, item));
        while self.buffer.len() > bounds.events
            || self.bytes > bounds.bytes && self.buffer.len() > 1
        {
            if self.base() + 1 > self.proven {
                self.evicted += 1;
            }
            self.drop_oldest();
        }
        self.forget_proven(now);
    }

    /// Lets go of old events that the client has proven. Two at a time suffices to keep up with one push.
    fn forget_proven(&mut self, now: Instant) {
        if self.resumable_until.is_some() {
            return;
        }
        for _ in 0..2 {
            let old = self
                .buffer
                .front()
                .is_some_and(|(at, _)| now.duration_since(*at) >= KEPT_AFTER_PROOF);
            if !old || self.base() + 1 > self.proven.min(self.delivered) {
                return;
            }
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, item)) = self.buffer.pop_front() {
            self.bytes -= item.cost();
        }
    }

    /// Whether the connection was too slow: events that it has not got are gone from the buffer.
    pub(crate) fn fell_behind(&self) -> bool {
        self.delivered < self.base()
    }

    /// The next events for the connection, which counts as having got them.
    pub(crate) fn take(&mut self, events: usize, bytes: usize) -> Vec<(u64, Item)> {
        let base = self.base();
        let mut taken = Vec::new();
        let mut size = 0;
        while self.delivered < self.seq && taken.len() < events && size < bytes {
            let Some(place) = self.delivered.checked_sub(base) else {
                break;
            };
            let item = self.buffer[place as usize].1.clone();
            size += item.cost();
            self.delivered += 1;
            taken.push((self.delivered, item));
        }
        self.delivered_max = self.delivered_max.max(self.delivered);
        taken
    }

    /// A heartbeat proves what the client has. A claim of more than was delivered proves nothing and is refused.
    pub(crate) fn heartbeat(&mut self, seq: Option<u64>) -> bool {
        match seq {
            Some(seq) if seq > self.delivered => false,
            Some(seq) => {
                self.proven = self.proven.max(seq);
                true
            }
            None => true,
        }
    }

    /// The connection is gone; the session waits for a RESUME.
    pub(crate) fn detach(&mut self, now: Instant, window: Duration) {
        self.resumable_until.get_or_insert(now + window);
    }

    /// Whether nobody came to resume in time.
    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        self.resumable_until.is_some_and(|until| now >= until)
    }

    /// Attaches a new connection that has everything up to `seq`. Gives the number of events to replay.
    pub(crate) fn resume(&mut self, seq: u64) -> Result<u64, ResumeRefusal> {
        if seq > self.delivered_max {
            return Err(ResumeRefusal::InvalidSeq);
        }
        if seq < self.base() {
            return Err(ResumeRefusal::Evicted);
        }
        let replayed = self.seq - seq;
        self.replayed_again += self.proven.saturating_sub(seq);
        self.proven = self.proven.max(seq);
        self.delivered = seq;
        self.resumable_until = None;
        self.resumes += 1;
        self.replayed += replayed;
        Ok(replayed)
    }

    /// The session ends. Gives how many of its events no client has proven to have, of whatever session. Events
    /// that the buffer had to let go of unproven cannot be followed any more and count.
    pub(crate) fn missed(&self) -> u64 {
        let base = self.base();
        let unfollowed = base.saturating_sub(self.proven);
        let unproven = self
            .buffer
            .iter()
            .skip(self.proven.saturating_sub(base) as usize);
        let nobodys = unproven
            .filter(|(_, item)| matches!(item, Item::Event(event) if event.lost()))
            .count() as u64;
        unfollowed + nobodys
    }

    /// What is lost when the session ends now.
    pub(crate) fn lost(&self) -> Lost {
        Lost {
            undelivered: self.seq - self.delivered_max,
            unproven: self.delivered_max - self.proven,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds {
        events: 10,
        bytes: 1 << 20,
    };

    fn session() -> Session {
        Session::new("s".to_owned(), Shard { id: 0, count: 1 }, Intents::GUILDS)
    }

    fn push(session: &mut Session, n: u64) {
        let now = Instant::now();
        for _ in 0..n {
            session.push(now, Item::GuildCreate(0), BOUNDS);
        }
    }

    fn seqs(session: &mut Session, events: usize) -> Vec<u64> {
        session
            .take(events, usize::MAX)
            .into_iter()
            .map(|(seq, _)| seq)
            .collect()
    }

    #[test]
    fn a_resume_replays_exactly_what_the_client_lacks() {
        let mut session = session();
        push(&mut session, 5);
        assert_eq!(seqs(&mut session, 3), [1, 2, 3]);
        session.detach(Instant::now(), Duration::from_secs(90));
        push(&mut session, 2);
        assert_eq!(session.resume(2), Ok(5));
        assert_eq!(seqs(&mut session, 100), [3, 4, 5, 6, 7]);
        assert_eq!(
            session.lost(),
            Lost {
                undelivered: 0,
                unproven: 5
            }
        );
        assert!(session.heartbeat(Some(7)));
        assert_eq!(session.lost(), Lost::default());
    }

    #[test]
    fn claims_of_more_than_was_delivered_are_refused() {
        let mut session = session();
        push(&mut session, 5);
        seqs(&mut session, 3);
        assert!(!session.heartbeat(Some(4)));
        assert_eq!(session.proven(), 0);
        assert_eq!(session.resume(4), Err(ResumeRefusal::InvalidSeq));
    }

    #[test]
    fn evicted_events_make_the_session_void_and_count_as_lost() {
        let mut session = session();
        push(&mut session, 5);
        seqs(&mut session, 5);
        assert!(session.heartbeat(Some(4)));
        session.detach(Instant::now(), Duration::from_secs(90));
        push(&mut session, 15);
        assert_eq!(session.evicted, 6);
        assert_eq!(session.resume(5), Err(ResumeRefusal::Evicted));
        assert_eq!(
            session.lost(),
            Lost {
                undelivered: 15,
                unproven: 1
            }
        );
    }

    #[test]
    fn a_connection_that_is_too_slow_is_noticed() {
        let mut session = session();
        push(&mut session, 10);
        assert!(!session.fell_behind());
        push(&mut session, 1);
        assert!(session.fell_behind());
        assert!(seqs(&mut session, 10).is_empty());
    }

    #[test]
    fn bytes_are_bounded_but_the_newest_event_always_fits() {
        let mut session = session();
        let bounds = Bounds {
            events: 100,
            bytes: 1000,
        };
        let now = Instant::now();
        for _ in 0..50 {
            let event = Event::new("X", Intents::NONE, &"y".repeat(300));
            session.push(now, Item::Event(event), bounds);
            assert!(session.buffered().1 <= 1000);
        }
        session.push(
            now,
            Item::Event(Event::new("X", Intents::NONE, &"y".repeat(5000))),
            bounds,
        );
        assert_eq!(session.buffered().0, 1);
    }

    #[test]
    fn old_proven_events_are_forgotten_only_while_attached() {
        let mut session = session();
        let start = Instant::now();
        let bounds = Bounds {
            events: 1000,
            bytes: 1 << 20,
        };
        for _ in 0..10 {
            session.push(start, Item::GuildCreate(0), bounds);
        }
        session.take(10, usize::MAX);
        session.heartbeat(Some(8));
        session.detach(start, Duration::from_secs(1000));
        session.push(start + KEPT_AFTER_PROOF, Item::GuildCreate(0), bounds);
        assert_eq!(session.buffered().0, 11);
        assert_eq!(session.resume(10), Ok(1));
        for _ in 0..10 {
            session.push(start + KEPT_AFTER_PROOF, Item::GuildCreate(0), bounds);
        }
        // Numbers 1 to 10 are proven by now.
        assert_eq!(session.buffered().0, 11);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(u8),
        Take(u8),
        Heartbeat(u64),
        Detach,
        Resume(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..20).prop_map(Step::Push),
            (0u8..20).prop_map(Step::Take),
            (0u64..60).prop_map(Step::Heartbeat),
            Just(Step::Detach),
            (0u64..60).prop_map(Step::Resume),
        ]
    }

    proptest! {
        /// Whatever is sent, stale and made-up numbers included: a client that follows the numbers sees each
        /// exactly once per resume point, without a gap.
        #[test]
        fn numbers_have_no_gap(steps in proptest::collection::vec(step(), 0..80)) {
            let mut session = session();
            let mut received = 0;
            let mut attached = true;
            for step in steps {
                match step {
                    Step::Push(n) => push(&mut session, u64::from(n)),
                    Step::Take(n) if attached => {
                        for seq in seqs(&mut session, usize::from(n)) {
                            prop_assert_eq!(seq, received + 1);
                            received = seq;
                        }
                    }
                    Step::Take(_) => {}
                    Step::Heartbeat(seq) => {
                        let accepted = session.heartbeat(Some(seq));
                        prop_assert_eq!(accepted, seq <= session.delivered);
                    }
                    Step::Detach => {
                        attached = false;
                        session.detach(Instant::now(), Duration::from_secs(90));
                    }
                    Step::Resume(seq) => match session.resume(seq) {
                        Ok(replayed) => {
                            prop_assert_eq!(replayed, session.seq() - seq);
                            attached = true;
                            received = seq;
                        }
                        Err(ResumeRefusal::InvalidSeq) => prop_assert!(seq > session.highest_sent()),
                        Err(ResumeRefusal::Evicted) => prop_assert!(session.seq() - seq > 10),
                    },
                }
                prop_assert!(session.buffered().0 <= BOUNDS.events);
                prop_assert!(session.proven() <= session.highest_sent());
                prop_assert!(session.highest_sent() <= session.seq());
            }
        }
    }
}
