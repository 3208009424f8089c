//! When the processes of a host that is lost may be another's: pure.
//!
//! ```text
//!            key gone                    proven, within the brake          stored
//!  present ───────────► lost ── look ──────────────────────────► release ────────► released
//!     ▲                  │ ▲                                         │ came back meanwhile
//!     └──────────────────┘ └─────────────────────────────────────────┘
//! ```
//!
//! The coordinator first *releases* a lost host: it writes into the host's record, fenced by its office and
//! only if the host's key is still absent and the record unchanged, that this tenure is over for good. Then
//! what was assigned to it is assigned elsewhere, at leisure.
//!
//! **Why the host cannot run them then.** Its key is gone, so its lease has ended, so by its own clock its
//! lease carries it no longer ([`crate::tenure`]). It may be *staying*: then, at every moment, at least
//! [`Terms::stay`] other tenured hosts have told it within [`Spans::statement_max`] that they had not heard
//! from the store for [`Spans::cut`]. So the coordinator asks all hosts when the store last answered them.
//! Each that heard from the store between those two spans ago is a *witness*: no statement of it carries at
//! this moment. When fewer than `stay` tenured hosts are not witnesses, the lost host is not staying, now or
//! ever again: a tenure that has lapsed begins under another name. A host that the coordinator does not know
//! of cannot matter: the hosts are read from the store in the same look, and one that began its tenure
//! later than that heard from the store less than `cut` ago.
//!
//! **The brake** is policy on top: when more hosts are lost than [`brake_limit`] allows, nothing moves and the
//! operator is asked, for what looks like that is a network or a store in trouble and not hosts. As a host
//! stays only with as many as the limit, what the brake allows and what can be proven agree while the size
//! of the fleet does.
//!
//! The operator's word ([`Input::Allow`]) stands for proof and brake alike: he says that the host is off.

use std::collections::{BTreeMap, BTreeSet};

use crate::tenure::{Span, Spans, Terms};

/// Part of the hosts that may be lost at once before nothing moves by itself.
pub const SHARE: f64 = 0.34;
/// A look that took longer than this proves nothing: the shortest lease lives for 3 s.
pub const LOOK_MAX_MS: u64 = 1_000;
/// Between two looks while a host is lost.
pub const LOOK_EVERY_MS: u64 = 250;
/// Between two looks at a host that is held by the brake or by lack of proof for longer.
const LOOK_SLOWLY_MS: u64 = 2_000;
/// A lost host that is not released within this time is told of.
const WAIT_MS: u64 = 5_000;

/// How many hosts of `hosts` may be lost at once for their processes to be moved without being asked.
pub fn brake_limit(hosts: usize, share: f64) -> usize {
    if hosts <= 1 {
        return 0;
    }
    let part = (hosts as f64 * share).floor() as usize;
    part.clamp(1, hosts - 1)
}

/// A host as the store has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// Its key is there.
    pub present: bool,
    /// Of its latest tenure; an empty instance = it never had one.
    pub terms: Terms,
}

impl Member {
    /// Whether it can own processes, as far as the store knows.
    fn counts(&self) -> bool {
        self.present || !self.terms.instance.is_empty() && !self.terms.released
    }

    fn is_lost(&self) -> bool {
        !self.present && self.counts()
    }
}

/// What a host answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Times at which it took in answers of the store, on the coordinator's clock.
    pub contacts: Vec<Span>,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Only time.
    Tick,
    /// The hosts, from the watch.
    Members(BTreeMap<String, Member>),
    /// A look has ended: the hosts as read from the store after `began_at`, and the answers of those that
    /// could be asked.
    Looked {
        /// When it began.
        began_at: u64,
        /// All hosts.
        members: BTreeMap<String, Member>,
        /// By host.
        answers: BTreeMap<String, Answer>,
    },
    /// A look failed.
    NotLooked,
    /// A release was stored.
    Released {
        /// Which host.
        host: String,
        /// Which tenure of it.
        instance: String,
    },
    /// It was not: the host has come back, or the store did not answer. The next look decides.
    NotReleased {
        /// Which host.
        host: String,
    },
    /// The operator says that this host is off.
    Allow {
        /// Which host.
        host: String,
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Read the hosts from the store and ask all that are present how they stand.
    Look,
    /// End this tenure for good, in the store.
    Release {
        /// Which host.
        host: String,
        /// Which tenure of it.
        instance: String,
        /// On the operator's word.
        allowed: bool,
    },
    /// For people.
    Tell(Told),
}

