//! The processes of a host, which outlive its agent, and the fence, which kills them when what is written
//! down has passed.

use tanako_fleet::{
    ProcessName,
    identify::{self, DeskReply},
};

use super::{
    faults,
    host::RETRY,
    world::{At, CALL_WITHIN, HostId, World, name},
};

/// The fence looks this often.
const FENCE_EVERY: u64 = 100;

/// A process.
pub struct Proc {
    pub pid: u64,
    /// On the host's clock: it must not act from then on.
    pub valid_until: u64,
    pub ready: bool,
    /// Which coordinator was told last that it is ready.
    pub told: u64,
}

impl World {
    /// Whether processes may be started on a host now.
    fn is_open(&mut self, host: HostId) -> bool {
        let now = self.clock(host);
        let agent = self.agent(host);
        agent.is_some_and(|agent| agent.settled && agent.tenure.is_tenured(now))
    }

    pub fn may_start(&mut self, host: HostId, process: &ProcessName) {
        let open = self.is_open(host);
        let known = &mut self.hosts[host];
        let wanted = known.disk.table.contains(process) && !known.procs.contains_key(process);
        let Some(agent) = known.agent.as_mut().filter(|_| open && wanted) else {
            return;
        };
        if !agent.starting.insert(process.clone()) {
            return;
        }
        let (life, process) = (agent.life, process.clone());
        let wait = self.draw(1..=300);
        self.post(wait, At::Agent(host, life), move |world| {
            world.start(host, &process);
        });
        faults::before_start(self, host);
    }

    fn start(&mut self, host: HostId, process: &ProcessName) {
        let open = self.is_open(host);
        let known = &mut self.hosts[host];
        let Some(agent) = &mut known.agent else {
            return;
        };
        agent.starting.remove(process);
        if !open || !known.disk.table.contains(process) || known.procs.contains_key(process) {
            return;
        }
        let boot = known.boot;
        self.next_pid += 1;
        let pid = self.next_pid;
        let proc = Proc {
            pid,
            valid_until: 0,
            ready: false,
            told: 0,
        };
        self.hosts[host].procs.insert(process.clone(), proc);
        self.counts.starts += 1;
        self.note(line!(), &[host as u64, pid], || {
            format!("{process} starts on {}", name(host))
        });
        let given = self.store.assignment.host_of(process).map(str::to_owned);
        if given.as_deref() != Some(&name(host)) {
            let what = format!("{process} starts on {}, assigned to {given:?}", name(host));
            self.violate("starts what is assigned", what);
        }
        self.tell_processes(host);
        let (wait, process) = (self.draw(20..=400), process.clone());
        self.post(wait, At::Machine(host, boot), move |world| {
            world.connect(host, &process, pid, 0);
        });
    }

    /// A process resumes its session, or asks for a permit until it has one.
    fn connect(&mut self, host: HostId, process: &ProcessName, pid: u64, asks: u64) {
        let now = self.clock(host);
        let known = &mut self.hosts[host];
        let boot = known.boot;
        let Some(proc) = known
            .procs
            .get_mut(process)
            .filter(|proc| proc.pid == pid && !proc.ready)
        else {
            return;
        };
        let again = {
            let process = process.clone();
            move |world: &mut Self| world.connect(host, &process, pid, asks + 1)
        };
        if now >= proc.valid_until {
            self.post(RETRY, At::Machine(host, boot), again);
        } else if self.sessions.contains(process) {
            proc.ready = true;
        } else {
            self.poll(host, process, pid, asks / 8);
            self.post(CALL_WITHIN, At::Machine(host, boot), again);
        }
    }

    /// An answer to a poll has come.
    pub fn permitted(
        &mut self,
        host: HostId,
        process: &ProcessName,
        pid: u64,
        sent_at: u64,
        reply: DeskReply,
    ) {
        let DeskReply::Granted { valid_ms, .. } = reply else {
            return;
        };
        let now = self.clock(host);
        let proc = self.hosts[host]
            .procs
            .get(process)
            .filter(|proc| proc.pid == pid && !proc.ready);
        let acts = proc.is_some_and(|proc| now < proc.valid_until);
        if !acts
            || identify::until(sent_at as i64, valid_ms, now as i64).is_none()
            || self.sessions.contains(process)
        {
            return;
        }
        let shard = self
            .specs
            .iter()
            .find(|spec| spec.name == *process)
            .map_or(0, |spec| spec.shard_ids[0]);
        self.identify(host, process, shard);
        if let Some(proc) = self.hosts[host].procs.get_mut(process) {
            proc.ready = true;
        }
    }

    pub fn process_ended(&mut self, host: HostId, process: &ProcessName) {
        self.hosts[host].procs.remove(process);
    }

    /// Discord has ended it: whoever serves has to identify.
    pub fn session_lost(&mut self, process: &ProcessName) {
        self.sessions.remove(process);
        for host in 0..self.hosts.len() {
            let boot = self.hosts[host].boot;
            if let Some(proc) = self.hosts[host]
                .procs
                .get_mut(process)
                .filter(|proc| proc.ready)
            {
                (proc.ready, proc.told) = (false, 0);
                let (pid, process) = (proc.pid, process.clone());
                self.post(100, At::Machine(host, boot), move |world| {
                    world.connect(host, &process, pid, 0);
                });
            }
        }
    }

    pub fn kill_processes(&mut self, host: HostId) {
        self.hosts[host].procs.clear();
    }

    /// The fence looks at what is written down.
    pub fn fence(&mut self, host: HostId) {
        let now = self.clock(host);
        let known = &self.hosts[host];
        let boot = known.boot;
        let passed = known
            .disk
            .written
            .as_ref()
            .is_none_or(|written| written.boot != boot || now >= written.until);
        if passed {
            self.kill_processes(host);
        }
        self.post(FENCE_EVERY, At::Machine(host, boot), move |world| {
            world.fence(host);
        });
    }
}
