//! Between the rules of the vault, what is on the wire, and what is stored.

use std::collections::VecDeque;

use tanako_fleet::{
    ProcessName,
    vault::{Holder, Last, Session, SessionId, ShardKey, Slot},
};
use tanako_proto::worker::v1::SessionDeposit;

use super::slots::{Stored, StoredLast};

/// The session of a deposit; its guild list is kept beside. `None` when the token's hash is none.
pub(super) fn session(deposit: SessionDeposit, deposited_at: i64, seen_at: i64) -> Option<Session> {
    Some(Session {
        id: SessionId(deposit.session_id),
        seq: deposit.seq,
        resume_url: deposit.resume_url,
        application: deposit.application_id,
        intents: deposit.intents,
        token_sha256: deposit.token_sha256.as_ref().try_into().ok()?,
        handled: deposit.handled_interactions,
        guilds: deposit
            .guilds
            .map_or(0, |guilds| u32::try_from(guilds.ids.len()).unwrap_or(0)),
        last_event_at: deposit.last_event_at,
        stopped_at: deposit.stopped_at,
        deposited_at,
        seen_at,
    })
}

/// The deposit of a session, without its guild list, with the newest `handled_max` interactions.
pub(super) fn deposit(key: &ShardKey, session: &Session, handled_max: usize) -> SessionDeposit {
    let over = session.handled.len().saturating_sub(handled_max);
    SessionDeposit {
        shard_id: key.shard,
        shard_count: key.count,
        session_id: session.id.0.clone(),
        seq: session.seq,
        resume_url: session.resume_url.clone(),
        application_id: session.application,
        intents: session.intents,
        token_sha256: session.token_sha256.to_vec().into(),
        guilds: None,
        handled_interactions: session.handled[over..].to_vec(),
        ack: 0,
        last_event_at: session.last_event_at,
        stopped_at: session.stopped_at,
    }
}

/// A slot as stored.
pub(super) fn stored(key: &ShardKey, slot: &Slot, handled_max: usize) -> Stored {
    let (process, attempt) = slot.holder.as_ref().map_or_else(
        || (String::new(), 0),
        |holder| (holder.process.to_string(), holder.attempt),
    );
    let session = slot.session.as_ref();
    Stored {
        process,
        attempt,
        deposited_at: slot.deposited_at(),
        deposit: session.map(|session| deposit(key, session, handled_max)),
        shard_id: key.shard,
        shard_count: key.count,
        term: slot.term,
        given: slot.given.iter().map(ToString::to_string).collect(),
        ended: slot.ended.iter().copied().collect(),
        seen_at: session.map_or(0, |session| session.seen_at),
        last: slot.last.as_ref().map(stored_last),
        before: slot.before.as_ref().map(stored_last),
        guild_count: session.map_or(0, |session| session.guilds),
    }
}

/// The slot of what was stored.
pub(super) fn slot(stored: Stored) -> Slot {
    let holder = stored.process.parse().ok().map(|process| Holder {
        process,
        attempt: stored.attempt,
    });
    let deposited_at = stored.deposited_at;
    let seen_at = stored.seen_at.max(deposited_at);
    let mut session = stored
        .deposit
        .and_then(|deposit| session(deposit, deposited_at, seen_at));
    if let Some(session) = &mut session {
        session.guilds = session.guilds.max(stored.guild_count);
    }
    let mut last = stored.last.and_then(last);
    if last.is_none() {
        // Written by a version that did not keep it.
        last = holder.clone().map(|by| Last {
            by,
            deposited_at,
            seq: session.as_ref().map_or(0, |session| session.seq),
            last_event_at: 0,
            stopped_at: 0,
        });
    }
    Slot {
        holder,
        term: stored.term,
        given: stored
            .given
            .iter()
            .filter_map(|name| name.parse::<ProcessName>().ok())
            .collect(),
        ended: VecDeque::from(stored.ended),
        session,
        last,
        before: stored.before.and_then(self::last),
        claimed: false,
    }
}

fn stored_last(last: &Last) -> StoredLast {
    StoredLast {
        process: last.by.process.to_string(),
        attempt: last.by.attempt,
        deposited_at: last.deposited_at,
        seq: last.seq,
        last_event_at: last.last_event_at,
        stopped_at: last.stopped_at,
    }
}

fn last(stored: StoredLast) -> Option<Last> {
    Some(Last {
        by: Holder {
            process: stored.process.parse().ok()?,
            attempt: stored.attempt,
        },
        deposited_at: stored.deposited_at,
        seq: stored.seq,
        last_event_at: stored.last_event_at,
        stopped_at: stored.stopped_at,
    })
}
