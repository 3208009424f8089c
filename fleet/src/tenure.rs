//! How long this host may own processes: one host's tenure, pure.
//!
//! ```text
//!            Begin, taken             until is past              killed
//!  Vacant ───────────────► Tenured ─────────────────► Stopping ─────────► Vacant
//!                           │   ▲ ended in the store, and nobody
//!                           └───┘ has ended it for good: Reclaim
//! ```
//!
//! A host owns processes while it is *tenured*: while its own clock is before [`Tenure::until`]. Two things
//! move that moment on.
//!
//! - **The lease.** A renewal that the store answered holds for the lease's life from when it was *sent*,
//!   less a margin. It may go to the store directly or through a peer.
//! - **Staying** (a store outage stops no shard). Past the lease a host goes on while it hears, again and
//!   again, from so many tenured peers that they are cut off from the store too that the coordinator, who
//!   may move the processes of few hosts at once, cannot be about to move this one's. How many that takes
//!   ([`Terms::stay`]) is stored beside the lease; the coordinator goes by what is stored.
//!
//! Why nobody else can own the processes meanwhile: [`crate::failover`].
//!
//! Times are milliseconds of a clock that goes on while the process or the machine sleeps
//! (CLOCK_BOOTTIME). Clocks of hosts are never compared, only spans.

mod standing;

use std::collections::{BTreeMap, VecDeque};

pub use standing::{Span, Standing};

/// Contacts remembered: more than fit into the longest span that anybody asks about.
const CONTACTS_MAX: usize = 16;
/// Peers whose statements are kept.
const PEERS_MAX: usize = 4096;

/// What the coordinator has to know of a tenure once it cannot ask; stored with the host's record.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Terms {
    /// Random name of this tenure.
    pub instance: String,
    /// Life of the lease.
    pub ttl_ms: u64,
    /// Tenured peers that must be cut off from the store for this host to go on without its lease; 0 =
    /// it goes on whatever they say, so that only an operator's word moves its processes.
    pub stay: u32,
    /// The coordinator has ended this tenure for good: the processes may be another host's.
    pub released: bool,
}

/// The spans that follow from the life of a lease, in milliseconds. All hosts compute them alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spans {
    /// Life of the lease, in the store.
    pub ttl: u64,
    /// By how much a host stops before its lease can end.
    pub margin: u64,
    /// Between two renewals.
    pub renew: u64,
    /// Pause after a renewal that failed.
    pub retry: u64,
    /// A renewal that is not answered within this time counts as failed.
    pub patience: u64,
    /// Silence of the store after which peers are asked to relay.
    pub relay_after: u64,
    /// Silence of the store after which peers are asked how they stand.
    pub ask_after: u64,
    /// Between two rounds of asking.
    pub ask: u64,
    /// Silence of the store after which a host says that it is cut off.
    pub cut: u64,
    /// How long a peer's statement carries, from when it was asked.
    pub statement: u64,
    /// The same as the coordinator reckons: later than any host acts on a statement.
    pub statement_max: u64,
}

impl Spans {
    /// For leases of that life.
    pub fn of(ttl_ms: u64) -> Self {
        let ttl = ttl_ms.max(1_000);
        Self {
            ttl,
            margin: ttl / 10,
            renew: ttl / 10,
            retry: (ttl / 25).min(200),
            patience: ttl / 5,
            relay_after: ttl / 4,
            ask_after: ttl * 2 / 5,
            ask: ttl * 2 / 25,
            cut: ttl * 3 / 5,
            statement: ttl / 3,
            statement_max: ttl * 2 / 5,
        }
    }
}