/// What people are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A host is lost.
    Lost {
        /// Which.
        host: String,
    },
    /// It is there again.
    Back {
        /// Which.
        host: String,
    },
    /// Too many are lost: nothing moves.
    Braked {
        /// Which.
        lost: Vec<String>,
        /// How many may be.
        limit: usize,
        /// Of how many.
        hosts: usize,
    },
    /// No longer.
    Unbraked,
    /// It cannot be proven that the host has stopped its processes.
    Unproven {
        /// Which.
        host: String,
        /// Who could not be asked or is cut off from the store.
        silent: Vec<String>,
    },
}

/// How a lost host fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// It is being looked at.
    Looking,
    /// Too many hosts are lost.
    Brake,
    /// These hosts could not be asked or are cut off from the store.
    Proof(Vec<String>),
}

#[derive(Debug, Clone)]
struct Lost {
    /// When that was seen first.
    at: u64,
    releasing: Option<u64>,
    wait: Wait,
    told_unproven: bool,
}

/// The coordinator's view of who is lost; begins anew with each term.
#[derive(Debug, Clone)]
pub struct Failover {
    share: f64,
    members: BTreeMap<String, Member>,
    lost: BTreeMap<(String, String), Lost>,
    allowed: BTreeSet<String>,
    braked: bool,
    looking: Option<u64>,
    next_look: u64,
}

impl Failover {
    /// Nobody is lost as far as is known. `share`: see [`brake_limit`].
    pub fn new(share: f64) -> Self {
        Self {
            share,
            members: BTreeMap::new(),
            lost: BTreeMap::new(),
            allowed: BTreeSet::new(),
            braked: false,
            looking: None,
            next_look: 0,
        }
    }

    /// The hosts that are lost and not released, and what they wait for.
    pub fn lost(&self) -> impl Iterator<Item = (&str, &Wait)> {
        self.lost
            .iter()
            .map(|((host, _), lost)| (host.as_str(), &lost.wait))
    }

    /// Hosts that are gone and released: what is still assigned to them may be assigned elsewhere, each
    /// commit comparing that the host's key is absent.
    pub fn released(&self) -> impl Iterator<Item = &str> {
        self.members
            .iter()
            .filter(|(_, member)| {
                !member.present && (member.terms.released || member.terms.instance.is_empty())
            })
            .map(|(host, _)| host.as_str())
    }

    /// Whether too many hosts are lost for anything to move.
    pub fn is_braked(&self) -> bool {
        self.braked
    }

    /// What people are asked to decide, as long as they are.
    pub fn asks(&self) -> Vec<Told> {
        if let Some(told) = self.over_limit().filter(|_| self.braked) {
            return vec![told];
        }
        self.lost
            .iter()
            .filter(|(_, lost)| lost.told_unproven)
            .filter_map(|((host, _), lost)| match &lost.wait {
                Wait::Proof(silent) => Some(Told::Unproven {
                    host: host.clone(),
                    silent: silent.clone(),
                }),
                Wait::Looking | Wait::Brake => None,
            })
            .collect()
    }

    /// When [`Input::Tick`] is due.
    pub fn deadline(&self) -> Option<u64> {
        if self.lost.is_empty() {
            return None;
        }
        Some(match self.looking {
            Some(since) => since + 2 * LOOK_MAX_MS,
            None => self.next_look,
        })
    }

