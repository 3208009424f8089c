//! The hub: sessions, the world and the account, behind one lock. Nothing in here waits.
//!
//! Connections report what their clients send and fetch what they must write; REST and the admin API read and
//! change the same state. Each call takes microseconds.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::account::{Account, IdentifyRecord};
use crate::commands::Commands;
use crate::config::Config;
use crate::gateway::limits::{GUILDS_PER_SHARD_MAX, IdentifyLimits, LARGE_BOT_GUILDS, Permit};
use crate::gateway::session::{Bounds, Item, ResumeRefusal, Session};
use crate::gateway::{Body, CloseCode, Control, Event, Identify, Intents, Link, Resume, Shard};
use crate::interactions::Interactions;
use crate::rest::limits::RestLimits;
use crate::snowflake;
use crate::token::Token;
use crate::world::{Bot, GuildIndex, World, shard_of};

/// Names a session within this process.
pub(crate) type SessionKey = u64;

/// A session and the connection that serves it, if any.
#[derive(Debug)]
pub(crate) struct Live {
    pub session: Session,
    pub link: Option<Arc<Link>>,
    pub identified_at: Instant,
    pub last_heartbeat: Option<Instant>,
}

/// What goes wrong on demand.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub gateway_outage_until: Option<Instant>,
    pub rest_outage_until: Option<Instant>,
    pub rest_delay: Duration,
    pub resume_url_dead: bool,
    /// Event types that nobody gets.
    pub muted: HashSet<String>,
}

/// How fast things are generated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub events_per_second: f64,
    pub interactions_per_second: f64,
}

/// What becomes of an IDENTIFY or a RESUME.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Attached(SessionKey),
    /// Opcode 9 with `d: false`.
    InvalidSession,
    Close(CloseCode),
}

/// The addresses that clients are told.
#[derive(Debug, Clone)]
pub(crate) struct Urls {
    pub gateway: String,
    pub resume: String,
}

/// The URL told while resume URLs are dead: nothing listens on port 1.
const DEAD_URL: &str = "ws://127.0.0.1:1";

/// All state of one simulated Discord.
#[derive(Debug)]
pub(crate) struct Hub {
    pub config: Config,
    pub urls: Urls,
    pub started: Instant,
    pub world: World,
    pub account: Account,
    pub identify: IdentifyLimits,
    pub commands: Commands,
    pub interactions: Interactions,
    pub rest: RestLimits,
    pub faults: Faults,
    pub rates: Rates,
    pub recommended_shards: Option<u32>,
    pub token: Token,
    sessions: HashMap<SessionKey, Live>,
    by_id: HashMap<String, SessionKey>,
    /// Sessions by shard count and shard id.
    routes: BTreeMap<u32, Vec<Vec<SessionKey>>>,
    connections: HashMap<u64, Arc<Link>>,
    next_key: u64,
    next_event: u64,
    pub(crate) next_interaction: u64,
}

impl Hub {
    pub(crate) fn new(config: Config, urls: Urls, token: Token, now: Instant) -> Self {
        let bot = Bot {
            id: token.application_id(),
            name: "tanako".to_owned(),
        };
        Self {
            identify: IdentifyLimits::new(
                config.max_concurrency,
                config.identify_interval,
                config.identify_total_for(config.guilds),
            ),
            rates: Rates {
                events_per_second: config.events_per_second,
                interactions_per_second: config.interactions_per_second,
            },
            world: World::new(config.seed, config.guilds, bot),
            recommended_shards: config.recommended_shards,
            config,
            urls,
            started: now,
            account: Account::default(),
            commands: Commands::default(),
            interactions: Interactions::default(),
            rest: RestLimits::default(),
            faults: Faults::default(),
            token,
            sessions: HashMap::new(),
            by_id: HashMap::new(),
            routes: BTreeMap::new(),
            connections: HashMap::new(),
            next_key: 0,
            next_event: 0,
            next_interaction: 0,
        }
    }

    /// Shards that `GET /gateway/bot` recommends now.
    pub(crate) fn shards_recommended(&self) -> u32 {
        self.recommended_shards
            .unwrap_or_else(|| self.config.recommended_shards_for(self.world.guild_count()))
    }

    // Connections.

    pub(crate) fn connected(&mut self, wire: crate::server::Wire) -> Arc<Link> {
        self.next_key += 1;
        self.account.connections += 1;
        let link = Arc::new(Link::new(self.next_key, wire));
        self.connections.insert(link.id, Arc::clone(&link));
        link
    }

