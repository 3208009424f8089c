//! Time, the network, clocks, and the invariants.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

use tanako_fleet::{ProcessName, ProcessSpec, identify::Stamp, spec};

use super::{
    super::trace::Trace, Config, HEAL_EACH_MS, HEAL_MS, faults, host::Host, process::Proc,
    store::Store,
};

/// Life of a lease, in milliseconds.
pub const TTL: u64 = 5_000;
/// A call that has not been answered within this time is given up, at both ends.
pub const CALL_WITHIN: u64 = 1_000;
/// The wall clocks when the run begins, in milliseconds since 1970.
const EPOCH_MS: i64 = 1_790_000_000_000;
/// Discord's rule.
const BUCKET_MS: u64 = 5_000;
/// In this time after its host thawed a process that knows nothing of tenures is killed.
const THAW_GRACE: u64 = 150;
/// Between two looks at whether everything is at rest.
const LOOK_EVERY: u64 = 1_000;

pub type HostId = usize;
type Work = Rc<dyn Fn(&mut World)>;

/// Whose event it is: it waits while they are stopped, and is gone when they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    World,
    /// This life of a host's agent.
    Agent(HostId, u64),
    /// A host's other processes.
    Machine(HostId, u64),
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub identifies: u64,
    pub starts: u64,
    pub assigned: u64,
    pub lapses: u64,
    pub releases: u64,
}

/// See the module's documentation.
pub struct World {
    pub now: u64,
    pub config: Config,
    pub rng: fastrand::Rng,
    pub trace: Trace,
    pub hosts: Vec<Host>,
    pub store: Store,
    pub specs: Vec<ProcessSpec>,
    /// Hosts that the store cannot be reached from.
    pub cut_off: BTreeSet<HostId>,
    /// The next agent that is about to start a process stands still first, so long; or its whole host.
    pub trap: Option<(faults::Fault, u64)>,
    /// Pairs of hosts without a way between them.
    pub links: BTreeSet<(HostId, HostId)>,
    queue: BTreeMap<(u64, u64), (At, Work)>,
    parked: Vec<VecDeque<(At, Work)>>,
    posted: u64,
    /// Processes with a session that can be resumed.
    pub sessions: BTreeSet<ProcessName>,
    identified: BTreeMap<u32, u64>,
    pub next_pid: u64,
    pub counts: Counts,
    pub violation: Option<String>,
    pub done: bool,
    good: u32,
}

pub fn name(host: HostId) -> String {
    format!("h{host:02}")
}

pub fn id(name: &str) -> HostId {
    name.trim_start_matches('h').parse().unwrap_or(0)
}

