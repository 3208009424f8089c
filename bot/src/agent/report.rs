//! From what shards publish to what the agent is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use tanako_proto::worker::v1::{
    self as wire, GatewayLimits, GuildCounts, SessionDeposit, ShardReport, ShardStage,
};
use tracing::info;

use crate::rest::Limits;
use crate::shard::duty::{Cut, Duty, Terms};
use crate::shard::status::Deposit;
use crate::shard::task::StoredSession;
use crate::shard::{ShardStatus, Stage};

/// What ties a session to this process: a deposit that differs in any of it must not be resumed.
#[derive(Debug, Clone)]
pub struct Binding {
    /// SHA-256 of the token.
    pub token_sha256: [u8; 32],
    /// Intents bits.
    pub intents: u64,
}

/// A shard's part of a report.
pub fn shard_report(status: &ShardStatus) -> ShardReport {
    let stage = match status.stage {
        Stage::Connecting => ShardStage::Connecting,
        Stage::WaitingPermit => ShardStage::WaitingPermit,
        Stage::Identifying => ShardStage::Identifying,
        Stage::Resuming => ShardStage::Resuming,
        Stage::Ready => ShardStage::Ready,
        Stage::Disconnected => ShardStage::Disconnected,
        Stage::Fatal => ShardStage::Fatal,
        Stage::Standby => ShardStage::Standby,
    };
    ShardReport {
        shard_id: status.id,
        shard_count: status.count,
        stage: stage.into(),
        guilds: status.guilds,
        guilds_expected: status.guilds_expected,
        latency_ms: status.latency_ms,
        seq: status.seq,
        events: status.events,
        resumes: status.resumes,
        identifies: status.identifies,
        reconnects: status.reconnects,
        interactions: status.interactions,
        interactions_failed: status.interactions_failed,
        events_by_type: status
            .events_by_type
            .iter()
            .map(|(kind, count)| (kind.clone(), *count))
            .collect(),
        members: status.members,
        last_error: status.last_error.clone(),
        replayed: status.replayed,
        lost: status.lost,
        duplicated: status.duplicated,
        repeated: status.repeated,
        first_event_at: status.first_event_at,
        last_event_at: status.last_event_at,
        event_lag_ms: status.event_lag_ms,
        misplaced_guilds: status.misplaced,
        newest_handled: status.newest_handled,
        zombies: status.zombies,
        established_at: status.established_at,
        held: status.held,
        identify_boot_ms: status.identify_boot_ms,
    }
}

/// A deposit for the agent. The guilds go along only when `with_guilds`.
pub fn deposit(
    status: &ShardStatus,
    session: &Deposit,
    binding: &Binding,
    with_guilds: bool,
    ack: u64,
) -> SessionDeposit {
    SessionDeposit {
        shard_id: status.id,
        shard_count: status.count,
        session_id: session.session_id.to_string(),
        seq: session.seq,
        resume_url: session.resume_url.to_string(),
        application_id: session.application_id,
        intents: binding.intents,
        token_sha256: binding.token_sha256.to_vec().into(),
        guilds: with_guilds.then(|| GuildCounts {
            ids: session.guilds.ids.clone(),
            members: session.guilds.members.clone(),
        }),
        handled_interactions: session.handled.clone(),
        ack,
        last_event_at: status.last_event_at,
        stopped_at: session.stopped_at,
    }
}

/// The terms that the agent names. A process that is not told is active.
pub fn terms(duty: wire::Duty, cut: Option<wire::Cut>) -> Terms {
    Terms {
        duty: match duty {
            wire::Duty::Unspecified | wire::Duty::Active => Duty::Active,
            wire::Duty::Warm => Duty::Warm,
            wire::Duty::Shadow => Duty::Shadow,
        },
        cut: cut.map(|cut| Cut {
            at: cut.at,
            before: cut.before,
        }),
    }
}

/// The stored sessions that these shards may resume; says of the others why not.
pub fn usable_sessions(
    stored: Vec<SessionDeposit>,
    ids: &[u32],
    count: u32,
    binding: &Binding,
) -> BTreeMap<u32, StoredSession> {
    let mut sessions = BTreeMap::new();
    for stored in stored {
        let id = stored.shard_id;
        if !ids.contains(&id) {
            continue;
        }
        match usable(stored, id, count, binding) {
            Ok(session) => {
                sessions.insert(id, session);
            }
            Err(reason) => info!(shard = id, reason, "not resuming the stored session"),
        }
    }
    sessions
}

/// The stored session of a shard, if it may be resumed by this very bot. Says why not.
pub fn usable(
    stored: SessionDeposit,
    shard_id: u32,
    shard_count: u32,
    binding: &Binding,
) -> Result<StoredSession, &'static str> {
    if (stored.shard_id, stored.shard_count) != (shard_id, shard_count) {
        return Err("it belongs to another shard tuple");
    }
    if *stored.token_sha256 != binding.token_sha256 {
        return Err("it belongs to another token");
    }
    if stored.intents != binding.intents {
        return Err("it was opened with other intents");
    }
    if stored.session_id.is_empty() || stored.resume_url.is_empty() || stored.application_id == 0 {
        return Err("it is incomplete");
    }
    let guilds = stored.guilds.unwrap_or_default();
    if guilds.ids.len() != guilds.members.len() {
        return Err("its guilds are inconsistent");
    }
    Ok(StoredSession {
        session_id: stored.session_id,
        seq: stored.seq,
        resume_url: stored.resume_url,
        application_id: stored.application_id,
        guild_ids: guilds.ids,
        guild_members: guilds.members,
        handled: stored.handled_interactions,
        last_event_at: stored.last_event_at,
    })
}

