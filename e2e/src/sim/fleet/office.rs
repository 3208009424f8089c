//! Who leads: the real failover, placement, ledger and desk; each commit compares that the office is its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tanako_fleet::{
    ProcessName,
    failover::{self, Answer, Effect, Failover, SHARE},
    identify::{
        self, Desk, DeskEffect, DeskInput, DeskReply, Granted, Ledger, PollId, Record, Request, Via,
    },
    placement::{self, Aim, Capacity, Host, HostState, Process, Rules},
};

use super::{
    store::{Assign, Snapshot},
    world::{At, HostId, TTL, World, id, name},
};

/// Between two looks at whether the office is vacant.
const SEEK: u64 = 500;
/// Between two rounds of whoever leads.
const ROUND: u64 = 150;
/// Between two renewals of the office.
const RENEW: u64 = 1_000;
/// A host that holds the office stops deciding so long before its lease can end.
const MARGIN: u64 = TTL / 10;
/// The bot.
const BOT: &str = "b";
/// A move that is not done within this time is given up.
const MOVE_WITHIN: u64 = 10_000;

/// A term.
pub struct Office {
    epoch: u64,
    lease: u64,
    /// On the host's own clock.
    until: u64,
    failover: Failover,
    seen: Snapshot,
    reading: bool,
    committing: bool,
    /// Which hosts know what belongs to them: their tenure, and the version.
    told: BTreeMap<HostId, (String, u64)>,
    telling: BTreeSet<HostId>,
    orders: u64,
    moving: Option<Moving>,
    look: Option<Look>,
    looks: u64,
    ledger: Ledger,
    desk: Desk,
    /// Who waits for the answer to a poll.
    polls: BTreeMap<PollId, Poll>,
    next_poll: PollId,
    requests: BTreeMap<u64, identify::AskId>,
    writing: bool,
    waiting: Vec<(Option<u64>, Vec<Record>)>,
}

#[derive(Clone)]
struct Poll {
    host: HostId,
    process: ProcessName,
    pid: u64,
    sent_at: u64,
}

#[derive(Clone)]
struct Moving {
    process: ProcessName,
    from: HostId,
    to: HostId,
    since: u64,
    /// It has stopped where it was.
    stopped: bool,
}

struct Look {
    number: u64,
    began_at: u64,
    read: Option<Snapshot>,
    answers: BTreeMap<String, Answer>,
}