/// How a renewal goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// From here to the store.
    Direct,
    /// Through a peer.
    Relayed,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Only time.
    Tick,
    /// A tenure was begun or reclaimed: the store has the key, bound to `lease`, which was asked for at
    /// `sent_at`. `stay` is stored with it.
    Began {
        /// The lease.
        lease: u64,
        /// When the lease was asked for.
        sent_at: u64,
        /// [`Terms::stay`] as stored.
        stay: u32,
    },
    /// It could not be begun now: the store is away, or the key of the last tenure is still there.
    NotBegan,
    /// It cannot be reclaimed: the coordinator has ended it for good.
    Released,
    /// A renewal was answered.
    Renewed {
        /// Of which lease.
        lease: u64,
        /// How it went.
        way: Way,
        /// When it was sent.
        sent_at: u64,
    },
    /// A renewal was not answered, or with an error.
    NotRenewed {
        /// Of which lease.
        lease: u64,
        /// How it went.
        way: Way,
    },
    /// The store says that there is no such lease.
    Ended {
        /// Which.
        lease: u64,
    },
    /// A tenured peer, asked at `asked_at`, said that it is cut off from the store.
    Cut {
        /// Who.
        peer: String,
        /// When it was asked.
        asked_at: u64,
    },
    /// How many cut-off peers the fleet's size asks for now.
    Stay(u32),
    /// [`Terms::stay`] was stored.
    Stored(u32),
    /// It was not, or nobody knows.
    NotStored,
    /// Every process that [`Effect::Stop`] meant is gone.
    Stopped,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Begin a tenure of a new name: needs the key to be absent.
    Begin,
    /// Take the key again under the same name: needs it to be absent and the tenure not released.
    Reclaim,
    /// Prolong the lease.
    Renew {
        /// Which.
        lease: u64,
        /// How.
        way: Way,
    },
    /// Ask the peers how they stand.
    Ask,
    /// Write [`Terms::stay`].
    Store(u32),
    /// Kill every process that only the owner may run, at once.
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Vacant,
    Tenured,
    Stopping,
}

/// One host's tenure.
#[derive(Debug, Clone)]
pub struct Tenure {
    spans: Spans,
    phase: Phase,
    lease: Option<u64>,
    /// Until when the lease carries; 0 = it does not.
    lease_until: u64,
    /// When answers of the store were taken in, oldest first. Those that came late do not count: they say
    /// little about now, and a host that has been told so for long must be able to say that it is cut off.
    contacts: VecDeque<u64>,
    /// The same of the latest, or when this began to look: what was before is not known.
    heard_at: u64,
    /// When each peer that said that it is cut off was asked, latest.
    cut: BTreeMap<String, u64>,
    /// What this host goes by: never less than what is stored.
    stay: u32,
    stored: u32,
    wanted: u32,
    storing: bool,
    /// Renewals under way, by way: when they were sent.
    renewing: BTreeMap<Way, u64>,
    /// Not before.
    next: BTreeMap<Way, u64>,
    next_ask: u64,
    /// A beginning or reclaiming is under way since.
    beginning: Option<u64>,
    next_begin: u64,
}

impl Tenure {
    /// A host that owns nothing yet.
    pub fn new(ttl_ms: u64, now: u64) -> Self {
        Self {
            spans: Spans::of(ttl_ms),
            phase: Phase::Vacant,
            lease: None,
            lease_until: 0,
            contacts: VecDeque::new(),
            heard_at: now,
            cut: BTreeMap::new(),
            stay: 0,
            stored: 0,
            wanted: 0,
            storing: false,
            renewing: BTreeMap::new(),
            next: BTreeMap::new(),
            next_ask: 0,
            beginning: None,
            next_begin: now,
        }
    }

    /// The tenure of this host's last agent, which wrote down that it owns its processes until `until`.
    /// One that is past ends with [`Effect::Stop`] at the first step.
    pub fn adopted(ttl_ms: u64, now: u64, lease: u64, until: u64, stay: u32) -> Self {
        Self {
            phase: Phase::Tenured,
            lease: Some(lease),
            lease_until: until,
            stay,
            stored: stay,
            wanted: stay,
            ..Self::new(ttl_ms, now)
        }
    }

    /// The spans it goes by.
    pub fn spans(&self) -> Spans {
        self.spans
    }

    /// Until when this host owns what it runs; 0 = it owns nothing. A process must not act past this.
    pub fn until(&self, now: u64) -> u64 {
        match self.phase {
            Phase::Tenured => self.lease_until.max(self.stay_until(now)),
            Phase::Vacant | Phase::Stopping => 0,
        }
    }

    /// Whether it may start and keep processes now.
    pub fn is_tenured(&self, now: u64) -> bool {
        now < self.until(now)
    }

    /// Whether it goes on without its lease.
    pub fn is_staying(&self, now: u64) -> bool {
        self.is_tenured(now) && now >= self.lease_until
    }

    /// Whether the store has answered within the time that a renewal may take.
    pub fn hears_store(&self, now: u64) -> bool {
        self.contacts
            .back()
            .is_some_and(|at| now.saturating_sub(*at) < self.spans.relay_after)
    }

