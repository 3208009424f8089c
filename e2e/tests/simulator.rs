//! Thousands of seeded runs of the whole fleet in virtual time; see `tanako_e2e::sim`.
//!
//! - `TANAKO_SIM_SEED=17` runs that seed alone, with its trace; `TANAKO_SIM_LOUD=1` prints all of it.
//! - `TANAKO_SIM_SEEDS=100000` runs more of them; `TANAKO_SIM_FROM=5000` begins there.
//! - `TANAKO_SIM_SURVEY=1` goes on after a failure, and tells of each in one line.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use tanako_e2e::sim::{self, Change, Outcome};

/// Random runs of an ordinary test.
const SEEDS: u64 = 2_000;
/// Random runs with rollouts and reshards.
const CHANGING: u64 = 100;
/// Places at which someone dies, of each change.
const PLACES: u64 = 30;
/// Runs in which deposits come late: that a session is lost by one takes several coincidences.
const LATE: u64 = 60;
/// Runs of each scenario.
const EACH: u64 = 3;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Fails with everything that one needs to look into it.
fn complain(what: &str, seed: u64, run: impl Fn(bool) -> Outcome) -> ! {
    let outcome = run(true);
    let again = run(true);
    let Some(failure) = outcome.failure else {
        panic!("{what}, seed {seed}: failed, and then did not: it is not deterministic");
    };
    for line in &failure.lines {
        eprintln!("{line}");
    }
    panic!(
        "{what}: seed {seed}, step {}, at {:.3} s: {}\nthe same again: {}\nTANAKO_SIM_SEED={seed} replays it",
        outcome.steps,
        outcome.virtual_ms as f64 / 1000.0,
        failure.what,
        if again.hash == outcome.hash {
            "yes"
        } else {
            "NO"
        },
    );
}

/// Runs seeds on all cores; the lowest that fails is the one to tell of.
fn sweep(what: &str, from: u64, seeds: u64, run: impl Fn(u64, bool) -> Outcome + Sync) {
    let begun = Instant::now();
    let (next, worst) = (AtomicU64::new(from), AtomicU64::new(u64::MAX));
    let (steps, hours, places) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let counts: [AtomicU64; 4] = Default::default();
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + seeds || seed > worst.load(Ordering::Relaxed) {
                        return;
                    }
                    let outcome = run(seed, false);
                    steps.fetch_add(outcome.steps, Ordering::Relaxed);
                    hours.fetch_add(outcome.virtual_ms, Ordering::Relaxed);
                    places.fetch_add(outcome.places, Ordering::Relaxed);
                    for (sum, one) in counts.iter().zip([
                        outcome.identifies,
                        outcome.resumes,
                        outcome.events,
                        outcome.lost,
                    ]) {
                        sum.fetch_add(one, Ordering::Relaxed);
                    }
                    if outcome.failure.is_some() {
                        worst.fetch_min(seed, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let count = |index: usize| counts[index].load(Ordering::Relaxed);
    eprintln!(
        "{what}: {} seeds in {:.1} s; {} steps, {:.1} virtual hours, {} IDENTIFYs, {} RESUMEs, {} events ({} lost with their sessions)",
        next.load(Ordering::Relaxed).min(from + seeds) - from,
        begun.elapsed().as_secs_f64(),
        steps.load(Ordering::Relaxed),
        hours.load(Ordering::Relaxed) as f64 / 3.6e6,
        count(0),
        count(1),
        count(2),
        count(3),
    );
    let worst = worst.load(Ordering::Relaxed);
    if worst < u64::MAX {
        complain(what, worst, |verbose| run(worst, verbose));
    }
}

/// Goes through all seeds, and tells of each that fails in one line.
fn survey(run: impl Fn(u64, bool) -> Outcome + Sync) {
    let from = number("TANAKO_SIM_FROM").unwrap_or(1);
    let seeds = number("TANAKO_SIM_SEEDS").unwrap_or(SEEDS);
    let (next, failed) = (AtomicU64::new(from), AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + seeds {
                        return;
                    }
                    if let Some(failure) = run(seed, false).failure {
                        failed.fetch_add(1, Ordering::Relaxed);
                        eprintln!("seed {seed}: {}", failure.what);
                    }
                }
            });
        }
    });
    let failed = failed.load(Ordering::Relaxed);
    assert_eq!(failed, 0, "of {seeds} seeds so many failed");
}

