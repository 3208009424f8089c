//! The identify ledger: who may send an IDENTIFY, and when (discord-rules, "IDENTIFY is the scarce
//! resource").
//!
//! For each bot: buckets `shard_id % max_concurrency`, one permit per bucket per 5 s; a rolling
//! 24-hour count with a reserve that is never spent automatically; permits numbered upwards; a
//! queue that serves the lowest shard of each free bucket; brakes on crash loops (the `guard` module) and on
//! storms (the `storm` module).
//!
//! - `messages`: what goes in and comes out.
//! - `ledger`: all bots; `bot`: one of them; `load`: its records, there and back.
//! - `budget`: what is left of the day. `guard`: shards that waste IDENTIFYs. `storm`: when nobody's
//!   holds.
//! - `desk`: where agents of other hosts ask.
//! - `record`: the bytes of a record, and what two clocks say of its time. `status`: for people.
//!
//! # How the rules hold across crashes and changes of the leader
//!
//! A permit is in the store **before** it is given out: a step asks for [`Effect::Persist`], and
//! only [`Input::Persisted`] releases the permit ([`Effect::Grant`]). Until then its bucket is
//! locked. The 5 s count from the release. What the store holds may therefore be more than what was
//! given out, never less. When a write fails, or nobody knows, the ledger believes itself no longer:
//! it gives nothing until it has read its records again ([`Effect::Load`]).
//!
//! Whoever reads the records knows when a permit was recorded, not when it was released. But it was
//! at most [`PERSIST_MAX_MS`] later, since a permit whose record took longer is thrown away. Was the
//! record made by this very agent (see [`Stamp`]), then whoever made it is dead by now, or is us:
//! the release was before the reading. Was it another host's, then that leader may still be about to
//! release it, and no wall clock is asked whether it can be: the latest record of each shard locks its
//! bucket for [`PERSIST_MAX_MS`] and the spacing from the *reading* on, by the reader's own boot clock.
//! That costs a new leader, or one after a reboot, some 15 s before its first permit. A leader's writes
//! are fenced, so that every record of an earlier leader is there to be read.
//!
//! # Time
//!
//! Everything is computed on CLOCK_BOOTTIME, which neither steps nor stops during suspend. The wall
//! clock serves only to place records of another boot or host in the count of the day, and is believed to
//! [`SKEW_MAX_MS`]. A clock that is wrong by more spoils that count, which Discord's own then mends; it
//! frees no bucket.

mod bot;
mod budget;
mod desk;
mod guard;
mod ledger;
mod load;
mod messages;
mod record;
mod status;
mod storm;
#[cfg(test)]
mod tests;

pub use budget::ReportedLimits;
pub use desk::{
    AskId, Desk, DeskEffect, DeskInput, DeskReply, Granted, IDLE_MS, PLACES_MAX, PollId,
    WAIT_MAX_MS, until,
};
pub use ledger::Ledger;
pub use load::RECORDS_MAX;
pub use messages::{
    BotStatus, BucketStatus, Effect, Input, Mode, Notice, Refusal, Request, RequestId, Via,
};
pub use record::{Entry, RECORD_BYTES, Record, Stamp};

/// Discord's rule: one IDENTIFY per bucket in this time.
pub const RULE_MS: i64 = 5_000;
/// An IDENTIFY that is not out within this time after its permit must not be sent.
pub const VALID_MS: i64 = 150;
/// What bots that know no such limit are given between their permit and their IDENTIFY.
pub const FOREIGN_VALID_MS: i64 = 1_000;
/// How much later than another an IDENTIFY may arrive for reasons of the network.
pub const JITTER_MS: i64 = 50;
/// Between two permits of a bucket: the rule, the time that the first one's IDENTIFY may take to go
/// out, and the network's jitter. A cold start takes at most 1.05 times what the rule alone takes.
pub const SPACING_MS: i64 = RULE_MS + VALID_MS + JITTER_MS;
/// A permit whose record took longer than this to reach the store is thrown away.
pub const PERSIST_MAX_MS: i64 = 10_000;
/// A permit is recorded so much before its bucket is free, so that the store's latency does not
/// slow down a cold start.
pub const LEAD_MS: i64 = 200;
/// How far the wall clocks of two hosts, or of two boots, may be apart: 10 minutes. A clock service
/// keeps them within a second; a machine without one drifts by some seconds a day, so that this is
/// months of neglect. Records of others are taken to be younger by so much, which costs nothing of the
/// day but its last 10 minutes.
pub const SKEW_MAX_MS: i64 = 10 * 60_000;

/// Between two permits of a bucket of which the first may take `valid_ms` to be used.
pub(crate) const fn spacing_ms(valid_ms: i64) -> i64 {
    RULE_MS + valid_ms + JITTER_MS
}
