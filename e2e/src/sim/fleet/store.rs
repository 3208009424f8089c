//! The store as all see it. What a transaction compares is compared here.

use std::collections::{BTreeMap, BTreeSet};

use tanako_fleet::{
    assignment::Assignment,
    failover::{Member, SHARE, brake_limit},
    identify::Record,
    tenure::Terms,
};

use super::{
    faults,
    world::{HostId, TTL, World, name},
};

/// See the module's documentation.
#[derive(Default)]
pub struct Store {
    pub revision: u64,
    pub up: bool,
    /// When each lease ends.
    leases: BTreeMap<u64, u64>,
    /// `present/<host>`: its lease, its tenure, since when.
    pub present: BTreeMap<HostId, (u64, String)>,
    /// `hosts/<host>`: its tenure's terms, and at which revision.
    pub terms: BTreeMap<HostId, (u64, Terms)>,
    /// Since when a host that counts has no key.
    pub lost_at: BTreeMap<HostId, u64>,
    /// The office: its lease, who, at which revision.
    pub office: Option<(u64, HostId, u64)>,
    pub assignment: Assignment,
    pub assigned_at: u64,
    pub ledger: Vec<Option<Record>>,
}

/// Answer to a claim of `present/<host>`.
#[derive(Debug, Clone)]
pub enum Claim {
    Taken { lease: u64, stay: u32 },
    Wait,
    Released,
}

/// What a look reads.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub members: BTreeMap<String, Member>,
    pub revisions: BTreeMap<String, u64>,
    pub instances: BTreeMap<HostId, String>,
    pub assignment: Assignment,
    pub assigned_at: u64,
}

/// A change of the assignment.
#[derive(Debug, Clone)]
pub struct Assign {
    pub epoch: u64,
    /// At which revision the present one was read.
    pub read_at: u64,
    pub next: Assignment,
    /// Hosts whose keys must be absent.
    pub gone: BTreeSet<HostId>,
}

impl Store {
    /// An empty one that answers.
    pub fn new() -> Self {
        Self {
            up: true,
            ..Self::default()
        }
    }

    fn bump(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    /// Ends the leases whose time is over, with their keys.
    pub fn expire(&mut self, now: u64) {
        let over: BTreeSet<u64> = self
            .leases
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(lease, _)| *lease)
            .collect();
        if over.is_empty() {
            return;
        }
        self.leases.retain(|lease, _| !over.contains(lease));
        let gone: Vec<HostId> = self
            .present
            .iter()
            .filter(|(_, (lease, _))| over.contains(lease))
            .map(|(host, _)| *host)
            .collect();
        for host in gone {
            self.present.remove(&host);
            self.lost_at.insert(host, now);
            self.bump();
        }
        if self.office.is_some_and(|(lease, ..)| over.contains(&lease)) {
            self.office = None;
            self.bump();
        }
    }

    fn grant(&mut self, now: u64) -> u64 {
        let lease = self.bump();
        self.leases.insert(lease, now + TTL);
        lease
    }

    /// Prolongs a lease; false = there is none.
    pub fn renew(&mut self, now: u64, lease: u64) -> bool {
        let known = self.leases.get_mut(&lease);
        known.map(|until| *until = now + TTL).is_some()
    }

    /// Takes the key of a host.
    pub fn claim(
        &mut self,
        now: u64,
        host: HostId,
        (instance, over): (&str, &[String]),
        stay: u32,
        again: bool,
    ) -> Claim {
        let (_, mut terms) = self.terms.get(&host).cloned().unwrap_or_default();
        if again && (terms.instance != instance || terms.released) {
            return Claim::Released;
        }
        if let Some((lease, known)) = self.present.get(&host).cloned() {
            if known == instance {
                self.renew(now, lease);
                let stay = terms.stay;
                return Claim::Taken { lease, stay };
            }
            if !over.contains(&known) {
                return Claim::Wait;
            }
            self.leases.remove(&lease);
            self.present.remove(&host);
        }
        let lease = self.grant(now);
        if !again {
            terms = Terms {
                instance: instance.to_owned(),
                ttl_ms: TTL,
                stay,
                released: false,
            };
        }
        let stay = terms.stay;
        let revision = self.bump();
        self.terms.insert(host, (revision, terms));
        self.present.insert(host, (lease, instance.to_owned()));
        self.lost_at.remove(&host);
        Claim::Taken { lease, stay }
    }

