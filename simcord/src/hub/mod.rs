//! The hub: sessions, the world and the account, behind one lock. Nothing in here waits.
//!
//! Connections report what their clients send and fetch what they must write; REST and the admin API read and
//! change the same state. Each call takes microseconds.

mod events;
mod invoke;
mod members;
mod sessions;

pub(crate) use invoke::Request;
pub(crate) use sessions::{Admission, Fetched, Frame};

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::account::Account;
use crate::commands::Commands;
use crate::config::Config;
use crate::gateway::Link;
use crate::gateway::limits::IdentifyLimits;
use crate::gateway::session::Session;
use crate::interactions::Interactions;
use crate::rest::limits::RestLimits;
use crate::server::Wire;
use crate::token::Token;
use crate::world::{Bot, World};

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

/// The addresses that clients are told.
#[derive(Debug, Clone)]
pub(crate) struct Urls {
    pub gateway: String,
    pub resume: String,
}

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
    next_interaction: u64,
}

impl Hub {
    pub(crate) fn new(config: Config, urls: Urls, token: Token, now: Instant) -> Self {
        let answer_within = config.answer_within;
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
            interactions: Interactions::new(answer_within),
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

    pub(crate) fn connected(&mut self, wire: Wire) -> Arc<Link> {
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
}

/// GATEWAY_PRESENCE, GATEWAY_GUILD_MEMBERS, GATEWAY_MESSAGE_CONTENT and APPLICATION_COMMAND_BADGE.
pub(crate) const APPLICATION_FLAGS: u64 = 1 << 12 | 1 << 14 | 1 << 18 | 1 << 23;
