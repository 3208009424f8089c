//! The rules of the session vault: who holds a shard, whose deposits count, and who is offered
//! which session to RESUME. Pure; the agent keeps the files and the copy in the store.
//!
//! - A shard has one **holder**: a process and its attempt. Only the holder's deposits and discards
//!   count. A newer attempt of the same process takes the hold by attaching.
//! - A hold moves to another process by **handover** (blue-green: the old one has stood down). From
//!   then on the old one cannot take it back, neither with a late deposit nor by attaching again,
//!   until it is handed back. Where nothing was handed over, whoever attaches holds: the supervisor
//!   never runs two processes of a shard.
//! - Within a session the seq never goes back, and a session that ended never comes back.
//! - A session is offered only to the same bot, shard tuple and, as far as they are known, token,
//!   application and intents, and only while Discord may still know it.
//! - Copies of several hosts are **merged**: the hold that was taken later wins (`term`), within a
//!   session the higher seq. A shard that is held here and now is never overruled by a copy.
//!
//! Times are milliseconds since 1970.

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
};

use crate::process::ProcessName;

/// A session without a sign of life for this long is not worth a RESUME. Discord keeps one "for a
/// few minutes" (discord-rules), how many is not published, and its answer decides: a RESUME too many
/// costs seconds. A bound of minutes by the wall clock would cost IDENTIFYs when that clock is set.
pub const OFFER_MS_MAX: i64 = 12 * 60 * 60 * 1000;
/// After this time nothing of a shard that nobody holds is kept.
pub const KEEP_MS: i64 = 24 * 60 * 60 * 1000;
/// Handled interactions that are kept; the newest. Their ids are snowflakes, so the highest.
pub const HANDLED_MAX: usize = 4096;
/// Processes remembered that gave a shard away.
const GIVEN_MAX: usize = 4;
/// Ended sessions remembered for a shard.
const ENDED_MAX: usize = 8;

/// A shard of a bot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardKey {
    /// The bot.
    pub bot: String,
    /// The shard.
    pub shard: u32,
    /// Of so many.
    pub count: u32,
}

/// Who holds a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub process: ProcessName,
    /// Its attempt.
    pub attempt: u64,
}

/// The id of a session; a secret, so that no `Debug` shows it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct SessionId(pub String);

impl SessionId {
    /// What is remembered of a session that ended.
    fn mark(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(self.0.as_bytes())
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionId(..)")
    }
}

/// What a successor needs to RESUME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Everything up to here has been handled.
    pub seq: u64,
    /// Where to resume.
    pub resume_url: String,
    /// The application; 0 = not known.
    pub application: u64,
    /// The intents it was identified with.
    pub intents: u64,
    /// SHA-256 of the token.
    pub token_sha256: [u8; 32],
    /// Interactions handled above `seq`, ascending, each once.
    pub handled: Vec<u64>,
    /// Guilds on the shard; 0 = not known.
    pub guilds: u32,
    /// Latest dispatch taken; 0 = none.
    pub last_event_at: i64,
    /// When the connection was given up; 0 = not.
    pub stopped_at: i64,
    /// When it was deposited.
    pub deposited_at: i64,
    /// When its holder was last known to hold it, connected.
    pub seen_at: i64,
}

/// The end of a holder's work on a shard, for the gap in a receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Last {
    /// Who deposited.
    pub by: Holder,
    /// When.
    pub deposited_at: i64,
    /// Everything up to here had been handled.
    pub seq: u64,
    /// Latest dispatch taken; 0 = none.
    pub last_event_at: i64,
    /// When the connection was given up; 0 = not.
    pub stopped_at: i64,
}

/// All that is known of a shard. What is written to disk and copied to the store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Slot {
    /// Who holds it.
    pub holder: Option<Holder>,
    /// Rises whenever the hold passes on.
    pub term: u64,
    /// Processes that handed it over and may not take it back by themselves, oldest first.
    pub given: VecDeque<ProcessName>,
    /// Marks of sessions that ended, oldest first.
    pub ended: VecDeque<u64>,
    /// The session, unless it is void.
    pub session: Option<Session>,
    /// The latest deposit.
    pub last: Option<Last>,
    /// The latest deposit of whoever held the shard before the one of `last`.
    pub before: Option<Last>,
    /// Whether the holder is known to be at work here, by this life of the agent.
    pub claimed: bool,
}

