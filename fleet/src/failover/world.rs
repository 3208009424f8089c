//! A small fleet: real tenures and the real failover against a model of the store, with cuts, freezes,
//! drifting clocks, late and repeated messages, and changes of the store's leader. That no process has two
//! owners is asserted at every step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Answer, Effect, Failover, Input, Member, SHARE, brake_limit};
use crate::tenure::{self, Standing, Tenure, Terms, Way};

/// Life of a lease, in milliseconds.
pub(super) const TTL: u64 = 5_000;

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.roll(100) < percent
    }
}

pub(super) struct Host {
    pub(super) tenure: Tenure,
    pub(super) instance: String,
    begun: u32,
    clock_offset: u64,
    /// Parts per thousand by which its clock goes faster or slower.
    drift: i64,
    pub(super) frozen: bool,
    /// What its processes were told last: until when they may act.
    published: u64,
    lapses: u32,
}

#[derive(Clone)]
enum Request {
    Begin {
        instance: String,
        stay: u32,
        reclaim: bool,
    },
    Renew {
        lease: u64,
        way: Way,
    },
    Store {
        instance: String,
        stay: u32,
    },
}

#[derive(Clone)]
enum Mail {
    /// To the store, from a host (through another).
    Ask {
        from: usize,
        via: Option<usize>,
        sent_at: u64,
        request: Request,
    },
    /// To a host.
    Input {
        to: usize,
        input: tenure::Input,
    },
    Standing {
        to: usize,
        from: usize,
        asked_at: u64,
    },
    Stands {
        to: usize,
        from: usize,
        asked_at: u64,
        standing: Standing,
    },
    /// Of the coordinator's look.
    LookStart {
        began_at: u64,
    },
    LookAnswer {
        number: u64,
        from: usize,
        asked_at: u64,
        standing: Standing,
    },
    LookEnd {
        number: u64,
    },
    Release {
        host: String,
        instance: String,
        revision: u64,
    },
}

#[derive(Default)]
pub(super) struct StoreModel {
    pub(super) up: bool,
    pub(super) leases: BTreeMap<u64, u64>,
    pub(super) present: BTreeMap<usize, (u64, String)>,
    terms: BTreeMap<usize, (u64, Terms)>,
    next: u64,
    pub(super) released: BTreeSet<(usize, String)>,
}

/// A look of the coordinator.
#[derive(Clone)]
pub(super) struct Look {
    number: u64,
    began_at: u64,
    members: BTreeMap<String, Member>,
    revisions: BTreeMap<String, u64>,
    answers: BTreeMap<String, Answer>,
}

pub(super) struct World {
    pub(super) now: u64,
    dice: Dice,
    pub(super) hosts: Vec<Host>,
    pub(super) to_store: Vec<bool>,
    pub(super) links: BTreeSet<(usize, usize)>,
    pub(super) store: StoreModel,
    mail: BTreeMap<(u64, u64), Mail>,
    posted: u64,
    /// How many of a hundred messages come late, and twice.
    pub(super) slow: u64,
    pub(super) coordinator: usize,
    pub(super) failover: Failover,
    pub(super) look: Option<Look>,
    looks: u64,
    held: Vec<VecDeque<Mail>>,
}

pub(super) fn name(host: usize) -> String {
    format!("h{host}")
}

impl World {
    pub(super) fn new(count: usize, seed: u64) -> Self {
        let mut dice = Dice(seed);
        let hosts = (0..count)
            .map(|_| {
                let clock_offset = 100_000 + dice.roll(1_000_000);
                Host {
                    tenure: Tenure::new(TTL, clock_offset),
                    instance: String::new(),
                    begun: 0,
                    clock_offset,
                    drift: dice.roll(9) as i64 - 4,
                    frozen: false,
                    published: 0,
                    lapses: 0,
                }
            })
            .collect();
        Self {
            now: 0,
            dice,
            hosts,
            to_store: vec![true; count],
            links: BTreeSet::new(),
            store: StoreModel {
                up: true,
                ..StoreModel::default()
            },
            mail: BTreeMap::new(),
            posted: 0,
            slow: 0,
            coordinator: 0,
            failover: Failover::new(SHARE),
            look: None,
            looks: 0,
            held: (0..count).map(|_| VecDeque::new()).collect(),
        }
    }

    fn clock(&self, host: usize) -> u64 {
        let drift = self.now as i64 * self.hosts[host].drift / 1_000;
        (self.hosts[host].clock_offset as i64 + self.now as i64 + drift) as u64
    }

    fn cut(&self, a: usize, b: usize) -> bool {
        a != b && self.links.contains(&(a.min(b), a.max(b)))
    }

