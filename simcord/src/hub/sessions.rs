//! Sessions: admission, fetching what to write, and their end.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::{APPLICATION_FLAGS, Hub, Live, SessionKey};
use crate::account::IdentifyRecord;
use crate::gateway::limits::{GUILDS_PER_SHARD_MAX, LARGE_BOT_GUILDS, Permit};
use crate::gateway::session::{Bounds, Item, ResumeRefusal, Session};
use crate::gateway::{Body, CloseCode, Control, Event, Identify, Intents, Link, Resume, Shard};
use crate::snowflake;
use crate::world::{GuildIndex, shard_of};

/// The URL told while resume URLs are dead: nothing listens on port 1.
const DEAD_URL: &str = "ws://127.0.0.1:1";

/// What becomes of an IDENTIFY or a RESUME.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Attached(SessionKey),
    /// Opcode 9 with `d: false`.
    InvalidSession,
    Close(CloseCode),
}

/// What a connection has to write.
pub(crate) enum Fetched {
    Frames(Vec<Frame>),
    /// Events were pushed out of the buffer before this connection took them.
    FellBehind,
}

/// One dispatch to be written.
pub(crate) struct Frame {
    pub seq: u64,
    pub name: Cow<'static, str>,
    pub body: Body,
}

impl Hub {
    pub(crate) fn identify(
        &mut self,
        now: Instant,
        link: &Arc<Link>,
        identify: &Identify,
    ) -> Admission {
        if !self.token.is(&identify.token) {
            return Admission::Close(CloseCode::AuthenticationFailed);
        }
        let (shard, intents) = match (identify.shard(), identify.intents()) {
            (Err(code), _) | (_, Err(code)) => return Admission::Close(code),
            (Ok(shard), Ok(intents)) => (shard, intents),
        };
        if self.world.guild_count() > LARGE_BOT_GUILDS
            && !shard.count.is_multiple_of(self.shards_recommended())
        {
            return Admission::Close(CloseCode::InvalidShard);
        }
        if intents.disallowed(&self.config.privileged_intents) {
            return Admission::Close(CloseCode::DisallowedIntents);
        }
        let guilds = self.guilds_of(shard);
        if guilds.len() as u32 > GUILDS_PER_SHARD_MAX {
            return Admission::Close(CloseCode::ShardingRequired);
        }
        let permit = self.identify.identify(now, shard.id);
        let record = |outcome, bucket, session| IdentifyRecord {
            at_ms: now.duration_since(self.started).as_millis() as u64,
            shard: [shard.id, shard.count],
            bucket,
            outcome,
            session,
        };
        match permit {
            Permit::Granted { bucket } => {
                let id = session_id(now, self.next_key);
                let record = record("granted", bucket, Some(id.clone()));
                self.account.log_identify(record);
                self.account.identifies += 1;
                self.account.of_shard(shard).identifies += 1;
                Admission::Attached(self.open(now, link, Session::new(id, shard, intents), &guilds))
            }
            Permit::Refused { bucket } => {
                let record = record("refused", bucket, None);
                self.account.log_identify(record);
                self.account.identifies_refused += 1;
                Admission::InvalidSession
            }
            Permit::BudgetExceeded => {
                let record = record(
                    "budget_exceeded",
                    shard.id % self.identify.max_concurrency(),
                    None,
                );
                self.account.log_identify(record);
                self.account.identifies_refused += 1;
                self.reset_token();
                Admission::Close(CloseCode::AuthenticationFailed)
            }
        }
    }

    fn guilds_of(&self, shard: Shard) -> Vec<GuildIndex> {
        self.world
            .guilds()
            .filter(|index| shard_of(self.world.guild_id(*index), shard.count) == shard.id)
            .collect()
    }