    /// The lease, while there is one.
    pub fn lease(&self) -> Option<u64> {
        self.lease
    }

    /// What is to be stored as [`Terms::stay`] with a new tenure.
    pub fn stay(&self) -> u32 {
        self.stay.max(self.wanted)
    }

    /// What a peer is told.
    pub fn standing(&self, now: u64) -> Standing {
        let tenured = self.is_tenured(now);
        Standing {
            tenured,
            cut: tenured && now.saturating_sub(self.heard_at) >= self.spans.cut,
            contact_ages: self
                .contacts
                .iter()
                .map(|at| now.saturating_sub(*at))
                .collect(),
        }
    }

    /// When [`Input::Tick`] is due; `None` = nothing happens by time alone.
    pub fn deadline(&self, now: u64) -> Option<u64> {
        match self.phase {
            Phase::Vacant => Some(match self.beginning {
                Some(since) => since + self.spans.ttl,
                None => self.next_begin,
            }),
            Phase::Stopping => None,
            Phase::Tenured => {
                let mut at = self.until(now);
                if self.lease.is_some() {
                    at = at.min(self.due(Way::Direct));
                    if self.silent_for(now) >= self.spans.relay_after {
                        at = at.min(self.due(Way::Relayed));
                    } else {
                        at = at.min(self.heard_at + self.spans.relay_after);
                    }
                } else {
                    at = at.min(match self.beginning {
                        Some(since) => since + self.spans.patience,
                        None => self.next_begin,
                    });
                }
                Some(at.min(self.next_ask.max(self.heard_at + self.spans.ask_after)))
            }
        }
    }

    /// Takes in what has happened.
    pub fn step(&mut self, now: u64, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        // An answered renewal was true when it was sent, however late it is looked at.
        if let Input::Renewed {
            lease,
            way,
            sent_at,
        } = input
        {
            self.renewed(now, lease, way, sent_at);
            self.check(now, &mut effects);
        } else {
            self.check(now, &mut effects);
            self.take(now, input, &mut effects);
            self.check(now, &mut effects);
        }
        self.act(now, &mut effects);
        effects
    }

    fn renewed(&mut self, now: u64, lease: u64, way: Way, sent_at: u64) {
        self.renewing.remove(&way);
        if self.phase != Phase::Tenured || self.lease != Some(lease) || sent_at > now {
            return;
        }
        if now - sent_at <= self.spans.patience {
            self.heard(now);
        }
        let carries = sent_at + self.spans.ttl - self.spans.margin;
        self.lease_until = self.lease_until.max(carries);
        self.next.insert(Way::Direct, sent_at + self.spans.renew);
        self.next.insert(Way::Relayed, sent_at + self.spans.renew);
    }

