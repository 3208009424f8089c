//! The fleet as its hosts tell it: one table of what each said last; pure.
//!
//! ```text
//!            needed, or a small fleet        heard of
//!   Idle ───────────────────────► Waiting ───────────► Live ◄──┐
//!    ▲                              │                   │      │ heard of again
//!    │ nobody needs it any more     └── silent ──► Silent ◄────┘ silent
//!    └── (from any state; what it said is forgotten)
//! ```
//!
//! A host's updates belong to a *life* of the connection to it: each begins with a snapshot, and what
//! comes of an earlier life, or of an earlier revision, is stale. A host that is silent keeps what it
//! said last. A process that two hosts tell of (it moves, or its host was lost) is shown once: where it
//! lives.
//!
//! Nothing is composed anew for one change: each row carries the number of the change that touched it
//! last, and a reader asks for what is newer than what it has (`show`).

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tanako_proto::{
    fleet::v1 as wire,
    host::v1::{FleetPart, HostUpdate},
};

use super::{
    Figures,
    rows::{Holders, Row},
};

/// A host that says nothing for so long is unreachable; it gives a sign of life each second.
pub const SILENT_AFTER: Duration = Duration::from_secs(4);
/// A fleet of at most so many hosts is always followed: then any agent knows what a host that is lost
/// said last.
pub const ALWAYS_MAX: usize = 8;
/// How often silence is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A live host is told anew at least this often, for the time at which it was seen.
const SEEN_EVERY_MS: i64 = 5_000;
/// Events kept for readers of changes; older ones are in the hosts' histories.
const EVENTS_MAX: usize = 1_024;
/// Removals kept for readers of changes; who is further behind gets a new snapshot.
const REMOVALS_MAX: usize = 16_384;

/// Longest reason kept why a host cannot be heard.
const WHY_MAX: usize = 200;

/// The time, twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Of a clock that never jumps.
    pub steady: Duration,
    /// Milliseconds since 1970.
    pub unix_ms: i64,
}

/// What the store says of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Where its agent listens.
    pub address: String,
    /// It gets nothing new.
    pub cordoned: bool,
    /// What it has goes elsewhere.
    pub draining: bool,
    /// Whether it holds its lease; `None` = not known.
    pub leased: Option<bool>,
}

/// What happens to the view.
#[derive(Debug, Clone)]
pub enum Input {
    /// The hosts of the fleet; others have left it.
    Hosts(BTreeMap<String, Known>),
    /// A host said something, in this life of the connection to it.
    Heard {
        /// The host.
        host: String,
        /// Rises with each connection.
        life: u64,
        /// What it said.
        update: Box<HostUpdate>,
    },
    /// A connection ended or could not be made.
    Lost {
        /// The host.
        host: String,
        /// As in [`Input::Heard`].
        life: u64,
        /// Why.
        why: String,
    },
    /// Somebody reads until then.
    Needed {
        /// On the steady clock.
        until: Duration,
    },
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Connect to this host and go on trying.
    Follow {
        /// The host.
        host: String,
    },
    /// Stop that.
    Leave {
        /// The host.
        host: String,
    },
    /// It said what cannot follow from what is known of it: connect anew.
    Renew {
        /// The host.
        host: String,
    },
}

/// Whether a host is heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Nobody asks it.
    Idle,
    /// Nothing has come yet.
    Waiting {
        since: Duration,
    },
    Live {
        heard: Duration,
    },
    /// It said nothing for too long.
    Silent,
}

/// A host and all that it said last.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) known: Known,
    pub(super) said: wire::Host,
    pub(super) reach: Reach,
    /// When it was heard of last, in milliseconds since 1970; 0 = never.
    pub(super) heard_at: i64,
    pub(super) rows: BTreeMap<Arc<str>, Row>,
    pub(super) reasons: Vec<String>,
    /// Why it cannot be heard, since the last failure.
    pub(super) why: String,
    /// The change that touched the host itself last, and any of its rows.
    pub(super) changed: u64,
    pub(super) rows_changed: u64,
    /// Connection, and whether its snapshot has come.
    life: u64,
    synced: bool,
    revision: u64,
    event: u64,
    shown_at: i64,
}

