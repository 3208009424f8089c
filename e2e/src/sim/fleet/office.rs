//! Who leads: the real failover, placement, ledger and desk; each commit compares that the office is its own.

use std::collections::{BTreeMap, BTreeSet};

use tanako_fleet::{
    ProcessName,
    failover::{self, Answer, Effect, Failover, SHARE},
    identify::{self, Desk, DeskInput, Ledger, PollId, Record},
};

use super::{
    faults::Fault,
    store::Snapshot,
    world::{At, HostId, TTL, World, id, name},
};

/// Between two looks at whether the office is vacant.
const SEEK: u64 = 500;
/// Between two rounds of whoever leads.
const ROUND: u64 = 150;
/// Between two renewals of the office.
const RENEW: u64 = 1_000;
/// A look waits no longer for answers.
const LOOK_WITHIN: u64 = 300;
/// A host that holds the office stops deciding so long before its lease can end.
const MARGIN: u64 = TTL / 10;
/// The bot.
pub const BOT: &str = "b";
/// A move that is not done within this time is given up.
pub const MOVE_WITHIN: u64 = 10_000;

/// A term.
pub struct Office {
    pub epoch: u64,
    pub lease: u64,
    /// On the host's own clock.
    pub until: u64,
    pub failover: Failover,
    pub seen: Snapshot,
    pub reading: bool,
    pub committing: bool,
    /// Which hosts know what belongs to them: their tenure, and the version.
    pub told: BTreeMap<HostId, (String, u64)>,
    pub telling: BTreeSet<HostId>,
    pub orders: u64,
    pub moving: Option<Moving>,
    pub look: Option<Look>,
    pub looks: u64,
    pub ledger: Ledger,
    pub desk: Desk,
    /// Who waits for the answer to a poll.
    pub polls: BTreeMap<PollId, Poll>,
    pub next_poll: PollId,
    pub requests: BTreeMap<u64, identify::AskId>,
    pub writing: bool,
    pub waiting: Vec<(Option<u64>, Vec<Record>)>,
}

#[derive(Clone)]
pub struct Poll {
    pub host: HostId,
    pub process: ProcessName,
    pub pid: u64,
    pub sent_at: u64,
}

#[derive(Clone)]
pub struct Moving {
    pub process: ProcessName,
    pub from: HostId,
    pub to: HostId,
    pub since: u64,
    /// It has stopped where it was.
    pub stopped: bool,
}

pub struct Look {
    number: u64,
    began_at: u64,
    read: Option<Snapshot>,
    answers: BTreeMap<String, Answer>,
}

impl World {
    pub fn office(&mut self, host: HostId) -> Option<&mut Office> {
        let now = self.clock(host);
        let agent = self.hosts[host].agent.as_mut()?;
        // Nothing is decided past the lease.
        if agent
            .office
            .as_ref()
            .is_some_and(|office| now >= office.until)
        {
            agent.office = None;
        }
        agent.office.as_mut()
    }

    /// The office of that term, if it is still held.
    pub fn term(&mut self, host: HostId, epoch: u64) -> Option<&mut Office> {
        self.office(host).filter(|office| office.epoch == epoch)
    }

    /// Takes the office when it is vacant.
    pub fn seek(&mut self, host: HostId) {
        let Some(life) = self.hosts[host].life() else {
            return;
        };
        let wait = SEEK + self.draw(0..=SEEK);
        self.post(wait, At::Agent(host, life), move |world| world.seek(host));
        if self.office(host).is_some() {
            return;
        }
        let asked_at = self.clock(host);
        let elect = move |world: &mut Self| world.store.elect(world.now, host);
        self.call((host, life), host, elect, move |world, answer| {
            let now = world.clock(host);
            let until = asked_at + TTL - MARGIN;
            if let (Some(Some((lease, epoch))), true) = (answer, now < until) {
                world.lead(host, life, lease, epoch, until);
            }
        });
    }

    fn lead(&mut self, host: HostId, life: u64, lease: u64, epoch: u64, until: u64) {
        self.note(line!(), &[host as u64, epoch], || {
            format!("{} leads, epoch {epoch}", name(host))
        });
        // What it reads of the ledger it places by this clock, which may be set at this very moment.
        let sets = self.config.faults.contains(&Fault::ClockJump);
        if sets && self.is_busy() && self.chance(40) {
            let wait = self.draw(0..=1_500);
            self.post(wait, At::World, move |world| world.set_clock(host));
        }
        let Some(agent) = &mut self.hosts[host].agent else {
            return;
        };
        agent.office = Some(Office {
            epoch,
            lease,
            until,
            failover: Failover::new(SHARE),
            seen: Snapshot::default(),
            reading: false,
            committing: false,
            told: BTreeMap::new(),
            telling: BTreeSet::new(),
            orders: 0,
            moving: None,
            look: None,
            looks: 0,
            ledger: Ledger::new(),
            desk: Desk::new(),
            polls: BTreeMap::new(),
            next_poll: 0,
            requests: BTreeMap::new(),
            writing: false,
            waiting: Vec::new(),
        });
        self.post(RENEW, At::Agent(host, life), move |world| {
            world.renew_office(host, life, epoch);
        });
        self.post(0, At::Agent(host, life), move |world| {
            world.round(host, life, epoch);
        });
        let bot = || BOT.to_owned();
        let (buckets, reserve) = (self.config.max_concurrency, self.config.reserve);
        self.ledger(host, epoch, identify::Input::Open { bot: bot() });
        let spec = identify::Input::Configure {
            bot: bot(),
            max_concurrency: Some(buckets),
            reserve: Some(reserve),
        };
        self.ledger(host, epoch, spec);
        self.post(300, At::Agent(host, life), move |world| {
            world.limits(host, life, epoch);
        });
    }