impl World {
    fn office(&mut self, host: HostId) -> Option<&mut Office> {
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
    fn term(&mut self, host: HostId, epoch: u64) -> Option<&mut Office> {
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

    /// What Discord says, now and then.
    fn limits(&mut self, host: HostId, life: u64, epoch: u64) {
        let used = u32::try_from(self.counts.identifies).unwrap_or(u32::MAX);
        let limits = identify::ReportedLimits {
            total: self.config.total,
            remaining: self.config.total.saturating_sub(used),
            reset_after_ms: 20 * 3_600_000 - self.now,
            max_concurrency: self.config.max_concurrency,
            recommended: self.config.processes,
        };
        if self.term(host, epoch).is_some() {
            let bot = BOT.to_owned();
            self.ledger(host, epoch, identify::Input::Limits { bot, limits });
            self.post(60_000, At::Agent(host, life), move |world| {
                world.limits(host, life, epoch);
            });
        }
    }

    /// A process says that it is ready.
    pub fn became_ready(
        &mut self,
        leader: HostId,
        epoch: u64,
        process: &ProcessName,
    ) -> Option<()> {
        let count = self.config.processes;
        let spec = self.specs.iter().find(|spec| spec.name == *process);
        let shard = spec.map_or(0, |spec| spec.shard_ids[0]);
        self.term(leader, epoch)?;
        let bot = BOT.to_owned();
        self.ledger(leader, epoch, identify::Input::Ready { bot, shard, count });
        Some(())
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
                    }
                });
            }
            world.post(300, At::Agent(host, life), move |world| {
                let Some(office) = world.term(host, epoch) else {
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
                world.failover(host, epoch, input);
            });
        });
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

    /// Gives what has no host, or a host that is gone for good, to others.
    fn assign(&mut self, host: HostId, life: u64, epoch: u64) {
        let specs = self.specs.clone();
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        if office.committing {
            return;
        }
        let seen = &office.seen;
        let released: BTreeSet<String> = office.failover.released().map(str::to_owned).collect();
        let hosts = seen.members.keys().map(|known| Host {
            name: known.clone(),
            state: if released.contains(known) {
                HostState::Lost
            } else if seen.instances.contains_key(&id(known)) {
                HostState::Present
            } else {
                // Nobody may touch what it runs.
                HostState::Cordoned
            },
            capacity: Capacity::default(),
            labels: BTreeMap::new(),
        });
        let rules = Arc::new(Rules::default());
        let processes = specs.iter().map(|spec| Process {
            name: spec.name.clone(),
            bot: BOT.to_owned(),
            order: spec.shard_ids[0],
            weight: 1,
            memory_bytes: 0,
            rules: Arc::clone(&rules),
            pinned: None,
        });
        let places = seen.assignment.iter();
        let places = places.map(|(on, process)| (process.clone(), on.to_owned()));
        let plan = placement::plan(&placement::Input {
            hosts: hosts.collect(),
            processes: processes.collect(),
            assignment: places.collect(),
            aim: Aim::Needed,
        });
        let taken = plan.moves.iter().filter_map(|step| step.from.as_deref());
        let gone: BTreeSet<HostId> = taken.map(id).collect();
        let placed: Vec<_> = plan
            .moves
            .into_iter()
            .map(|step| (step.process, Some(step.to)))
            .collect();
        if placed.is_empty() {
            return;
        }
        let count = placed.len() as u64;
        let next = seen.assignment.with(placed);
        let change = Assign {
            epoch,
            read_at: seen.assigned_at,
            next,
            gone,
        };
        self.commit(host, life, change, count);
    }

    fn commit(&mut self, host: HostId, life: u64, change: Assign, count: u64) {
        let epoch = change.epoch;
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        office.committing = true;
        let hosts = self.hosts.len();
        let commit = move |world: &mut Self| {
            if world.store.assign(&change) {
                world.counts.assigned += count;
            }
            world.store.read(hosts)
        };
        self.call((host, life), host, commit, move |world, answer| {
            let Some(office) = world.term(host, epoch) else {
                return;
            };
            office.committing = false;
            match answer {
                Some(seen) if seen.assigned_at >= office.seen.assigned_at => office.seen = seen,
                Some(_) => {}
                // Nobody knows how it went: the term is over.
                None => office.until = 0,
            }
        });
    }

    /// Each host is told what belongs to it, once in each of its tenures and whenever that changes.
    fn tell_hosts(&mut self, host: HostId, life: u64, epoch: u64) {
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        if office.moving.is_some() || office.committing {
            return;
        }
        let version = office.seen.assignment.version();
        let mut orders = Vec::new();
        for (peer, instance) in &office.seen.instances {
            let known = (instance.clone(), version);
            if office.told.get(peer) == Some(&known) || !office.telling.insert(*peer) {
                continue;
            }
            office.orders += 1;
            let own: BTreeSet<ProcessName> =
                office.seen.assignment.of(&name(*peer)).cloned().collect();
            orders.push((*peer, known, office.orders, own));
        }
        for (peer, known, number, own) in orders {
            let order = move |world: &mut Self| world.assigned(peer, epoch, number, &own);
            self.ask_agent((host, life), peer, order, move |world, answer| {
                let Some(office) = world.term(host, epoch) else {
                    return;
                };
                office.telling.remove(&peer);
                if answer == Some(()) {
                    office.told.insert(peer, known.clone());
                }
            });
        }
    }

    /// Now and then a process moves from one living host to another: it stops first.
    fn moves(&mut self, host: HostId, life: u64, epoch: u64, now: u64) {
        let begins = self.is_busy() && self.chance(5);
        let pick = self.rng.usize(0..self.specs.len().max(1));
        let process = self.specs[pick].name.clone();
        let to = self.rng.usize(0..self.hosts.len());
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        match office.moving.clone() {
            None if begins && office.telling.is_empty() && !office.committing => {
                let from = office.seen.assignment.host_of(&process).map(id);
                let there = |host: &HostId| office.seen.instances.contains_key(host);
                let Some(from) = from.filter(|from| *from != to && there(from) && there(&to))
                else {
                    return;
                };
                office.moving = Some(Moving {
                    process: process.clone(),
                    from,
                    to,
                    since: now,
                    stopped: false,
                });
                office.orders += 1;
                let number = office.orders;
                let stop = move |world: &mut Self| world.stop(from, epoch, number, &process);
                self.ask_agent((host, life), from, stop, move |world, answer| {
                    let Some(office) = world.term(host, epoch) else {
                        return;
                    };
                    // Whether it was stopped or not, the host is told anew what belongs to it.
                    office.told.remove(&from);
                    match &mut office.moving {
                        Some(moving) if answer == Some(()) => moving.stopped = true,
                        moving => *moving = None,
                    }
                });
            }
            Some(moving) if moving.stopped && !office.committing => {
                let stays =
                    office.seen.assignment.host_of(&moving.process).map(id) == Some(moving.from);
                office.moving = None;
                if stays {
                    let to = Some(name(moving.to));
                    let next = office.seen.assignment.with([(moving.process, to)]);
                    let read_at = office.seen.assigned_at;
                    let change = Assign {
                        epoch,
                        read_at,
                        next,
                        gone: BTreeSet::new(),
                    };
                    self.commit(host, life, change, 1);
                }
            }
            Some(moving) if now > moving.since + MOVE_WITHIN => office.moving = None,
            _ => {}
        }
    }

    /// A process asks whoever leads for a permit, through its agent.
    pub fn poll(&mut self, host: HostId, process: &ProcessName, pid: u64, ask: u64) {
        let (Some(life), Some((_, leader, epoch))) = (self.hosts[host].life(), self.store.office)
        else {
            return;
        };
        if !self.hosts[host].is_awake() {
            return;
        }
        let sent_at = self.clock(host);
        let poll = Poll {
            host,
            process: process.clone(),
            pid,
            sent_at,
        };
        let ask = (process.to_string(), format!("{pid}-{ask}"));
        // Answered later, by a message of its own.
        self.ask_agent(
            (host, life),
            leader,
            move |world| {
                let office = world.term(leader, epoch)?;
                office.next_poll += 1;
                let number = office.next_poll;
                office.polls.insert(number, poll.clone());
                let input = DeskInput::Poll {
                    id: ask.clone(),
                    poll: number,
                    wait_ms: 900,
                };
                world.desk(leader, epoch, input);
                Some(())
            },
            |_, _| {},
        );
    }

    fn desk(&mut self, host: HostId, epoch: u64, input: DeskInput) {
        let now = self.clock(host) as i64;
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        for effect in office.desk.step(now, input) {
            match effect {
                DeskEffect::Acquire(ask) => self.request(host, epoch, ask),
                DeskEffect::GiveUp(ask) => {
                    let Some(office) = self.term(host, epoch) else {
                        return;
                    };
                    let ids: Vec<u64> = office
                        .requests
                        .iter()
                        .filter(|(_, known)| **known == ask)
                        .map(|(id, _)| *id)
                        .collect();
                    for id in ids {
                        self.ledger(host, epoch, identify::Input::Cancel { id });
                    }
                }
                DeskEffect::Reply(number, reply) => self.reply(host, epoch, number, reply),
            }
        }
    }

    fn reply(&mut self, host: HostId, epoch: u64, number: PollId, reply: DeskReply) {
        let way = self.way();
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        let (Some(poll), Some(way)) = (office.polls.remove(&number), way) else {
            return;
        };
        let Some(life) = self.hosts[poll.host].life() else {
            return;
        };
        self.post(way, At::Agent(poll.host, life), move |world| {
            if world.linked(host, poll.host) {
                world.permitted(poll.host, &poll.process, poll.pid, poll.sent_at, reply);
            }
        });
    }

    fn request(&mut self, host: HostId, epoch: u64, ask: identify::AskId) {
        let count = self.config.processes;
        let spec = self.specs.iter().find(|spec| spec.name.as_str() == ask.0);
        let shard = spec.map_or(0, |spec| spec.shard_ids[0]);
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        let id = office.requests.len() as u64 + 1;
        let attempt = ask
            .1
            .split('-')
            .next()
            .and_then(|pid| pid.parse().ok())
            .unwrap_or(1);
        let request = Request {
            id,
            bot: BOT.to_owned(),
            process: ask.0.clone(),
            attempt,
            shard,
            count,
            via: Via::Worker,
        };
        office.requests.insert(id, ask);
        self.ledger(host, epoch, identify::Input::Request(request));
    }

    fn ledger(&mut self, host: HostId, epoch: u64, input: identify::Input) {
        let stamp = self.stamp(host);
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        for effect in office.ledger.step(stamp, input) {
            let Some(office) = self.term(host, epoch) else {
                return;
            };
            match effect {
                identify::Effect::Load { seq, .. } => self.load(host, epoch, seq),
                identify::Effect::Persist { seq, records, .. } => {
                    office.waiting.push((Some(seq), records));
                }
                identify::Effect::Note { record, .. } => office.waiting.push((None, vec![record])),
                identify::Effect::Grant {
                    id,
                    permit,
                    remaining,
                } => {
                    if let Some(id) = office.requests.get(&id).cloned() {
                        let until_boot_ms = stamp.boot_ms + Via::Worker.valid_ms();
                        let permit = Granted {
                            number: permit,
                            until_boot_ms,
                            remaining,
                        };
                        self.desk(host, epoch, DeskInput::Granted { id, permit });
                    }
                }
                identify::Effect::Refuse { id, why } => {
                    if let Some(id) = office.requests.get(&id).cloned() {
                        self.desk(host, epoch, DeskInput::Refused { id, why });
                    }
                }
                identify::Effect::Notice(_) => {}
            }
        }
        self.write_ledger(host, epoch);
    }

    fn load(&mut self, host: HostId, epoch: u64, seq: u64) {
        let Some(life) = self.hosts[host].life() else {
            return;
        };
        let read = |world: &mut Self| world.store.ledger.clone();
        self.call((host, life), host, read, move |world, answer| {
            let bot = BOT.to_owned();
            let input = match answer {
                Some(records) => identify::Input::Load { bot, seq, records },
                None => identify::Input::LoadFailed { bot, seq },
            };
            world.ledger(host, epoch, input);
        });
    }

    /// One write after the other; a permit is given once its record is in the store.
    fn write_ledger(&mut self, host: HostId, epoch: u64) {
        let Some(life) = self.hosts[host].life() else {
            return;
        };
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        if office.writing || office.waiting.is_empty() {
            return;
        }
        office.writing = true;
        let (seqs, records): (Vec<_>, Vec<_>) = office.waiting.drain(..).unzip();
        let records: Vec<Record> = records.into_iter().flatten().collect();
        let seqs: Vec<u64> = seqs.into_iter().flatten().collect();
        let write = move |world: &mut Self| {
            let leads = world.store.leads(epoch);
            if leads {
                world.store.ledger.extend(records.iter().copied().map(Some));
            }
            leads
        };
        self.call((host, life), host, write, move |world, answer| {
            let Some(office) = world.term(host, epoch) else {
                return;
            };
            office.writing = false;
            for seq in seqs.clone() {
                let bot = BOT.to_owned();
                let input = match answer {
                    Some(true) => identify::Input::Persisted { bot, seq },
                    _ => identify::Input::PersistFailed { bot, seq },
                };
                world.ledger(host, epoch, input);
            }
            world.write_ledger(host, epoch);
        });
    }
}
