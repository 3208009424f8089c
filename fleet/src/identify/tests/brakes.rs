//! Crash loops and storms in virtual time.

use super::{
    fleet::{Discord, Fleet, Health},
    *,
};
use crate::identify::storm::{PROBE_WAIT_MAX_MS, ROW, WINDOW_ROUNDS};

fn up(shards: u32, mc: u32, seed: u64) -> Fleet {
    let mut fleet = Fleet::new(shards, mc, seed);
    fleet.drop_all(200);
    fleet.run(DAY_MS, Fleet::all_ready);
    assert!(fleet.all_ready());
    let settled = fleet.now + 120_000;
    fleet.run(settled, |_| false);
    fleet.identifies.clear();
    fleet
}

fn mode(fleet: &Fleet) -> Mode {
    fleet.ledger.status(at(fleet.now))[0].mode
}

#[test]
fn an_outage_wastes_nothing_and_ends_in_bucket_order() {
    for (shards, mc, seed) in [(64, 1, 1), (64, 16, 2), (200, 16, 3)] {
        let mut fleet = up(shards, mc, seed);
        fleet.discord = Discord::Unreachable;
        fleet.drop_all(2_000);
        let end = fleet.now + 600_000;
        fleet.run(end, |_| false);
        assert_eq!(fleet.identifies, [], "an IDENTIFY in an outage");
        assert_eq!(mode(&fleet), Mode::Normal);
        // It is over: each shard connects again within its backoff of at most 15 s.
        fleet.discord = Discord::Up;
        fleet.run(DAY_MS, Fleet::all_ready);
        assert_eq!(fleet.identifies.len(), shards as usize);
        assert_eq!(fleet.wasted, 0);
        let took = fleet.identifies.last().map_or(0, |(at, _)| at - end);
        let rule = i64::from(shards.div_ceil(mc)) * RULE_MS;
        assert!(took <= rule * 105 / 100 + 15_000, "{took} of {rule} ms");
    }
}

#[test]
fn a_gateway_that_takes_no_identify_wastes_no_more_than_a_constant() {
    for discord in [Discord::Refusing, Discord::Silent] {
        for (shards, mc, seed) in [(64, 1, 1), (64, 16, 2), (200, 16, 3), (8, 8, 4), (2, 1, 5)] {
            let mut fleet = up(shards, mc, seed);
            fleet.discord = discord;
            fleet.drop_all(2_000);
            let end = fleet.now + 600_000;
            fleet.run(end, |_| false);
            let wasted = fleet.identifies.len();
            // The first window, and a probe every two minutes and more before that.
            let most = (mc * WINDOW_ROUNDS).max(ROW) as usize + 12;
            assert!(
                wasted <= most,
                "{discord:?} {shards}/{mc}: {wasted} > {most}"
            );
            assert_eq!(mode(&fleet), Mode::Probing, "{discord:?} {shards}/{mc}");
            let probing = |n: &Notice| matches!(n, Notice::Probing { .. });
            assert_eq!(fleet.notices.iter().filter(|n| probing(n)).count(), 1);

            fleet.discord = Discord::Up;
            fleet.run(DAY_MS, Fleet::all_ready);
            assert!(fleet.all_ready());
            assert_eq!(mode(&fleet), Mode::Normal);
            assert!(matches!(
                fleet.notices.last(),
                Some(Notice::Recovered { .. })
            ));
            if shards > 2 {
                // One probe, at worst a whole wait away and 30 s late, then full speed.
                let took = fleet.identifies.last().map_or(0, |(at, _)| at - end);
                let rule = i64::from(shards.div_ceil(mc)) * RULE_MS * 105 / 100;
                let most = PROBE_WAIT_MAX_MS + 40_000 + rule;
                assert!(
                    took <= most,
                    "{discord:?} {shards}/{mc}: {took} > {most} ms"
                );
            }
        }
    }
}

#[test]
fn one_bad_shard_is_no_storm() {
    let mut fleet = up(16, 1, 7);
    fleet.shards[3].health = Health::DiesAtOnce;
    fleet.drop_all(500);
    let end = fleet.now + 3_600_000;
    fleet.run(end, |_| false);
    assert_eq!(mode(&fleet), Mode::Normal);
    let others = fleet.shards.iter().filter(|shard| shard.ready).count();
    assert_eq!(others, 15, "the others came up");
    let tries = fleet.identifies.iter().filter(|(_, shard)| *shard == 3);
    assert!(tries.count() <= 12, "it waits ever longer");
    let told = |n: &Notice| matches!(n, Notice::Delayed { shard: 3, .. });
    assert!(fleet.notices.iter().any(told));
}

