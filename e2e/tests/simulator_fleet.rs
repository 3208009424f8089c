//! Hundreds of seeded runs of fleets of hosts; see `tanako_e2e::sim::fleet`.
//!
//! `TANAKO_SIM_SEED=17` runs that seed alone, with its trace (`TANAKO_SIM_LOUD=1`: all of it);
//! `TANAKO_SIM_SEEDS=100000` runs more of them; `TANAKO_SIM_FROM=5000` begins there; `TANAKO_SIM_SURVEY=1`
//! goes on after a failure.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use tanako_e2e::sim::fleet;

/// Runs of an ordinary test.
const SEEDS: u64 = 300;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs one seed twice, and fails with what led there.
fn replay(seed: u64) {
    let (first, second) = (fleet::run(seed, true), fleet::run(seed, true));
    assert_eq!(first.hash, second.hash, "seed {seed} is not deterministic");
    let Some(failure) = first.failure else { return };
    for line in &failure.lines {
        eprintln!("{line}");
    }
    panic!(
        "seed {seed}, step {}, at {:.3} s: {}\nTANAKO_SIM_SEED={seed} replays it",
        first.steps,
        first.virtual_ms as f64 / 1000.0,
        failure.what
    );
}

#[test]
fn hosts_in_random_weather() {
    if let Some(seed) = number("TANAKO_SIM_SEED") {
        return replay(seed);
    }
    let from = number("TANAKO_SIM_FROM").unwrap_or(1);
    let end = from + number("TANAKO_SIM_SEEDS").unwrap_or(SEEDS);
    let survey = number("TANAKO_SIM_SURVEY").is_some();
    let next = AtomicU64::new(from);
    let failed = Mutex::new(Vec::new());
    let sums: [AtomicU64; 6] = Default::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let enough = !survey && failed.lock().is_ok_and(|failed| !failed.is_empty());
                    if seed >= end || enough {
                        return;
                    }
                    let outcome = fleet::run(seed, false);
                    let counts = [
                        outcome.steps,
                        outcome.identifies,
                        outcome.resumes,
                        outcome.events,
                        outcome.lost,
                        outcome.places,
                    ];
                    for (sum, count) in sums.iter().zip(counts) {
                        sum.fetch_add(count, Ordering::Relaxed);
                    }
                    if let Some(failure) = outcome.failure {
                        eprintln!("seed {seed}: {}", failure.what);
                        failed.lock().expect("no other panics").push(seed);
                    }
                }
            });
        }
    });
    let [steps, identifies, starts, assigned, lapses, releases] =
        sums.each_ref().map(|sum| sum.load(Ordering::Relaxed));
    eprintln!(
        "{} seeds: {steps} steps, {starts} starts, {identifies} IDENTIFYs, {assigned} assigned, {lapses} tenures \
         lost, {releases} released",
        end - from
    );
    let failed = failed.into_inner().expect("no panics");
    if let Some(first) = failed.iter().min() {
        replay(*first);
    }
    // Weather in which nothing is ever lost would prove nothing.
    assert!(
        lapses > 0 && releases > 0 && assigned > starts / 20,
        "nothing happened"
    );
}

#[test]
fn the_same_seed_is_the_same_fleet() {
    for seed in [3, 11] {
        let (first, second) = (fleet::run(seed, false), fleet::run(seed, true));
        assert_eq!((first.hash, first.steps), (second.hash, second.steps));
    }
    assert_ne!(fleet::run(3, false).hash, fleet::run(4, false).hash);
}
