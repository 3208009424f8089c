//! Another number of shards under load, and a new set of processes beside the old one: each event
//! handled exactly once, IDENTIFYs spent as the plan said, and back again from any step.
//!
//! `TANAKO_E2E_FULL=1` does it with 20,000 guilds and 2,000 events a second.

use serde_json::Value;
use tanako_e2e::{
    Rig, Size, Warnings,
    discord::{demand_spaced, number},
    fleet::text,
    rig::{bots, full},
};

fn size() -> Size {
    let (guilds, events, interactions) = if full() {
        (20_000, 1_950, 50)
    } else {
        (4_000, 380, 20)
    };
    Size {
        shards: 8,
        per_process: 2,
        guilds,
        max_concurrency: 16,
        events,
        interactions,
        // A set that is closed leaves sessions behind that nobody takes up.
        discord: vec!["--resume-window".to_owned(), "15s".to_owned()],
        ..Size::promised()
    }
}

/// What two overlapping sets of shards may not do: leave a command unanswered, answer one twice, or
/// identify more often than planned. (Events given to sessions that were closed for good after the
/// cut count as lost with Discord; they were the other set's, and the bots count what they missed.)
fn demand_once(what: &str, account: &Value, identifies: u64) {
    let mut flaws = Vec::new();
    for (pointer, right) in [
        ("/identifies", identifies),
        ("/identifies_refused", 0),
        ("/tokens_reset", 0),
        ("/events_unrouted", 0),
        ("/events_evicted", 0),
        ("/interactions/answered_twice", 0),
        ("/interactions/late", 0),
        ("/interactions/unanswered", 0),
        ("/interactions/unrouted", 0),
        (
            "/interactions/answered",
            number(account, "/interactions/sent"),
        ),
    ] {
        let found = number(account, pointer);
        if found != right {
            flaws.push(format!("{pointer} = {found}, right is {right}"));
        }
    }
    assert!(flaws.is_empty(), "{what}: {flaws:#?}\n{account:#}");
}

fn held(status: &Value) -> Vec<(u64, u64)> {
    let mut held: Vec<(u64, u64)> = bots(status)
        .flat_map(|bot| bot["shards"].as_array().into_iter().flatten())
        .filter_map(|shard| Some((shard["id"].as_u64()?, shard["count"].as_u64()?)))
        .collect();
    held.sort_unstable();
    held
}

fn set(count: u64) -> Vec<(u64, u64)> {
    (0..count).map(|id| (id, count)).collect()
}

fn sum(operation: &Value, field: &str) -> u64 {
    let receipt = operation["receipt"].as_array().expect("a receipt");
    receipt
        .iter()
        .map(|shard| shard[field].as_u64().expect("a number"))
        .sum()
}

#[test]
fn eight_become_sixteen_under_load() {
    let rig = Rig::up(size());
    rig.flow();
    let warnings = Warnings::begin(&rig, 120);
    let operation = rig.json(&[
        "reshard",
        "tanako",
        "--shards",
        "16",
        "--observe",
        "3s",
        "--yes",
        "--wait",
    ]);
    assert_eq!(operation["state"], "succeeded", "{operation:#}");
    let status = rig.whole_of(8, 16);
    let account = rig.settle_of(16);
    demand_once("8 to 16", &account, 16);
    demand_spaced(&rig.discord.get("/identifies"));
    assert_eq!(held(&status), set(16), "{status}");
    assert_eq!(sum(&operation, "lost"), 0, "{operation:#}");
    assert_eq!(sum(&operation, "duplicated"), 0, "{operation:#}");
    let warned = warnings.judge(&rig);
    rig.say(&format!("8 to 16: {warned} warnings written once"));

    // The new set is a fleet like any other.
    rig.flow_of(16);
    rig.json(&["restart", "tanako", "--yes", "--wait"]);
    rig.whole_of(8, 16);
    let account = rig.settle_of(16);
    demand_once("restart of the new set", &account, 0);
    assert_eq!(number(&account, "/resumes"), 16, "{account}");
}

/// Starts a reshard, waits for a step, aborts, and demands the old set back as it was.
fn abort_at(rig: &Rig, what: &str, reached: impl Fn(&Value) -> bool) {
    let before = rig.pids();
    rig.flow();
    let warnings = Warnings::begin(rig, 120);
    let mut command = rig.spawn(&[
        "reshard",
        "tanako",
        "--shards",
        "16",
        // Ended by the abort.
        "--observe",
        "5m",
        "--yes",
        "--wait",
    ]);
    let operation = rig.operation("reshard", what, 120, |operation| {
        operation["state"] == "running" && reached(operation)
    });
    let id = operation["id"].as_str().expect("an id");
    let output = rig
        .agent
        .ctl(&["operation", "abort", id, "--yes", "-o", "json"]);
    assert!(output.status.success(), "{}", text(&output));
    let operation = rig.ended("reshard", 180);
    assert_eq!(operation["state"], "aborted", "{operation:#}");
    let code = command.wait().expect("its end").code();
    assert_ne!(code, Some(0), "an aborted reshard is no success");
    let status = rig.whole();
    let account = rig.settle();
    let spent = number(&account, "/identifies");
    assert!(spent <= 16, "{spent} IDENTIFYs for a set of 16");
    demand_once(what, &account, spent);
    assert_eq!(held(&status), set(8), "{status}");
    assert_eq!(rig.pids(), before, "the old set was not touched");
    let warned = warnings.judge(rig);
    rig.say(&format!(
        "aborted {what}: {spent} IDENTIFYs, {warned} warnings written once"
    ));
}

