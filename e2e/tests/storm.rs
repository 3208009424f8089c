//! When Discord is down, or one bot runs amok, nothing is spent and nobody is restarted.
//!
//! `TANAKO_E2E_FULL=1` makes the outage last ten minutes.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tanako_e2e::{
    Rig, Size,
    discord::{demand_exact, demand_spaced, number},
    processes,
    rig::full,
    wait,
};

/// A storm has no commands in it: those of an outage are late whoever answers them.
fn size() -> Size {
    Size {
        interactions: 0,
        max_concurrency: 8,
        ..Size::chosen()
    }
}

/// Discord is down for a while: gateway and REST, every connection reset at once.
fn outage(rig: &Rig, seconds: u64) {
    let body = json!({ "seconds": seconds, "gateway": true, "rest": true });
    // Not after its real end.
    let end = Instant::now() + Duration::from_secs(seconds);
    rig.discord.post("/faults/outage", &body);
    wait::until("every session's loss", 60, || {
        let account = rig.discord.account();
        (number(&account, "/sessions_open") == 0)
            .then_some(())
            .ok_or(account.to_string())
    });
    wait::until("the end of the outage", seconds + 60, || {
        let account = rig.discord.account();
        let spent = number(&account, "/identifies") + number(&account, "/identifies_refused");
        let over = Instant::now() >= end;
        assert!(spent == 0 || over, "IDENTIFY in an outage: {account}");
        over.then_some(()).ok_or_else(|| "it lasts".to_owned())
    });
}

#[test]
fn an_outage_of_discord_wastes_nothing_and_restarts_nobody() {
    let rig = Rig::up(size());
    let before = rig.pids();

    rig.flow();
    outage(&rig, 20);
    rig.whole();
    let account = rig.settle();
    demand_exact("20 s without Discord", &account, 0);
    assert!(
        number(&account, "/resumes") >= u64::from(rig.size.shards),
        "{account}"
    );
    assert_eq!(rig.pids(), before, "nobody was restarted");

    // Longer than Discord keeps sessions: each is identified again, once, in the order of buckets.
    let size = Size {
        discord: vec!["--resume-window".to_owned(), "4s".to_owned()],
        ..size()
    };
    drop(rig);
    let rig = Rig::up(size);
    let before = rig.pids();
    rig.flow();
    outage(&rig, if full() { 600 } else { 10 });
    rig.whole();
    let account = rig.settle();
    let shards = u64::from(rig.size.shards);
    assert_eq!(number(&account, "/identifies"), shards, "{account}");
    assert_eq!(number(&account, "/identifies_refused"), 0, "{account}");
    assert_eq!(number(&account, "/tokens_reset"), 0, "{account}");
    let log = rig.discord.get("/identifies");
    let took = demand_spaced(&log);
    let rounds = u64::from(rig.size.shards.div_ceil(rig.size.max_concurrency));
    // The moments at which shards come back are spread by their backoff, which is part of the brake.
    rig.say(&format!(
        "identified again over {took} ms in {rounds} rounds of buckets"
    ));
    assert_eq!(rig.pids(), before, "nobody was restarted");
}

#[test]
fn a_dead_resume_url_is_left_for_the_generic_one() {
    let rig = Rig::up(size());
    let before = rig.pids();
    rig.flow();
    rig.discord
        .post("/faults/resume-url", &json!({ "dead": true }));
    let dropped = rig.discord.post("/faults/drop", &json!({ "all": true }));
    assert_eq!(dropped["affected"], rig.size.shards, "{dropped}");
    rig.whole();
    let account = rig.settle();
    rig.discord
        .post("/faults/resume-url", &json!({ "dead": false }));
    demand_exact("dead resume URLs", &account, 0);
    assert_eq!(
        number(&account, "/resumes"),
        u64::from(rig.size.shards),
        "{account}"
    );
    assert_eq!(rig.pids(), before, "nobody was restarted");
}

#[test]
fn a_crash_loop_is_stopped_before_the_reserve() {
    const TOTAL: u64 = 30;
    const SHARDS: u32 = 8;
    let rig = Rig::up(Size {
        shards: SHARDS,
        per_process: 4,
        guilds: 400,
        max_concurrency: SHARDS,
        events: 50,
        interactions: 0,
        // No help from the supervisor: the broker alone must hold it.
        bot: "restart = { backoff_min = \"50ms\", backoff_max = \"100ms\", crash_loop_starts = 1000 }"
            .to_owned(),
        discord: vec!["--identify-total".to_owned(), TOTAL.to_string()],
        ..Size::promised()
    });
    let reserve = rig.status().expect("a status")["identify"]["reserve"]
        .as_u64()
        .expect("a reserve");
    assert!(reserve > 0, "nothing is kept back");
    let before = rig.pids();
    let cold = number(&rig.discord.account(), "/identifies");
    rig.flow();

    // As soon as it has identified, its sessions are void and it dies.
    let bad = "tanako/0";
    let wasted = || number(&rig.discord.account(), "/identifies");
    let end = Instant::now() + Duration::from_secs(if full() { 600 } else { 40 });
    let patience = end + Duration::from_secs(180);
    let mut deaths = 0;
    let mut events = BTreeSet::new();
    while Instant::now() < end || deaths < 3 && Instant::now() < patience {
        if wasted() >= 4 * deaths {
            for shard in 0..4 {
                rig.discord
                    .post("/faults/invalid-session", &json!({ "shard": shard }));
            }
            let (pid, _) = rig.pids()[bad];
            processes::kill(u32::try_from(pid).expect("a pid"));
            deaths += 1;
        }
        events = kinds(&rig);
        let used = rig.discord.account();
        assert_eq!(number(&used, "/tokens_reset"), 0, "{used}");
        assert_eq!(number(&used, "/identifies_refused"), 0, "{used}");
        std::thread::park_timeout(Duration::from_millis(500));
    }
    let status = rig.status().expect("a status");
    let used = status["identify"]["used"].as_u64().expect("a number");
    let spent = cold + wasted();
    rig.say(&format!(
        "{deaths} deaths, {spent} of {TOTAL} IDENTIFYs, ledger {used}, events {events:?}"
    ));
    assert!(deaths >= 3, "it did not even loop: {deaths}");
    assert!(
        spent.max(used) <= TOTAL - reserve,
        "{spent} of {TOTAL}: {status}"
    );
    assert!(
        events.contains("identify-delayed")
            || events.contains("identify-slow-start")
            || events.contains("identify-refused"),
        "{events:?}"
    );
    // Nobody else was touched.
    let after = rig.pids();
    for (name, process) in &before {
        if name != bad {
            assert_eq!(after[name], *process, "{name}");
        }
    }
}

/// The kinds of events that there were.
fn kinds(rig: &Rig) -> BTreeSet<String> {
    let output = rig.agent.ctl(&["events", "-n", "1000", "-o", "json"]);
    let printed = String::from_utf8_lossy(&output.stdout);
    printed
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|event| event["kind"].as_str().map(str::to_owned))
        .collect()
}