/// Why a deposit does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another process or a newer attempt holds the shard.
    #[error("another process or a newer attempt holds the shard")]
    NotHolder,
    /// The session has ended.
    #[error("the session has ended")]
    Ended,
}

/// What an attempt that wants to resume is known to be. `None` = not known, and not compared.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// SHA-256 of its token.
    pub token_sha256: Option<[u8; 32]>,
    /// Its application.
    pub application: Option<u64>,
    /// Its intents.
    pub intents: Option<u64>,
}

/// The vault.
#[derive(Debug, Clone, Default)]
pub struct Vault {
    slots: HashMap<ShardKey, Slot>,
}

impl Vault {
    /// An empty vault.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what an earlier life left. Nobody is known to be at work.
    pub fn load(&mut self, key: ShardKey, slot: Slot) {
        let slot = Slot {
            claimed: false,
            ..slot
        };
        self.slots.insert(key, slot);
    }

    /// All that is known of a shard.
    pub fn slot(&self, key: &ShardKey) -> Option<&Slot> {
        self.slots.get(key)
    }

    /// All shards.
    pub fn slots(&self) -> impl Iterator<Item = (&ShardKey, &Slot)> {
        self.slots.iter()
    }

    /// An attempt came up that is to hold the shard. False when it does not: it is older than the
    /// holder, or its process has handed the shard over.
    pub fn attach(&mut self, key: &ShardKey, who: &Holder) -> bool {
        let slot = self.slots.entry(key.clone()).or_default();
        if slot.given.contains(&who.process) {
            return false;
        }
        match &slot.holder {
            Some(holder) if holder.process == who.process && holder.attempt > who.attempt => false,
            _ => {
                slot.take(who);
                true
            }
        }
    }

    /// Moves the hold from one process to another, which gets the session. The old one's late
    /// deposits are refused from now on. Asking twice is the same as once. False when a third
    /// process holds the shard.
    pub fn handover(&mut self, key: &ShardKey, from: &ProcessName, to: &Holder) -> bool {
        let slot = self.slots.entry(key.clone()).or_default();
        match &slot.holder {
            Some(holder) if holder.process == to.process && holder.attempt > to.attempt => {}
            Some(holder) if holder.process != *from && holder.process != to.process => {
                return false;
            }
            _ => slot.take(to),
        }
        slot.given
            .retain(|process| *process != to.process && process != from);
        if *from != to.process {
            slot.given.push_back(from.clone());
            if slot.given.len() > GIVEN_MAX {
                slot.given.pop_front();
            }
        }
        true
    }

    /// Keeps a session. True when it is another one than before.
    pub fn deposit(
        &mut self,
        key: &ShardKey,
        who: &Holder,
        mut new: Session,
    ) -> Result<bool, Refused> {
        if !self.may_write(key, who) {
            return Err(Refused::NotHolder);
        }
        let slot = self.slots.entry(key.clone()).or_default();
        if slot.ended.contains(&new.id.mark()) {
            return Err(Refused::Ended);
        }
        slot.take(who);
        let mut other = true;
        match &slot.session {
            Some(old) if old.id == new.id => {
                other = false;
                if new.seq <= old.seq {
                    // At the same seq a list may name more; at an older one, what it names may be
                    // above ours as well.
                    new.handled.extend_from_slice(&old.handled);
                }
                new.seq = new.seq.max(old.seq);
                new.last_event_at = new.last_event_at.max(old.last_event_at);
                new.deposited_at = new.deposited_at.max(old.deposited_at);
                if new.guilds == 0 {
                    new.guilds = old.guilds;
                }
            }
            Some(old) => slot.ended.push_back(old.id.mark()),
            None => {}
        }
        slot.bound();
        newest(&mut new.handled);
        let last = Last {
            by: who.clone(),
            deposited_at: new.deposited_at,
            seq: new.seq,
            last_event_at: new.last_event_at,
            stopped_at: new.stopped_at,
        };
        if let Some(earlier) = slot.last.replace(last)
            && earlier.by != *who
        {
            slot.before = Some(earlier);
        }
        slot.session = Some(new);
        Ok(other)
    }

    /// The holder is connected with its session.
    pub fn seen(&mut self, now: i64, key: &ShardKey, who: &Holder) {
        if let Some(slot) = self.slots.get_mut(key)
            && slot.holder.as_ref() == Some(who)
            && let Some(session) = &mut slot.session
        {
            session.seen_at = session.seen_at.max(now);
        }
    }

