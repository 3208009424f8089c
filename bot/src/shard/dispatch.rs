//! What a shard does with the events it receives.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::connection::{Connection, RESUME_QUIET};
use super::duty::{Decision, Standing, Terms, time_of};
use super::envelope::{self, Envelope};
use super::seq::Ticket;
use super::status::Stage;
use super::task::{HANDLERS_MAX, PendingShare, ShardTask, unix_ms};
use crate::interactions::{self, Outcome};

/// Event types counted by name; the rest counts as `OTHER`.
const EVENT_TYPES_MAX: usize = 128;
/// Interactions of a replay that wait for Discord's word on them.
const LOOK_UPS_MAX: usize = 10_000;
/// After the latest RESUMED of a session that was another process's.
const REPLAY_OVER: Duration = Duration::from_secs(1);
/// Shares that wait for their answer.
const SHARES_MAX: usize = 16;
/// Weight of the newest value in the event lag.
const LAG_WEIGHT: f64 = 0.1;

/// Longest that an event is taken to have been on its way. More says that the clocks are apart.
const ON_THE_WAY_MAX: Duration = Duration::from_millis(1_500);

/// An interaction on its way to a handler.
pub(super) struct Taken {
    id: u64,
    pub(super) ticket: Ticket,
    payload: Box<str>,
    /// When Discord sent it, as far as this host can tell.
    sent: tokio::time::Instant,
    /// What Discord said of it, when it came as a replay.
    standing: Option<Standing>,
}

/// Without the payload: it holds the interaction's token.
impl std::fmt::Debug for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Taken")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// What comes back from the tasks of a shard.
pub(super) enum Progress {
    /// A look-up ended.
    Found { stretch: u64, taken: Taken },
    /// A handler ended.
    Done {
        stretch: u64,
        id: u64,
        ticket: Ticket,
        outcome: Outcome,
    },
}

impl ShardTask {
    pub(super) fn dispatch(&mut self, envelope: &Envelope<'_>, connection: &mut Connection) {
        let (Some(kind), Some(seq)) = (envelope.t, envelope.s) else {
            self.status.undecodable += 1;
            return;
        };
        let at = unix_ms();
        self.status.events += 1;
        self.status.last_event_at = at;
        if self.status.first_event_at == 0 {
            self.status.first_event_at = at;
        }
        self.count(kind);
        // A RESUMED itself counts with what it introduces: see `resumed`.
        connection.since_resumed += 1;
        let replay = connection.resuming && !connection.established;
        if replay {
            connection.deadline = Some(tokio::time::Instant::now() + RESUME_QUIET);
            if kind != "RESUMED" {
                self.status.replayed += 1;
            }
        }
        if kind != "READY" {
            self.status.lost += self.seq.receive(seq);
        }
        let payload = envelope.d.map_or("null", |d| d.get());
        let now = Instant::now();
        match kind {
            "READY" => match serde_json::from_str::<envelope::Ready>(payload) {
                Ok(ready) => self.ready(ready, seq, connection),
                Err(_) => self.status.undecodable += 1,
            },
            "RESUMED" => self.resumed(connection),
            "GUILD_CREATE" => match serde_json::from_str::<envelope::GuildCreate>(payload) {
                Ok(guild) if guild.unavailable != Some(true) => {
                    if self
                        .guilds
                        .create(guild.id, guild.member_count.unwrap_or(0), now)
                    {
                        self.services.guild_seen(guild.id);
                    }
                }
                Ok(_) => {}
                Err(_) => self.status.undecodable += 1,
            },
            "GUILD_DELETE" => match serde_json::from_str::<envelope::GuildCreate>(payload) {
                Ok(guild) if guild.unavailable != Some(true) => {
                    self.guilds.delete(guild.id);
                    self.services.settings.forget(guild.id);
                }
                Ok(_) => {}
                Err(_) => self.status.undecodable += 1,
            },
            "GUILD_MEMBER_ADD" | "GUILD_MEMBER_REMOVE" => {
                if let Some((guild, ..)) = guild_of(payload) {
                    self.guilds.member(guild, kind == "GUILD_MEMBER_ADD");
                }
            }
            "MESSAGE_CREATE" => {
                if let Some((guild, bot, id)) = guild_of(payload) {
                    self.lag(id, at, replay);
                    if !bot {
                        self.message(guild, id, now);
                    }
                }
            }
            "INTERACTION_CREATE" => self.interaction(seq, payload, at, replay),
            _ => {}
        }
    }

    fn count(&mut self, kind: &str) {
        if let Some(count) = self.events_by_type.get_mut(kind) {
            *count += 1;
        } else {
            let name = if self.events_by_type.len() < EVENT_TYPES_MAX {
                kind
            } else {
                "OTHER"
            };
            *self.events_by_type.entry(name.into()).or_default() += 1;
        }
    }