    /// Writes how many cut-off peers a host goes by.
    pub fn store_stay(&mut self, host: HostId, instance: &str, stay: u32) -> bool {
        let revision = self.bump();
        match self.terms.get_mut(&host) {
            Some((at, terms)) if terms.instance == instance && !terms.released => {
                (*at, terms.stay) = (revision, stay);
                true
            }
            _ => false,
        }
    }

    /// Takes the office, if it is vacant.
    pub fn elect(&mut self, now: u64, host: HostId) -> Option<(u64, u64)> {
        if self.office.is_some() {
            return None;
        }
        let lease = self.grant(now);
        let epoch = self.bump();
        self.office = Some((lease, host, epoch));
        Some((lease, epoch))
    }

    /// Whether that term is the present one.
    pub fn leads(&self, epoch: u64) -> bool {
        self.office.is_some_and(|(_, _, known)| known == epoch)
    }

    /// All of it that a look reads.
    pub fn read(&self, hosts: usize) -> Snapshot {
        let mut read = Snapshot {
            assignment: self.assignment.clone(),
            assigned_at: self.assigned_at,
            ..Snapshot::default()
        };
        for host in 0..hosts {
            let (revision, terms) = self.terms.get(&host).cloned().unwrap_or_default();
            let present = self.present.get(&host);
            if let Some((_, instance)) = present {
                read.instances.insert(host, instance.clone());
            }
            let present = present.is_some();
            read.members.insert(name(host), Member { present, terms });
            read.revisions.insert(name(host), revision);
        }
        read
    }

    /// Another assignment, if nothing of what it was made from has changed.
    pub fn assign(&mut self, change: &Assign) -> bool {
        let back = change
            .gone
            .iter()
            .any(|host| self.present.contains_key(host));
        if !self.leads(change.epoch) || self.assigned_at != change.read_at || back {
            return false;
        }
        self.assigned_at = self.bump();
        self.assignment = change.next.clone();
        true
    }
}

impl World {
    /// Ends a tenure for good, if the host is still gone and its record as it was.
    pub fn release(&mut self, epoch: u64, host: HostId, instance: &str, revision: u64) -> bool {
        let known = self.store.terms.get(&host).cloned();
        let same = known.is_some_and(|(at, terms)| at == revision && terms.instance == instance);
        if !same || self.store.present.contains_key(&host) || !self.store.leads(epoch) {
            return false;
        }
        let counts = |id: &HostId| {
            let terms = self.store.terms.get(id);
            let owes =
                terms.is_some_and(|(_, terms)| !terms.instance.is_empty() && !terms.released);
            self.store.present.contains_key(id) || owes
        };
        let all = (0..self.hosts.len()).filter(counts).count();
        // Later losses could not be known.
        let lost = self.store.lost_at.iter().filter(|(id, at)| {
            counts(id) && !self.store.present.contains_key(id) && self.now >= **at + 2_000
        });
        let lost = lost.count();
        if lost > brake_limit(all, SHARE) {
            let what = format!("{} is released while {lost} of {all} are lost", name(host));
            self.violate("the brake holds", what);
        }
        let at = self.store.bump();
        if let Some((revision, terms)) = self.store.terms.get_mut(&host) {
            (*revision, terms.released) = (at, true);
        }
        self.counts.releases += 1;
        faults::released(self, host);
        true
    }
}
