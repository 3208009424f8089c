//! A host: an agent around the real tenure, as `agent/src/tenure`, its processes, which outlive it, and the
//! fence, which kills them when what is written down has passed.

use std::collections::{BTreeMap, BTreeSet};

use tanako_fleet::{
    ProcessName,
    failover::{SHARE, brake_limit},
    orders::Orders,
    tenure::{Effect, Input, Tenure, Way},
};

use super::{
    Config,
    office::Office,
    process::Proc,
    store::Claim,
    world::{At, HostId, TTL, World, name},
};

/// The agent's loop sleeps no longer than this.
const NAP_MAX: u64 = 500;
/// Between two reads of the assignment that failed, and two asks for a permit.
pub const RETRY: u64 = 500;

/// See the module's documentation.
pub struct Host {
    pub offset: u64,
    /// Parts per thousand by which its clock goes faster or slower.
    pub drift: i64,
    /// What its wall clock is ahead by.
    pub ahead: i64,
    pub boot: u64,
    pub off: bool,
    pub frozen: bool,
    pub agent_frozen: bool,
    pub thawed_at: u64,
    pub agent: Option<Agent>,
    pub lives: u64,
    pub procs: BTreeMap<ProcessName, Proc>,
    pub disk: Disk,
}

#[derive(Default)]
pub struct Disk {
    pub written: Option<Written>,
    /// The newest epoch of an order that was carried out.
    pub epoch: u64,
    /// What shall run here, as far as its agent has been told.
    pub table: BTreeSet<ProcessName>,
}

#[derive(Clone)]
pub struct Written {
    pub boot: u64,
    pub until: u64,
    pub lease: u64,
    pub stay: u32,
    pub instance: String,
}

/// One life of an agent.
pub struct Agent {
    pub life: u64,
    pub tenure: Tenure,
    pub instance: String,
    pub begun: u64,
    /// Tenures that are over, and whose processes are gone.
    pub over: Vec<String>,
    /// What is another's by now has been forgotten.
    pub settled: bool,
    pub starting: BTreeSet<ProcessName>,
    /// Whose orders count.
    pub orders: Orders,
    pub office: Option<Office>,
}

impl Host {
    pub fn new(config: &Config, rng: &mut fastrand::Rng) -> Self {
        Self {
            offset: rng.u64(100_000..1_000_000),
            drift: rng.i64(-4..=4),
            ahead: config.wall_clock(rng),
            boot: 0,
            off: false,
            frozen: false,
            agent_frozen: false,
            thawed_at: 0,
            agent: None,
            lives: 0,
            procs: BTreeMap::new(),
            disk: Disk::default(),
        }
    }

    pub fn life(&self) -> Option<u64> {
        self.agent.as_ref().map(|agent| agent.life)
    }

    /// Whether its agent runs on.
    pub fn is_awake(&self) -> bool {
        !self.off && !self.frozen && !self.agent_frozen
    }
}

impl World {
    pub fn start_agent(&mut self, host: HostId) {
        let now = self.clock(host);
        let known = &mut self.hosts[host];
        if known.off || known.agent.is_some() {
            return;
        }
        known.lives += 1;
        let life = known.lives;
        let boot = known.boot;
        let written = known
            .disk
            .written
            .clone()
            .filter(|written| written.boot == boot);
        let own = written.as_ref().is_some_and(|written| written.until > now);
        let tenure = match &written {
            Some(known) if own => Tenure::adopted(TTL, now, known.lease, known.until, known.stay),
            Some(known) => Tenure::adopted(TTL, now, known.lease, 0, known.stay.max(1)),
            None => Tenure::adopted(TTL, now, 0, 0, 1),
        };
        let instance = known
            .disk
            .written
            .as_ref()
            .map(|written| written.instance.clone());
        known.agent = Some(Agent {
            life,
            tenure,
            instance: instance.unwrap_or_default(),
            begun: 0,
            over: Vec::new(),
            settled: own,
            starting: BTreeSet::new(),
            orders: Orders::new(known.disk.epoch),
            office: None,
        });
        self.note(line!(), &[host as u64, life], || {
            format!("{} life {life} begins", name(host))
        });
        self.post(0, At::Agent(host, life), move |world| {
            world.agent_loop(host);
        });
        self.post(50, At::Agent(host, life), move |world| world.seek(host));
        if own {
            let all: Vec<_> = self.hosts[host].disk.table.iter().cloned().collect();
            for process in &all {
                self.may_start(host, process);
            }
        }
    }

