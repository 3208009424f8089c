//! What belongs to which host: who leads decides with the real placement and says so; a host takes what the
//! real core of orders lets pass.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tanako_fleet::{
    ProcessName,
    orders::Given,
    placement::{self, Aim, Capacity, Host, HostState, Process, Rules},
};

use super::{
    office::{BOT, MOVE_WITHIN, Moving},
    store::Assign,
    world::{HostId, World, id, name},
};

/// What every order says.
#[derive(Clone)]
struct Order {
    epoch: u64,
    /// The tenure that it is meant for.
    tenure: String,
    number: u64,
}

impl Order {
    fn about<'a>(&'a self, process: Option<&'a ProcessName>) -> Given<'a> {
        Given {
            epoch: self.epoch,
            tenure: &self.tenure,
            about: process.map(|process| (process, self.number)),
        }
    }
}

impl World {
    /// Gives what has no host, or a host that is gone for good, to others.
    pub fn assign(&mut self, host: HostId, life: u64, epoch: u64) {
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
    pub fn tell_hosts(&mut self, host: HostId, life: u64, epoch: u64) {
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
            let order = Order {
                epoch,
                tenure: instance.clone(),
                number: office.orders,
            };
            orders.push((*peer, known, order, own));
        }
        for (peer, known, order, own) in orders {
            let tell = move |world: &mut Self| world.assigned(peer, &order, &own);
            self.ask_agent((host, life), peer, tell, move |world, answer| {
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
    pub fn moves(&mut self, host: HostId, life: u64, epoch: u64, now: u64) {
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
                let Some(from) = from.filter(|from| *from != to && there(&to)) else {
                    return;
                };
                let Some(tenure) = office.seen.instances.get(&from).cloned() else {
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
                let order = Order {
                    epoch,
                    tenure,
                    number: office.orders,
                };
                let stop = move |world: &mut Self| world.stop(from, &order, &process);
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

    /// Whether an order counts here; if so, that is remembered.
    fn admits(&mut self, host: HostId, given: &Given<'_>) -> bool {
        let known = &mut self.hosts[host];
        let Some(agent) = &mut known.agent else {
            return false;
        };
        if let Err(late) = agent.orders.check(&agent.instance, given) {
            let epoch = given.epoch;
            self.note(line!(), &[host as u64, epoch], || {
                format!("{} refuses an order of epoch {epoch}: {late:?}", name(host))
            });
            return false;
        }
        agent.orders.passed(given);
        known.disk.epoch = known.disk.epoch.max(given.epoch);
        true
    }

    /// An order: this is what belongs to the host. It stands for one that names them, and one for each of
    /// them.
    fn assigned(&mut self, host: HostId, order: &Order, own: &BTreeSet<ProcessName>) -> Option<()> {
        if !self.admits(host, &order.about(None)) {
            return None;
        }
        let known = &mut self.hosts[host];
        let agent = known.agent.as_ref()?;
        // What was brought here after that was said stays.
        let stays = |process: &ProcessName| {
            own.contains(process) || agent.orders.is_newer(process, order.number)
        };
        known.disk.table.retain(stays);
        known.procs.retain(|process, _| stays(process));
        for process in own {
            if self.admits(host, &order.about(Some(process))) {
                self.hosts[host].disk.table.insert(process.clone());
                self.may_start(host, process);
            }
        }
        Some(())
    }

    /// An order: this process is to stop, for it moves.
    fn stop(&mut self, host: HostId, order: &Order, process: &ProcessName) -> Option<()> {
        if !self.admits(host, &order.about(Some(process))) {
            return None;
        }
        let known = &mut self.hosts[host];
        known.disk.table.remove(process);
        known.procs.remove(process);
        Some(())
    }
}