    /// Time from Discord's clock to ours. A replay says nothing about it.
    fn lag(&mut self, id: u64, at: i64, replay: bool) {
        if replay || id == 0 {
            return;
        }
        let lag = (at - time_of(id)).max(0) as f64;
        let before = self.status.event_lag_ms;
        self.status.event_lag_ms = if before == 0.0 {
            lag
        } else {
            before + (lag - before) * LAG_WEIGHT
        };
    }

    fn ready(&mut self, ready: envelope::Ready, seq: u64, connection: &mut Connection) {
        self.discard();
        info!(
            shard = self.status.id,
            guilds = ready.guilds.len(),
            "identified"
        );
        self.session = Some((ready.session_id.into(), ready.resume_gateway_url.into()));
        self.application_id = ready.application.id;
        self.services.rest.set_application(ready.application.id);
        self.seq.reset(seq);
        self.guilds.expect(
            ready.guilds.into_iter().map(|guild| guild.id),
            Instant::now(),
        );
        self.established(connection, false);
        self.stage(Stage::Identifying);
    }

    fn resumed(&mut self, connection: &mut Connection) {
        if connection.established {
            // The one before belonged to an earlier resume and was replayed, as was all that followed it.
            self.status.replayed += connection.since_resumed;
            connection.since_resumed = 0;
            self.resumed_at = Instant::now();
            return;
        }
        connection.since_resumed = 0;
        self.status.resumes += 1;
        self.unsure = false;
        self.resumed_at = Instant::now();
        info!(
            shard = self.status.id,
            replayed = self.status.replayed,
            "resumed"
        );
        self.established(connection, true);
        self.settle_shares();
        self.stage(Stage::Ready);
    }

    /// Some time after a RESUMED the replay is over, whatever else may have been replayed.
    pub(super) fn grow_sure(&mut self) {
        if self.handled_before != 0 && !self.unsure && self.resumed_at.elapsed() >= REPLAY_OVER {
            self.handled_before = 0;
            self.inherited.clear();
            self.settle_shares();
        }
    }

    fn established(&mut self, connection: &mut Connection, resumed: bool) {
        connection.established = true;
        connection.deadline = None;
        self.strategy.established();
        self.status.last_error.clear();
        if self.status.established_at == 0 {
            self.status.established_at = unix_ms();
            self.status.resumed = resumed;
        }
    }

    /// A message of a person: counted by the set whose turn it is.
    fn message(&mut self, guild: u64, id: u64, now: Instant) {
        match self.messages.arrive(now, id, guild, false) {
            Decision::Handle(guild) => self.services.activity.message(guild),
            Decision::Hold | Decision::LookUp(_) | Decision::Ignore(_) => {}
        }
    }

    fn interaction(&mut self, seq: u64, payload: &str, at: i64, replay: bool) {
        let Ok(envelope::Id { id }) = serde_json::from_str(payload) else {
            self.status.undecodable += 1;
            return;
        };
        self.lag(id, at, replay);
        let taken = Taken {
            id,
            ticket: self.seq.begin(seq, id),
            payload: payload.into(),
            sent: tokio::time::Instant::now() - on_the_way(at, id),
            standing: None,
        };
        let unsure = self.unsure || time_of(id) < self.handled_before;
        let decision = self.desk.arrive(Instant::now(), id, taken, unsure);
        self.decided(decision);
    }

    fn decided(&mut self, decision: Decision<Taken>) {
        match decision {
            Decision::Handle(taken) => {
                self.handle(taken);
            }
            Decision::LookUp(taken) => self.look_up(taken),
            Decision::Hold => {}
            Decision::Ignore(taken) => {
                self.status.repeated += 1;
                self.seq.finish(taken.ticket);
            }
        }
    }

    /// Starts a handler. False when there are too many already.
    fn handle(&mut self, taken: Taken) -> bool {
        self.status.interactions += 1;
        if self.running >= HANDLERS_MAX {
            warn!(
                shard = self.status.id,
                "too many handlers at once, an interaction is left unanswered"
            );
            self.status.interactions_failed += 1;
            self.seq.finish(taken.ticket);
            return false;
        }
        self.running += 1;
        let services = Arc::clone(&self.services);
        let done = self.progress_tx.clone();
        let (shard, stretch, work) = (self.status.id, self.stretch, self.work.clone());
        self.services.handlers.spawn(async move {
            let Taken {
                id,
                ticket,
                payload,
                sent,
                standing,
            } = taken;
            let handled = async {
                if !services.validity.holds() {
                    // It is another process's now, and this one ends.
                    return std::future::pending().await;
                }
                interactions::handle(&services, shard, &payload, sent, standing).await
            };
            let outcome = tokio::select! {
                biased;
                () = work.cancelled() => return,
                outcome = handled => outcome,
            };
            let progress = Progress::Done {
                stretch,
                id,
                ticket,
                outcome,
            };
            // The receiver is gone only when the process ends.
            let _ = done.send(progress).await;
        });
        true
    }