    /// The session is void. False when that is stale: another attempt holds the shard, or another
    /// session has taken its place.
    pub fn discard(&mut self, key: &ShardKey, who: &Holder, id: &SessionId) -> bool {
        if !self.may_write(key, who) {
            return false;
        }
        let Some(slot) = self.slots.get_mut(key) else {
            return false;
        };
        if slot.session.as_ref().is_none_or(|known| known.id != *id) {
            return false;
        }
        slot.session = None;
        slot.ended.push_back(id.mark());
        slot.bound();
        true
    }

    /// The session that may be resumed.
    pub fn offer(&self, now: i64, key: &ShardKey, wanted: &Wanted) -> Option<&Session> {
        let session = self.slots.get(key)?.session.as_ref()?;
        let seen = session.seen_at.max(session.deposited_at);
        let fits = now.saturating_sub(seen) <= OFFER_MS_MAX
            && wanted
                .token_sha256
                .is_none_or(|t| t == session.token_sha256)
            && wanted
                .application
                .is_none_or(|a| session.application == 0 || a == session.application)
            && wanted.intents.is_none_or(|i| i == session.intents);
        fits.then_some(session)
    }

    /// The latest deposit of anybody but `who`: where the one before it stopped.
    pub fn last_before(&self, key: &ShardKey, who: &Holder) -> Option<&Last> {
        let slot = self.slots.get(key)?;
        [&slot.last, &slot.before]
            .into_iter()
            .flatten()
            .find(|last| last.by != *who)
    }

    /// Takes in what another life or host knew of a shard. True when that changed what is kept.
    pub fn merge(&mut self, key: &ShardKey, copy: &Slot) -> bool {
        let Some(ours) = self.slots.get_mut(key) else {
            self.load(key.clone(), copy.clone());
            return true;
        };
        let before = ours.clone();
        for mark in &copy.ended {
            if !ours.ended.contains(mark) && ours.ended.len() < ENDED_MAX {
                ours.ended.push_back(*mark);
            }
        }
        if ours.claimed {
            // Whoever is at work here knows better; the copy that is written next says so.
            let same_hold = ours.holder == copy.holder && ours.term == copy.term;
            if !same_hold && ours.term <= copy.term {
                ours.term = copy.term + 1;
            }
            if let (Some(session), Some(known)) = (&mut ours.session, &copy.session)
                && session.id == known.id
            {
                session.absorb(known);
            } else if let (Some(session), None) = (&ours.session, &copy.session) {
                // A session that is in use here has not ended.
                let mark = session.id.mark();
                ours.ended.retain(|ended| *ended != mark);
            }
        } else {
            let theirs = rank(copy) > rank(ours);
            let lives = |session: &Session| !ours.ended.contains(&session.id.mark());
            let a = ours.session.take().filter(lives);
            let b = copy.session.clone().filter(lives);
            ours.session = match (a, b) {
                (Some(mut a), Some(b)) if a.id == b.id => {
                    a.absorb(&b);
                    Some(a)
                }
                (a, b) if theirs => b.or(a),
                (a, b) => a.or(b),
            };
            if theirs {
                ours.holder.clone_from(&copy.holder);
                ours.term = copy.term;
                ours.given.clone_from(&copy.given);
                ours.last.clone_from(&copy.last);
                ours.before.clone_from(&copy.before);
            }
        }
        ours.bound();
        *ours != before
    }

    /// Takes in what the host that had the shard before handed out. False, and nothing is changed,
    /// when somebody is at work with the shard here.
    pub fn take_in(&mut self, key: &ShardKey, slot: Slot) -> bool {
        if self.slots.get(key).is_some_and(|ours| ours.claimed) {
            return false;
        }
        self.load(key.clone(), slot);
        true
    }

    /// The process has stopped here and goes to another host: nobody is at work with its shards here
    /// any more, so that a later hold elsewhere is not overruled. The keys.
    pub fn let_go(&mut self, process: &ProcessName) -> Vec<ShardKey> {
        let held = self
            .slots
            .iter_mut()
            .filter(|(_, slot)| slot.is_held_by(process));
        held.map(|(key, slot)| {
            slot.claimed = false;
            key.clone()
        })
        .collect()
    }