impl World {
    pub fn new(seed: u64, config: Config, verbose: bool, loud: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x5eed);
        let toml = format!(
            "[fleet]\nname = \"t\"\n[bots.b]\ncommand = [\"x\"]\ntoken_file = \"/t\"\nshards = {}\n",
            config.processes
        );
        let specs = spec::parse(&toml, "fleet.toml")
            .map(|spec| spec.processes(&spec::Places::anywhere()))
            .unwrap_or_default();
        let hosts: Vec<Host> = (0..config.hosts)
            .map(|_| Host::new(&config, &mut rng))
            .collect();
        Self {
            now: 0,
            parked: hosts.iter().map(|_| VecDeque::new()).collect(),
            config,
            rng,
            trace: Trace::new(verbose, loud),
            hosts,
            store: Store::new(),
            specs,
            cut_off: BTreeSet::new(),
            trap: None,
            links: BTreeSet::new(),
            queue: BTreeMap::new(),
            posted: 0,
            sessions: BTreeSet::new(),
            identified: BTreeMap::new(),
            next_pid: 0,
            counts: Counts::default(),
            violation: None,
            done: false,
            good: 0,
        }
    }

    /// Sets everything going.
    pub fn begin(&mut self) {
        for host in 0..self.hosts.len() {
            let wait = self.draw(0..=2_000);
            self.post(wait, At::World, move |world| world.start_agent(host));
            self.post(0, At::Machine(host, 0), move |world| world.fence(host));
        }
        self.post(0, At::World, faults::strike);
        let close = self.config.busy_ms;
        self.post(close, At::World, faults::mend);
        self.post(close + LOOK_EVERY, At::World, Self::close);
    }

    pub fn draw(&mut self, range: std::ops::RangeInclusive<u64>) -> u64 {
        self.rng.u64(range)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.rng.u64(0..100) < percent
    }

    pub fn is_busy(&self) -> bool {
        self.now < self.config.busy_ms
    }

    pub fn note(&mut self, place: u32, numbers: &[u64], line: impl FnOnce() -> String) {
        self.trace.note(self.now, place, numbers, line);
    }

    pub fn violate(&mut self, invariant: &str, what: impl Into<String>) {
        let what = format!("{invariant}: {}", what.into());
        self.note(line!(), &[], || format!("VIOLATED {what}"));
        self.violation.get_or_insert(what);
    }

    /// The clock of a host that goes on while it sleeps. Hosts differ, and drift.
    pub fn clock(&self, host: HostId) -> u64 {
        let known = &self.hosts[host];
        let drift = self.now as i64 * known.drift / 1_000;
        (known.offset as i64 + self.now as i64 + drift).unsigned_abs()
    }

    pub fn stamp(&self, host: HostId) -> Stamp {
        let known = &self.hosts[host];
        Stamp {
            boot_id: host as u64 * 1_000 + known.boot,
            boot_ms: self.clock(host) as i64,
            // Set now and then, and between that it drifts as the other one does.
            wall_ms: EPOCH_MS + self.clock(host) as i64 - known.offset as i64 + known.ahead,
        }
    }

    /// Somebody sets a host's wall clock, forwards or back.
    pub fn set_clock(&mut self, host: HostId) {
        self.hosts[host].ahead = self.config.wall_clock(&mut self.rng);
        let ahead = self.hosts[host].ahead;
        self.note(line!(), &[host as u64, ahead.unsigned_abs()], || {
            format!("the wall clock of {} is ahead by {ahead} ms", name(host))
        });
    }

    /// Something happens later.
    pub fn post(&mut self, wait: u64, at: At, work: impl Fn(&mut Self) + 'static) {
        self.put(wait, at, Rc::new(work));
    }

    fn put(&mut self, wait: u64, at: At, work: Work) {
        self.posted += 1;
        self.queue
            .insert((self.now + wait, self.posted), (at, work));
    }

    /// One event. False when there is none.
    pub fn step(&mut self) -> bool {
        let Some(((time, _), (at, work))) = self.queue.pop_first() else {
            return false;
        };
        self.now = self.now.max(time);
        self.store.expire(self.now);
        match at {
            At::World => {}
            At::Agent(host, life) => {
                if self.hosts[host].life() != Some(life) {
                    return true;
                }
                if !self.hosts[host].is_awake() {
                    self.parked[host].push_back((at, work));
                    return true;
                }
            }
            At::Machine(host, boot) => {
                if self.hosts[host].boot != boot || self.hosts[host].off {
                    return true;
                }
                if self.hosts[host].frozen {
                    self.parked[host].push_back((at, work));
                    return true;
                }
            }
        }
        work(self);
        true
    }

    /// What a host was about to do goes on.
    pub fn thaw(&mut self, host: HostId) {
        self.hosts[host].thawed_at = self.now;
        for (at, work) in std::mem::take(&mut self.parked[host]) {
            let wait = self.draw(0..=5);
            self.put(wait, at, work);
        }
    }

    /// Whether a process may act at this moment: it runs, and what it was told last has not passed.
    fn acts(&self, host: HostId, name: &ProcessName) -> bool {
        let known = &self.hosts[host];
        let proc = known.procs.get(name);
        if known.off || known.frozen {
            return false;
        }
        let heeds = |proc: &Proc| {
            if self.config.foreign {
                // It goes on until it is killed. Nobody can be quicker than a host that has just thawed.
                self.now >= known.thawed_at + THAW_GRACE
            } else {
                self.clock(host) < proc.valid_until
            }
        };
        proc.is_some_and(heeds)
    }

    /// No process acts on two hosts.
    pub fn look(&mut self) {
        let mut owners: BTreeMap<&ProcessName, HostId> = BTreeMap::new();
        let mut twice = None;
        for (host, known) in self.hosts.iter().enumerate() {
            for process in known.procs.keys().filter(|name| self.acts(host, name)) {
                if let Some(other) = owners.insert(process, host) {
                    twice = Some(format!(
                        "{process} acts on {} and {}",
                        name(other),
                        name(host)
                    ));
                }
            }
        }
        if let Some(what) = twice {
            self.violate("one owner", what);
        }
    }

    /// Discord sees an IDENTIFY.
    pub fn identify(&mut self, host: HostId, process: &ProcessName, shard: u32) {
        self.counts.identifies += 1;
        self.note(line!(), &[shard.into()], || {
            format!("{process} identifies on {}", name(host))
        });
        let bucket = shard % self.config.max_concurrency;
        let before = self.identified.insert(bucket, self.now);
        if let Some(before) = before.filter(|before| self.now - before < BUCKET_MS) {
            let what = format!("bucket {bucket} sees two within {} ms", self.now - before);
            self.violate("IDENTIFYs", what);
        }
        if self.counts.identifies > u64::from(self.config.total - self.config.reserve) {
            self.violate("IDENTIFYs", "the reserve is touched");
        }
        self.sessions.insert(process.clone());
    }

    /// After the faults: everything runs where it is assigned.
    fn close(&mut self) {
        match self.rests() {
            Ok(()) => self.good += 1,
            Err(why) => {
                self.good = 0;
                let patience = HEAL_MS + HEAL_EACH_MS * u64::from(self.config.processes);
                if self.now > self.config.busy_ms + patience {
                    self.violate("liveness", why);
                }
            }
        }
        self.done = self.good >= 5;
        self.post(LOOK_EVERY, At::World, Self::close);
    }

    fn rests(&self) -> Result<(), String> {
        for spec in &self.specs {
            let process = &spec.name;
            let Some(host) = self.store.assignment.host_of(process) else {
                return Err(format!("{process} is assigned to no host"));
            };
            let on = id(host);
            let ready = self.hosts[on]
                .procs
                .get(process)
                .is_some_and(|proc| proc.ready);
            if !ready || !self.acts(on, process) {
                return Err(format!("{process} does not serve on {host}"));
            }
        }
        Ok(())
    }
}