    fn look_up(&mut self, mut taken: Taken) {
        if self.looking >= LOOK_UPS_MAX {
            warn!(
                shard = self.status.id,
                "too many replayed interactions at once, one is left unanswered"
            );
            self.status.interactions_failed += 1;
            self.seq.finish(taken.ticket);
            return;
        }
        self.looking += 1;
        let services = Arc::clone(&self.services);
        let found = self.progress_tx.clone();
        let (stretch, work) = (self.stretch, self.work.clone());
        self.services.handlers.spawn(async move {
            let asked = async {
                // Closed only when the process ends.
                let _turn = services.look_ups.acquire().await;
                interactions::look_up(&services, &taken.payload).await
            };
            taken.standing = Some(tokio::select! {
                biased;
                () = work.cancelled() => return,
                standing = asked => standing,
            });
            let _ = found.send(Progress::Found { stretch, taken }).await;
        });
    }

    /// A look-up or a handler ended.
    pub(super) fn progressed(&mut self, progress: Progress) {
        match progress {
            Progress::Found { stretch, taken } if stretch == self.stretch => {
                self.looking -= 1;
                let (id, standing) = (taken.id, taken.standing.unwrap_or(Standing::Unknown));
                let decision = self.desk.found(Instant::now(), id, taken, standing);
                debug!(
                    shard = self.status.id,
                    id,
                    ?standing,
                    ?decision,
                    "looked a replay up"
                );
                self.decided(decision);
                self.settle_shares();
            }
            Progress::Done {
                stretch,
                id,
                ticket,
                outcome,
            } if stretch == self.stretch => {
                self.running -= 1;
                self.seq.finish(ticket);
                self.status.interactions_failed += u64::from(outcome == Outcome::Failed);
                self.status.duplicated += u64::from(outcome == Outcome::Duplicated);
                for share in &mut self.shares {
                    share.waiting.remove(&id);
                }
                self.settle_shares();
                // A crash from here on must not answer it again: let the deposit follow soon.
                self.publish();
                self.nudge.notify_one();
            }
            // Of an earlier stretch of work: its session went to somebody else.
            Progress::Found { .. } | Progress::Done { .. } => {}
        }
    }

    /// New terms are in force at once; they are answered when everything that may have been handled is known, and
    /// what they released has been handled.
    pub(super) fn share(&mut self, terms: Terms, done: oneshot::Sender<i64>) {
        for guild in self.messages.share(terms) {
            self.services.activity.message(guild);
        }
        let mut waiting = BTreeSet::new();
        for taken in self.desk.share(terms) {
            let id = taken.id;
            if self.handle(taken) {
                waiting.insert(id);
            }
        }
        info!(shard = self.status.id, duty = ?terms.duty, cut = ?terms.cut, released = waiting.len(), "sharing");
        if self.shares.len() >= SHARES_MAX {
            // Asked again and again while nothing can be said: the first askers have given up.
            self.shares.remove(0);
        }
        self.shares.push(PendingShare { waiting, done });
        self.settle_shares();
        self.publish();
    }

    pub(super) fn settle_shares(&mut self) {
        if self.unsure || self.handled_before != 0 || self.looking > 0 {
            return;
        }
        let newest = self
            .desk
            .newest_handled()
            .max(self.messages.newest_handled());
        for share in self.shares.extract_if(.., |share| share.waiting.is_empty()) {
            // Whoever asked may be gone.
            let _ = share.done.send(newest);
        }
    }

    /// Lets go of events that were another set's for good.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        for taken in self.desk.expire(now) {
            self.seq.release(taken.ticket);
            self.status.held_dropped += 1;
        }
        self.status.held_dropped += self.messages.expire(now).len() as u64;
    }
}

/// Guild of a member event or message, whether a bot sent it, and a message's id.
fn guild_of(payload: &str) -> Option<(u64, bool, u64)> {
    let event: envelope::InGuild<'_> = serde_json::from_str(payload).ok()?;
    Some((
        event.guild_id?.parse().ok()?,
        event.author.is_some_and(|author| author.bot),
        event.id.and_then(|id| id.parse().ok()).unwrap_or(0),
    ))
}

/// How long an event that was taken at `at` (milliseconds since 1970) had been on its way. Nobody knows how far
/// this host's clock is from Discord's: what cannot be is cut off.
fn on_the_way(at: i64, id: u64) -> Duration {
    let ms = at.saturating_sub(time_of(id));
    Duration::from_millis(u64::try_from(ms).unwrap_or(0)).min(ON_THE_WAY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_long_on_its_way_has_less_time_left() {
        let id = 1_300_000_000_000_000_000;
        let sent = time_of(id);
        let way = |ms: i64| on_the_way(sent.saturating_add(ms), id).as_millis();
        assert_eq!([way(0), way(40), way(1_200)], [0, 40, 1_200]);
        assert_eq!(way(-5_000), 0, "a clock behind Discord's");
        assert_eq!(way(3_600_000), 1_500, "a clock ahead of Discord's");
        assert_eq!(on_the_way(i64::MIN, id).as_millis(), 0);
        assert_eq!(on_the_way(i64::MAX, 0).as_millis(), 1_500);
    }
}
