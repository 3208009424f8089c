//! Scenarios with a name: what must not go wrong even once.

use tanako_agent::{
    operations::{Kind, OpState},
    supervisor::core::Exit,
};
use tanako_fleet::rollout::Strategy;

use super::{
    Outcome,
    agent::coordinator::{Ask, Control, Refused},
    config::Config,
    discord::{self, Blow},
    executor::WORLD,
    faults::Fault,
    finish, host, operator,
    world::Sim,
};

/// A name, and what it runs for a seed.
pub type Scenario = (&'static str, fn(u64, bool) -> Outcome);

/// All of them.
pub const SCENARIOS: [Scenario; 6] = [
    ("a Discord outage of ten minutes", outage),
    ("a crash loop of one bot", crash_loop),
    ("a full ledger", full_ledger),
    ("all resume URLs dead", dead_urls),
    ("the wall clock jumps by an hour", clock_jump),
    ("a rolling restart of the whole fleet", rolling),
];

fn world(config: Config, verbose: bool) -> Sim {
    let loud = verbose && std::env::var_os("TANAKO_SIM_LOUD").is_some();
    let sim = Sim::new(config, verbose, loud);
    sim.weather.borrow_mut().busy_until = sim.config.busy_ms;
    sim.spawn(WORLD, operator::mend(sim.clone()));
    sim
}

fn restart_all(sim: &Sim, max_unavailable: u32) -> Ask {
    Ask {
        targets: operator::names(sim),
        max_unavailable,
        ..operator::request("restart", Kind::Restart)
    }
}

/// Every shard dropped, ten minutes of silence: no IDENTIFY is wasted, no process restarted, and all
/// are resumed, or identified in bucket order, when it returns.
fn outage(seed: u64, verbose: bool) -> Outcome {
    let config = Config {
        busy_ms: 1_000_000,
        event_ms: 1_500,
        outage_keeps: seed.is_multiple_of(2),
        window_ms: 90_000,
        ..Config::calm(seed, 16, 4, [1, 4, 16][seed as usize % 3])
    };
    let sim = world(config, verbose);
    let later = sim.clone();
    sim.spawn(WORLD, async move {
        let sim = later;
        sim.sleep(200_000).await;
        let before = sim.discord.borrow().counts.identifies;
        let runs: Vec<_> = sim.host.borrow().procs.keys().copied().collect();
        sim.weather.borrow_mut().outage_until = sim.now() + 600_000;
        let conns = sim.discord.borrow().conns();
        for conn in conns {
            discord::strike(&sim, conn, Blow::Cut);
        }
        sim.sleep(780_000).await;
        let spent = sim.discord.borrow().counts.identifies - before;
        let needed = if sim.config.outage_keeps {
            0
        } else {
            u64::from(sim.config.shards)
        };
        if spent > needed {
            sim.violated(
                "storm brake",
                format!("{spent} IDENTIFYs spent, {needed} needed"),
            );
        }
        let now: Vec<_> = sim.host.borrow().procs.keys().copied().collect();
        if now != runs {
            sim.violated("storm brake", "a process was restarted");
        }
        let served = sim.discord.borrow().served().len();
        if served < sim.config.shards as usize {
            sim.violated(
                "storm brake",
                format!("only {served} shards serve three minutes after it"),
            );
        }
    });
    finish(&sim)
}

/// One bot dies right after each IDENTIFY: it is stopped long before the reserve is touched.
fn crash_loop(seed: u64, verbose: bool) -> Outcome {
    let config = Config {
        busy_ms: 6 * 3_600_000,
        event_ms: 60_000,
        report_ms: 5_000,
        ..Config::calm(seed, 4, 1, 4)
    };
    let sim = world(config, verbose);
    let later = sim.clone();
    sim.spawn(WORLD, async move {
        let sim = later;
        let Ok(victim) = "b/1".parse() else { return };
        while sim.now() < sim.config.busy_ms {
            sim.sleep(500).await;
            // Its session is void each time, so that each start needs an IDENTIFY.
            let struck = {
                let host = sim.host.borrow();
                host.find(&victim)
                    .filter(|(_, proc)| proc.ready)
                    .map(|(pid, _)| pid)
            };
            if let Some(pid) = struck {
                for conn in sim.discord.borrow().conns_of(pid) {
                    let later = sim.clone();
                    sim.spawn(WORLD, async move {
                        discord::strike(&later, conn, Blow::Invalid(false));
                    });
                }
                sim.sleep(300).await;
                host::end(&sim, pid, Exit::Code(1));
            }
            let given_up = sim.judge.borrow().given_up.contains(&victim);
            if given_up {
                // An operator who never learns.
                let ask = Ask {
                    targets: vec![victim.clone()],
                    named: true,
                    ..operator::request(format!("again-{}", sim.now()), Kind::Start)
                };
                let _ = operator::insist(&sim, &ask, 1).await;
            }
        }
        let spent = sim.discord.borrow().counts.identifies;
        if spent > 400 {
            sim.violated("crash loop", format!("{spent} IDENTIFYs were spent"));
        }
    });
    finish(&sim)
}

/// The day's budget is spent down to the reserve by someone else: nothing is spent, everything comes
/// up once the day is over.
fn full_ledger(seed: u64, verbose: bool) -> Outcome {
    let config = Config {
        total: 1_000,
        reserve: 100,
        busy_ms: 60_000,
        heal_ms: 30 * 3_600_000,
        report_ms: 10_000,
        watchdog_s: 60,
        ..Config::calm(seed, 6, 2, 1)
    };
    let sim = world(config, verbose);
    sim.discord
        .borrow_mut()
        .spend_elsewhere(900 + (seed % 50) as u32);
    finish(&sim)
}

/// Sessions are there, the URLs that came with them lead nowhere: all resume by the general one.
fn dead_urls(seed: u64, verbose: bool) -> Outcome {
    let config = Config {
        busy_ms: 400_000,
        ..Config::calm(seed, 12, 3, 2)
    };
    let sim = world(config, verbose);
    let later = sim.clone();
    sim.spawn(WORLD, async move {
        let sim = later;
        sim.sleep(120_000).await;
        let before = sim.discord.borrow().counts.identifies;
        sim.weather.borrow_mut().dead_urls_until = sim.now() + 200_000;
        let conns = sim.discord.borrow().conns();
        for conn in conns {
            discord::strike(&sim, conn, Blow::Cut);
        }
        sim.sleep(110_000).await;
        let spent = sim.discord.borrow().counts.identifies - before;
        let served = sim.discord.borrow().served().len();
        if spent > 0 || served < 12 {
            sim.violated(
                "dead resume URLs",
                format!("{spent} IDENTIFYs, {served} of 12 serve"),
            );
        }
    });
    finish(&sim)
}

/// In the middle of a rolling restart and of a cold start the wall clock is set by an hour, back or
/// forth: nothing is taken down by it, no rule is broken.
fn clock_jump(seed: u64, verbose: bool) -> Outcome {
    let config = Config {
        busy_ms: 200_000,
        ..Config::calm(seed, 8, 2, 2)
    };
    let sim = world(config, verbose);
    let later = sim.clone();
    sim.spawn(WORLD, async move {
        let sim = later;
        let hour = if seed.is_multiple_of(2) {
            3_600_000
        } else {
            -3_600_000
        };
        sim.sleep(sim.draw(1_000..=40_000)).await;
        host::jump(&sim, hour);
        sim.sleep_until(60_000).await;
        let ask = restart_all(&sim, 1);
        let _ = operator::insist(&sim, &ask, 3).await;
        sim.sleep(sim.draw(100..=9_000)).await;
        host::jump(&sim, -hour);
        if seed.is_multiple_of(3) {
            super::agent::Agent::kill(&sim);
        }
    });
    finish(&sim)
}

/// Processes die while what they sent waits in the agent, and their successors have sessions of their own
/// by the time it is looked at: those stay.
pub fn late_deposits(seed: u64, verbose: bool) -> Outcome {
    let config = Config {
        busy_ms: 150_000,
        fault_ms: 2_000,
        faults: vec![Fault::KillBot, Fault::KillBot, Fault::SlowStreams],
        event_ms: 100,
        ..Config::calm(seed, 4, 1, 16)
    };
    super::run(config, verbose)
}

/// Nothing goes wrong: no IDENTIFY, nothing lost.
fn rolling(seed: u64, verbose: bool) -> Outcome {
    let config = Config {
        busy_ms: 150_000,
        event_ms: 100,
        ..Config::calm(seed, 16, 2, 4)
    };
    let sim = world(config, verbose);
    let later = sim.clone();
    sim.spawn(WORLD, async move {
        let sim = later;
        sim.sleep(60_000).await;
        let before = sim.discord.borrow().counts;
        let ask = restart_all(&sim, 1 + (seed % 3) as u32);
        let accepted = operator::insist(&sim, &ask, 3).await;
        if accepted.is_err() {
            sim.violated("rolling restart", "it was refused");
        }
        sim.sleep_until(sim.config.busy_ms).await;
        let after = sim.discord.borrow().counts;
        if after.identifies != before.identifies || after.lost != before.lost {
            let spent = after.identifies - before.identifies;
            let lost = after.lost - before.lost;
            sim.violated(
                "rolling restart",
                format!("{spent} IDENTIFYs spent, {lost} events lost"),
            );
        }
        if after.resumes - before.resumes < u64::from(sim.config.shards) {
            sim.violated("rolling restart", "it has not come to its end");
        }
    });
    finish(&sim)
}

/// What goes on while someone dies at each of its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A rolling restart.
    Restart,
    /// A new spec, process by process.
    Rolling,
    /// A new spec, one process first.
    Canary,
    /// A new spec, by a second set.
    BlueGreen,
    /// Twice as many shards.
    Reshard,
    /// The same, aborted while it is under way.
    ReshardAborted,
    /// The same, with blue-green.
    BlueGreenAborted,
}

