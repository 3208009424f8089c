//! The machine: its clocks, its processes, and what of its disk survives what.

use std::{collections::BTreeMap, sync::Arc};

use super::watch;
use tanako_agent::supervisor::{core::Exit, records::Run};
use tanako_fleet::{
    ProcessName, ProcessSpec,
    identify::{Record, Stamp},
    vault::{ShardKey, Slot},
};

use super::{
    agent::Agent, bot, config::Config, discord, executor::Group, trace::trace, world::Sim,
};

/// A process of the operating system. Never used again.
pub type Pid = u64;

/// The machine had been up for this long, in milliseconds, when the run began.
const UPTIME_MS: i64 = 3_600_000;
/// The wall clock when the run began, in milliseconds since 1970.
const EPOCH_MS: i64 = 1_790_000_000_000;

/// See the module's documentation.
pub struct Host {
    boot: u64,
    /// Virtual time of the boot.
    boot_at: i64,
    /// What the wall clock is ahead by.
    ahead: i64,
    next_pid: Pid,
    /// What runs.
    pub procs: BTreeMap<Pid, OsProc>,
    exits: BTreeMap<Pid, Exit>,
    /// What lasts.
    pub disk: Disk,
}

/// A process that runs.
pub struct OsProc {
    /// Which one it is.
    pub name: ProcessName,
    /// Its attempt.
    pub attempt: u64,
    /// Its run.
    pub nonce: u64,
    /// Its tasks.
    pub group: Group,
    /// The agent's life that is its parent.
    pub parent: u64,
    /// Signals to stop so far.
    pub term: watch::Sender<u32>,
    /// It hears no signal but SIGKILL.
    pub hung: bool,
    /// All of its shards have been ready.
    pub ready: bool,
    /// When an agent last heard from it.
    pub heard_at: u64,
}

/// What is on the disk.
#[derive(Default)]
pub struct Disk {
    /// The supervisor's records: specs and runs.
    pub specs: BTreeMap<ProcessName, Arc<ProcessSpec>>,
    /// See `specs`.
    pub runs: BTreeMap<ProcessName, Run>,
    /// The newest epoch whose orders were obeyed.
    pub epoch: u64,
    /// The ledger's file, and how much of it is synced.
    pub ledger: Vec<Option<Record>>,
    /// See `ledger`.
    pub ledger_synced: usize,
    /// The vault's slots, as the page cache has them.
    pub vault: BTreeMap<ShardKey, Slot>,
    /// The vault's slots, as the disk has them.
    pub vault_synced: BTreeMap<ShardKey, Slot>,
}

impl Host {
    /// Freshly set up.
    pub fn new(_: &Config) -> Self {
        Self {
            boot: 1,
            boot_at: -UPTIME_MS,
            ahead: 0,
            next_pid: 100,
            procs: BTreeMap::new(),
            exits: BTreeMap::new(),
            disk: Disk::default(),
        }
    }

    /// Both clocks of the ledger.
    pub fn stamp(&self, now: u64) -> Stamp {
        Stamp {
            boot_id: self.boot,
            boot_ms: now as i64 - self.boot_at,
            wall_ms: self.wall_ms(now),
        }
    }

    /// Milliseconds since 1970, as the machine has it.
    pub fn wall_ms(&self, now: u64) -> i64 {
        EPOCH_MS + now as i64 + self.ahead
    }

    /// What the wall clock is ahead of Discord's, in milliseconds.
    pub fn ahead(&self) -> i64 {
        self.ahead
    }

    /// Names this boot.
    pub fn boot(&self) -> Arc<str> {
        format!("boot-{}", self.boot).into()
    }

    /// How a child ended, once.
    pub fn wait(&self, pid: Pid) -> Option<Exit> {
        self.exits.get(&pid).copied()
    }

    /// The living process of that name, the latest attempt first.
    pub fn find(&self, name: &ProcessName) -> Option<(Pid, &OsProc)> {
        self.procs
            .iter()
            .filter(|(_, proc)| proc.name == *name)
            .max_by_key(|(_, proc)| proc.attempt)
            .map(|(pid, proc)| (*pid, proc))
    }
}

/// Sets the wall clock by so much.
pub fn jump(sim: &Sim, ms: i64) {
    sim.host.borrow_mut().ahead += ms;
}

/// What a process is started with.
pub struct Start {
    /// Its spec.
    pub spec: Arc<ProcessSpec>,
    /// Its attempt.
    pub attempt: u64,
    /// Its run.
    pub nonce: u64,
}

