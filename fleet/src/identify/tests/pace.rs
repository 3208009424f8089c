//! A cold fleet comes up in at most 1.05 times the time that Discord's rule alone takes.

use super::{fleet::Fleet, *};

/// How long a cold start took, in milliseconds from the first request to the last IDENTIFY.
fn cold_start(shards: u32, mc: u32, seed: u64, change: impl Fn(&mut Fleet)) -> i64 {
    let mut fleet = Fleet::new(shards, mc, seed);
    change(&mut fleet);
    fleet.drop_all(200);
    let day = DAY_MS;
    fleet.run(day, Fleet::all_ready);
    assert!(fleet.all_ready(), "{shards} shards, {mc} at once");
    assert_eq!(fleet.identifies.len(), shards as usize, "one each");
    assert_eq!((fleet.wasted, fleet.refused), (0, 0));
    assert!(fleet.notices.is_empty(), "{:?}", fleet.notices);
    fleet.identifies.last().map_or(0, |(at, _)| *at)
}

fn allowed(shards: u32, mc: u32) -> i64 {
    i64::from(shards.div_ceil(mc)) * RULE_MS * 105 / 100
}

#[test]
fn the_constants_leave_room_for_what_they_are_made_of() {
    // Two permits of a bucket, the first used as late, the second as early as can be.
    for via in [Via::Worker, Via::Start, Via::Queue] {
        let valid = via.valid_ms();
        assert!(spacing_ms(valid) - valid - JITTER_MS >= RULE_MS, "{via:?}");
    }
    assert_eq!(SPACING_MS, spacing_ms(Via::Worker.valid_ms()));
    const { assert!(SPACING_MS * 100 <= RULE_MS * 105) };
}

#[test]
fn a_cold_fleet_comes_up_as_fast_as_discord_allows() {
    for (shards, mc) in [
        (1, 1),
        (16, 1),
        (64, 1),
        (64, 8),
        (64, 16),
        (64, 64),
        (100, 16),
        (800, 16),
        (900, 4),
    ] {
        for seed in 0..2 {
            let took = cold_start(shards, mc, seed, |_| {});
            let allowed = allowed(shards, mc);
            assert!(took <= allowed, "{shards}/{mc}: {took} > {allowed} ms");
        }
    }
}

/// A thousand shards are more than the daily budget of a small bot; 62 make a large one.
#[test]
fn a_thousand_shards_come_up_within_the_larger_budget() {
    let large = |fleet: &mut Fleet| {
        let limits = ReportedLimits {
            total: 12_500,
            remaining: 12_500,
            reset_after_ms: 0,
            max_concurrency: 16,
            recommended: 1_000,
        };
        let bot = BOT.to_owned();
        fleet.ledger.step(at(0), Input::Limits { bot, limits });
    };
    for seed in 0..3 {
        let took = cold_start(1_000, 16, seed, large);
        let allowed = allowed(1_000, 16);
        assert!(took <= allowed, "{took} > {allowed} ms");
    }
}

#[test]
fn a_slow_store_and_slow_guilds_do_not_slow_it_down() {
    for seed in 0..3 {
        let took = cold_start(64, 1, seed, |fleet| {
            fleet.store_ms = (50, LEAD_MS);
            fleet.ready_ms = (5_000, 18_000);
        });
        assert!(took <= allowed(64, 1), "{took} ms");
        let took = cold_start(320, 16, seed, |fleet| {
            fleet.store_ms = (20, 150);
            fleet.ready_ms = (5_000, 18_000);
        });
        assert!(took <= allowed(320, 16), "{took} ms");
    }
}