/// The limits of `/gateway/bot`.
pub fn limits(limits: &Limits) -> GatewayLimits {
    GatewayLimits {
        recommended_shards: limits.recommended_shards,
        total: limits.total,
        remaining: limits.remaining,
        reset_after_ms: limits.reset_after_ms,
        max_concurrency: limits.max_concurrency,
    }
}

/// Remembers what was deposited on the present stream, so that only changes are sent.
#[derive(Debug, Default)]
pub struct Deposited {
    last: Option<(Arc<str>, u64, Vec<u64>, i64)>,
    guilds: Option<(Arc<str>, u64)>,
    discarded: Option<Arc<str>>,
}

impl Deposited {
    /// True when the session moved since the last deposit, and whether its guilds must go along.
    pub fn needs(&self, session: &Deposit) -> (bool, bool) {
        let moved = self
            .last
            .as_ref()
            .is_none_or(|(id, seq, handled, stopped)| {
                *id != session.session_id
                    || *seq != session.seq
                    || *handled != session.handled
                    || *stopped != session.stopped_at
            });
        let guilds = self.guilds.as_ref().is_none_or(|(id, version)| {
            *id != session.session_id || *version != session.guilds.version
        });
        (moved || guilds, guilds)
    }

    /// The session has another holder: should it come back, everything is sent again.
    pub fn forget(&mut self) {
        self.last = None;
        self.guilds = None;
    }

    /// Notes what was sent.
    pub fn sent(&mut self, session: &Deposit) {
        self.last = Some((
            Arc::clone(&session.session_id),
            session.seq,
            session.handled.clone(),
            session.stopped_at,
        ));
        self.guilds = Some((Arc::clone(&session.session_id), session.guilds.version));
    }

    /// The void session that the agent has not been told of on this stream.
    pub fn to_discard(&mut self, status: &ShardStatus) -> Option<Arc<str>> {
        let void = status.void_session.as_ref()?;
        if self.discarded.as_ref() == Some(void) {
            return None;
        }
        self.discarded = Some(Arc::clone(void));
        Some(Arc::clone(void))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::guilds::Snapshot;

    fn binding() -> Binding {
        Binding {
            token_sha256: [7; 32],
            intents: 513,
        }
    }

    fn session(seq: u64, version: u64) -> Deposit {
        Deposit {
            session_id: "s".into(),
            resume_url: "ws://r".into(),
            seq,
            handled: vec![],
            guilds: Arc::new(Snapshot {
                version,
                ids: vec![1, 2],
                members: vec![3, 4],
            }),
            application_id: 9,
            stopped_at: 0,
        }
    }

    #[test]
    fn only_the_same_bot_resumes() {
        let status = ShardStatus {
            id: 1,
            count: 4,
            ..ShardStatus::default()
        };
        let good = deposit(&status, &session(5, 1), &binding(), true, 0);
        let restored = usable(good.clone(), 1, 4, &binding()).unwrap();
        assert_eq!(
            (restored.seq, restored.guild_ids, restored.guild_members),
            (5, vec![1, 2], vec![3, 4])
        );
        assert!(usable(good.clone(), 2, 4, &binding()).is_err());
        assert!(usable(good.clone(), 1, 5, &binding()).is_err());
        assert!(
            usable(
                good.clone(),
                1,
                4,
                &Binding {
                    token_sha256: [8; 32],
                    ..binding()
                }
            )
            .is_err()
        );
        assert!(
            usable(
                good.clone(),
                1,
                4,
                &Binding {
                    intents: 1,
                    ..binding()
                }
            )
            .is_err()
        );
        assert!(
            usable(
                SessionDeposit {
                    application_id: 0,
                    ..good.clone()
                },
                1,
                4,
                &binding()
            )
            .is_err()
        );
        let torn = SessionDeposit {
            guilds: Some(GuildCounts {
                ids: vec![1],
                members: vec![],
            }),
            ..good
        };
        assert!(usable(torn, 1, 4, &binding()).is_err());
    }

    #[test]
    fn sends_changes_only_and_everything_on_a_new_stream() {
        let mut deposited = Deposited::default();
        assert_eq!(deposited.needs(&session(1, 1)), (true, true));
        deposited.sent(&session(1, 1));
        assert_eq!(deposited.needs(&session(1, 1)), (false, false));
        assert_eq!(deposited.needs(&session(2, 1)), (true, false));
        assert_eq!(deposited.needs(&session(1, 2)), (true, true));
        assert_eq!(Deposited::default().needs(&session(1, 1)), (true, true));
    }

    #[test]
    fn a_discard_is_told_once_a_stream() {
        let status = ShardStatus {
            void_session: Some("x".into()),
            ..ShardStatus::default()
        };
        let mut deposited = Deposited::default();
        assert!(deposited.to_discard(&status).is_some());
        assert!(deposited.to_discard(&status).is_none());
    }
}