/// Starts a process.
pub fn spawn(sim: &Sim, start: Start, parent: u64) -> Pid {
    let group = sim.executor.group();
    let (term, signals) = watch::channel(0);
    let name = start.spec.name.clone();
    let pid = {
        let mut host = sim.host.borrow_mut();
        host.next_pid += 1;
        let pid = host.next_pid;
        let proc = OsProc {
            name: name.clone(),
            attempt: start.attempt,
            nonce: start.nonce,
            group,
            parent,
            term,
            hung: false,
            ready: false,
            heard_at: sim.now(),
        };
        host.procs.insert(pid, proc);
        pid
    };
    trace!(
        sim,
        [pid, start.attempt],
        "{name} attempt {} runs as pid {pid}",
        start.attempt
    );
    sim.judge.borrow_mut().spawned(&name, start.attempt, pid);
    sim.touch();
    let identity = bot::Identity {
        pid,
        group,
        spec: start.spec,
        attempt: start.attempt,
    };
    sim.spawn(group, bot::run(sim.clone(), identity, signals));
    pid
}

/// A process has ended: its tasks, its sockets. Its parent hears of it.
pub fn end(sim: &Sim, pid: Pid, exit: Exit) {
    let Some(proc) = sim.host.borrow_mut().procs.remove(&pid) else {
        return;
    };
    trace!(
        sim,
        [pid],
        "{} attempt {} (pid {pid}) ended: {exit}",
        proc.name,
        proc.attempt
    );
    sim.executor.kill(proc.group);
    let agent: Option<std::rc::Rc<Agent>> = sim.agent.borrow().clone();
    let own = agent
        .as_ref()
        .is_some_and(|agent| agent.life == proc.parent);
    // Only a parent learns how.
    let exit = if own { exit } else { Exit::Unknown };
    sim.host.borrow_mut().exits.insert(pid, exit);
    sim.judge
        .borrow_mut()
        .ended(sim.now(), &proc.name, proc.attempt);
    sim.touch();
    if let Some(agent) = agent {
        agent.exited(sim, pid);
    }
}

/// The stop signal of the spec, and SIGCONT.
pub fn terminate(sim: &Sim, pid: Pid) {
    let group = {
        let host = sim.host.borrow();
        let Some(proc) = host.procs.get(&pid) else {
            return;
        };
        trace!(sim, [pid], "SIGTERM to {} (pid {pid})", proc.name);
        if proc.hung {
            return;
        }
        proc.term.send_modify(|count| *count += 1);
        proc.group
    };
    sim.executor.pause(group, false);
}

/// SIGSTOP, SIGCONT. Discord gives up a connection that does not beat for long.
pub fn pause(sim: &Sim, pid: Pid, paused: bool) {
    let group = sim.host.borrow().procs.get(&pid).map(|proc| proc.group);
    if let Some(group) = group {
        trace!(
            sim,
            [pid, paused],
            "pid {pid} is {}",
            if paused { "stopped" } else { "continued" }
        );
        sim.executor.pause(group, paused);
    }
}

/// It hangs: it hears nothing but SIGKILL.
pub fn hang(sim: &Sim, pid: Pid) {
    let group = sim.host.borrow_mut().procs.get_mut(&pid).map(|proc| {
        proc.hung = true;
        proc.group
    });
    if let Some(group) = group {
        trace!(sim, [pid], "pid {pid} hangs");
        sim.executor.pause(group, true);
    }
}

/// The machine loses its power and comes back: processes, page cache and uptime are gone.
pub fn reboot(sim: &Sim, away_ms: i64) {
    trace!(sim, [away_ms], "the machine reboots");
    Agent::kill(sim);
    let pids: Vec<Pid> = sim.host.borrow().procs.keys().copied().collect();
    for pid in pids {
        let proc = sim.host.borrow_mut().procs.remove(&pid);
        if let Some(proc) = proc {
            sim.executor.kill(proc.group);
            sim.judge
                .borrow_mut()
                .ended(sim.now(), &proc.name, proc.attempt);
        }
    }
    let mut host = sim.host.borrow_mut();
    host.boot += 1;
    host.boot_at = sim.now() as i64 + away_ms;
    let synced = host.disk.ledger_synced;
    let tail = host.disk.ledger.len() - synced;
    // What was not synced may be there, gone, or torn.
    let kept = if tail > 0 {
        sim.draw(0..=tail as u64) as usize
    } else {
        0
    };
    host.disk.ledger.truncate(synced + kept);
    if kept > 0 && sim.chance(300) {
        let last = synced + kept - 1;
        host.disk.ledger[last] = None;
    }
    host.disk.ledger_synced = host.disk.ledger.len();
    host.disk.vault = host.disk.vault_synced.clone();
    drop(host);
    sim.discord.borrow_mut().undeposit_all();
    sim.judge.borrow_mut().rebooted();
    sim.touch();
}

/// Discord closes the connections of a process that has been stopped for too long.
pub fn forget_silent(sim: &Sim, pid: Pid) {
    for conn in sim.discord.borrow().conns_of(pid) {
        let sim_later = sim.clone();
        sim.spawn(super::executor::WORLD, async move {
            discord::strike(&sim_later, conn, discord::Blow::Close(None));
        });
    }
}