    /// Takes in what has happened.
    pub fn step(&mut self, now: u64, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Tick => {}
            Input::Members(members) => self.learn(now, members, &mut effects),
            Input::Looked {
                began_at,
                members,
                answers,
            } => {
                self.looking = None;
                self.learn(now, members, &mut effects);
                self.brake(&mut effects);
                self.judge(now, began_at, &answers, &mut effects);
                self.pace(now);
            }
            Input::NotLooked => {
                self.looking = None;
                self.pace(now);
            }
            Input::Released { host, instance } => {
                self.allowed.remove(&host);
                self.lost.remove(&(host.clone(), instance.clone()));
                if let Some(member) = self.members.get_mut(&host)
                    && member.terms.instance == instance
                {
                    member.terms.released = true;
                }
            }
            Input::NotReleased { host } => {
                for ((name, _), lost) in &mut self.lost {
                    if *name == host {
                        lost.releasing = None;
                    }
                }
                self.next_look = now;
            }
            Input::Allow { host } => {
                if self.members.get(&host).is_some_and(Member::is_lost) {
                    self.allowed.insert(host);
                    self.next_look = now;
                }
            }
        }
        self.brake(&mut effects);
        let waiting = self.lost.values().any(|lost| lost.releasing.is_none());
        let patient = self
            .looking
            .is_some_and(|since| now < since + 2 * LOOK_MAX_MS);
        if waiting && !patient && now >= self.next_look {
            self.looking = Some(now);
            effects.push(Effect::Look);
        }
        effects
    }

    fn learn(&mut self, now: u64, members: BTreeMap<String, Member>, effects: &mut Vec<Effect>) {
        for (host, member) in &members {
            let key = (host.clone(), member.terms.instance.clone());
            if member.is_lost() && !self.lost.contains_key(&key) {
                let lost = Lost {
                    at: now,
                    releasing: None,
                    wait: Wait::Looking,
                    told_unproven: false,
                };
                self.lost.insert(key, lost);
                self.next_look = now;
                effects.push(Effect::Tell(Told::Lost { host: host.clone() }));
            }
            let was_gone = self.members.get(host).is_some_and(|old| !old.present);
            if member.present && was_gone {
                effects.push(Effect::Tell(Told::Back { host: host.clone() }));
            }
        }
        self.lost.retain(|(host, instance), _| {
            members
                .get(host)
                .is_some_and(|member| member.is_lost() && member.terms.instance == *instance)
        });
        self.allowed
            .retain(|host| members.get(host).is_some_and(Member::is_lost));
        self.members = members;
    }

    /// How many hosts count, and how many of them may be lost.
    fn limit(&self) -> (usize, usize) {
        let hosts = self
            .members
            .values()
            .filter(|member| member.counts())
            .count();
        (hosts, brake_limit(hosts, self.share))
    }

    /// The hosts of which the operator has said nothing, when more are lost than may be.
    fn over_limit(&self) -> Option<Told> {
        let (hosts, limit) = self.limit();
        let lost: Vec<String> = self
            .lost
            .keys()
            .map(|(host, _)| host.clone())
            .filter(|host| !self.allowed.contains(host))
            .collect();
        (self.lost.len() > limit && !lost.is_empty()).then_some(Told::Braked { lost, limit, hosts })
    }

    fn brake(&mut self, effects: &mut Vec<Effect>) {
        let braked = self.over_limit();
        let was = std::mem::replace(&mut self.braked, braked.is_some());
        match braked {
            Some(told) if !was => effects.push(Effect::Tell(told)),
            None if was => effects.push(Effect::Tell(Told::Unbraked)),
            _ => {}
        }
    }

    /// Releases those of whom it is proven, in the light of a look that began at `began_at`, that they
    /// have stopped.
    fn judge(
        &mut self,
        now: u64,
        began_at: u64,
        answers: &BTreeMap<String, Answer>,
        effects: &mut Vec<Effect>,
    ) {
        let fresh = now.saturating_sub(began_at) < LOOK_MAX_MS;
        let keys: Vec<(String, String)> = self.lost.keys().cloned().collect();
        for key in keys {
            let (host, instance) = &key;
            let allowed = self.allowed.contains(host);
            let silent = self.not_witnesses(now, host, answers);
            let (Some(lost), Some(member)) = (self.lost.get_mut(&key), self.members.get(host))
            else {
                continue;
            };
            // Not seen in time; or what was read is older than the end of the lease.
            if lost.releasing.is_some() || !allowed && (!fresh || began_at < lost.at) {
                continue;
            }
            let proven = silent.len() < member.terms.stay as usize;
            if !allowed && self.braked {
                lost.wait = Wait::Brake;
                continue;
            }
            if !allowed && !proven {
                if now >= lost.at + WAIT_MS && !lost.told_unproven {
                    lost.told_unproven = true;
                    effects.push(Effect::Tell(Told::Unproven {
                        host: host.clone(),
                        silent: silent.clone(),
                    }));
                }
                lost.wait = Wait::Proof(silent);
                continue;
            }
            lost.releasing = Some(now);
            lost.wait = Wait::Looking;
            effects.push(Effect::Release {
                host: host.clone(),
                instance: instance.clone(),
                allowed,
            });
        }
    }

    /// The tenured hosts whose statements may carry `host` at `now`.
    fn not_witnesses(
        &self,
        now: u64,
        host: &str,
        answers: &BTreeMap<String, Answer>,
    ) -> Vec<String> {
        let asker = self
            .members
            .get(host)
            .map_or_else(|| Spans::of(0), |member| Spans::of(member.terms.ttl_ms));
        self.members
            .iter()
            .filter(|(name, member)| *name != host && member.counts())
            .filter(|(name, member)| {
                let peer = Spans::of(member.terms.ttl_ms);
                !answers.get(*name).is_some_and(|answer| {
                    let mut contacts = answer.contacts.iter();
                    contacts.any(|contact| contact.refutes(now, asker, peer))
                })
            })
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn pace(&mut self, now: u64) {
        let first = self.lost.values().map(|lost| lost.at).max();
        let slowly = first.is_some_and(|at| now >= at + 2 * WAIT_MS);
        self.next_look = now
            + if slowly {
                LOOK_SLOWLY_MS
            } else {
                LOOK_EVERY_MS
            };
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
