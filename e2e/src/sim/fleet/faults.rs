//! What goes wrong, and that it ends.

use super::{
    host::Host,
    world::{At, HostId, World, name},
};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The power of a host is cut; it comes back.
    PowerCut,
    /// kill -9 of an agent; its processes go on.
    KillAgent,
    /// An agent is stopped for a while (SIGSTOP); its processes go on.
    FreezeAgent,
    /// A whole host stands still, as a virtual machine that is moved.
    FreezeHost,
    /// One of the two, at the moment when a process is about to be started.
    FreezeStart,
    /// A host loses its way to the store.
    CutStore,
    /// A host loses its ways to all others.
    CutPeers,
    /// One way between two hosts.
    CutLink,
    /// Both.
    CutBoth,
    /// The store does not answer anybody.
    StoreDown,
    /// The store has a new leader: it does not answer for a moment.
    StoreBlinks,
    /// Half of the hosts lose the store.
    Split,
    /// The wall clock of a host is set.
    ClockJump,
    /// A process dies.
    KillProcess,
    /// Discord ends a session.
    LoseSession,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::PowerCut,
        Self::KillAgent,
        Self::FreezeAgent,
        Self::FreezeHost,
        Self::FreezeStart,
        Self::CutStore,
        Self::CutPeers,
        Self::CutLink,
        Self::CutBoth,
        Self::StoreDown,
        Self::StoreBlinks,
        Self::Split,
        Self::ClockJump,
        Self::KillProcess,
        Self::LoseSession,
    ];
}

/// A fault strikes, and the next one is on its way.
pub fn strike(world: &mut World) {
    if !world.is_busy() {
        return;
    }
    let wait = world.draw(1..=2 * world.config.fault_ms);
    world.post(wait, At::World, strike);
    // The fleet comes up first.
    if world.now < 8_000 || world.config.faults.is_empty() {
        return;
    }
    let which = world.rng.usize(0..world.config.faults.len());
    let fault = world.config.faults[which];
    // Who leads is struck as often as all others together.
    let leader = world.store.office.map(|(_, host, _)| host);
    let any = world.rng.usize(0..world.hosts.len());
    let host = leader.filter(|_| world.chance(40)).unwrap_or(any);
    let other = world.rng.usize(0..world.hosts.len());
    let spell = if world.chance(30) {
        world.draw(20..=3_000)
    } else {
        world.draw(3_000..=40_000)
    };
    world.note(line!(), &[fault as u64, host as u64, spell], || {
        format!("fault: {fault:?} of {} for {spell} ms", name(host))
    });
    let all = 0..world.hosts.len();
    match fault {
        Fault::PowerCut => {
            world.power_cut(host);
            world.post(spell, At::World, move |world| power_on(world, host));
        }
        Fault::KillAgent => {
            world.kill_agent(host);
            world.post(spell / 4, At::World, move |world| world.start_agent(host));
        }
        Fault::FreezeAgent | Fault::FreezeHost => freeze(world, host, fault, spell),
        Fault::FreezeStart => {
            let which = if world.rng.bool() {
                Fault::FreezeAgent
            } else {
                Fault::FreezeHost
            };
            world.trap = Some((which, spell));
            // Something to start.
            let names: Vec<_> = world.hosts[host].procs.keys().cloned().collect();
            if let Some(process) = names.first() {
                world.process_ended(host, process);
            }
        }
        Fault::CutStore => cut_store(world, vec![host], spell),
        Fault::Split => {
            let some: Vec<HostId> = all.filter(|_| world.rng.bool()).collect();
            cut_store(world, some, spell);
        }
        Fault::CutLink => cut_links(world, vec![(host, other)], spell),
        Fault::CutPeers => cut_links(world, all.map(|other| (host, other)).collect(), spell),
        Fault::CutBoth => {
            cut_links(world, all.map(|other| (host, other)).collect(), spell);
            cut_store(world, vec![host], spell);
        }
        Fault::StoreDown | Fault::StoreBlinks => {
            world.store.up = false;
            let spell = if fault == Fault::StoreBlinks {
                spell.min(3_000)
            } else {
                spell
            };
            world.post(spell, At::World, |world| world.store.up = true);
        }
        Fault::ClockJump => {
            world.set_clock(host);
        }
        Fault::KillProcess => {
            let names: Vec<_> = world.hosts[host].procs.keys().cloned().collect();
            if let Some(process) = names.first() {
                world.process_ended(host, process);
            }
        }
        Fault::LoseSession => {
            let which = world.rng.usize(0..world.specs.len());
            let process = world.specs[which].name.clone();
            world.session_lost(&process);
        }
    }
}

fn freeze(world: &mut World, host: HostId, fault: Fault, spell: u64) {
    let whole = fault == Fault::FreezeHost;
    let known = &mut world.hosts[host];
    known.frozen |= whole;
    known.agent_frozen |= !whole;
    world.post(spell, At::World, move |world| {
        let known = &mut world.hosts[host];
        if whole {
            known.frozen = false;
        } else {
            known.agent_frozen = false;
        }
        world.thaw(host);
    });
}

/// A host is about to start a process.
pub fn before_start(world: &mut World, host: HostId) {
    if let Some((fault, spell)) = world.trap.take().filter(|_| world.is_busy()) {
        freeze(world, host, fault, spell);
    }
}

/// What a host was assigned may be given away from now on; sometimes it is back at this very moment.
pub fn released(world: &mut World, host: HostId) {
    if !world.is_busy() || !world.chance(50) {
        return;
    }
    let wait = world.draw(0..=200);
    world.post(wait, At::World, move |world| {
        let known = &mut world.hosts[host];
        (known.frozen, known.agent_frozen) = (false, false);
        world.thaw(host);
        world.cut_off.remove(&host);
        world.links.retain(|(a, b)| *a != host && *b != host);
        power_on(world, host);
        world.start_agent(host);
    });
}

fn power_on(world: &mut World, host: HostId) {
    let known = &mut world.hosts[host];
    if std::mem::take(&mut known.off) {
        let boot = known.boot;
        world.post(0, At::Machine(host, boot), move |world| world.fence(host));
        world.start_agent(host);
    }
}

fn cut_store(world: &mut World, hosts: Vec<HostId>, spell: u64) {
    world.cut_off.extend(hosts.iter().copied());
    world.post(spell, At::World, move |world| {
        world.cut_off.retain(|host| !hosts.contains(host));
    });
}

fn cut_links(world: &mut World, pairs: Vec<(HostId, HostId)>, spell: u64) {
    let pairs: Vec<_> = pairs
        .into_iter()
        .filter(|(a, b)| a != b)
        .map(|(a, b)| (a.min(b), a.max(b)))
        .collect();
    world.links.extend(pairs.iter().copied());
    world.post(spell, At::World, move |world| {
        world.links.retain(|pair| !pairs.contains(pair));
    });
}

/// Everything works again.
pub fn mend(world: &mut World) {
    world.note(line!(), &[], || "faults are over".to_owned());
    world.store.up = true;
    world.cut_off.clear();
    world.links.clear();
    for host in 0..world.hosts.len() {
        let known: &mut Host = &mut world.hosts[host];
        (known.frozen, known.agent_frozen) = (false, false);
        world.thaw(host);
        power_on(world, host);
        world.start_agent(host);
    }
}
