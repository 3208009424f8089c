//! A shard that silently stops getting one type of event is found, resumed, identified, and well
//! again, within the budget and without touching anybody else.

use serde_json::{Value, json};
use tanako_e2e::{Rig, Size, discord::number, logs, rig::bots, wait};

const SHARDS: u32 = 8;
/// The one that loses a type.
const SICK: u64 = 3;
const TYPE: &str = "MESSAGE_CREATE";
const EVENTS: u32 = 400;

fn shards(status: &Value) -> impl Iterator<Item = &Value> {
    bots(status).flat_map(|bot| bot["shards"].as_array().into_iter().flatten())
}

fn sick_of(status: &Value) -> Result<Value, String> {
    let found = shards(status).find(|shard| shard["id"] == SICK);
    found.cloned().ok_or_else(|| status.to_string())
}

fn sick(rig: &Rig) -> Result<Value, String> {
    sick_of(&rig.status()?)
}

fn told(rig: &Rig, kind: &str) -> Vec<String> {
    let output = rig.agent.ctl(&["events", "-n", "500", "-o", "json"]);
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|event| event["kind"] == kind)
        .filter_map(|event| Some(event["message"].as_str()?.to_owned()))
        .collect()
}

#[test]
fn a_silent_shard_is_resumed_then_identified_and_well_again() {
    let rig = Rig::up(Size {
        shards: SHARDS,
        per_process: 4,
        guilds: 800,
        max_concurrency: SHARDS,
        events: EVENTS,
        interactions: 0,
        bot: "health = { silent = \"10s\" }".to_owned(),
        ..Size::promised()
    });
    rig.flow();
    // A history that can be judged: half a minute, in which every second brought something.
    let enough = u64::from(EVENTS / SHARDS) * 45;
    let began = rig.status().expect("a status");
    let counts = |status: &Value| -> Vec<u64> {
        let events = shards(status).filter_map(|shard| shard["events"].as_u64());
        events.collect()
    };
    let before = counts(&began);
    wait::until("a history", 240, || {
        let status = rig.status()?;
        let now = counts(&status);
        let grown = now
            .iter()
            .zip(&before)
            .all(|(now, old)| now - old >= enough);
        grown
            .then_some(())
            .ok_or_else(|| format!("{before:?} {now:?}"))
    });
    let spent = |status: &Value| status["identify"]["used"].as_u64().expect("a number");
    let (pids, used) = (rig.pids(), spent(&began));
    let wasted = logs::wasted_permits(&rig.agent.path(""));
    rig.discord.forget();
    let muted = rig
        .discord
        .post("/faults/mute", &json!({ "shard": SICK, "event": TYPE }));
    assert_eq!(muted["affected"], 1, "{muted}");

    let (status, shard) = wait::until("a silent shard", 120, || {
        let status = rig.status()?;
        let shard = sick_of(&status)?;
        if shard["health"] == "silent" {
            Ok((status, shard))
        } else {
            Err(shard.to_string())
        }
    });
    let why = shard["health_detail"].as_str().expect("a reason");
    assert!(why.contains(TYPE), "{why}");
    assert_eq!(status["healthy"], false, "{}", status["reasons"]);

    // The session itself is muted: the RESUME cannot help, the new session does.
    wait::until("an IDENTIFY", 240, || {
        let account = rig.discord.account();
        (number(&account, "/identifies") > 0)
            .then_some(())
            .ok_or_else(|| account.to_string())
    });
    wait::until("a shard that is well", 120, || {
        let shard = sick(&rig)?;
        (shard["health"] == "ok" && !told(&rig, "shard-recovered").is_empty())
            .then_some(())
            .ok_or_else(|| shard.to_string())
    });
    let account = rig.discord.account();
    assert_eq!(number(&account, "/resumes"), 1, "{account}");
    assert_eq!(number(&account, "/identifies"), 1, "{account}");
    assert_eq!(number(&account, "/identifies_refused"), 0, "{account}");
    assert_eq!(rig.pids(), pids, "nobody was restarted");
    let unwell = told(&rig, "shard-unwell");
    assert_eq!(unwell.len(), 2, "{unwell:?}");
    assert!(
        unwell.iter().any(|text| text.contains("RESUME")),
        "{unwell:?}"
    );
    let status = rig.whole();
    let wasted = logs::wasted_permits(&rig.agent.path("")) - wasted;
    let more = spent(&status) - used;
    assert!((1..=1 + wasted).contains(&more), "{wasted} {more}");
}