    fn renew_office(&mut self, host: HostId, life: u64, epoch: u64) {
        let sent_at = self.clock(host);
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        let lease = office.lease;
        let renew =
            move |world: &mut Self| world.store.leads(epoch) && world.store.renew(world.now, lease);
        self.call((host, life), host, renew, move |world, answer| {
            let lost = answer == Some(false);
            let Some(office) = world.term(host, epoch) else {
                return;
            };
            if answer == Some(true) {
                office.until = office.until.max(sent_at + TTL - MARGIN);
            } else if lost {
                office.until = 0;
            }
            world.post(RENEW, At::Agent(host, life), move |world| {
                world.renew_office(host, life, epoch);
            });
        });
    }

    /// One round of whoever leads.
    fn round(&mut self, host: HostId, life: u64, epoch: u64) {
        let now = self.clock(host);
        if self.term(host, epoch).is_none() {
            return;
        }
        self.post(ROUND, At::Agent(host, life), move |world| {
            world.round(host, life, epoch);
        });
        self.failover(host, epoch, failover::Input::Tick);
        self.ledger(host, epoch, identify::Input::Tick);
        self.desk(host, epoch, DeskInput::Tick);
        let hosts = self.hosts.len();
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        if !std::mem::replace(&mut office.reading, true) {
            let read = move |world: &mut Self| world.store.read(hosts);
            self.call((host, life), host, read, move |world, answer| {
                let Some(office) = world.term(host, epoch) else {
                    return;
                };
                office.reading = false;
                if let Some(seen) = answer {
                    let members = seen.members.clone();
                    if seen.assigned_at >= office.seen.assigned_at {
                        office.seen = seen;
                    }
                    world.failover(host, epoch, failover::Input::Members(members));
                    world.assign(host, life, epoch);
                    world.tell_hosts(host, life, epoch);
                    world.moves(host, life, epoch, now);
                }
            });
        }
    }

    fn failover(&mut self, host: HostId, epoch: u64, input: failover::Input) {
        let now = self.clock(host);
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        for effect in office.failover.step(now, input) {
            match effect {
                Effect::Look => self.look_around(host, epoch),
                Effect::Release {
                    host: lost,
                    instance,
                    ..
                } => self.send_release(host, epoch, &lost, instance),
                Effect::Tell(_) => {}
            }
        }
    }

    /// Reads the hosts, then asks those that are present.
    fn look_around(&mut self, host: HostId, epoch: u64) {
        let (began_at, hosts) = (self.clock(host), self.hosts.len());
        let Some(life) = self.hosts[host].life() else {
            return;
        };
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        office.looks += 1;
        let number = office.looks;
        office.look = Some(Look {
            number,
            began_at,
            read: None,
            answers: BTreeMap::new(),
        });
        let read = move |world: &mut Self| world.store.read(hosts);
        self.call((host, life), host, read, move |world, answer| {
            let Some(read) = answer else {
                return world.failover(host, epoch, failover::Input::NotLooked);
            };
            let asked_at = world.clock(host);
            let present: Vec<HostId> = read.instances.keys().copied().collect();
            let asked = present.len();
            let Some(office) = world.term(host, epoch) else {
                return;
            };
            let Some(look) = office.look.as_mut().filter(|look| look.number == number) else {
                return;
            };
            look.read = Some(read);
            for peer in present {
                world.ask_standing((host, life), peer, move |world, answer| {
                    let now = world.clock(host);
                    let Some(office) = world.term(host, epoch) else {
                        return;
                    };
                    let look = office.look.as_mut().filter(|look| look.number == number);
                    if let (Some(look), Some(standing)) = (look, answer) {
                        let contacts = standing.contacts(asked_at, now);
                        look.answers.insert(name(peer), Answer { contacts });
                        if look.answers.len() == asked {
                            world.looked(host, epoch, number);
                        }
                    }
                });
            }
            world.post(LOOK_WITHIN, At::Agent(host, life), move |world| {
                world.looked(host, epoch, number);
            });
        });
    }

    /// A look has ended: all have answered, or have had the time to.
    fn looked(&mut self, host: HostId, epoch: u64, number: u64) {
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        let Some(look) = office.look.take_if(|look| look.number == number) else {
            return;
        };
        let read = look.read.unwrap_or_default();
        office.seen.revisions = read.revisions;
        let input = failover::Input::Looked {
            began_at: look.began_at,
            members: read.members,
            answers: look.answers,
        };
        self.failover(host, epoch, input);
    }

    fn send_release(&mut self, host: HostId, epoch: u64, lost: &str, instance: String) {
        let Some(life) = self.hosts[host].life() else {
            return;
        };
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        let revision = office.seen.revisions.get(lost).copied().unwrap_or(0);
        let (target, named) = (id(lost), instance.clone());
        let release = move |world: &mut Self| world.release(epoch, target, &instance, revision);
        self.call((host, life), host, release, move |world, answer| {
            let host_name = name(target);
            let input = if answer == Some(true) {
                failover::Input::Released {
                    host: host_name,
                    instance: named.clone(),
                }
            } else {
                failover::Input::NotReleased { host: host_name }
            };
            world.failover(host, epoch, input);
        });
    }
}