#[test]
fn random_fleets_in_random_weather() {
    if let Some(seed) = number("TANAKO_SIM_SEED") {
        let outcome = sim::random(seed, true);
        eprintln!("seed {seed}: {outcome:#?}");
        if outcome.failure.is_some() {
            complain("random", seed, |verbose| sim::random(seed, verbose));
        }
        return;
    }
    if number("TANAKO_SIM_SURVEY").is_some() {
        return survey(sim::random);
    }
    let from = number("TANAKO_SIM_FROM").unwrap_or(1);
    let seeds = number("TANAKO_SIM_SEEDS").unwrap_or(SEEDS);
    sweep("random", from, seeds, sim::random);
}

/// With rollouts and reshards: `TANAKO_SIM_CHANGING=2000` says how many seeds, 1 replays `TANAKO_SIM_SEED`.
#[test]
fn changing_fleets_in_random_weather() {
    let seeds = number("TANAKO_SIM_CHANGING").unwrap_or(CHANGING);
    if let Some(seed) = number("TANAKO_SIM_SEED") {
        if seeds == 1 {
            let outcome = sim::changing(seed, true);
            eprintln!("seed {seed}: {outcome:#?}");
            assert!(outcome.failure.is_none(), "seed {seed} fails");
        }
        return;
    }
    if number("TANAKO_SIM_SURVEY").is_some() {
        return survey(sim::changing);
    }
    let from = number("TANAKO_SIM_FROM").unwrap_or(1);
    sweep("changing", from, seeds, sim::changing);
}

#[test]
fn scenarios_with_a_name() {
    if number("TANAKO_SIM_SEED").is_some() {
        return;
    }
    let each = number("TANAKO_SIM_EACH").unwrap_or(EACH);
    for (name, run) in sim::SCENARIOS {
        sweep(name, 1, each, run);
    }
}

#[test]
fn deposits_of_the_dead_come_late() {
    if number("TANAKO_SIM_SEED").is_some() {
        return;
    }
    let seeds = number("TANAKO_SIM_LATE").unwrap_or(LATE);
    sweep(
        "deposits of the dead come late",
        1,
        seeds,
        sim::late_deposits,
    );
}

#[test]
fn changes_in_good_weather() {
    if number("TANAKO_SIM_SEED").is_some() {
        return;
    }
    for change in [
        Change::Restart,
        Change::Rolling,
        Change::Canary,
        Change::BlueGreen,
        Change::Reshard,
    ] {
        let what = format!("{change:?} in good weather");
        sweep(&what, 1, EACH, |seed, verbose| {
            sim::calm(seed, change, verbose)
        });
    }
}

#[test]
fn someone_dies_at_every_step_of_a_change() {
    if number("TANAKO_SIM_SEED").is_some() {
        return;
    }
    for change in Change::ALL {
        // Here the host's own agent decides, there another one.
        for seed in 1..=2 {
            let calm = sim::deaths(seed, change, None, false);
            assert!(
                calm.places > 20,
                "there are places to die at: {}",
                calm.places
            );
            let what = format!("a death in {change:?} {seed}");
            // All of them, or as many at even distances.
            let many = number("TANAKO_SIM_PLACES").unwrap_or(PLACES);
            let many = many.min(calm.places);
            sweep(&what, 1, many, |turn, verbose| {
                let place = turn * calm.places / many;
                sim::deaths(seed, change, Some(place), verbose)
            });
        }
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [3, 11, 42] {
        let first = sim::random(seed, false);
        let second = std::thread::spawn(move || sim::random(seed, true)).join();
        let second = second.expect("it runs");
        eprintln!("seed {seed}: trace {:016x}", first.hash);
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.steps, second.steps, "seed {seed}");
    }
    let other = sim::random(4, false);
    assert_ne!(sim::random(3, false).hash, other.hash);
}