fn states(operation: &Value, action: &str) -> Vec<String> {
    let steps = operation["steps"].as_array().into_iter().flatten();
    steps
        .filter(|step| step["action"] == action)
        .filter_map(|step| step["state"].as_str().map(str::to_owned))
        .collect()
}

fn ended(operation: &Value, action: &str) -> bool {
    let states = states(operation, action);
    !states.is_empty() && states.iter().all(|state| state == "succeeded")
}

fn began(operation: &Value, action: &str) -> bool {
    states(operation, action)
        .iter()
        .any(|state| state != "pending")
}

#[test]
fn an_aborted_reshard_goes_back() {
    let rig = Rig::up(size());
    abort_at(&rig, "before the cut", |operation| {
        began(operation, "shadow") && !began(operation, "cut")
    });
    abort_at(&rig, "after the cut", |operation| ended(operation, "cut"));
}

#[test]
fn a_new_set_takes_the_sessions_of_the_old_one() {
    let rig = Rig::up(size());
    let before = rig.pids();
    rig.flow();
    let warnings = Warnings::begin(&rig, 120);
    let operation = rig.json(&[
        "rollout",
        "start",
        "tanako",
        "--strategy",
        "blue-green",
        "--observe",
        "3s",
        "--yes",
        "--wait",
    ]);
    assert_eq!(operation["state"], "succeeded", "{operation:#}");
    let status = rig.whole();
    let account = rig.settle();
    tanako_e2e::discord::demand_exact("blue-green", &account, 0);
    assert_eq!(number(&account, "/resumes"), 8, "{account}");
    assert_eq!(held(&status), set(8), "{status}");
    assert_eq!(sum(&operation, "lost"), 0, "{operation:#}");
    let after = rig.pids();
    for name in before.keys().filter(|name| name.starts_with("tanako/")) {
        assert!(!after.contains_key(name), "{name} is of the old set");
    }
    let warned = warnings.judge(&rig);
    rig.say(&format!("blue-green: {warned} warnings written once"));
}

/// What `tanakoctl status` says for people.
fn status_text(rig: &Rig) -> String {
    text(&rig.agent.ctl(&["status"]))
}

#[test]
fn auto_proposes_what_discord_recommends_and_moves_nothing_by_itself() {
    let rig = Rig::up(Size {
        shards: 4,
        // So many that four shards are what it begins with, at any size of this test.
        guilds: 4_000,
        auto: true,
        discord: [
            size().discord,
            vec!["--recommended-shards".to_owned(), "4".to_owned()],
        ]
        .concat(),
        ..size()
    });
    assert!(
        !status_text(&rig).contains("recommends"),
        "{}",
        status_text(&rig)
    );
    let before = rig.pids();
    rig.discord
        .post("/gateway", &serde_json::json!({ "recommended_shards": 8 }));
    // Bots ask every few minutes, and when they start.
    rig.json(&["restart", "tanako/1", "--yes", "--wait"]);
    let command = "`tanakoctl reshard tanako --shards 8`";
    let says = |what: &str, of: &dyn Fn() -> String| {
        tanako_e2e::wait::until(what, 90, || {
            let said = of();
            let there = said.contains("Discord recommends 8 shards") && said.contains(command);
            there.then_some(()).ok_or(said)
        });
    };
    says("a proposal in the status", &|| status_text(&rig));
    says("a proposal in the JSON", &|| {
        rig.status()
            .map_or_else(|why| why, |status| status["reasons"].to_string())
    });
    says("an event", &|| text(&rig.agent.ctl(&["events"])));
    // It is told of, and that is all: the fleet is well, and nothing has moved.
    let status = rig.whole_of(2, 4);
    assert_eq!(held(&status), set(4), "{status}");
    let after = rig.pids();
    assert_eq!(after["tanako/0"], before["tanako/0"], "{after:?}");
    let operations = rig.json(&["operation", "list"]);
    let kinds: Vec<&Value> = operations
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| &one["kind"])
        .collect();
    assert!(
        !kinds.iter().any(|kind| **kind == "reshard"),
        "{operations}"
    );
    // The operator's word, without a number: what Discord recommends.
    let operation = rig.json(&["reshard", "tanako", "--observe", "3s", "--yes", "--wait"]);
    assert_eq!(operation["state"], "succeeded", "{operation:#}");
    let status = rig.whole_of(4, 8);
    assert_eq!(held(&status), set(8), "{status}");
    assert!(
        !status_text(&rig).contains("recommends"),
        "{}",
        status_text(&rig)
    );
}