impl Host {
    fn new(known: Known) -> Self {
        Self {
            known,
            said: wire::Host::default(),
            reach: Reach::Idle,
            heard_at: 0,
            rows: BTreeMap::new(),
            reasons: Vec::new(),
            why: String::new(),
            changed: 0,
            rows_changed: 0,
            life: 0,
            synced: false,
            revision: 0,
            event: 0,
            shown_at: 0,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.reach, Reach::Live { .. })
    }

    /// Whether it is silent, or could not be reached when it was asked for the first time.
    pub(super) fn is_lost(&self) -> bool {
        match self.reach {
            Reach::Silent => true,
            Reach::Waiting { .. } => !self.why.is_empty(),
            Reach::Idle | Reach::Live { .. } => false,
        }
    }

    /// Whether it could answer, and has not done so yet.
    pub(super) fn is_awaited(&self) -> bool {
        matches!(self.reach, Reach::Waiting { .. })
            && !self.is_lost()
            && self.known.leased != Some(false)
    }
}

/// The latest of something that goes away one day, with the changes that made it.
#[derive(Debug)]
pub(super) struct Ring<T> {
    pub(super) kept: VecDeque<(u64, T)>,
    max: usize,
    /// The latest change that is not here any more.
    pub(super) forgotten: u64,
}

impl<T> Ring<T> {
    fn new(max: usize) -> Self {
        Self {
            kept: VecDeque::new(),
            max,
            forgotten: 0,
        }
    }

    pub(super) fn push(&mut self, change: u64, item: T) {
        if self.kept.len() >= self.max
            && let Some((change, _)) = self.kept.pop_front()
        {
            self.forgotten = change;
        }
        self.kept.push_back((change, item));
    }

    pub(super) fn since(&self, change: u64) -> impl Iterator<Item = &T> {
        let from = self.kept.partition_point(|(at, _)| *at <= change);
        self.kept.range(from..).map(|(_, item)| item)
    }
}

/// What only the coordinator tells.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) said: FleetPart,
    pub(super) from: String,
    pub(super) operations: BTreeMap<String, (u64, wire::Operation)>,
    pub(super) identify_changed: u64,
    life: u64,
}

/// The view.
#[derive(Debug)]
pub struct Core {
    pub(super) own: Arc<str>,
    pub(super) hosts: BTreeMap<Arc<str>, Host>,
    pub(super) part: Part,
    pub(super) events: Ring<wire::Event>,
    pub(super) removed: Ring<Arc<str>>,
    pub(super) removed_hosts: Ring<Arc<str>>,
    /// Number of the latest change.
    pub(super) change: u64,
    pub(super) holders: HashMap<Arc<str>, Holders>,
    /// Processes that more than one host tells of.
    pub(super) shared: usize,
    pub(super) urgent: u64,
    stale: u64,
    needed_until: Duration,
    look_at: Duration,
}

impl Core {
    /// Knows of no host but its own.
    pub fn new(own: &str, now: Now) -> Self {
        let own: Arc<str> = own.into();
        let mut host = Host::new(Known::default());
        // Never silent: this agent speaks for itself.
        host.reach = Reach::Waiting {
            since: Duration::MAX,
        };
        Self {
            hosts: BTreeMap::from([(own.clone(), host)]),
            own,
            part: Part::default(),
            events: Ring::new(EVENTS_MAX),
            removed: Ring::new(REMOVALS_MAX),
            removed_hosts: Ring::new(REMOVALS_MAX),
            change: 1,
            holders: HashMap::new(),
            shared: 0,
            urgent: 1,
            stale: 0,
            needed_until: now.steady,
            look_at: now.steady + LOOK_EVERY,
        }
    }

    /// Number of the latest change.
    pub fn change(&self) -> u64 {
        self.change
    }

    /// Number of the latest change that a reader wants to hear of at once.
    pub fn urgent(&self) -> u64 {
        self.urgent
    }

    /// Updates that came too late or twice and changed nothing.
    pub fn stale(&self) -> u64 {
        self.stale
    }

    /// When [`Input::Tick`] is due.
    pub fn deadline(&self) -> Duration {
        self.look_at
    }

    /// Whether each host that could answer has done so.
    pub fn is_settled(&self) -> bool {
        !self.hosts.values().any(Host::is_awaited)
    }