#[test]
fn a_crash_loop_is_stopped_before_the_reserve_is_touched() {
    let loops = [
        Health::DiesAtOnce,
        Health::DiesAfter(200),
        Health::DiesAfter(30_000),
        Health::DiesAfter(70_000),
        Health::DiesAfter(300_000),
    ];
    for (seed, health) in loops.into_iter().enumerate() {
        for (shards, mc, bad) in [(64, 16, 64), (64, 16, 16), (16, 1, 4)] {
            let mut fleet = up(shards, mc, seed as u64);
            let before = fleet.ledger.status(at(fleet.now))[0].used;
            for shard in &mut fleet.shards[..bad] {
                shard.health = health;
            }
            fleet.drop_all(1_000);
            let end = fleet.now + DAY_MS - 1_000_000;
            fleet.run(end, |_| false);
            let status = &fleet.ledger.status(at(fleet.now))[0];
            let what = format!("{health:?}, {bad} of {shards}/{mc}: {status:?}");
            assert_eq!(fleet.refused, 0, "stopped by the brakes: {what}");
            assert!(
                status.used < status.total - status.reserve,
                "of {before}: {what}"
            );
            assert!(
                fleet.notices.iter().any(|notice| matches!(
                    notice,
                    Notice::Delayed { .. } | Notice::Slowed { .. } | Notice::Probing { .. }
                )),
                "nobody was told: {what}"
            );
            for shard in &fleet.shards[bad..] {
                assert!(shard.ready, "a shard that is well is down: {what}");
            }
        }
    }
}

/// Many shards waste their IDENTIFYs one by one, so that no storm is seen: the bot's brake.
#[test]
fn after_a_day_of_trouble_slow_start_lets_everyone_back_in() {
    let mut fleet = up(60, 16, 9);
    for shard in &mut fleet.shards {
        shard.health = Health::DiesAfter(1_000);
    }
    fleet.drop_all(1_000);
    let end = fleet.now + 7_200_000;
    fleet.run(end, |_| false);
    assert!(fleet.ledger.bots[BOT].guard.is_slow(), "the brake is on");
    assert_eq!(mode(&fleet), Mode::Probing);
    for shard in &mut fleet.shards {
        shard.health = Health::Well;
    }
    let began = fleet.now;
    fleet.run(began + 3 * 3_600_000, Fleet::all_ready);
    assert!(fleet.all_ready());
}

#[test]
fn a_start_of_a_foreign_bot_is_one_probe_however_many_shards_it_has() {
    let mut ledger = empty();
    configure(&mut ledger, 16, None);
    let start = |id: u64, process: &str, attempt, shard| {
        Input::Request(Request {
            process: process.to_owned(),
            via: Via::Start,
            ..request(id, shard, attempt)
        })
    };
    // Four processes of two shards each die as they start, again and again.
    let mut now = 0;
    let mut mode = Mode::Normal;
    for attempt in 1..=3 {
        for process in 0..4_u32 {
            for shard in [2 * process, 2 * process + 1] {
                let id = attempt * 100 + u64::from(shard);
                let name = format!("{BOT}/{process}");
                let effects = step(&mut ledger, at(now), start(id, &name, attempt, shard));
                if mode == Mode::Normal && attempt == 1 {
                    assert_eq!(granted(&effects), [id]);
                }
                mode = ledger.status(at(now))[0].mode;
                // A start that failed is one failure: four of them make a storm.
                let failed = attempt > 1 && (attempt > 2 || process == 3);
                assert_eq!(mode == Mode::Probing, failed, "{attempt} {process}");
            }
        }
        now += 20_000;
    }
    // One process is let in, whole; the others wait for what becomes of it.
    step(&mut ledger, at(now), Input::Tick);
    let waiting: Vec<u32> = ledger.bots[BOT].waiting.keys().map(|(s, _)| *s).collect();
    assert_eq!(waiting, [0, 1, 2, 3, 4, 5]);
    let mut effects = step(&mut ledger, at(now), ready(6));
    effects.extend(step(&mut ledger, at(now), Input::Tick));
    assert_eq!(granted(&effects).len(), 6, "all the others at once");
    assert_eq!(ledger.status(at(now))[0].mode, Mode::Normal);
}
