//! Who handles an event while two sets of shards get the same ones.
//!
//! Sessions may overlap: a reshard brings a second set up beside the first, and both receive every event.
//! Interactions are shared by the time in their ids, which is Discord's clock, so the clocks of hosts do not
//! matter. An event that is another set's at present is **held** for a while: a later share may give it to
//! this set after all. What comes as a replay of a session that another process held is looked up before
//! anything is decided: the predecessor may have handled it, and did not live to say so.
//!
//! ```text
//!            replay ──► LOOK UP ── answered before ──► left alone (repeated)
//!  arrive ──┤              │
//!            new ──────────┴─► ours? ── yes ──► handle
//!                                └──── no ───► hold ── share gives it to us ──► handle
//!                                                └──── 30 s ──► dropped: it was the other set's
//! ```
//!
//! Pure: no clock, no IO.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::seen::Seen;

/// An event that nobody gave to this set for this long is the other set's for good. Discord takes first
/// answers for three seconds only, and a coordinator chooses its cut three seconds ahead.
pub const HELD_FOR: Duration = Duration::from_secs(30);

/// The first millisecond of 2015, where the time in a snowflake begins; milliseconds since 1970.
const DISCORD_EPOCH_MS: u64 = 1_420_070_400_000;

/// The time in an id, on Discord's clock: milliseconds since 1970.
pub const fn time_of(id: u64) -> i64 {
    ((id >> 22) + DISCORD_EPOCH_MS) as i64
}

/// What a process does with its shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Duty {
    /// Handles what comes.
    #[default]
    Active,
    /// Everything is prepared, no connection is open.
    Warm,
    /// Connected, and holds every event.
    Shadow,
}

/// Shares events by the time in their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Milliseconds since 1970, on Discord's clock.
    pub at: i64,
    /// True: this set has what is older. False: what is at or after.
    pub before: bool,
}

/// A duty and the cut that goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Terms {
    /// What this process does.
    pub duty: Duty,
    /// Which events are its own. Without one: all for the active set, none for a shadow.
    pub cut: Option<Cut>,
}

impl Terms {
    /// Whether an event with this time in its id is ours.
    pub const fn is_ours(&self, time: i64) -> bool {
        match (self.duty, self.cut) {
            (Duty::Warm, _) | (Duty::Shadow, None) => false,
            (Duty::Active, None) => true,
            (_, Some(cut)) => (time < cut.at) == cut.before,
        }
    }
}

/// What Discord said of an interaction that came as a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nobody has answered it.
    Open,
    /// It was deferred; the answer itself is still due.
    Deferred,
    /// It has its answer.
    Answered,
    /// Discord could not be asked.
    Unknown,
}

/// What to do with an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision<T> {
    /// Handle it now.
    Handle(T),
    /// Ask Discord what became of it, then call [`Desk::found`].
    LookUp(T),
    /// Not ours for now; kept.
    Hold,
    /// Handled before: leave it alone.
    Ignore(T),
}

#[derive(Debug)]
struct Held<T> {
    time: i64,
    since: Instant,
    item: T,
}

/// Takes events in and says which of them this set handles.
#[derive(Debug)]
pub struct Desk<T> {
    terms: Terms,
    seen: Seen,
    held: VecDeque<Held<T>>,
    held_max: usize,
    newest_handled: i64,
}

impl<T> Desk<T> {
    /// Remembers the latest `seen_max` ids and holds at most `held_max` events.
    pub fn new(terms: Terms, seen_max: usize, held_max: usize) -> Self {
        Self {
            terms,
            seen: Seen::new(seen_max),
            held: VecDeque::new(),
            held_max,
            newest_handled: 0,
        }
    }

    /// What a predecessor left: ids it has handled, and the newest time that it can have handled.
    pub fn inherit(&mut self, handled: &[u64], newest: i64) {
        for id in handled {
            self.seen.insert(*id);
            self.handled(time_of(*id));
        }
        self.handled(newest);
    }

    /// The terms in force.
    pub const fn terms(&self) -> Terms {
        self.terms
    }

    /// Time in the newest id that was handled; 0 = none.
    pub const fn newest_handled(&self) -> i64 {
        self.newest_handled
    }

    /// Events held.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// An event came. `replay`: its session was another process's before, and this event may have reached it.
    pub fn arrive(&mut self, now: Instant, id: u64, item: T, replay: bool) -> Decision<T> {
        if !self.seen.insert(id) {
            Decision::Ignore(item)
        } else if replay {
            Decision::LookUp(item)
        } else {
            self.decide(now, time_of(id), item)
        }
    }

    /// What Discord said of an event that was looked up.
    pub fn found(&mut self, now: Instant, id: u64, item: T, standing: Standing) -> Decision<T> {
        match standing {
            Standing::Answered => {
                self.handled(time_of(id));
                Decision::Ignore(item)
            }
            Standing::Open | Standing::Deferred => self.decide(now, time_of(id), item),
            Standing::Unknown => {
                // It may have been handled: whoever shares by time must count it as ours.
                self.handled(time_of(id));
                self.decide(now, time_of(id), item)
            }
        }
    }

    fn decide(&mut self, now: Instant, time: i64, item: T) -> Decision<T> {
        if self.terms.is_ours(time) {
            self.handled(time);
            Decision::Handle(item)
        } else {
            self.held.push_back(Held {
                time,
                since: now,
                item,
            });
            Decision::Hold
        }
    }

    /// New terms. Gives what was held and is ours now, in order of arrival.
    pub fn share(&mut self, terms: Terms) -> Vec<T> {
        self.terms = terms;
        let mut ours = Vec::new();
        for held in std::mem::take(&mut self.held) {
            if terms.is_ours(held.time) {
                self.handled(held.time);
                ours.push(held.item);
            } else {
                self.held.push_back(held);
            }
        }
        ours
    }

    /// Lets go of what was held long enough, and of the oldest beyond the bound.
    pub fn expire(&mut self, now: Instant) -> Vec<T> {
        let mut dropped = Vec::new();
        while let Some(oldest) = self.held.front() {
            let old = now.saturating_duration_since(oldest.since) >= HELD_FOR;
            if !old && self.held.len() <= self.held_max {
                break;
            }
            dropped.extend(self.held.pop_front().map(|held| held.item));
        }
        dropped
    }

    fn handled(&mut self, time: i64) {
        self.newest_handled = self.newest_handled.max(time);
    }
}

#[cfg(test)]
#[path = "duty_tests.rs"]
mod tests;