    fn open(
        &mut self,
        now: Instant,
        link: &Arc<Link>,
        mut session: Session,
        guilds: &[GuildIndex],
    ) -> SessionKey {
        let bounds = self.bounds();
        session.push(now, Item::Event(self.ready(&session, guilds)), bounds);
        if session.intents.contains(Intents::GUILDS) {
            for index in guilds {
                session.push(now, Item::GuildCreate(*index), bounds);
            }
        }
        self.next_key += 1;
        let key = self.next_key;
        let shard = session.shard;
        self.by_id.insert(session.id.clone(), key);
        let shards = self
            .routes
            .entry(shard.count)
            .or_insert_with(|| vec![Vec::new(); shard.count as usize]);
        shards[shard.id as usize].push(key);
        let live = Live {
            session,
            link: Some(Arc::clone(link)),
            identified_at: now,
            last_heartbeat: None,
        };
        self.sessions.insert(key, live);
        link.wake();
        key
    }

    fn ready(&self, session: &Session, guilds: &[GuildIndex]) -> Event {
        let guilds: Vec<Value> = guilds
            .iter()
            .map(|index| json!({ "id": self.world.guild_id(*index).to_string(), "unavailable": true }))
            .collect();
        let resume = if self.faults.resume_url_dead {
            DEAD_URL
        } else {
            &self.urls.resume
        };
        Event::new(
            "READY",
            Intents::NONE,
            &json!({
                "v": 10, "user": self.world.bot_user(), "user_settings": {}, "guilds": guilds,
                "session_id": session.id, "session_type": "normal", "resume_gateway_url": resume,
                "shard": [session.shard.id, session.shard.count],
                "application": { "id": self.world.bot.id.to_string(), "flags": APPLICATION_FLAGS },
                "private_channels": [], "presences": [], "relationships": [], "game_relationships": [],
                "guild_join_requests": [], "geo_ordered_rtc_regions": [], "auth": {},
                "_trace": ["[\"simcord\",{\"micros\":0}]"],
            }),
        )
    }

    pub(crate) fn resume(&mut self, now: Instant, link: &Arc<Link>, resume: &Resume) -> Admission {
        if !self.token.is(&resume.token) {
            self.account.resumes_refused += 1;
            return Admission::Close(CloseCode::AuthenticationFailed);
        }
        self.sweep(now);
        let Some(key) = self.by_id.get(&resume.session_id).copied() else {
            self.account.resumes_refused += 1;
            return Admission::InvalidSession;
        };
        let bounds = self.bounds();
        let live = self
            .sessions
            .get_mut(&key)
            .expect("invariant: every id in by_id has its session");
        let again_before = live.session.replayed_again;
        match live.session.resume(resume.seq) {
            Ok(replayed) => {
                if let Some(old) = live.link.replace(Arc::clone(link)) {
                    self.account.resumes_while_connected += 1;
                    old.control(Control::Close(CloseCode::UnknownError));
                }
                live.last_heartbeat = None;
                let trace = json!({ "_trace": ["[\"simcord\",{\"micros\":0}]"] });
                live.session.push(
                    now,
                    Item::Event(Event::new("RESUMED", Intents::NONE, &trace)),
                    bounds,
                );
                self.account.resumes += 1;
                self.account.events_replayed += replayed;
                let again = live.session.replayed_again - again_before;
                self.account.events_replayed_again += again;
                let shard = self.account.of_shard(live.session.shard);
                shard.resumes += 1;
                shard.replayed += replayed;
                shard.replayed_again += again;
                link.wake();
                Admission::Attached(key)
            }
            Err(refusal) => {
                self.account.resumes_refused += 1;
                match refusal {
                    ResumeRefusal::InvalidSeq => Admission::Close(CloseCode::InvalidSeq),
                    ResumeRefusal::Evicted => {
                        self.void(key);
                        Admission::InvalidSession
                    }
                }
            }
        }
    }

    pub(crate) fn heartbeat(
        &mut self,
        now: Instant,
        link: &Link,
        key: Option<SessionKey>,
        seq: Option<u64>,
    ) {
        self.account.heartbeats += 1;
        let Some(live) = key.and_then(|key| self.sessions.get_mut(&key)) else {
            return;
        };
        if live
            .link
            .as_ref()
            .is_none_or(|attached| attached.id != link.id)
        {
            return;
        }
        live.last_heartbeat = Some(now);
        if !live.session.heartbeat(seq) {
            self.account.heartbeats_bogus += 1;
        }
    }