impl Change {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Restart,
        Self::Rolling,
        Self::Canary,
        Self::BlueGreen,
        Self::Reshard,
        Self::ReshardAborted,
        Self::BlueGreenAborted,
    ];

    fn ask(self, sim: &Sim) -> Ask {
        let rollout = |strategy| Ask {
            strategy,
            variant: Some(1),
            observe_ms: 3_000,
            ..operator::request("change", Kind::Rollout)
        };
        match self {
            Self::Restart => restart_all(sim, 1),
            Self::Rolling => rollout(Strategy::Rolling),
            Self::Canary => rollout(Strategy::Canary),
            Self::BlueGreen | Self::BlueGreenAborted => rollout(Strategy::BlueGreen),
            Self::Reshard | Self::ReshardAborted => Ask {
                shards: sim.config.shards * 2,
                observe_ms: 3_000,
                ..operator::request("change", Kind::Reshard)
            },
        }
    }

    fn is_aborted(self) -> bool {
        matches!(self, Self::ReshardAborted | Self::BlueGreenAborted)
    }
}

/// A change in which whoever decides, or the agent, dies at the `place`-th moment at which something is
/// half done. Going through all of them tries every step. It is asked for and aborted again by the same
/// operator, who does not give up.
pub fn deaths(seed: u64, change: Change, place: Option<u64>, verbose: bool) -> Outcome {
    let config = Config {
        busy_ms: 150_000,
        event_ms: 200,
        remote: seed.is_multiple_of(2),
        ..Config::calm(seed, 4, 1, 4)
    };
    let sim = world(config, verbose);
    sim.weather.borrow_mut().die_at = place;
    let later = sim.clone();
    sim.spawn(WORLD, async move {
        let sim = later;
        sim.sleep(30_000).await;
        let ask = change.ask(&sim);
        let accepted = operator::insist(&sim, &ask, 10).await;
        let Ok(op) = accepted else {
            sim.violated("scenario", format!("{change:?} is refused: {accepted:?}"));
            return;
        };
        if change.is_aborted() {
            sim.sleep(sim.draw(500..=45_000)).await;
            for _ in 0..20 {
                match operator::control(&sim, op.number, Control::Abort).await {
                    Err(Refused::Gone | Refused::Store) => sim.sleep(700).await,
                    _ => break,
                }
            }
        }
    });
    finish(&sim)
}