    pub fn kill_agent(&mut self, host: HostId) {
        self.hosts[host].agent = None;
    }

    pub fn power_cut(&mut self, host: HostId) {
        let known = &mut self.hosts[host];
        (known.off, known.agent) = (true, None);
        (known.frozen, known.agent_frozen) = (false, false);
        known.boot += 1;
        known.procs.clear();
        // What it wrote down is on its disk.
        self.thaw(host);
    }

    pub fn agent(&mut self, host: HostId) -> Option<&mut Agent> {
        self.hosts[host].agent.as_mut()
    }

    /// Its timer.
    fn agent_loop(&mut self, host: HostId) {
        self.tenure(host, Input::Stay(0));
        let now = self.clock(host);
        let Some(agent) = self.agent(host) else {
            return;
        };
        let due = agent
            .tenure
            .deadline(now)
            .map_or(NAP_MAX, |due| due.saturating_sub(now));
        let life = agent.life;
        self.post(due.clamp(1, NAP_MAX), At::Agent(host, life), move |world| {
            world.agent_loop(host);
        });
        // Our bots are told each second and whenever it changes; here, with each turn.
        self.tell_processes(host);
        self.report(host);
        let all: Vec<_> = self.hosts[host].disk.table.iter().cloned().collect();
        for process in &all {
            self.may_start(host, process);
        }
    }

    /// Whoever leads is told which processes are ready.
    fn report(&mut self, host: HostId) {
        let Some((_, leader, epoch)) = self.store.office else {
            return;
        };
        let known = &mut self.hosts[host];
        let Some(life) = known.life() else { return };
        let news = known
            .procs
            .iter_mut()
            .filter(|(_, proc)| proc.ready && proc.told != epoch);
        let mut ready = Vec::new();
        for (process, proc) in news {
            proc.told = epoch;
            ready.push((process.clone(), proc.pid));
        }
        for (process, pid) in ready {
            let named = process.clone();
            let tell = move |world: &mut Self| world.became_ready(leader, epoch, &named);
            self.ask_agent((host, life), leader, tell, move |world, answer| {
                let proc = world.hosts[host].procs.get_mut(&process);
                if let Some(proc) = proc.filter(|proc| proc.pid == pid && answer.is_none()) {
                    proc.told = 0;
                }
            });
        }
    }

    /// One step of the tenure.
    pub fn tenure(&mut self, host: HostId, input: Input) {
        let now = self.clock(host);
        let counted = (0..self.hosts.len()).filter(|id| {
            let terms = self.store.terms.get(id);
            self.store.present.contains_key(id) || terms.is_some_and(|(_, terms)| !terms.released)
        });
        let limit = u32::try_from(brake_limit(counted.count().max(1), SHARE)).unwrap_or(1);
        let sees = self.reaches_store(host);
        let Some(agent) = self.agent(host) else {
            return;
        };
        let input = match input {
            Input::Stay(_) if sees => Input::Stay(limit),
            Input::Stay(_) => Input::Tick,
            other => other,
        };
        let effects = agent.tenure.step(now, input);
        if effects.contains(&Effect::Stop) {
            agent.settled = false;
        }
        self.write_down(host);
        for effect in effects {
            self.perform(host, now, effect);
        }
        self.tell_processes(host);
    }

    /// First on disk, for those who guard the processes.
    fn write_down(&mut self, host: HostId) {
        let now = self.clock(host);
        let known = &mut self.hosts[host];
        let Some(agent) = &known.agent else { return };
        let before = known
            .disk
            .written
            .as_ref()
            .map_or(0, |written| written.lease);
        known.disk.written = Some(Written {
            boot: known.boot,
            until: agent.tenure.until(now),
            lease: agent.tenure.lease().unwrap_or(before),
            stay: agent.tenure.stay(),
            instance: agent.instance.clone(),
        });
    }

    pub fn tell_processes(&mut self, host: HostId) {
        let now = self.clock(host);
        let known = &mut self.hosts[host];
        let Some(agent) = &known.agent else { return };
        let until = agent.tenure.until(now);
        for proc in known.procs.values_mut() {
            proc.valid_until = until;
        }
    }