    fn post(&mut self, mail: Mail) {
        let mut delay = 1 + self.dice.roll(60);
        if self.dice.chance(self.slow) {
            delay += self.dice.roll(2_500);
        }
        self.post_in(delay, mail.clone());
        if self.dice.chance(self.slow) {
            let again = delay + self.dice.roll(4_000);
            self.post_in(again, mail);
        }
    }

    fn post_in(&mut self, delay: u64, mail: Mail) {
        self.posted += 1;
        self.mail.insert((self.now + delay, self.posted), mail);
    }

    fn reaches_store(&self, host: usize) -> bool {
        self.store.up && self.to_store[host]
    }

    /// One step of a host's core, unless it is frozen.
    fn step(&mut self, host: usize, input: tenure::Input) {
        let now = self.clock(host);
        let effects = self.hosts[host].tenure.step(now, input);
        for effect in effects {
            self.perform(host, now, effect);
        }
        let until = self.hosts[host].tenure.until(now);
        let known = &mut self.hosts[host];
        if until > 0 {
            known.published = known.published.max(until);
        }
        let over = self
            .store
            .released
            .contains(&(host, self.hosts[host].instance.clone()));
        assert!(
            !over || !self.hosts[host].tenure.is_tenured(now),
            "{} owns processes at {} after {} was released",
            name(host),
            self.now,
            self.hosts[host].instance
        );
    }

    fn perform(&mut self, host: usize, now: u64, effect: tenure::Effect) {
        let ask = |via, request| Mail::Ask {
            from: host,
            via,
            sent_at: now,
            request,
        };
        match effect {
            tenure::Effect::Begin | tenure::Effect::Reclaim => {
                let reclaim = effect == tenure::Effect::Reclaim;
                if !reclaim {
                    self.hosts[host].begun += 1;
                }
                let known = &self.hosts[host];
                let instance = if reclaim {
                    known.instance.clone()
                } else {
                    format!("{host}-{}", known.begun)
                };
                let stay = known.tenure.stay();
                self.post(ask(
                    None,
                    Request::Begin {
                        instance,
                        stay,
                        reclaim,
                    },
                ));
            }
            tenure::Effect::Renew { lease, way } => {
                if way == Way::Direct {
                    self.post(ask(None, Request::Renew { lease, way }));
                }
                let peers = self.hosts.len() as u64;
                for _ in 0..if way == Way::Relayed { 2 } else { 0 } {
                    let via = Some(self.dice.roll(peers) as usize);
                    self.post(ask(via, Request::Renew { lease, way }));
                }
            }
            tenure::Effect::Store(stay) => {
                let instance = self.hosts[host].instance.clone();
                self.post(ask(None, Request::Store { instance, stay }));
            }
            tenure::Effect::Ask => {
                for peer in 0..self.hosts.len() {
                    if peer != host {
                        self.post(Mail::Standing {
                            to: peer,
                            from: host,
                            asked_at: now,
                        });
                    }
                }
            }
            tenure::Effect::Stop => {
                // Every process is killed before anything else happens.
                self.hosts[host].published = 0;
                self.hosts[host].lapses += 1;
                let input = tenure::Input::Stopped;
                self.post_in(20, Mail::Input { to: host, input });
            }
        }
    }

    fn reply(&mut self, to: usize, input: tenure::Input) {
        self.post(Mail::Input { to, input });
    }

