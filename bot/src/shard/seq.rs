//! Which sequence number is safe to resume from.
//!
//! The newest received number is not: a handler of an older event may still run, and would be lost with
//! the process. What is deposited is `min(in-flight) - 1`; interactions that were answered above it are
//! named beside it, so that a replay does not answer them twice.

use std::collections::BTreeMap;

/// Answered interactions remembered above the settled number. Older ones are dropped first; that
/// takes a handler that hangs while this many others finish.
const HANDLED_MAX: usize = 4096;

/// An event whose handler runs. Valid for the session it was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    session: u64,
    seq: u64,
}

/// Follows the sequence numbers of one session.
#[derive(Debug, Default)]
pub struct SeqTracker {
    session: u64,
    received: u64,
    in_flight: BTreeMap<u64, u64>,
    handled: BTreeMap<u64, u64>,
}

impl SeqTracker {
    /// Starts over for another session, from the number its first event follows.
    pub fn reset(&mut self, received: u64) {
        self.session += 1;
        self.received = received;
        self.in_flight.clear();
        self.handled.clear();
    }

    /// Notes the number of a received dispatch. Gives how many before it never came.
    pub fn receive(&mut self, seq: u64) -> u64 {
        let missing = seq.saturating_sub(self.received.saturating_add(1));
        self.received = self.received.max(seq);
        missing
    }

    /// Notes that this event, which was received, is to be handled. `id` is the interaction it answers.
    pub fn begin(&mut self, seq: u64, id: u64) -> Ticket {
        self.received = self.received.max(seq);
        self.in_flight.insert(seq, id);
        Ticket {
            session: self.session,
            seq,
        }
    }

    /// Notes that the handler ended. A ticket of an earlier session, or one given back twice, is ignored.
    pub fn finish(&mut self, ticket: Ticket) {
        if ticket.session != self.session {
            return;
        }
        let Some(id) = self.in_flight.remove(&ticket.seq) else {
            return;
        };
        self.handled.insert(ticket.seq, id);
        self.forget_settled();
    }

    /// Notes that this event is not handled here after all, and by nobody who resumes this session.
    pub fn release(&mut self, ticket: Ticket) {
        if ticket.session == self.session {
            self.in_flight.remove(&ticket.seq);
            self.forget_settled();
        }
    }

    fn forget_settled(&mut self) {
        let settled = self.settled();
        self.handled = self.handled.split_off(&(settled + 1));
        while self.handled.len() > HANDLED_MAX {
            self.handled.pop_first();
        }
    }

    /// Newest number received: where this very process resumes from.
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// Everything up to here has been handled: where another process resumes from.
    pub fn settled(&self) -> u64 {
        self.in_flight
            .first_key_value()
            .map_or(self.received, |(seq, _)| seq.saturating_sub(1))
    }

    /// Interactions answered above [`Self::settled`].
    pub fn handled_above(&self) -> Vec<u64> {
        self.handled.values().copied().collect()
    }

    /// Events that are neither handled nor let go of.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Debug, Clone)]
    enum Input {
        Plain,
        Begin,
        Finish(usize),
        FinishAgain(usize),
        Release(usize),
        NewSession,
        Stale(u64),
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            4 => Just(Input::Plain),
            4 => Just(Input::Begin),
            4 => any::<usize>().prop_map(Input::Finish),
            1 => any::<usize>().prop_map(Input::FinishAgain),
            1 => any::<usize>().prop_map(Input::Release),
            1 => Just(Input::NewSession),
            1 => (0..50u64).prop_map(Input::Stale),
        ]
    }

    proptest! {
        /// Against a model that keeps every event: nothing unhandled is at or below the settled number,
        /// and everything handled above it is named.
        #[test]
        fn replay_from_the_deposit_loses_and_repeats_nothing(inputs in prop::collection::vec(input(), 0..200)) {
            let mut tracker = SeqTracker::default();
            let mut open: Vec<Ticket> = Vec::new();
            let mut closed: Vec<Ticket> = Vec::new();
            let mut seq = 0;
            let mut unhandled = BTreeSet::new();
            let mut answered = BTreeSet::new();
            for input in inputs {
                match input {
                    Input::Plain => { seq += 1; prop_assert_eq!(tracker.receive(seq), 0); }
                    Input::Begin => {
                        seq += 1;
                        open.push(tracker.begin(seq, seq + 1000));
                        unhandled.insert(seq);
                    }
                    Input::Finish(which) if !open.is_empty() => {
                        let ticket = open.swap_remove(which % open.len());
                        tracker.finish(ticket);
                        if ticket.session == tracker.session {
                            unhandled.remove(&ticket.seq);
                            answered.insert(ticket.seq);
                        }
                        closed.push(ticket);
                    }
                    Input::Release(which) if !open.is_empty() => {
                        let ticket = open.swap_remove(which % open.len());
                        tracker.release(ticket);
                        if ticket.session == tracker.session { unhandled.remove(&ticket.seq); }
                        closed.push(ticket);
                    }
                    Input::FinishAgain(which) if !closed.is_empty() => tracker.finish(closed[which % closed.len()]),
                    Input::NewSession => {
                        tracker.reset(0);
                        seq = 0;
                        unhandled.clear();
                        answered.clear();
                    }
                    Input::Stale(old) => prop_assert_eq!(tracker.receive(old.min(seq)), 0),
                    _ => {}
                }
                let settled = tracker.settled();
                prop_assert!(settled <= seq);
                prop_assert!(unhandled.iter().all(|event| *event > settled));
                let expected: Vec<u64> = answered.iter().filter(|event| **event > settled).map(|event| event + 1000).collect();
                prop_assert_eq!(tracker.handled_above(), expected);
                prop_assert_eq!(tracker.in_flight(), unhandled.len());
                if unhandled.is_empty() { prop_assert_eq!(settled, seq); }
            }
        }
    }

    #[test]
    fn holes_are_counted_once() {
        let mut tracker = SeqTracker::default();
        tracker.reset(1);
        assert_eq!((tracker.receive(2), tracker.receive(6)), (0, 3));
        assert_eq!((tracker.receive(4), tracker.receive(7)), (0, 0));
        tracker.reset(40);
        assert_eq!((tracker.receive(41), tracker.receive(43)), (0, 1));
    }
}
