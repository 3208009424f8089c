//! The deterministic simulator: the fleet's real cores through thousands of seeded runs full of faults.
//!
//! Everything around the cores is simulated, in virtual time, on one thread, from one seed:
//!
//! - `discord`: sessions, buckets, budget, interactions, and what goes wrong over there;
//! - `store`, `host`: what lasts, what a kill -9 and a loss of power leave of it, clocks, processes;
//! - `agent`, `bot`: shells around the cores, which call them in the same order and write the same
//!   things down before they act as the daemon and the bot do;
//! - `operator`, `faults`: commands and faults at random;
//! - `judge`: the invariants, looked at after every step by what really is;
//! - `executor`, `pipe`, `trace`, `world`: virtual time, transports, what happened, what there is.
//!
//! The cores: the supervisor's policy, the identify ledger, the session vault's rules, the operations'
//! core with its switches and cuts, planning, duties, receipts and desired state, the bot's duty desk,
//! sequence tracker and reconnector.
//!
//! - `fleet`: many hosts instead of one, and what only they have.
//!
//! Who decides is the host's own agent, or one of two agents elsewhere, whose orders come late.
//!
//! The same seed is the same run: [`Outcome::hash`] covers everything that happened.
//!
//! What it catches. Each of these was broken on purpose in the code under test and put right again:
//!
//! | broken | the first seed that fails |
//! |---|---|
//! | one more process may be down than allowed | 1 of [`random`] |
//! | a new broker reads no permits as just given | 5 of [`random`] |
//! | what is received counts as handled | 7 of [`random`] |
//! | an order of an older epoch is obeyed | 4 of [`random`] |
//! | takers share events before the givers have said that they know | 53 of [`changing`] |
//! | the vault takes deposits of whoever does not hold the shard | 19 of [`late_deposits`] |

mod agent;
mod blank;
mod bot;
mod closing;
mod config;
mod discord;
mod executor;
mod faults;
pub mod fleet;
mod host;
mod judge;
mod operator;
mod pipe;
mod scenarios;
mod store;
mod trace;
mod watch;
mod world;

use self::{config::Config, world::Sim};

pub use scenarios::{Change, SCENARIOS, calm, deaths, late_deposits};

/// Steps of one run at most; more is a run that never comes to rest.
const STEPS_MAX: u64 = 5_000_000;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Of everything that happened.
    pub hash: u64,
    /// Steps taken.
    pub steps: u64,
    /// Virtual milliseconds passed.
    pub virtual_ms: u64,
    /// IDENTIFYs, RESUMEs and events at Discord.
    pub identifies: u64,
    /// See `identifies`.
    pub resumes: u64,
    /// See `identifies`.
    pub events: u64,
    /// Events whose session ended by Discord's doing before they were taken.
    pub lost: u64,
    /// Places reached at which the agent may die.
    pub places: u64,
    /// What did not hold, with what led there when lines were kept.
    pub failure: Option<Failure>,
}

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which one, and how.
    pub what: String,
    /// The latest lines of the trace.
    pub lines: Vec<String>,
}

/// Runs a random fleet in random weather, with starts, stops and restarts.
pub fn random(seed: u64, verbose: bool) -> Outcome {
    let config = Config {
        changes: 0,
        ..Config::random(seed)
    };
    run(config, verbose)
}

/// The same, with rollouts and reshards too.
pub fn changing(seed: u64, verbose: bool) -> Outcome {
    run(Config::random(seed), verbose)
}

fn run(config: Config, verbose: bool) -> Outcome {
    let loud = verbose && std::env::var_os("TANAKO_SIM_LOUD").is_some();
    let sim = Sim::new(config, verbose, loud);
    sim.spawn(executor::WORLD, faults::storm(sim.clone()));
    sim.spawn(executor::WORLD, operator::work(sim.clone()));
    sim.spawn(executor::WORLD, operator::mend(sim.clone()));
    finish(&sim)
}

/// Runs a prepared world until it has come to rest.
fn finish(sim: &Sim) -> Outcome {
    closing::prepare(sim);
    let mut steps = 0;
    while sim.executor.step(u64::MAX) {
        steps += 1;
        if sim.touched.take() {
            judge::look(sim);
        }
        if sim.judge.borrow().violation().is_some() || sim.is_done() {
            break;
        }
        if steps >= STEPS_MAX {
            sim.violated("liveness", "the run does not come to rest");
        }
    }
    if sim.judge.borrow().violation().is_none() && !sim.is_done() {
        sim.violated("liveness", "nothing happens any more");
    }
    let counts = sim.discord.borrow().counts;
    let what = sim.judge.borrow().violation().map(str::to_owned);
    Outcome {
        hash: sim.hash(),
        steps,
        virtual_ms: sim.now(),
        identifies: counts.identifies,
        resumes: counts.resumes,
        events: counts.events,
        lost: counts.lost,
        places: sim.weather.borrow().places,
        failure: what.map(|what| Failure {
            what,
            lines: sim.lines(),
        }),
    }
}