    /// The store takes in a request.
    fn serve(&mut self, from: usize, via: Option<usize>, sent_at: u64, request: Request) {
        let by = via.unwrap_or(from);
        let frozen = via.is_some_and(|via| self.hosts[via].frozen);
        let reached = self.reaches_store(by) && !self.cut(from, by) && !frozen;
        let answered = reached && !self.dice.chance(self.slow);
        match request {
            Request::Renew { lease, way } => {
                if !reached {
                    self.reply(from, tenure::Input::NotRenewed { lease, way });
                    return;
                }
                let ends = self.now + TTL;
                let input = match self.store.leases.get_mut(&lease) {
                    Some(end) => {
                        *end = (*end).max(ends);
                        tenure::Input::Renewed {
                            lease,
                            way,
                            sent_at,
                        }
                    }
                    None => tenure::Input::Ended { lease },
                };
                if answered {
                    self.reply(from, input);
                }
            }
            Request::Begin {
                instance,
                stay,
                reclaim,
            } => {
                let (_, terms) = self.store.terms.get(&from).cloned().unwrap_or_default();
                let blocked = self.store.present.contains_key(&from);
                if !reached || blocked {
                    self.reply(from, tenure::Input::NotBegan);
                    return;
                }
                if reclaim && (terms.instance != instance || terms.released) {
                    self.reply(from, tenure::Input::Released);
                    return;
                }
                self.store.next += 1;
                let lease = self.store.next;
                self.store.leases.insert(lease, self.now + TTL);
                self.store.present.insert(from, (lease, instance.clone()));
                let stored = if reclaim { terms.stay } else { stay };
                let terms = Terms {
                    instance: instance.clone(),
                    ttl_ms: TTL,
                    stay: stored,
                    released: false,
                };
                self.store.terms.insert(from, (lease, terms));
                // The name of the tenure and its beginning are one message.
                let input = tenure::Input::Began {
                    lease,
                    sent_at,
                    stay: stored,
                };
                if answered
                    && self.hosts[from].begun.to_string()
                        == instance.rsplit('-').next().unwrap_or("")
                {
                    self.hosts[from].instance = instance;
                    self.reply(from, input);
                } else {
                    self.reply(from, tenure::Input::NotBegan);
                }
            }
            Request::Store { instance, stay } => {
                let known = self.store.terms.get(&from).cloned();
                let (true, Some((_, mut terms))) = (reached, known) else {
                    self.reply(from, tenure::Input::NotStored);
                    return;
                };
                if terms.instance == instance && !terms.released {
                    self.store.next += 1;
                    terms.stay = stay;
                    self.store.terms.insert(from, (self.store.next, terms));
                    let stored = if answered {
                        tenure::Input::Stored(stay)
                    } else {
                        tenure::Input::NotStored
                    };
                    self.reply(from, stored);
                } else {
                    self.reply(from, tenure::Input::NotStored);
                }
            }
        }
    }

    fn members(&self) -> (BTreeMap<String, Member>, BTreeMap<String, u64>) {
        let known = |(host, (revision, terms)): (&usize, &(u64, Terms))| {
            let member = Member {
                present: self.store.present.contains_key(host),
                terms: terms.clone(),
            };
            ((name(*host), member), (name(*host), *revision))
        };
        self.store.terms.iter().map(known).unzip()
    }

    pub(super) fn coordinate(&mut self, input: Input) {
        let now = self.clock(self.coordinator);
        let effects = self.failover.step(now, input);
        for effect in effects {
            match effect {
                Effect::Look => self.post(Mail::LookStart { began_at: now }),
                Effect::Release { host, instance, .. } => {
                    let revision = self
                        .look
                        .as_ref()
                        .and_then(|look| look.revisions.get(&host).copied())
                        .unwrap_or(0);
                    self.post(Mail::Release {
                        host,
                        instance,
                        revision,
                    });
                }
                Effect::Tell(_) => {}
            }
        }
    }

    fn deliver(&mut self, mail: Mail) {
        let frozen = match &mail {
            Mail::Input { to, .. } | Mail::Standing { to, .. } | Mail::Stands { to, .. } => {
                self.hosts[*to].frozen.then_some(*to)
            }
            Mail::LookStart { .. } | Mail::LookAnswer { .. } | Mail::LookEnd { .. } => {
                let c = self.coordinator;
                self.hosts[c].frozen.then_some(c)
            }
            _ => None,
        };
        if let Some(host) = frozen {
            self.held[host].push_back(mail);
            return;
        }
        match mail {
            Mail::Ask {
                from,
                via,
                sent_at,
                request,
            } => self.serve(from, via, sent_at, request),
            Mail::Input { to, input } => self.step(to, input),
            Mail::Standing { to, from, asked_at } => {
                if !self.cut(to, from) {
                    let standing = self.hosts[to].tenure.standing(self.clock(to));
                    self.post(Mail::Stands {
                        to: from,
                        from: to,
                        asked_at,
                        standing,
                    });
                }
            }
            Mail::Stands {
                to,
                from,
                asked_at,
                standing,
            } => {
                if standing.cut && !self.cut(to, from) {
                    self.step(
                        to,
                        tenure::Input::Cut {
                            peer: name(from),
                            asked_at,
                        },
                    );
                }
            }
            Mail::LookStart { began_at } => {
                if !self.reaches_store(self.coordinator) {
                    self.coordinate(Input::NotLooked);
                    return;
                }
                let (members, revisions) = self.members();
                self.looks += 1;
                let number = self.looks;
                self.look = Some(Look {
                    number,
                    began_at,
                    members,
                    revisions,
                    answers: BTreeMap::new(),
                });
                let asked_at = self.clock(self.coordinator);
                for from in 0..self.hosts.len() {
                    if !self.cut(self.coordinator, from) && !self.hosts[from].frozen {
                        let standing = self.hosts[from].tenure.standing(self.clock(from));
                        self.post(Mail::LookAnswer {
                            number,
                            from,
                            asked_at,
                            standing,
                        });
                    }
                }
                self.post_in(300, Mail::LookEnd { number });
            }
            Mail::LookAnswer {
                number,
                from,
                asked_at,
                standing,
            } => {
                let answered_at = self.clock(self.coordinator);
                if let Some(look) = &mut self.look
                    && look.number == number
                {
                    let contacts = standing.contacts(asked_at, answered_at);
                    look.answers.insert(name(from), Answer { contacts });
                }
            }
            Mail::LookEnd { number } => {
                if let Some(look) = self.look.clone()
                    && look.number == number
                {
                    self.coordinate(Input::Looked {
                        began_at: look.began_at,
                        members: look.members,
                        answers: look.answers,
                    });
                }
            }
            Mail::Release {
                host,
                instance,
                revision,
            } => {
                let number: usize = host[1..].parse().expect("a number");
                let present = self.store.present.contains_key(&number);
                let known = self.store.terms.get(&number).cloned();
                match known {
                    Some((at, mut terms))
                        if self.reaches_store(self.coordinator)
                            && !present
                            && at == revision
                            && terms.instance == instance =>
                    {
                        self.store.next += 1;
                        terms.released = true;
                        self.store.terms.insert(number, (self.store.next, terms));
                        self.released(number, &instance);
                        self.coordinate(Input::Released { host, instance });
                    }
                    _ => self.coordinate(Input::NotReleased { host }),
                }
            }
        }
    }