    /// Takes in what happened.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        match input {
            Input::Hosts(known) => self.set_hosts(now, known),
            Input::Heard { host, life, update } => return self.heard(now, &host, life, *update),
            Input::Lost { host, life, why } => self.lost(&host, life, why),
            Input::Needed { until } => self.needed_until = self.needed_until.max(until),
            Input::Tick => {}
        }
        if now.steady >= self.look_at {
            self.look_at = now.steady + LOOK_EVERY;
            self.find_silent(now);
        }
        self.choose(now)
    }

    fn set_hosts(&mut self, now: Now, known: BTreeMap<String, Known>) {
        let gone: Vec<Arc<str>> = self
            .hosts
            .keys()
            .filter(|name| **name != self.own && !known.contains_key(&***name))
            .cloned()
            .collect();
        for name in gone {
            self.forget_rows(&name);
            self.hosts.remove(&name);
            self.touch();
            self.removed_hosts.push(self.change, name);
        }
        for (name, known) in known {
            let name: Arc<str> = name.into();
            if self.hosts.get(&name).is_some_and(|h| h.known == known) {
                continue;
            }
            let change = self.touch();
            let host = self
                .hosts
                .entry(name)
                .or_insert_with(|| Host::new(known.clone()));
            host.known = known;
            host.changed = change;
            host.shown_at = now.unix_ms;
        }
    }

    /// Numbers a change that a reader wants to hear of at once.
    pub(super) fn touch(&mut self) -> u64 {
        self.change += 1;
        self.urgent = self.change;
        self.change
    }

    /// Whom to ask: everybody while somebody reads.
    fn choose(&mut self, now: Now) -> Vec<Effect> {
        let wanted = now.steady < self.needed_until || self.hosts.len() <= ALWAYS_MAX;
        let mut effects = Vec::new();
        let mut left = Vec::new();
        for (name, host) in &mut self.hosts {
            if *name == self.own {
                continue;
            }
            match (wanted, host.reach) {
                (true, Reach::Idle) => {
                    host.reach = Reach::Waiting { since: now.steady };
                    effects.push(Effect::Follow {
                        host: name.to_string(),
                    });
                }
                (false, Reach::Waiting { .. } | Reach::Live { .. } | Reach::Silent) => {
                    host.reach = Reach::Idle;
                    host.synced = false;
                    left.push(name.clone());
                    effects.push(Effect::Leave {
                        host: name.to_string(),
                    });
                }
                _ => {}
            }
        }
        for name in left {
            self.forget_rows(&name);
        }
        effects
    }

    fn find_silent(&mut self, now: Now) {
        let mut silent = Vec::new();
        for (name, host) in &mut self.hosts {
            let since = match host.reach {
                _ if *name == self.own => continue,
                Reach::Waiting { since } => since,
                Reach::Live { heard } => heard,
                Reach::Idle | Reach::Silent => continue,
            };
            if now.steady.saturating_sub(since) >= SILENT_AFTER {
                host.reach = Reach::Silent;
                silent.push(name.clone());
            }
        }
        for name in silent {
            self.reach_changed(&name);
        }
    }

    /// Shows that a host was lost or is back, and its processes where they are now.
    fn reach_changed(&mut self, name: &Arc<str>) {
        let change = self.touch();
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        host.changed = change;
        let shared: Vec<Arc<str>> = host
            .rows
            .keys()
            .filter(|row| {
                self.holders
                    .get(*row)
                    .is_some_and(|holders| !holders.others.is_empty())
            })
            .cloned()
            .collect();
        for row in shared {
            self.settle(&row);
        }
    }

    fn lost(&mut self, name: &str, life: u64, mut why: String) {
        let Some(host) = self.hosts.get_mut(name).filter(|host| life >= host.life) else {
            self.stale += 1;
            return;
        };
        host.life = life;
        host.synced = false;
        why.truncate(why.floor_char_boundary(WHY_MAX));
        if host.why == why {
            return;
        }
        host.why = why;
        // It is said of a host that is lost.
        if host.is_lost() {
            let change = self.touch();
            if let Some(host) = self.hosts.get_mut(name) {
                host.changed = change;
            }
        }
    }

    fn heard(&mut self, now: Now, name: &str, life: u64, update: HostUpdate) -> Vec<Effect> {
        let Some((name, host)) = self.hosts.get_key_value(name) else {
            self.stale += 1;
            return Vec::new();
        };
        let name = name.clone();
        let stale = life < host.life
            || host.reach == Reach::Idle
            || (life == host.life && host.synced && update.revision < host.revision);
        if stale {
            self.stale += 1;
            return Vec::new();
        }
        let unknown = !update.snapshot && (life > host.life || !host.synced);
        if unknown {
            self.stale += 1;
            return vec![Effect::Renew {
                host: name.to_string(),
            }];
        }
        self.apply(now, &name, life, update);
        Vec::new()
    }

    fn apply(&mut self, now: Now, name: &Arc<str>, life: u64, update: HostUpdate) {
        self.change += 1;
        let change = self.change;
        let HostUpdate {
            revision,
            snapshot,
            host: said,
            processes,
            removed,
            events,
            reasons,
            fleet,
            ..
        } = update;
        let host = self.hosts.get_mut(name).expect("invariant: found above");
        let back = !host.is_live();
        host.life = life;
        host.synced = true;
        host.why.clear();
        host.revision = revision;
        host.reach = Reach::Live { heard: now.steady };
        host.heard_at = now.unix_ms;
        if said.is_some() || now.unix_ms - host.shown_at >= SEEN_EVERY_MS {
            host.changed = change;
            host.shown_at = now.unix_ms;
        }
        if let Some(said) = said {
            host.said = said;
        }
        let reasons = reasons
            .map(|reasons| reasons.lines)
            .or(snapshot.then(Vec::new));
        if let Some(reasons) = reasons
            && host.reasons != reasons
        {
            host.reasons = reasons;
            self.urgent = change;
        }
        let mut gone: Vec<Arc<str>> = removed.iter().map(|name| name.as_str().into()).collect();
        if snapshot {
            let said: std::collections::HashSet<&str> = processes
                .iter()
                .filter_map(|process| process.view.as_ref())
                .map(|view| view.name.as_str())
                .collect();
            gone.extend(
                host.rows
                    .keys()
                    .filter(|row| !said.contains(&***row))
                    .cloned(),
            );
        }
        for row in gone {
            self.remove_row(name, &row);
        }
        for process in processes {
            if let Some(view) = process.view {
                self.set_row(name, view, snapshot);
            }
        }
        self.add_events(name, events);
        if let Some(part) = fleet {
            self.set_part(name, life, part);
        }
        if back {
            self.reach_changed(name);
        }
    }

    fn add_events(&mut self, name: &Arc<str>, events: Vec<wire::Event>) {
        for mut event in events {
            let host = self.hosts.get_mut(name).expect("invariant: found above");
            // Ids of a host rise, over its agent's lives too.
            if event.id <= host.event {
                continue;
            }
            host.event = event.id;
            event.host = name.to_string();
            self.urgent = self.change;
            self.events.push(self.change, event);
        }
    }

    /// What the coordinator says holds until one of a later office says something.
    fn set_part(&mut self, name: &Arc<str>, life: u64, mut said: FleetPart) {
        let change = self.change;
        let part = &mut self.part;
        if said.epoch < part.said.epoch {
            self.stale += 1;
            return;
        }
        let goes_on = said.epoch == part.said.epoch && part.from == **name && part.life == life;
        if !goes_on {
            part.operations.clear();
        }
        for operation in std::mem::take(&mut said.operations) {
            let known = part.operations.get(&operation.id);
            // An answer overtaken by a later report must not turn the operation back.
            if known.is_none_or(|(_, known)| known.updated_at <= operation.updated_at) {
                part.operations
                    .insert(operation.id.clone(), (change, operation));
            }
        }
        let ids = std::mem::take(&mut said.operation_ids);
        part.operations.retain(|id, _| ids.contains(id));
        if part.said.identify != said.identify {
            part.identify_changed = change;
        }
        part.said = said;
        part.from = name.to_string();
        part.life = life;
        self.urgent = change;
    }

    /// What is counted of all that.
    pub fn figures(&self, now: Now) -> Figures {
        let mut figures = Figures {
            processes: self.len() as u64,
            stale: self.stale,
            ..Figures::default()
        };
        for (_, host) in self.hosts.iter().filter(|(name, _)| **name != self.own) {
            match host.reach {
                Reach::Idle => {}
                Reach::Waiting { .. } | Reach::Silent => figures.silent += 1,
                Reach::Live { heard } => {
                    figures.live += 1;
                    figures.lag = figures.lag.max(now.steady.saturating_sub(heard));
                }
            }
        }
        figures
    }
}