    fn perform(&mut self, host: HostId, now: u64, effect: Effect) {
        let Some(agent) = self.agent(host) else {
            return;
        };
        let (life, instance) = (agent.life, agent.instance.clone());
        let own = (host, life);
        match effect {
            Effect::Begin | Effect::Reclaim => self.claim(host, now, effect == Effect::Reclaim),
            Effect::Renew { lease, way } => {
                let via = match way {
                    Way::Direct => host,
                    Way::Relayed => self.rng.usize(0..self.hosts.len()),
                };
                let renew = move |world: &mut Self| world.store.renew(world.now, lease);
                self.call(own, via, renew, move |world, answer| {
                    let input = match answer {
                        Some(true) => Input::Renewed {
                            lease,
                            way,
                            sent_at: now,
                        },
                        Some(false) => Input::Ended { lease },
                        None => Input::NotRenewed { lease, way },
                    };
                    world.tenure(host, input);
                });
            }
            Effect::Store(stay) => {
                let write = move |world: &mut Self| world.store.store_stay(host, &instance, stay);
                self.call(own, host, write, move |world, answer| {
                    let stored = answer == Some(true);
                    let input = if stored {
                        Input::Stored(stay)
                    } else {
                        Input::NotStored
                    };
                    world.tenure(host, input);
                });
            }
            Effect::Ask => {
                for peer in (0..self.hosts.len()).filter(|peer| *peer != host) {
                    self.ask_standing(own, peer, move |world, answer| {
                        if answer.is_some_and(|standing| standing.cut) {
                            let input = Input::Cut {
                                peer: name(peer),
                                asked_at: now,
                            };
                            world.tenure(host, input);
                        }
                    });
                }
            }
            Effect::Stop => {
                self.counts.lapses += 1;
                self.note(line!(), &[host as u64], || {
                    format!(
                        "{} has no tenure any more: its processes are killed",
                        name(host)
                    )
                });
                self.kill_processes(host);
                let wait = self.draw(1..=40);
                self.post(wait, At::Agent(host, life), move |world| {
                    world.kill_processes(host);
                    world.tenure(host, Input::Stopped);
                });
            }
        }
    }

    fn claim(&mut self, host: HostId, now: u64, again: bool) {
        let Some(agent) = self.agent(host) else {
            return;
        };
        let (life, stay, mut over) = (agent.life, agent.tenure.stay(), agent.over.clone());
        let instance = if again {
            agent.instance.clone()
        } else {
            over.push(agent.instance.clone());
            format!("{host}-{life}-{}", agent.begun)
        };
        let named = instance.clone();
        let take = move |world: &mut Self| {
            let wanted = (instance.as_str(), over.as_slice());
            world.store.claim(world.now, host, wanted, stay, again)
        };
        self.call(
            (host, life),
            host,
            take,
            move |world, answer| match answer {
                Some(Claim::Taken { lease, stay }) => {
                    let Some(agent) = world.agent(host) else {
                        return;
                    };
                    if agent.instance != named {
                        let before = std::mem::replace(&mut agent.instance, named.clone());
                        agent.over.push(before);
                        agent.begun += 1;
                        agent.settled = false;
                        world.settle(host);
                    }
                    world.tenure(
                        host,
                        Input::Began {
                            lease,
                            sent_at: now,
                            stay,
                        },
                    );
                }
                Some(Claim::Released) => world.tenure(host, Input::Released),
                Some(Claim::Wait) | None => world.tenure(host, Input::NotBegan),
            },
        );
    }

    /// Before anything is started: what is another host's by now is forgotten.
    fn settle(&mut self, host: HostId) {
        let Some(agent) = self.agent(host) else {
            return;
        };
        let (life, instance) = (agent.life, agent.instance.clone());
        let read = move |world: &mut Self| {
            let known = name(host);
            let own = world.store.assignment.of(&known);
            own.cloned().collect::<BTreeSet<ProcessName>>()
        };
        self.call((host, life), host, read, move |world, answer| {
            let Some(agent) = world.agent(host) else {
                return;
            };
            if agent.instance != instance {
                return;
            }
            let Some(own) = answer else {
                world.post(RETRY, At::Agent(host, life), move |world| {
                    world.settle(host);
                });
                return;
            };
            agent.settled = true;
            let known = &mut world.hosts[host];
            known.disk.table.retain(|process| own.contains(process));
            known.procs.retain(|process, _| own.contains(process));
            let all: Vec<_> = known.disk.table.iter().cloned().collect();
            for process in &all {
                world.may_start(host, process);
            }
        });
    }
}