    /// The connection is over. With `void`, the client said that it will not come back for its session.
    pub(crate) fn disconnected(
        &mut self,
        now: Instant,
        link: &Link,
        key: Option<SessionKey>,
        void: bool,
    ) {
        self.connections.remove(&link.id);
        let Some(key) = key else { return };
        let window = self.config.resume_window;
        let Some(live) = self.sessions.get_mut(&key) else {
            return;
        };
        // Another connection may have resumed the session in the meantime.
        if live
            .link
            .as_ref()
            .is_none_or(|attached| attached.id != link.id)
        {
            return;
        }
        live.link = None;
        live.session.detach(now, window);
        if void {
            self.void(key);
        }
    }

    pub(crate) fn connections(&self) -> impl Iterator<Item = &Arc<Link>> {
        self.connections.values()
    }

    /// Whether connections to the gateway are refused at present.
    pub(crate) fn gateway_is_out(&self, now: Instant) -> bool {
        self.faults
            .gateway_outage_until
            .is_some_and(|until| now < until)
    }

    /// Whether REST requests are refused at present.
    pub(crate) fn rest_is_out(&self, now: Instant) -> bool {
        self.faults
            .rest_outage_until
            .is_some_and(|until| now < until)
    }

    // Sessions.

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
                self.account.events_replayed_again += live.session.replayed_again - again_before;
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
        self.account
            .voided(live.session.lost(), live.session.evicted);
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

    // Events.

    /// Gives an event of a guild to every session that covers it. Tells how many sessions that are.
    pub(crate) fn dispatch(&mut self, now: Instant, guild_id: u64, event: &Event) -> usize {
        if self.faults.muted.contains(event.name.as_ref()) {
            self.account.events_muted += 1;
            return 0;
        }
        let bounds = self.bounds();
        let mut covered = 0;
        for (count, shards) in &self.routes {
            for key in &shards[shard_of(guild_id, *count) as usize] {
                let Some(live) = self.sessions.get_mut(key) else {
                    continue;
                };
                covered += 1;
                if !live.session.intents.let_through(event.needs) {
                    continue;
                }
                if live.session.muted.contains(event.name.as_ref()) {
                    self.account.events_muted += 1;
                    continue;
                }
                live.session.push(now, Item::Event(event.clone()), bounds);
                if let Some(link) = &live.link {
                    link.wake();
                }
            }
        }
        if covered == 0 {
            self.account.events_unrouted += 1;
        }
        covered
    }

    /// Generates and dispatches the next event of the seed's sequence.
    pub(crate) fn generate(&mut self, now: Instant) {
        let Some(generated) = self.world.generate(self.next_event) else {
            return;
        };
        self.next_event += 1;
        self.account.events_generated += 1;
        self.account.generated_by_type.count(&generated.event.name);
        self.dispatch(now, self.world.guild_id(generated.guild), &generated.event);
    }

    /// Adds guilds; sessions that cover them get GUILD_CREATE.
    pub(crate) fn add_guilds(&mut self, now: Instant, n: u32) -> Vec<u64> {
        let added: Vec<GuildIndex> = self.world.add_guilds(n).collect();
        let mut ids = Vec::with_capacity(added.len());
        for index in added {
            let id = self.world.guild_id(index);
            let event = Event::new(
                "GUILD_CREATE",
                Intents::GUILDS,
                &self.world.guild_create(index),
            );
            self.dispatch(now, id, &event);
            ids.push(id);
        }
        ids
    }

    /// Removes a guild; sessions that cover it get GUILD_DELETE. False when the bot was not in it.
    pub(crate) fn remove_guild(&mut self, now: Instant, id: u64) -> bool {
        let Some(index) = self.world.guild_index(id) else {
            return false;
        };
        self.world.remove_guild(index);
        let event = Event::new(
            "GUILD_DELETE",
            Intents::GUILDS,
            &json!({ "id": id.to_string() }),
        );
        self.dispatch(now, id, &event);
        true
    }
}

/// GATEWAY_PRESENCE, GATEWAY_GUILD_MEMBERS, GATEWAY_MESSAGE_CONTENT and APPLICATION_COMMAND_BADGE.
pub(crate) const APPLICATION_FLAGS: u64 = 1 << 12 | 1 << 14 | 1 << 18 | 1 << 23;

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

/// An id in the form of Discord's: 32 hexadecimal digits.
fn session_id(now: Instant, key: u64) -> String {
    let mut rng = fastrand::Rng::with_seed(
        snowflake::mix(fastrand::u64(..), key) ^ now.elapsed().as_nanos() as u64,
    );
    format!("{:016x}{:016x}", rng.u64(..), rng.u64(..))
}