    fn take(&mut self, now: u64, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Tick | Input::Renewed { .. } => {}
            Input::Began {
                lease,
                sent_at,
                stay,
            } => self.began(now, lease, sent_at, stay),
            Input::NotBegan => {
                self.beginning = None;
                self.next_begin = now + self.spans.retry;
            }
            Input::Released => {
                self.beginning = None;
                self.next_begin = now + self.spans.retry;
                if self.phase == Phase::Tenured && self.lease.is_none() {
                    self.stop(effects);
                }
            }
            Input::NotRenewed { lease, way } => {
                if self.lease == Some(lease) {
                    self.renewing.remove(&way);
                    self.next.insert(way, now + self.spans.retry);
                }
            }
            Input::Ended { lease } => {
                if self.phase == Phase::Tenured && self.lease == Some(lease) {
                    // The store answers, but what it says is that nothing carries any more.
                    self.lease = None;
                    self.lease_until = 0;
                    self.renewing.clear();
                    self.beginning = None;
                    self.next_begin = now;
                }
            }
            Input::Cut { peer, asked_at } => {
                if self.phase == Phase::Tenured
                    && asked_at <= now
                    && (self.cut.len() < PEERS_MAX || self.cut.contains_key(&peer))
                {
                    let known = self.cut.entry(peer).or_default();
                    *known = (*known).max(asked_at);
                }
            }
            Input::Stay(wanted) => {
                self.wanted = wanted;
                // More is asked for at once, less only once that is stored.
                self.stay = self.stay.max(wanted);
            }
            Input::Stored(stay) => {
                self.storing = false;
                self.stored = stay;
                self.stay = stay.max(self.wanted);
            }
            Input::NotStored => self.storing = false,
            Input::Stopped => {
                if self.phase == Phase::Stopping {
                    self.phase = Phase::Vacant;
                    self.next_begin = now;
                }
            }
        }
    }

    fn began(&mut self, now: u64, lease: u64, sent_at: u64, stay: u32) {
        // Only the answer to the latest beginning: an older one is of a name that is no more.
        let asked = self.beginning.take().is_some_and(|since| sent_at >= since);
        let reclaimed = self.phase == Phase::Tenured && self.lease.is_none();
        if !asked || sent_at > now || self.phase != Phase::Vacant && !reclaimed {
            // Its lease ends by itself, and the next beginning waits for that.
            self.next_begin = self.next_begin.max(now + self.spans.retry);
            return;
        }
        if self.phase == Phase::Vacant {
            self.cut.clear();
            self.stay = stay.max(self.wanted);
        }
        self.stay = self.stay.max(stay);
        self.stored = stay;
        self.storing = false;
        self.phase = Phase::Tenured;
        self.lease = Some(lease);
        self.lease_until = sent_at + self.spans.ttl - self.spans.margin;
        self.heard(now);
        self.renewing.clear();
        self.next = BTreeMap::from([
            (Way::Direct, sent_at + self.spans.renew),
            (Way::Relayed, sent_at + self.spans.renew),
        ]);
    }

    fn heard(&mut self, now: u64) {
        self.heard_at = self.heard_at.max(now);
        if self.contacts.back() != Some(&now) {
            self.contacts.push_back(now);
        }
        while self.contacts.len() > CONTACTS_MAX {
            self.contacts.pop_front();
        }
    }

    /// Ends the tenure when its time is over.
    fn check(&mut self, now: u64, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Tenured && now >= self.until(now) {
            self.stop(effects);
        }
    }

    fn stop(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::Stopping;
        self.lease = None;
        self.lease_until = 0;
        self.cut.clear();
        self.renewing.clear();
        self.next.clear();
        self.beginning = None;
        effects.push(Effect::Stop);
    }

    fn act(&mut self, now: u64, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Stopping => {}
            Phase::Vacant => self.begin(now, self.spans.ttl, Effect::Begin, effects),
            Phase::Tenured => {
                if self.lease.is_none() {
                    self.begin(now, self.spans.patience, Effect::Reclaim, effects);
                }
                self.renew(now, Way::Direct, effects);
                if self.silent_for(now) >= self.spans.relay_after {
                    self.renew(now, Way::Relayed, effects);
                }
                if self.silent_for(now) >= self.spans.ask_after && now >= self.next_ask {
                    self.next_ask = now + self.spans.ask;
                    effects.push(Effect::Ask);
                }
                if self.wanted != self.stored && !self.storing && self.hears_store(now) {
                    self.storing = true;
                    effects.push(Effect::Store(self.wanted));
                }
            }
        }
    }

    fn begin(&mut self, now: u64, patience: u64, effect: Effect, effects: &mut Vec<Effect>) {
        if self.beginning.is_some_and(|since| now < since + patience) || now < self.next_begin {
            return;
        }
        self.beginning = Some(now);
        effects.push(effect);
    }

    fn renew(&mut self, now: u64, way: Way, effects: &mut Vec<Effect>) {
        let Some(lease) = self.lease else { return };
        if now >= self.due(way) {
            self.renewing.insert(way, now);
            effects.push(Effect::Renew { lease, way });
        }
    }

    /// When the next renewal of that way is to be sent.
    fn due(&self, way: Way) -> u64 {
        match self.renewing.get(&way) {
            Some(sent) => sent + self.spans.patience,
            None => self.next.get(&way).copied().unwrap_or(0),
        }
    }

    fn silent_for(&self, now: u64) -> u64 {
        now.saturating_sub(self.heard_at)
    }

    /// Until when what the peers have said carries.
    fn stay_until(&self, now: u64) -> u64 {
        let Some(nth) = (self.stay as usize).checked_sub(1) else {
            return now + self.spans.ttl - self.spans.margin;
        };
        let mut asked: Vec<u64> = self.cut.values().copied().collect();
        asked.sort_unstable_by(|a, b| b.cmp(a));
        asked.get(nth).map_or(0, |at| at + self.spans.statement)
    }
}

#[cfg(test)]
mod tests;
