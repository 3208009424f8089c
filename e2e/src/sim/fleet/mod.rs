//! Fleets of 3 to 50 hosts through faults, in virtual time: each host has the real tenure, whoever leads
//! has the real failover, placement, identify ledger and desk.
//!
//! - `world`: time, the network, the hosts' clocks, and the invariants, looked at after every event;
//! - `store`: the store as all see it: leases, keys, an office, transactions that compare;
//! - `net`: calls, and what becomes of them on their way;
//! - `host`: an agent around its tenure; `process`: what it runs, which outlives it, and the fence;
//! - `office`: who leads: an election, looks and releases; `orders`: assigns, moves, and says so, and what a
//!   host makes of that; `permits`: the desk and the ledger;
//! - `faults`: what goes wrong, and that it ends.
//!
//! What must hold: a process never acts on two hosts; nothing is started that the store does not assign to
//! that host; nothing moves by itself beyond the brake; Discord's buckets and budget; and once the faults are
//! over, everything runs where it is assigned.
//!
//! Clocks: those that go on while a host sleeps differ and drift. Wall clocks are wrong by up to half a second,
//! 20 s, 15 minutes or two days, drift, and are set forwards and back, also of whoever has just begun to lead.
//!
//! A call between hosts may be carried out long after whoever made it has given it up, and more than once.
//! What an agent does in one step of the simulator (a host's transaction, the orders for all of its processes)
//! is one here that the daemon takes several for.
//!
//! # What it catches
//!
//! Each of these was broken on purpose in the code under test, or in the shell around it, and put right again.
//!
//! | broken | first seed that fails |
//! |---|---|
//! | an order of an older epoch is obeyed | 22 |
//! | an order for an earlier tenure is obeyed | 35 |
//! | an order is obeyed after a newer one about the process | 9 |
//! | the coordinator does not wait for proof once a lease has ended | 31 |
//! | what a peer says carries for too long | 10 |
//! | a renewal counts from its answer | 15 |
//! | a host starts without a look at the clock, as after a thaw | 13 |
//! | a new tenure begins without asking what is its own | 121 |
//! | an assignment takes from a host that has come back | 17 |
//! | the fence does not kill | 36 |
//! | a new leader reads no permits as just given | 9 |
//! | it believes wall clocks in that | 115 |
//!
//! Not caught within 250 seeds, for something else holds as well: no margin before the end of a lease (finding
//! a loss, proof and orders take longer), the brake alone (proof needs as many hosts), a look that is slow or
//! older than the loss (what it proves carries its own times), a release of a host that has come back (its
//! record has changed with that).

mod faults;
mod host;
mod net;
mod office;
mod orders;
mod permits;
mod process;
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
    /// Whether bots know nothing of tenures: only the agent and the fence stop them.
    foreign: bool,
    /// Of a hundred messages, how many come late, twice, or not at all.
    loss: u64,
    /// Discord's buckets.
    max_concurrency: u32,
    total: u32,
    reserve: u32,
    /// By how much wall clocks are wrong, in milliseconds.
    apart_ms: i64,
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
            foreign: rng.u8(0..3) == 0,
            loss: [0, 2, 10][rng.usize(0..3)],
            max_concurrency: [1, 2, 16][rng.usize(0..3)],
            total: 1_000,
            reserve: 100,
            apart_ms: [500, 20_000, 900_000, 200_000_000][rng.usize(0..4)],
            busy_ms: rng.u64(30_000..120_000),
            fault_ms: rng.u64(1_000..12_000),
            faults: faults.filter(|_| rng.u8(0..3) > 0).collect(),
        }
    }

    /// What a wall clock that is set is ahead by: of one clock service, of a host without one, of one that
    /// was never right.
    fn wall_clock(&self, rng: &mut fastrand::Rng) -> i64 {
        rng.i64(-self.apart_ms..=self.apart_ms)
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