    /// Drops what is known of the shards that a process holds by what is known here: another host has
    /// them now. The keys.
    pub fn depart(&mut self, process: &ProcessName) -> Vec<ShardKey> {
        self.drop_where(|_, slot| slot.is_held_by(process))
    }

    /// The highest attempt of a process that is known to hold a shard; 0 = none is known.
    pub fn attempt_of(&self, process: &ProcessName) -> u64 {
        let held = self.slots.values().filter(|slot| slot.is_held_by(process));
        held.filter_map(|slot| slot.holder.as_ref())
            .map(|holder| holder.attempt)
            .max()
            .unwrap_or(0)
    }

    /// Drops what is known of a set of shards that is no more (a reshard has ended). Its keys.
    pub fn forget(&mut self, bot: &str, count: u32) -> Vec<ShardKey> {
        self.drop_where(|key, _| key.bot == bot && key.count == count)
    }

    /// Drops what is of no use to anybody any more. Its keys.
    pub fn expire(&mut self, now: i64) -> Vec<ShardKey> {
        self.drop_where(|_, slot| {
            let session = slot
                .session
                .as_ref()
                .map(|session| session.seen_at.max(session.deposited_at));
            let last = slot.last.as_ref().map(|last| last.deposited_at);
            let seen = session.max(last);
            !slot.claimed && seen.is_none_or(|seen| now.saturating_sub(seen) > KEEP_MS)
        })
    }

    fn drop_where(&mut self, mut gone: impl FnMut(&ShardKey, &Slot) -> bool) -> Vec<ShardKey> {
        let keys: Vec<ShardKey> = self
            .slots
            .iter()
            .filter(|(key, slot)| gone(key, slot))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &keys {
            self.slots.remove(key);
        }
        keys
    }

    fn may_write(&self, key: &ShardKey, who: &Holder) -> bool {
        let Some(slot) = self.slots.get(key) else {
            return true;
        };
        match &slot.holder {
            Some(holder) => holder.process == who.process && holder.attempt <= who.attempt,
            None => !slot.given.contains(&who.process),
        }
    }
}

impl Slot {
    fn is_held_by(&self, process: &ProcessName) -> bool {
        let holder = self.holder.as_ref();
        holder.is_some_and(|holder| holder.process == *process)
    }

    fn take(&mut self, who: &Holder) {
        let moved = self
            .holder
            .as_ref()
            .is_none_or(|holder| holder.process != who.process);
        if moved || !self.claimed {
            self.term += 1;
        }
        self.holder = Some(who.clone());
        self.claimed = true;
    }

    fn bound(&mut self) {
        while self.ended.len() > ENDED_MAX {
            self.ended.pop_front();
        }
    }

    /// When it was last deposited into.
    pub fn deposited_at(&self) -> i64 {
        let session = self.session.as_ref().map_or(0, |s| s.deposited_at);
        session.max(self.last.as_ref().map_or(0, |last| last.deposited_at))
    }
}

impl Session {
    /// What another copy knows of the same session.
    fn absorb(&mut self, other: &Self) {
        match other.seq.cmp(&self.seq) {
            std::cmp::Ordering::Greater => {
                self.seq = other.seq;
                self.handled.clone_from(&other.handled);
                self.resume_url.clone_from(&other.resume_url);
            }
            std::cmp::Ordering::Equal => self.handled.extend_from_slice(&other.handled),
            std::cmp::Ordering::Less => {}
        }
        newest(&mut self.handled);
        self.guilds = self.guilds.max(other.guilds);
        self.last_event_at = self.last_event_at.max(other.last_event_at);
        self.stopped_at = self.stopped_at.max(other.stopped_at);
        self.deposited_at = self.deposited_at.max(other.deposited_at);
        self.seen_at = self.seen_at.max(other.seen_at);
    }
}

/// Which of two holds of a shard is the later one. The names only make the order total.
fn rank(slot: &Slot) -> impl Ord + '_ {
    (
        slot.term,
        slot.deposited_at(),
        slot.holder
            .as_ref()
            .map(|holder| (holder.attempt, holder.process.as_str())),
        slot.session.as_ref().map(|session| &session.id),
    )
}

/// The newest ids, ascending, each once.
fn newest(ids: &mut Vec<u64>) {
    ids.sort_unstable();
    ids.dedup();
    let over = ids.len().saturating_sub(HANDLED_MAX);
    ids.drain(..over);
}