    /// From now on another host may run what this one had.
    fn released(&mut self, host: usize, instance: &str) {
        let known = &self.hosts[host];
        let clock = self.clock(host);
        if known.instance == instance {
            assert!(
                known.published <= clock,
                "{} is released at {} but its processes may act for {} ms more",
                name(host),
                self.now,
                known.published - clock
            );
        }
        self.store.released.insert((host, instance.to_owned()));
    }

    fn expire(&mut self) {
        if !self.store.up {
            return;
        }
        let now = self.now;
        let over: Vec<u64> = self
            .store
            .leases
            .iter()
            .filter(|(_, end)| **end <= now)
            .map(|(lease, _)| *lease)
            .collect();
        for lease in over {
            if self.dice.chance(50) {
                self.store.leases.remove(&lease);
                self.store.present.retain(|_, (held, _)| *held != lease);
            }
        }
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, span: u64) {
        let end = self.now + span;
        while self.now < end {
            self.now += 20;
            while let Some(entry) = self.mail.first_entry() {
                if entry.key().0 > self.now {
                    break;
                }
                let mail = entry.remove();
                self.deliver(mail);
            }
            if self.now.is_multiple_of(100) {
                self.expire();
                let hosts = self.hosts.len();
                for host in 0..hosts {
                    if self.reaches_store(host) && !self.hosts[host].frozen {
                        let tenured = self
                            .store
                            .terms
                            .iter()
                            .filter(|(host, (_, terms))| {
                                self.store.present.contains_key(host) || !terms.released
                            })
                            .count();
                        let limit = brake_limit(tenured.max(1), SHARE) as u32;
                        self.step(host, tenure::Input::Stay(limit));
                    }
                }
                if self.reaches_store(self.coordinator) && !self.hosts[self.coordinator].frozen {
                    let (members, _) = self.members();
                    self.coordinate(Input::Members(members));
                }
            }
            for host in 0..self.hosts.len() {
                let now = self.clock(host);
                let due = self.hosts[host].tenure.deadline(now);
                if !self.hosts[host].frozen && due.is_some_and(|at| at <= now) {
                    self.step(host, tenure::Input::Tick);
                }
            }
            let c = self.coordinator;
            let due = self.failover.deadline();
            if !self.hosts[c].frozen && due.is_some_and(|at| at <= self.clock(c)) {
                self.coordinate(Input::Tick);
            }
        }
    }

    pub(super) fn thaw(&mut self, host: usize) {
        self.hosts[host].frozen = false;
        for mail in std::mem::take(&mut self.held[host]) {
            self.deliver(mail);
        }
    }

    pub(super) fn heal(&mut self) {
        self.store.up = true;
        self.links.clear();
        self.to_store.fill(true);
        for host in 0..self.hosts.len() {
            self.thaw(host);
        }
    }

    pub(super) fn tenured(&self) -> usize {
        (0..self.hosts.len())
            .filter(|host| self.hosts[*host].tenure.is_tenured(self.clock(*host)))
            .count()
    }

    pub(super) fn lapses(&self) -> u32 {
        self.hosts.iter().map(|host| host.lapses).sum()
    }
}
