//! A rolling restart of a whole fleet under load: no IDENTIFY, nothing missed, nothing handled twice,
//! and a receipt that says what Discord's account says.
//!
//! 64 shards in 16 processes, 2,000 events a second, a share of them slash commands. 50,000 guilds and
//! the exact times of a cold start with `TANAKO_E2E_FULL=1`, on release binaries and a quiet machine.

use std::time::Instant;

use serde_json::Value;
use tanako_e2e::{
    Rig, Size, Warnings,
    discord::{demand_exact, demand_spaced, identify_interval_ms, number},
    fleet::pids,
    rig::{bots, full},
};

fn sum(receipt: &[Value], field: &str) -> u64 {
    receipt
        .iter()
        .map(|shard| shard[field].as_u64().expect("a number"))
        .sum()
}

/// What a receipt says must be what Discord has counted meanwhile. Gives the gaps, sorted.
fn demand_true(operation: &Value, account: &Value, shards: u32) -> Vec<u64> {
    let receipt = operation["receipt"].as_array().expect("a receipt");
    let how = |word: &str| {
        let all = receipt.iter().filter(|shard| shard["how"] == word);
        all.count() as u64
    };
    let mut ids: Vec<u64> = receipt
        .iter()
        .filter_map(|shard| shard["shard_id"].as_u64())
        .collect();
    ids.sort_unstable();
    let all: Vec<u64> = (0..u64::from(shards)).collect();
    assert_eq!(ids, all, "each shard once: {operation:#}");
    assert_eq!(how("resumed"), number(account, "/resumes"), "{operation:#}");
    assert_eq!(how("resumed"), u64::from(shards), "{operation:#}");
    assert_eq!(
        how("identified"),
        number(account, "/identifies"),
        "{operation:#}"
    );
    assert_eq!(
        sum(receipt, "replayed"),
        number(account, "/events_replayed"),
        "{operation:#}"
    );
    assert_eq!(
        sum(receipt, "lost"),
        number(account, "/events_lost"),
        "{operation:#}"
    );
    assert_eq!(
        sum(receipt, "duplicated"),
        number(account, "/interactions/answered_twice"),
        "{operation:#}"
    );
    let totals = &operation["receipt_totals"];
    for (field, right) in [
        ("shards", u64::from(shards)),
        ("resumed", number(account, "/resumes")),
        ("identified", number(account, "/identifies")),
        ("unknown", 0),
        ("replayed", number(account, "/events_replayed")),
        ("lost", number(account, "/events_lost")),
        (
            "duplicated",
            number(account, "/interactions/answered_twice"),
        ),
    ] {
        assert_eq!(totals[field], right, "{field} of {totals}");
    }
    let mut gaps: Vec<u64> = receipt
        .iter()
        .map(|shard| shard["gap_ms"].as_u64().expect("a number"))
        .collect();
    gaps.sort_unstable();
    gaps
}

#[test]
fn a_rolling_restart_of_everything_costs_nothing() {
    let size = Size {
        // On a machine of its own, four rounds in the buckets of a cold start. Where it shares the
        // cores, an IDENTIFY may wait for one longer than a bucket's margin: then one round.
        max_concurrency: if full() { 16 } else { 64 },
        ..Size::lighter()
    };
    let (shards, buckets) = (size.shards, size.max_concurrency);
    let rig = Rig::up(size);

    // The cold start: one IDENTIFY a shard, none refused, buckets respected, no bucket idle.
    let log = rig.discord.get("/identifies");
    let took = demand_spaced(&log);
    assert_eq!(log.as_array().map(Vec::len), Some(shards as usize));
    let rounds = u64::from(shards.div_ceil(buckets));
    if full() {
        let longest = rounds * identify_interval_ms() * 105 / 100;
        assert!(took <= longest, "{took} ms for {rounds} rounds of buckets");
    }
    println!("cold start: IDENTIFYs over {took} ms in {rounds} rounds");

    rig.flow();
    let before = rig.pids();
    let warnings = Warnings::begin(&rig, 100);
    let begun = Instant::now();
    let operation = rig.json(&["restart", "tanako", "--yes", "--wait"]);
    let whole = begun.elapsed();
    let status = rig.whole();
    let account = rig.settle();
    assert_eq!(operation["state"], "succeeded", "{operation:#}");
    demand_exact("rolling restart of everything", &account, 0);
    // In order, too: the old process closed each session before the new one took it up, and gave
    // its successor exactly what it had not had.
    assert_eq!(number(&account, "/resumes_while_connected"), 0, "{account}");
    assert_eq!(number(&account, "/resumes_refused"), 0, "{account}");
    assert_eq!(number(&account, "/events_replayed_again"), 0, "{account}");
    let gaps = demand_true(&operation, &account, shards);
    let warned = warnings.judge(&rig);

    for (name, (pid, attempt)) in &before {
        let (new_pid, new_attempt) = pids(&status)[name];
        if name.starts_with("tanako/") {
            assert!(new_pid != *pid && new_attempt == attempt + 1, "{name}");
        } else {
            assert_eq!((new_pid, new_attempt), (*pid, *attempt), "{name}");
        }
    }
    // What the bots say of themselves agrees.
    for shard in bots(&status).flat_map(|bot| bot["shards"].as_array().into_iter().flatten()) {
        assert_eq!(shard["identified"], 0, "{shard}");
        assert_eq!(shard["resumed"], 1, "{shard}");
    }
    println!(
        "{shards} shards in {:.1} s; gap p50 {} ms, p99 {} ms; {} events and {} commands meanwhile, \
         {} replayed, {warned} warnings written once",
        whole.as_secs_f64(),
        gaps[gaps.len() / 2],
        gaps[gaps.len() * 99 / 100],
        number(&account, "/events_generated"),
        number(&account, "/interactions/sent"),
        number(&account, "/events_replayed"),
    );

    // Several at once, and then one process alone: the same zeros.
    for (target, more, touched) in [("tanako", "4", shards), ("tanako/3", "1", 4)] {
        rig.flow();
        rig.json(&[
            "restart",
            target,
            "--max-unavailable",
            more,
            "--yes",
            "--wait",
        ]);
        rig.whole();
        let account = rig.settle();
        let what = format!("restart of {target}, {more} at once");
        demand_exact(&what, &account, 0);
        assert_eq!(number(&account, "/resumes"), u64::from(touched), "{what}");
    }
}
