//! Fleets of 3 to 50 hosts through faults, in virtual time: each host has the real tenure, whoever leads
//! has the real failover, placement, identify ledger and desk.
//!
//! - `world`: time, the network, the hosts' clocks, and the invariants, looked at after every event;
//! - `store`: the store as all see it: leases, keys, an office, transactions that compare;
//! - `host`: an agent around its tenure, the processes that outlive it, the fence that guards them;
//! - `office`: who leads: looks, releases, assigns, gives orders and permits;
//! - `faults`: what goes wrong, and that it ends.
//!
//! What must hold: a process never acts on two hosts; nothing is started that the store does not assign to
//! that host; nothing moves by itself beyond the brake; Discord's buckets and budget; and once the faults are
//! over, everything runs where it is assigned.
//!
//! A call between hosts is carried out within its time or not at all, as a reset stream is.

mod faults;
mod host;
mod office;
mod store;
mod world;

use self::world::World;
use super::{Failure, Outcome};

/// Events of one run at most; more is a run that never comes to rest.
const STEPS_MAX: u64 = 5_000_000;
/// How long the end may take after the last fault, in milliseconds.
const HEAL_MS: u64 = 300_000;
/// And for each process: it may have to wait for its permit.
const HEAL_EACH_MS: u64 = 10_000;

/// What a run is like, drawn from its seed.
#[derive(Debug, Clone)]
struct Config {
    hosts: usize,
    processes: u32,
    /// Of a hundred messages, how many come late, twice, or not at all.
    loss: u64,
    /// Discord's buckets.
    max_concurrency: u32,
    total: u32,
    reserve: u32,
    /// How long faults go on, and between two of them, in milliseconds.
    busy_ms: u64,
    fault_ms: u64,
    /// Faults that may happen.
    faults: Vec<faults::Fault>,
}

impl Config {
    fn random(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let hosts = match rng.u8(0..10) {
            0 => rng.usize(9..=50),
            1..=4 => 3,
            _ => rng.usize(4..=8),
        };
        let faults = faults::Fault::ALL.into_iter();
        Self {
            hosts,
            processes: rng.u32(hosts as u32..=2 * hosts as u32 + 4),
            loss: [0, 2, 10][rng.usize(0..3)],
            max_concurrency: [1, 2, 16][rng.usize(0..3)],
            total: 1_000,
            reserve: 100,
            busy_ms: rng.u64(30_000..120_000),
            fault_ms: rng.u64(1_000..12_000),
            faults: faults.filter(|_| rng.u8(0..3) > 0).collect(),
        }
    }
}

/// Runs a fleet of hosts in random weather. [`Outcome::resumes`] are starts, [`Outcome::places`] releases,
/// [`Outcome::events`] processes that were assigned anew.
pub fn run(seed: u64, verbose: bool) -> Outcome {
    let config = Config::random(seed);
    let loud = verbose && std::env::var_os("TANAKO_SIM_LOUD").is_some();
    let mut world = World::new(seed, config, verbose, loud);
    world.begin();
    let mut steps = 0;
    while world.violation.is_none() && !world.done && world.step() {
        steps += 1;
        world.look();
        if steps >= STEPS_MAX {
            world.violate("liveness", "the run does not come to rest");
        }
    }
    let what = world.violation.clone();
    Outcome {
        hash: world.trace.hash(),
        steps,
        virtual_ms: world.now,
        identifies: world.counts.identifies,
        resumes: world.counts.starts,
        events: world.counts.assigned,
        lost: world.counts.lapses,
        places: world.counts.releases,
        failure: what.map(|what| Failure {
            what,
            lines: world.trace.lines(),
        }),
    }
}