    /// What the connection must write next, as whole frames. None: the session has passed to another connection,
    /// or is void.
    pub(crate) fn fetch(
        &mut self,
        link: &Link,
        key: SessionKey,
        events: usize,
        bytes: usize,
    ) -> Option<Fetched> {
        let live = self.sessions.get_mut(&key)?;
        if live
            .link
            .as_ref()
            .is_none_or(|attached| attached.id != link.id)
        {
            return None;
        }
        if live.session.fell_behind() {
            return Some(Fetched::FellBehind);
        }
        let items = live.session.take(events, bytes);
        let intents = live.session.intents;
        self.account.events_sent += items.len() as u64;
        let frames = items
            .into_iter()
            .map(|(seq, item)| match item {
                Item::Event(event) => {
                    self.account.sent_by_type.count(&event.name);
                    Frame {
                        seq,
                        body: event.body_for(intents),
                        name: event.name,
                    }
                }
                Item::GuildCreate(index) => {
                    let name = Cow::Borrowed("GUILD_CREATE");
                    self.account.sent_by_type.count(&name);
                    let event = Event::new(
                        name.clone(),
                        Intents::GUILDS,
                        &self.world.guild_create(index),
                    );
                    Frame {
                        seq,
                        name,
                        body: event.body_for(intents),
                    }
                }
            })
            .collect();
        Some(Fetched::Frames(frames))
    }

    /// Ends a session for good. What the client has not proven to have is lost.
    pub(crate) fn void(&mut self, key: SessionKey) -> Option<Arc<Link>> {
        let live = self.sessions.remove(&key)?;
        self.by_id.remove(&live.session.id);
        let shard = live.session.shard;
        if let Some(shards) = self.routes.get_mut(&shard.count) {
            shards[shard.id as usize].retain(|other| *other != key);
            if shards.iter().all(Vec::is_empty) {
                self.routes.remove(&shard.count);
            }
        }
        let missed = live.session.missed();
        self.account
            .voided(live.session.lost(), live.session.evicted, missed);
        self.account.of_shard(shard).missed += missed;
        live.link
    }

    /// Voids the sessions that nobody resumed in time and counts the interactions that nobody answered.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let expired: Vec<SessionKey> = self
            .sessions
            .iter()
            .filter_map(|(key, live)| live.session.is_expired(now).then_some(*key))
            .collect();
        for key in expired {
            self.void(key);
        }
        self.interactions.sweep(now);
    }

    pub(crate) fn sessions(&self) -> impl Iterator<Item = (SessionKey, &Live)> {
        self.sessions.iter().map(|(key, live)| (*key, live))
    }

    pub(crate) fn session_mut(&mut self, key: SessionKey) -> Option<&mut Live> {
        self.sessions.get_mut(&key)
    }

    /// Ends all sessions and makes the token invalid: what Discord does when the day's IDENTIFYs are exceeded.
    pub(crate) fn reset_token(&mut self) {
        self.token.revoke();
        self.account.tokens_reset += 1;
        let keys: Vec<SessionKey> = self.sessions.keys().copied().collect();
        for key in keys {
            if let Some(link) = self.void(key) {
                link.control(Control::Close(CloseCode::AuthenticationFailed));
            }
        }
    }

    pub(crate) fn bounds(&self) -> Bounds {
        Bounds {
            events: self.config.resume_events,
            bytes: self.config.resume_bytes,
        }
    }
}

/// An id in the form of Discord's: 32 hexadecimal digits.
fn session_id(now: Instant, key: u64) -> String {
    let mut rng = fastrand::Rng::with_seed(
        snowflake::mix(fastrand::u64(..), key) ^ now.elapsed().as_nanos() as u64,
    );
    format!("{:016x}{:016x}", rng.u64(..), rng.u64(..))
}