/// A change in good weather: it succeeds, costs no more IDENTIFYs than it must, and loses nothing.
pub fn calm(seed: u64, change: Change, verbose: bool) -> Outcome {
    let config = Config {
        busy_ms: 200_000,
        event_ms: 50,
        remote: seed.is_multiple_of(3),
        ..Config::calm(seed, 8, 2, 4)
    };
    let sim = world(config, verbose);
    let later = sim.clone();
    sim.spawn(WORLD, async move {
        let sim = later;
        sim.sleep(60_000).await;
        let before = sim.discord.borrow().counts;
        let ask = change.ask(&sim);
        let accepted = operator::insist(&sim, &ask, 3).await;
        sim.sleep_until(sim.config.busy_ms).await;
        let after = sim.discord.borrow().counts;
        let spent = after.identifies - before.identifies;
        let lost = after.lost - before.lost;
        let needed = match change {
            Change::Reshard => u64::from(sim.config.shards * 2),
            _ => 0,
        };
        // The sessions of a set that is no more end with what nobody wants of them.
        if spent != needed || lost > 0 && change != Change::Reshard {
            let what = format!("{change:?}: {spent} IDENTIFYs spent, {lost} events lost");
            sim.violated("calm change", what);
        }
        let succeeded = accepted.is_ok_and(|op| {
            let ended = &sim.judge.borrow().ended;
            ended.contains(&(op.number, OpState::Succeeded))
        });
        if !succeeded {
            sim.violated("calm change", format!("{change:?} has not succeeded"));
        }
    });
    finish(&sim)
}
